"""The command line: what it prints, where, and with which exit code."""

import hashlib
import json
import os
import re
import shlex
import signal
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from imaging.files import make_dicom
from PIL import Image
from project import DEMO, pipeline_runs
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli.shared import sigterm_interrupts
from pipeline.orchestration.graph import NAMES
from pipeline.store.artifacts import Store


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_command_has_help():
    from typer.main import get_command

    commands = get_command(app).commands
    others = {"run", "plan", "compare", "trace", "doctor", "power", "init", "inspect", "reindex", "ui", "gc", "predict",
              "model", "monitor", "serve", "listen"}  # fmt: skip
    assert set(NAMES) | others == set(commands)
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_a_wrong_config_is_a_usage_error_that_names_the_line(finished, tmp_path):
    wrong = finished.config.with_name("wrong.yaml")
    wrong.write_text(finished.config.read_text().replace("epochs: 8", "epocs: 8"))
    result = call("run", wrong)
    assert result.exit_code == 2
    assert "epocs is not a setting; did you mean epochs?" in result.stderr


def test_a_wrong_stage_is_a_usage_error(finished):
    result = call("run", finished.config, "--until", "evalute")
    assert (result.exit_code, result.stderr.strip()) == (2, "evalute is not a stage; did you mean evaluate?")


