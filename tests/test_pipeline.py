"""From DICOM to report, and what is reused, made again, refused and kept afterwards."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import pipeline_runs

from pipeline.orchestration.graph import NAMES, STAGES
from pipeline.orchestration.plan import RunError, plan
from pipeline.orchestration.run import run
from pipeline.store import lineage
from pipeline.store.artifacts import Store, StoreError
from pipeline.store.files import sha256_file

FOLLOWING = {name: NAMES[NAMES.index(name) :] for name in NAMES}


def actions(project, *overrides, **choices) -> dict[str, str]:
    return {step.stage.name: step.action for step in plan(*project.load(*overrides), **choices)}


def reasons(project, *overrides, **choices) -> dict[str, str]:
    return {step.stage.name: step.reason for step in plan(*project.load(*overrides), **choices)}


def expect(made_again: tuple[str, ...], action: str = "run") -> dict[str, str]:
    return {name: action if name in made_again else "reuse" for name in NAMES}


def artifact(project, stage: str):
    (found,) = Store(project.store).all(stage)
    return found


def test_every_stage_leaves_one_complete_artifact(finished):
    for name in NAMES:
        assert artifact(finished, name).record["files"]
    assert not list(finished.store.glob("*/*.partial"))


def test_the_same_command_again_reuses_all_ten_stages(finished):
    assert actions(finished) == expect(())


def test_a_changed_setting_runs_its_stage_and_what_follows(finished):
    assert actions(finished, "pretrain.mask_ratio=0.6") == expect(FOLLOWING["pretrain"])
    assert reasons(finished, "pretrain.mask_ratio=0.6")["pretrain"] == "settings changed (mask_ratio 0.75 → 0.6)"
    assert reasons(finished, "pretrain.mask_ratio=0.6")["finetune"] == "input changed (pretrain)"


def test_where_and_how_fast_are_not_part_of_any_key(finished, tmp_path):
    moved = finished.copy(tmp_path / "elsewhere")
    assert actions(moved, "machine.workers=2", "machine.threads=2") == expect(())


def test_imported_weights_are_a_source_of_the_stage_that_starts_from_them(finished, tmp_path):
    """By content: neither their place nor weights that no arm uses make a difference."""
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (tmp_path / name).write_bytes(content)

    def planned(stage: str, name: str, *overrides: str):
        steps = plan(*finished.load(f"data.imported_weights={tmp_path / name}", *overrides))
        return next(step for step in steps if step.stage.name == stage)

    def finetune(name: str, *overrides: str):
        return planned("finetune", name, *overrides)

    assert finetune("a.pth").action == "reuse"
    arms = "finetune.arms=[mae, scratch, imported, linear_probe, hog]"
    assert finetune("a.pth", arms).key == finetune("b.pth", arms).key != finetune("c.pth", arms).key
    assert finetune("c.pth", arms).sources == {"imported_weights": sha256_file(tmp_path / "c.pth")}
    assert planned("pretrain", "c.pth", arms).action == "reuse"
    started = planned("pretrain", "c.pth", "pretrain.start=imported")
    assert started.sources == {"start_weights": sha256_file(tmp_path / "c.pth")}
    assert started.key != planned("pretrain", "a.pth", "pretrain.start=imported").key
    assert finetune("c.pth", "pretrain.start=imported").sources == {}


def test_one_corrected_label_runs_split_and_what_follows(finished, tmp_path):
    project = finished.copy(tmp_path / "corrected")
    rows = project.labels.read_text().splitlines()
    rows[1] = rows[1].replace(",normal", ",x").replace(",pneumonia", ",normal").replace(",x", ",pneumonia")
    project.labels.write_text("\n".join(rows) + "\n")
    assert actions(project) == expect(FOLLOWING["split"])
    assert reasons(project)["split"] == "source changed (labels)"


def test_a_corrected_card_text_makes_package_and_report_again_and_nothing_else(finished, tmp_path):
    project = finished.copy(tmp_path / "card")
    card = project.folder / "card.yaml"
    card.write_text(re.sub(r"(?m)^title: .*", "title: Another title", card.read_text()))
    assert actions(project) == expect(("package", "report"))


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's source that tests may edit; only its digest is taken."""
    shutil.copytree(lineage.PACKAGE_FOLDER, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(lineage, "PACKAGE_FOLDER", tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_an_edited_comment_runs_nothing(finished, package):
    for path in package.rglob("*.py"):
        path.write_text(path.read_text() + "\n# a remark\n")
    assert actions(finished) == expect(())


@pytest.mark.parametrize(
    "module", ["statistics/threshold.py", "imaging/transforms.py", "models/mae.py", "store/tables/io.py"]
)
def test_an_edited_helper_runs_exactly_the_stages_that_import_it_and_what_follows(finished, package, module):
    importers = [
        name for name in NAMES if module[:-3].replace("/", ".") in lineage.code_digests(f"pipeline.stages.{name}")
    ]
    assert importers
    assert len(importers) < len(NAMES) or module == "store/tables/io.py"
    (package / module).write_text((package / module).read_text() + "\nEDITED = 1 + 1\n")
    changed = {name for name, why in reasons(finished).items() if "code changed" in why}
    assert changed == set(importers)
    affected = [s.name for s in STAGES if s.name in importers or set(s.reads) & set(importers)]
    assert all(action != "reuse" for name, action in actions(finished).items() if name in affected)
    first = importers[0]
    assert actions(finished)[first] == ("stop" if next(s for s in STAGES if s.name == first).costly else "run")


@pytest.mark.parametrize(
    ("name", "making"),
    [
        ("evaluate", ("evaluate", "report")),
        ("calibrate", ("calibrate", "evaluate", "package", "report")),
        ("split", tuple(name for name in NAMES if name not in ("ingest",))),
    ],
)
def test_the_tables_of_a_stage_are_in_the_code_of_those_that_write_or_read_them_alone(name, making):
    module = f"store.tables.{name}"
    assert {stage for stage in NAMES if module in lineage.code_digests(f"pipeline.stages.{stage}")} <= {*making}


def test_a_reworded_meaning_of_a_column_runs_nothing(finished, package):
    for path in (package / "store/tables").glob("*.py"):
        path.write_text(path.read_text().replace("pseudonym of the", "keyed hash of the"))
    assert actions(finished) == expect(())


def test_a_costly_stage_whose_code_changed_stops_the_run_and_offers_both_ways(finished, package):
    (package / "models/mae.py").write_text((package / "models/mae.py").read_text() + "\nEDITED = 1\n")
    with pytest.raises(RunError, match=r"code changed \(models.mae\).*--keep pretrain.*--rebuild pretrain"):
        run(*finished.load(), say=lambda line: None)
    kept = actions(finished, keep=["pretrain"])
    assert kept == expect(("report",))
    assert reasons(finished, keep=["pretrain"])["report"].startswith("source changed (kept.pretrain)")
    assert actions(finished, rebuild=["pretrain"]) == expect(FOLLOWING["pretrain"])


def test_keeping_a_stage_whose_settings_changed_is_refused(finished):
    with pytest.raises(RunError, match="--keep pretrain: not only its code changed"):
        actions(finished, "pretrain.mask_ratio=0.6", keep=["pretrain"])


def test_a_single_stage_needs_its_inputs(finished):
    with pytest.raises(RunError, match=r"score needs pretrain, finetune.*--until finetune"):
        run(*finished.load("pretrain.mask_ratio=0.6"), only="score", say=lambda line: None)


def test_a_single_stage_runs_alone(finished, tmp_path):
    project = finished.copy(tmp_path / "alone")
    before = artifact(project, "evaluate").record["files"]
    Store(project.store).discard("evaluate", artifact(project, "evaluate").key)
    run(*project.load(), only="evaluate", say=lambda line: None)
    assert artifact(project, "evaluate").record["files"] == before


def test_a_flipped_bit_in_an_artifact_stops_what_reads_it(finished, tmp_path):
    project = finished.copy(tmp_path / "flipped")
    scores = artifact(project, "score").path / "scores_test.parquet"
    content = bytearray(scores.read_bytes())
    content[len(content) // 2] ^= 1
    scores.write_bytes(bytes(content))
    Store(project.store).discard("evaluate", artifact(project, "evaluate").key)
    with pytest.raises(StoreError, match=r"scores_test.parquet has changed since it was made"):
        run(*project.load(), say=lambda line: None)


def test_report_metrics_and_mlflow_say_the_same(finished):
    from pipeline.orchestration.mlflow_runs import headline
    from pipeline.store.tracking import Tracker

    artifacts = {name: artifact(finished, name) for name in NAMES}
    metrics = json.loads((artifacts["evaluate"].path / "metrics.json").read_text())
    (pipeline,) = pipeline_runs(Tracker("mini", finished.store))
    assert pipeline.info.status == "FINISHED"
    numbers = headline(artifacts)
    assert pipeline.data.metrics == pytest.approx(numbers, abs=1e-12)
    assert numbers["test_auc"] == metrics["discrimination"]["auc"]["value"]
    assert pipeline.data.params["pretrain.mask_ratio"] == "0.75"
    assert {f"stage.{name}" for name in NAMES} <= set(pipeline.data.tags)


def test_every_seed_of_an_arm_is_a_run_below_that_of_finetune(finished):
    from pipeline.store.tracking import MLFLOW_PARENT_RUN_ID, Tracker

    tracker, finetune = Tracker("mini", finished.store), artifact(finished, "finetune")
    stage_run = tracker.find("stage", f"finetune/{finetune.key}")
    for arm, seeds in (("mae", (1, 2)), ("scratch", (1, 2)), ("linear_probe", (1,)), ("hog", (1,))):
        for seed in seeds:
            run = tracker.client.get_run(tracker.find("training", f"finetune/{finetune.key}/{arm}/seed{seed}"))
            assert run.data.tags[MLFLOW_PARENT_RUN_ID] == stage_run
            assert run.data.params == {"arm": arm, "seed": str(seed), "labelled_patients": "all"}
            history = json.loads(finetune.file(f"{arm}/seed{seed}/history.json").read_text())
            logged = tracker.client.get_metric_history(run.info.run_id, "tune_auc")
            assert [point.value for point in logged] == [row["tune_auc"] for row in history]
            assert run.data.metrics["kept_tune_auc"] in [row["tune_auc"] for row in history]
    assert len(tracker.indexed("training")) == 6


def test_running_again_changes_nothing_in_mlflow(finished):
    def tables() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in finished.store.rglob("sweep.json")}

    before = tables()
    assert before
    run(*finished.load(), say=lambda line: None)
    assert tables() == before


def test_a_run_with_nothing_to_do_imports_nothing_slow(finished, tmp_path):
    project = finished.copy(tmp_path / "again")
    heavy = ["torch", "mlflow", "monai", "pandas", "pyarrow", "matplotlib", "sklearn", "numpy"]
    code = f"""
import sys
from pipeline.cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    print([name for name in {heavy} if name in sys.modules])
"""

    def slow(*words: str) -> str:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]

    run(*project.load(), say=lambda line: None)  # the copy's database is another one, which MLflow is asked about
    assert slow("plan", str(project.config)) == "[]"
    assert slow("run", str(project.config)) == "[]"


def test_a_run_that_mlflow_lost_is_indexed_again(finished, tmp_path):
    from pipeline.store.tracking import Tracker

    project = finished.copy(tmp_path / "lost")
    run(*project.load(), say=lambda line: None)
    (project.store / "mlflow.db").unlink()
    run(*project.load(), say=lambda line: None)
    assert len(Tracker("mini", project.store).indexed("stage")) == len(NAMES)


def test_a_renamed_label_column_reads_no_study_again(finished, tmp_path):
    project = finished.copy(tmp_path / "renamed")
    first, rows = project.labels.read_text().split("\n", 1)
    project.labels.write_text(f"{first.replace('label', 'finding')}\n{rows}")
    card = project.folder / "card.yaml"
    text = card.read_text()
    card.write_text(re.sub(r"(?m)^(columns:.*\n(?:  .*\n)*?  label:).*", r"\1 finding", text))
    assert card.read_text() != text
    assert actions(project)["ingest"] == "reuse"
    assert reasons(project)["split"] == "source changed (columns, labels)"


def test_every_metric_of_the_report_carries_interval_and_n(finished):
    def intervals(node):
        if isinstance(node, dict):
            if "value" in node and "method" in node:
                yield node
            else:
                for item in node.values():
                    yield from intervals(item)
        elif isinstance(node, list):
            for item in node:
                yield from intervals(item)

    metrics = json.loads((artifact(finished, "evaluate").path / "metrics.json").read_text())
    found = list(intervals(metrics))
    assert len(found) > 20
    assert all({"low", "high", "level", "n"} <= set(one) for one in found)


def test_nothing_about_single_patients_and_no_threshold_is_logged(finished):
    logged = {path.name for path in (finished.store / "mlflow-artifacts").rglob("*") if path.is_file()}
    assert {"summary.json", "calibrator.json", "findings.json", "report.json", "report.pdf"} <= logged
    assert not {name for name in logged if name.endswith(".parquet")}
    assert not logged & {"artifact.json", "threshold.json", "metrics.json", "contact_sheet.png"}
