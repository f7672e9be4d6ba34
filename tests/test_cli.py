"""The command line: what it prints, where, and with which exit code."""

import json
import re
import zipfile
from pathlib import Path

import pytest
from project import DEMO
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.run import NAMES


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_command_has_help():
    from typer.main import get_command

    commands = get_command(app).commands
    assert set(NAMES) | {"run", "plan", "compare", "trace", "doctor", "init", "reindex", "ui"} == set(commands)
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


def test_a_dry_run_counts_what_is_in_a_folder_and_leaves_nothing(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    with zipfile.ZipFile(DEMO / "studies.zip") as demo:
        for name in demo.namelist()[:8]:
            demo.extract(name, studies)
    (studies / "notes.txt").write_text("no image")
    before = sorted(path for path in tmp_path.rglob("*"))
    result = call("ingest", "--dry-run", studies, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["files"], found["images"]) == (9, 8)
    assert found["quarantined"]["unknown_format"][0] == 1
    assert set(found["values"]["modality"]) <= {"DX", "CR"}
    assert sorted(path for path in tmp_path.rglob("*")) == before
    said = call("ingest", "--dry-run", studies)
    assert "9 files: 8 images would be accepted" in said.stdout
    assert str(tmp_path) not in said.stdout + said.stderr


def test_ingest_needs_a_config_or_a_folder_to_look_at():
    assert call("ingest").exit_code == 2


def test_plan_says_what_would_run_and_why(finished):
    lines = call("plan", finished.config, "pretrain.mask_ratio=0.6").output.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert lines[3].endswith("run: settings changed (mask_ratio 0.75 → 0.6)")
    steps = json.loads(call("plan", finished.config, "--json").output)
    assert {step["action"] for step in steps} == {"reuse"}


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
    assert call("reindex", project.config).stdout.strip() == "9 artifacts are indexed"
    assert {key.split("/")[0] for key in Tracker("mini", project.store).indexed("stage")} == set(NAMES)


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
        ("name,finding\n1,0\n", [], "no column of the label table says which image or patient"),
    ],
)
def test_init_writes_a_card_and_a_config_that_load(tmp_path, table, options, words):
    from pipeline.config_file import load

    (tmp_path / "studies").mkdir()
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
    assert f"go on with: maescreen run {project.config}" in result.stderr