def test_inspect_counts_what_is_in_a_folder_and_leaves_nothing(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    with zipfile.ZipFile(DEMO / "studies.zip") as demo:
        for name in demo.namelist()[:8]:
            demo.extract(name, studies)
    (studies / "notes.txt").write_text("no image")
    before = sorted(path for path in tmp_path.rglob("*"))
    result = call("inspect", studies, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["files"], found["images"]) == (9, 8)
    assert found["quarantined"]["unknown_format"][0] == 1
    assert set(found["values"]["modality"]) <= {"DX", "CR"}
    assert sorted(path for path in tmp_path.rglob("*")) == before
    said = call("inspect", studies)
    assert "9 files: 8 images would be accepted" in said.stdout
    assert str(tmp_path) not in said.stdout + said.stderr
    assert call("ingest", "--dry-run", studies).stdout == said.stdout  # its name in earlier versions


def test_ingest_needs_a_config_or_a_folder_to_look_at():
    assert call("ingest").exit_code == 2


def test_plan_says_what_would_run_and_why(finished):
    lines = call("plan", finished.config, "pretrain.mask_ratio=0.6").output.splitlines()
    assert [line.split()[0] for line in lines[: len(NAMES)]] == list(NAMES)
    assert lines[3].endswith("run: settings changed (mask_ratio 0.75 → 0.6)")
    steps = json.loads(call("plan", finished.config, "--json").output)
    assert {(step["action"], step["estimate"]) for step in steps} == {("reuse", None)}


def test_plan_says_what_the_steps_to_be_made_will_take_as_earlier_ones_took(finished, monkeypatch):
    monkeypatch.setattr("pipeline.orchestration.estimate.load", lambda: 0.0)  # whatever else runs beside the tests
    due = NAMES[3:]
    lines = call("plan", finished.config, "pretrain.mask_ratio=0.6").stdout.splitlines()[len(NAMES) :]
    assert [line.split()[0] for line in lines] == ["estimate", *due, "all"]
    steps = json.loads(call("plan", finished.config, "pretrain.mask_ratio=0.6", "--json").stdout)
    found = {step["stage"]: step["estimate"] for step in steps if step["estimate"]}
    assert list(found) == list(due)
    made = {path.parts[-3]: json.loads(path.read_text()) for path in finished.store.glob("*/*/artifact.json")}
    slow = [name for name in due if made[name]["seconds"] >= 1]
    assert slow
    for name in slow:
        assert found[name]["basis"] == "1 earlier artifact"
        assert 0.5 <= found[name]["seconds"] / made[name]["seconds"] <= 2
    longer = json.loads(call("plan", finished.config, "finetune.epochs=3000", "--json").stdout)[4]["estimate"]
    assert longer["seconds"] > 10 * found["finetune"]["seconds"]


def test_more_than_an_hour_is_said_before_a_run_starts(finished):
    table = call("plan", finished.config, "finetune.epochs=3000000").stdout
    assert "this will take about" in table
    assert "on this machine, finetune alone" in table


def test_run_again_prints_the_report_last_and_speaks_json(finished):
    result = call("run", finished.config)
    assert result.exit_code in (0, 3)
    assert result.stdout.strip().endswith("report.pdf")
    answer = json.loads(call("run", finished.config, "--json").stdout)
    assert set(answer["artifacts"]) == set(NAMES)
    assert answer["headline"]["test_auc_low"] <= answer["headline"]["test_auc"] <= answer["headline"]["test_auc_high"]


def test_compare_shows_the_numbers_with_intervals(finished):
    answer = json.loads(call("compare", finished.config, "--json").output)
    auc = answer["measures"]["test_auc"][0]
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert "test_auc" in call("compare", finished.config).output


def test_compare_writes_one_pdf_where_it_says(finished, tmp_path):
    chosen = tmp_path / "side" / "by side.pdf"
    answer = json.loads(call("compare", finished.config, finished.config, "--pdf", chosen, "--json").output)
    assert answer["pdf"] == str(chosen)
    assert answer["against_first"][0]["same"] is True
    assert chosen.read_bytes().startswith(b"%PDF")
    beside = Path(call("compare", finished.config, finished.config).stdout.strip().splitlines()[-1])
    assert re.fullmatch(r"mini-compare-[0-9a-f]{8}\.pdf", beside.name)
    assert beside.read_bytes() == chosen.read_bytes()


@pytest.mark.parametrize("form", ["report.pdf", "report.json", "folder"])
def test_compare_takes_a_finished_report_for_a_run(finished, tmp_path, form):
    pdf = Path(call("run", finished.config).stdout.strip())
    report = pdf.parent if form == "folder" else pdf.parent / form
    mixed = call("compare", finished.config, report, "--pdf", tmp_path / "mixed.pdf", "--json")
    assert mixed.exit_code == 0, mixed.stderr
    answer = json.loads(mixed.stdout)
    assert answer["runs"] == ["mini", pdf.parent.name]
    assert answer["settings"] == {}
    assert answer["against_first"][0]["same"] is True
    assert answer["against_first"][0]["difference"]["diff"] == 0
    assert len({json.dumps(values) for values in zip(*answer["measures"].values(), strict=True)}) == 1
    alone = call("compare", report, report, "--store", finished.store)
    assert alone.exit_code == 0, alone.stderr
    assert Path(alone.stdout.strip().splitlines()[-1]).parent == pdf.parent.parent


def test_compare_takes_reports_of_earlier_code_whose_results_lack_what_came_later(finished, tmp_path):
    """With the present code, this run was never made: its keys are in its report alone."""
    project = finished.copy(tmp_path / "earlier")
    pdf = next(project.folder.glob("reports/*/report.pdf"))
    store = Store(project.store)
    (evaluate,) = store.all("evaluate")
    metrics = json.loads((evaluate.path / "metrics.json").read_text())
    for later in ("other_operating_points", "further_labels", "macro", "external"):
        del metrics[later]
    text = json.dumps(metrics)
    (evaluate.path / "metrics.json").write_text(text)
    record = json.loads((evaluate.path / "artifact.json").read_text())
    record["files"]["metrics.json"] = hashlib.sha256(text.encode()).hexdigest()
    (evaluate.path / "artifact.json").write_text(json.dumps(record))
    result = call("compare", pdf, pdf, "--store", project.store, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["measures"]["test_auc"][0]["value"] == metrics["discrimination"]["auc"]["value"]


def test_compare_says_what_is_wrong_with_a_report(finished, tmp_path):
    pdf = next(finished.folder.glob("reports/*/report.pdf"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "report.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    compared = next(iter(finished.folder.glob("reports/*compare*.pdf")), None)
    for words, code, said in (
        ([pdf, "--store", tmp_path / "store"], 1, "name the right one with --store"),
        ([pdf, "split.seed=1", "--store", finished.store], 2, "split.seed=1 stands behind a finished report"),
        ([other], 1, "other cannot be read as a report that maescreen made"),
        ([tmp_path / "empty"], 1, "empty holds neither report.json nor report.pdf"),
        ([tmp_path / "gone.pdf"], 1, "gone.pdf is not there"),
        (
            [Store(finished.store).all("report")[0].path, "--store", finished.store],
            2,
            "inside the store; say with --pdf",
        ),
        *([([compared], 1, "carries no artifact keys")] if compared else []),
    ):
        result = call("compare", *words)
        assert (result.exit_code, said in result.stderr) == (code, True), (words, result.stderr)


def test_compare_names_what_was_not_finished(finished):
    result = call("compare", finished.config, f"{finished.config},pretrain.mask_ratio=0.6")
    assert result.exit_code == 1
    assert "mini pretrain.mask_ratio=0.6" in result.stderr


def test_trace_leads_from_the_pdf_to_every_source_file(finished, tmp_path):
    pdf = call("run", finished.config).stdout.strip()
    answer = json.loads(call("trace", pdf, "--store", finished.store, "--json").output)
    assert {a["stage"] for a in answer["artifacts"]} == set(NAMES) - {"report"}
    assert len(answer["sources"]) > 100
    assert all(len(source["sha256"]) == 64 for source in answer["sources"])
    verified = call("trace", pdf, "--verify", "--config", finished.config)
    assert verified.exit_code == 0
    assert "verified" in verified.stderr


def test_trace_notices_a_changed_artifact_and_a_changed_report(finished, tmp_path):
    pdf = call("run", finished.config).stdout.strip()
    project = finished.copy(tmp_path / "changed")
    scores = next(project.store.glob("score/*/scores_test.parquet"))
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    result = call("trace", pdf, "--verify", "--store", project.store)
    assert result.exit_code == 1
    assert "scores_test.parquet has changed" in result.stderr
    forged = tmp_path / "report.pdf"
    forged.write_bytes(Path(pdf).read_bytes() + b"\n%")
    assert "changed after it was made" in call("trace", forged, "--verify", "--store", finished.store).stderr


def test_trace_notices_a_source_file_that_was_changed(finished, tmp_path):
    pdf = call("run", finished.config).stdout.strip()
    project = finished.copy(tmp_path / "changed")
    verify = ("trace", pdf, "--verify", "--config", project.config)
    assert call(*verify).exit_code == 0
    with zipfile.ZipFile(project.folder / "studies.zip", "a") as archive:
        archive.writestr("another.dcm", b"")
    result = call(*verify)
    assert result.exit_code == 1
    assert "ingest: a source file was added, removed, renamed or changed since it was ingested" in result.stderr


def test_reindex_rebuilds_a_lost_database(finished, tmp_path):
    from pipeline.store.tracking import Tracker

    project = finished.copy(tmp_path / "lost")
    (project.store / "mlflow.db").unlink()
    assert call("reindex", project.config).stdout.strip() == "10 artifacts are indexed"
    tracker = Tracker("mini", project.store)
    assert {key.split("/")[0] for key in tracker.indexed("stage")} == set(NAMES)
    (restored,) = pipeline_runs(tracker)
    (before,) = pipeline_runs(Tracker("mini", finished.store))
    assert restored.info.status == before.info.status
    for what in ("params", "metrics"):
        assert getattr(restored.data, what) == getattr(before.data, what), what
    assert restored.data.tags["maescreen.key"] == before.data.tags["maescreen.key"]
    names = {file.path for file in tracker.client.list_artifacts(restored.info.run_id)}
    assert {"report.pdf", "sweep.json"} <= names
    assert call("reindex", project.config).exit_code == 0
    assert len(pipeline_runs(Tracker("mini", project.store))) == 1


def test_doctor_looks_at_everything(finished):
    checks = {check["name"]: check for check in json.loads(call("doctor", "--store", finished.store, "--json").output)}
    assert {"python", "torch", "device", "transfer syntaxes", "disk", "store", "tracking"} <= set(checks)
    assert checks["tracking"]["state"] == "ok"


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        ("path,label\na.png,0\nb.png,1\n", [], ""),
        ("patient,finding\n1,cancer\n2,none\n", ["--positive", "cancer"], ""),
        ("patient,finding\n1,cancer\n2,none\n", [], "Say which values are positive"),
        ("name,finding\nzebra,0\n", [], "no column of the label table says which image or patient"),
    ],
)
def test_init_writes_a_card_and_a_config_that_load(tmp_path, table, options, words):
    from pipeline.settings.load import load

    (tmp_path / "studies").mkdir()
    for number, name in enumerate("ab", 1):
        pixels = np.random.default_rng(number).integers(0, 4096, (40, 48)).astype(np.uint16)
        if table.startswith("path"):
            Image.fromarray((pixels >> 4).astype(np.uint8)).save(tmp_path / "studies" / f"{name}.png")
        else:
            uid = {"SOPInstanceUID": f"2.25.{number}", "PatientID": str(number)}
            (tmp_path / "studies" / f"{name}.dcm").write_bytes(make_dicom(pixels, **uid))
    (tmp_path / "labels.csv").write_text(table)
    arguments = [
        "init",
        tmp_path / "studies",
        "--labels",
        tmp_path / "labels.csv",
        "--output",
        tmp_path,
        "--name",
        "own",
    ]
    result = call(*arguments, *options)
    if words:
        assert result.exit_code == 1
        assert words in result.stderr
        return
    assert result.exit_code == 0, result.stderr
    config, card = load(tmp_path / "configs" / "own.yaml")
    assert config.data.studies == [tmp_path / "studies"]
    assert card.identifiers == "real"
    assert call(*arguments, *options).exit_code == 1


def test_a_time_limit_that_has_passed_says_how_to_go_on(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    result = call("pretrain", project.config, "pretrain.seed=9", "machine.max_minutes=0.00001")
    assert result.exit_code == 75
    assert "stopped before pretrain: machine.max_minutes have passed; what was finished is kept" in result.stderr
    overrides = "pretrain.seed=9 machine.max_minutes=0.00001"
    assert result.stderr.endswith(f"; go on with: maescreen pretrain {project.config} {overrides}\n")


def test_what_goes_on_after_an_interruption_is_the_whole_command(finished, tmp_path):
    """With blanks and quotes, every option, and a store of its own; nothing is made before it stops."""
    config, store = tmp_path / "it's my run.yaml", tmp_path / "a store"
    config.write_text(finished.config.read_text().replace("../", f"{finished.folder}/"))
    words = ["run", config, "machine.max_minutes=0.00001", "finetune.arms=[mae, hog]", "report.title=a, b"]
    words += ["--until", "split", "--store", store, "--rebuild", "ingest", "--json"]
    result = call(*words)
    assert result.exit_code == 75
    proposed = result.stderr.splitlines()[-1].partition("go on with: ")[2]
    assert sorted(shlex.split(proposed)) == sorted(["maescreen", *map(str, words)])
    assert call(*shlex.split(proposed)[1:]).exit_code == 75


def test_sigterm_ends_a_run_as_an_interrupt_does():
    """Outside of training, which saves first."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped: SIGTERM"), sigterm_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_stage_lacks_is_made_by_a_command_that_can_be_typed(finished, tmp_path):
    result = call("finetune", finished.config, "split.seed=99", "--store", tmp_path / "a store")
    assert result.exit_code == 1
    assert f"run: maescreen run {finished.config} split.seed=99 --store '{tmp_path}/a store' --until" in result.stderr


def test_where_to_compare_is_said_with_the_settings_that_lead_there(finished, tmp_path):
    said = call("run", finished.config, "machine.threads=2", "tracking={uri: null}").stderr
    assert f"compare runs: maescreen ui {finished.config} 'tracking={{uri: null}}'  (opens #/" in said


def test_commands_that_only_look_need_no_key_and_make_none(finished, tmp_path):
    project = finished.copy(tmp_path / "keyless")
    key, pdf = project.folder / "demo.key", next(finished.folder.glob("reports/*/report.pdf"))
    key.unlink()
    before = sorted(tmp_path.rglob("*.key"))
    for words in (
        ["reindex", project.config],
        ["doctor", "--config", project.config],
        ["compare", project.config],
        ["trace", pdf, "--config", project.config],
    ):
        result = call(*words)
        assert result.exit_code == 0, (words, result.stderr)
    assert sorted(tmp_path.rglob("*.key")) == before == []


@pytest.mark.parametrize("identifiers", ["real", "synthetic"])
def test_a_plan_without_a_key_says_that_all_would_run_and_makes_nothing(finished, tmp_path, identifiers):
    card = tmp_path / "card.yaml"
    text = (finished.folder / "card.yaml").read_text()
    card.write_text(text.replace("identifiers: synthetic", f"identifiers: {identifiers}"))
    key, store = tmp_path / "no such.key", tmp_path / "store"
    words = ["plan", finished.config, f"data.key_file={key}", f"data.card={card}", "--store", store]
    result = call(*words)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()[: len(NAMES)]]
    assert [(line[0], " ".join(line[2:])) for line in lines] == [(name, "run: no earlier artifact") for name in NAMES]
    assert f"{key}: no such key file; `run` " in result.stderr
    assert {step["key"] for step in json.loads(call(*words, "--json").stdout)} == {None}
    assert list(tmp_path.iterdir()) == [card]


def test_compare_takes_settings_behind_their_file_and_leaves_commas_alone(finished, tmp_path):
    config = tmp_path / "a,b.yaml"
    config.write_text(finished.config.read_text().replace("../", f"{finished.folder}/"))
    variant = [config, "finetune.arms=[mae,hog]", "report.title=x, y", "--store", finished.store]
    result = call("compare", finished.config, *variant)
    assert result.exit_code == 1
    assert "a,b finetune.arms=[mae,hog] report.title=x, y" in result.stderr
    assert call("compare", "split.seed=1", finished.config).exit_code == 2


def test_a_port_in_use_is_said_before_any_address(finished):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = call("ui", finished.config, "--port", port)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"port {port} is in use; choose another with --port" in result.stderr


def test_the_ui_of_a_project_without_runs_names_the_command_that_makes_one(finished, tmp_path):
    result = call("ui", finished.config, "--store", tmp_path / "a store")
    assert result.exit_code == 1
    command = f"maescreen run {finished.config} --store '{tmp_path}/a store'"
    assert f"mini has no runs yet; run: {command}" in result.stderr
    assert not (tmp_path / "a store").exists()


def test_a_folder_in_which_nothing_is_accepted_is_counted(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    result = call("inspect", empty)
    assert (result.exit_code, result.stdout) == (0, "there is no file\n")
    (empty / "Hollerbusch.txt").write_text("no image")
    result = call("inspect", empty)
    assert result.exit_code == 0
    assert result.stdout.startswith("1 file: none would be accepted; 1 file would be quarantined\n\nquarantined\n")
    assert "Hollerbusch" not in result.output + result.stderr
    found = json.loads(call("inspect", empty, "--json").stdout)
    assert (found["files"], found["images"], found["quarantined"]["unknown_format"][0]) == (1, 0, 1)


def test_inspect_accepts_pictures_whatever_they_are_called(tmp_path):
    for number, name in enumerate(["a\nb.png", " c .png ", "\u202ed.png", "e\t.png"]):
        grey = np.random.default_rng(number).integers(0, 256, (40, 40)).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / name, "PNG")
    found = json.loads(call("inspect", tmp_path, "--json").stdout)
    assert (found["images"], found["patients"], found["quarantined"]) == (4, 4, {})


def test_inspect_points_to_no_file_that_it_does_not_keep(tmp_path):
    with zipfile.ZipFile(DEMO / "studies.zip") as demo:
        content = demo.read(demo.namelist()[0])
    for name in ("one.dcm", "two.dcm"):
        (tmp_path / name).write_bytes(content)
    result = call("inspect", tmp_path)
    assert result.exit_code == 0
    assert "2 files: 1 image would be accepted, 0 of them volumes, of 1 patient; 1 file would be" in result.stdout
    assert ".png" not in result.output + result.stderr
    assert ".parquet" not in result.output + result.stderr


def test_a_store_whose_path_is_no_text_is_refused_with_what_to_do(finished, tmp_path):
    result = call("run", finished.config, "--store", f"{tmp_path}/\udcff")
    assert result.exit_code == 2
    assert "is not UTF-8, which MLflow needs; choose another with --store" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_trace_of_what_is_no_pdf_says_so(tmp_path):
    (tmp_path / "no.pdf").write_text("no PDF")
    result = call("trace", tmp_path / "no.pdf", "--store", tmp_path)
    assert result.exit_code == 1
    assert "no.pdf cannot be read as a PDF" in result.stderr


def test_doctor_says_what_to_do_about_a_store_that_is_none_and_a_database_that_is_lost(tmp_path):
    def check(name: str) -> str:
        checks = json.loads(call("doctor", "--store", tmp_path / "store", "--json").stdout)
        return next(f"{one['state']}: {one['detail']}" for one in checks if one["name"] == name)

    assert check("store") == "note: not made yet; the first run makes it"
    (tmp_path / "store").write_text("a file")
    assert check("store").startswith("problem: a file, not a folder; name another with --store")
    (tmp_path / "store").unlink()
    (tmp_path / "store" / "split" / "0123").mkdir(parents=True)
    (tmp_path / "store" / "split" / "0123" / "artifact.json").write_text("{}")
    assert check("store") == "ok: 1 artifact, and 0 unfinished"
    assert "maescreen reindex CONFIG makes it again" in check("tracking")
