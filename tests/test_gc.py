"""What nothing needs goes, and nothing else: kept reports still lead back to every byte."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pypdf import PdfWriter
from toy import Toy
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.gc import delete, examine, human, inside
from pipeline.commands.trace import trace, verify
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.run import run
from pipeline.store import tracking
from pipeline.store.artifacts import Store
from pipeline.store.run_records import remembered


@pytest.fixture
def toy(tmp_path):
    with Toy(tmp_path / "project").installed() as toy:
        yield toy


def make(toy: Toy, **sections) -> None:
    _age_records(toy)
    run(*toy.load(**sections), until="score", say=lambda line: None)


def look(toy: Toy, **choices):
    return examine(*toy.load(), **choices)


def names(items, kind: str = "artifact") -> set[str]:
    return {item.name.partition("/")[0] for item in items if item.kind == kind}


def keys(toy: Toy, stage: str) -> set[str]:
    return {one.key for one in toy.store.all(stage)}


def a_report(toy: Toy, name: str, **steps: str) -> None:
    """Put a PDF that carries these artifacts among the reports."""
    writer = PdfWriter()
    writer.add_blank_page(10, 10)
    writer.add_metadata({"/Keywords": ", ".join(f"{step}={key}" for step, key in steps.items())})
    folder = toy.folder / "reports" / name
    folder.mkdir(parents=True)
    writer.write(folder / "report.pdf")


@contextmanager
def held(path: Path):
    """Let another process hold a lock."""
    program = f"from filelock import FileLock; l = FileLock({str(path)!r}); l.acquire(); print(1, flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate(b"\n")


def test_what_an_older_run_alone_used_goes_and_the_newest_stays(toy):
    make(toy)
    first = toy.contents()
    toy.write_study("2")
    make(toy)
    found = look(toy)
    assert names(found.removable) == {"ingest", "pretrain", "score"}
    assert {item.reason for item in found.kept if item.kind == "artifact"} == {"newest run toy " + _key(toy)}
    assert toy.contents().keys() > first.keys()  # looking changes nothing
    gone = delete(toy.load()[0], found, print)
    assert sum(item.size_bytes for item in gone) > 0
    assert toy.contents().keys().isdisjoint(first)
    assert len(toy.contents()) == 3
    assert len(remembered(toy.store, "toy")) == 1
    assert look(toy).removable == []
    assert {path.suffix for stage in NAMES for path in (toy.store.root / stage).glob("*")} == {"", ".lock"}
    assert len([*toy.store.root.glob("*/*.lock")]) == 3


def _key(toy: Toy) -> str:
    return remembered(toy.store, "toy")[-1].key.partition("/")[2][:8]


def test_as_many_runs_stay_as_are_asked_for_and_what_is_younger(toy):
    for number in "123":
        toy.write_study(number)
        make(toy)
    assert len([i for i in look(toy).removable if i.kind == "artifact"]) == 6
    assert len([i for i in look(toy, keep_last=2).removable if i.kind == "artifact"]) == 3
    assert look(toy, older_than_days=1).removable == []
    for path in toy.store.root.glob("*/*/artifact.json"):
        record = json.loads(path.read_text())
        old = datetime.now(UTC) - timedelta(days=2)
        path.write_text(json.dumps({**record, "created": old.isoformat(timespec="seconds")}))
    assert len([i for i in look(toy, older_than_days=1).removable if i.kind == "artifact"]) == 6


def _age_records(toy: Toy) -> None:
    """Let every run have been a minute earlier, so that those of one second are told apart."""
    for path in (toy.store.root / "runs").glob("*.json"):
        record = json.loads(path.read_text())
        record["created"] = (datetime.fromisoformat(record["created"]) - timedelta(minutes=1)).isoformat()
        path.write_text(json.dumps(record))


def test_a_kept_report_keeps_all_that_it_rests_on_also_what_its_own_keys_leave_out(toy):
    make(toy)
    (score,) = keys(toy, "score")
    a_report(toy, "toy-one", score=score)  # the inputs follow from the records
    toy.write_study("2")
    make(toy)
    found = look(toy)
    assert [i for i in found.removable if i.kind == "artifact"] == []
    assert "kept report toy-one/report.pdf" in {item.reason for item in found.kept}
    assert any(remark.startswith("1 kept report in ") for remark in found.remarks)


def test_a_file_among_the_reports_that_is_no_pdf_is_said(toy):
    make(toy)
    (toy.folder / "reports").mkdir()
    (toy.folder / "reports" / "torn.pdf").write_text("no pdf")
    assert any("torn.pdf: cannot be read" in remark for remark in look(toy).remarks)


def test_what_the_next_run_of_the_config_uses_stays_although_no_run_finished(toy):
    run(*toy.load(), until="pretrain", say=lambda line: None)
    for path in (toy.store.root / "runs").iterdir():
        path.unlink()
    found = look(toy)
    assert found.removable == []
    assert {i.reason for i in found.kept if i.kind == "artifact"} == {"the next run of this config uses it"}


def interrupted(toy: Toy) -> Path:
    """Begin a pretrain that is killed; return its work."""

    def stop(stage: str, work: Path) -> None:
        if stage == "pretrain":
            raise KeyboardInterrupt

    toy.watch = stop
    with pytest.raises(KeyboardInterrupt):
        make(toy)
    toy.watch = lambda stage, work: None
    (work,) = toy.store.root.glob("pretrain/*.partial")
    return work


def test_unfinished_work_stays_while_the_config_goes_on_with_it(toy):
    make(toy)
    toy.write_study("2")
    work = interrupted(toy)
    found = look(toy)
    assert names(found.kept, "unfinished") == {"pretrain"}
    delete(toy.load()[0], found, print)
    assert work.exists()
    toy.write_study("3")
    make(toy)
    found = look(toy)
    assert names(found.removable, "unfinished") == {"pretrain"}
    delete(toy.load()[0], found, print)
    assert not work.exists()
    assert not work.with_suffix(".lock").exists()


def test_unfinished_work_stays_when_the_next_run_cannot_be_known(toy):
    interrupted(toy)
    (toy.folder / "labels.csv").unlink()
    found = look(toy)
    assert names(found.kept, "unfinished") == {"pretrain"}
    assert any("no unfinished work is removed" in remark for remark in found.remarks)


def test_while_a_run_is_at_work_no_artifact_goes(toy):
    make(toy)
    toy.write_study("2")
    make(toy)
    old = [item for item in look(toy).removable if item.kind == "artifact"]
    (busy,) = [item for item in old if item.name.startswith("score/")]
    with held(toy.store.root / f"{busy.name}.lock"):
        found = look(toy)
        assert [item for item in found.removable if item.kind == "artifact"] == []
        assert "another process is working on it" in {i.reason for i in found.kept if i.name == busy.name}
        assert any("before it has ended" in remark for remark in found.remarks)
    assert [item.name for item in look(toy).removable if item.kind == "artifact"] == [item.name for item in old]


def test_what_another_process_took_after_the_look_stays(toy, capsys):
    make(toy)
    toy.write_study("2")
    make(toy)
    found = look(toy)
    (taken,) = [i for i in found.removable if i.kind == "artifact" and i.name.startswith("score/")]
    with held(toy.store.root / f"{taken.name}.lock"):
        gone = delete(toy.load()[0], found, print)
    assert taken not in gone
    assert f"{taken.name} stays: another process works on it by now" in capsys.readouterr().out
    assert toy.store.find("score", taken.name.partition("/")[2]).file("first").exists()


def test_other_projects_in_the_same_store_are_left_alone(toy):
    make(toy)
    config, card, secret = toy.load()
    other = config.model_copy(update={"project": "other"})
    toy.write_study("2")
    run(other, card, secret, until="score", say=lambda line: None)
    toy.write_study("3")
    run(other, card, secret, until="score", say=lambda line: None)
    toy.write_study("4")
    make(toy)
    found = look(toy)
    assert len([item for item in found.removable if item.kind == "artifact"]) == 3
    assert len([item for item in found.kept if "other, another project" in item.reason]) >= 6


def test_what_kills_left_of_replacing_and_removing_goes_and_the_artifact_stays(toy):
    make(toy)
    whole = toy.contents()
    (score,) = toy.store.root.glob("score/*[0-9a-f]")
    (pretrain,) = toy.store.root.glob("pretrain/*[0-9a-f]")
    subprocess.run(["cp", "-r", score, f"{score}.old"], check=True)  # the successor is there
    pretrain.rename(f"{pretrain}.old")  # killed between both renames: this is the artifact
    torn = toy.store.root / "ingest" / "0123456789abcdef"
    torn.mkdir()
    (torn / "first").write_text("x")
    stray = toy.store.root / "ingest" / "somebody's notes"
    stray.write_text("x")
    found = look(toy)
    assert {(i.kind, i.name.partition("/")[0]) for i in found.removable} == {
        ("superseded", "score"),
        ("torn", "ingest"),
    }
    delete(toy.load()[0], found, print)
    assert toy.contents() == whole
    assert stray.exists()
    assert not torn.exists()


def test_a_lost_folder_of_reports_is_an_error_and_not_a_licence(toy):
    make(toy)
    work = toy.store.begin("report", "0" * 16)
    (work / "report.pdf").write_text("x")
    toy.store.publish("report", "0" * 16, {"project": "toy", "inputs": {}, "created": "2026-01-01T00:00:00+00:00"})
    with pytest.raises(RuntimeError, match="there is no such folder, although this project has reports"):
        look(toy)
    (toy.folder / "reports").mkdir()
    assert names(look(toy).removable) == {"report"}


def test_sizes_are_said_as_people_say_them():
    assert [human(n) for n in (0, 999, 1000, 1499, 99_500, 1_234_567, 2_500_000_000, 10**16)] == [
        "0 B", "999 B", "1.0 kB", "1.5 kB", "100 kB", "1.2 MB", "2.5 GB", "10000 TB",
    ]  # fmt: skip


def test_the_command_lists_by_default_and_says_how_to_delete(toy):
    make(toy)
    toy.write_study("2")
    make(toy)
    words = ["gc", str(toy.folder / "run.yaml")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "no kept report, registered model, newest or next run needs it" in result.stdout
    assert f"maescreen gc {toy.folder / 'run.yaml'} --delete" in result.stderr
    assert len(toy.contents()) == 6
    shown = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert {row["kind"] for row in shown["removable"]} == {"artifact", "record", "lock"}
    assert shown["bytes"] == sum(row["bytes"] for row in shown["removable"]) > 0
    done = CliRunner().invoke(app, [*words, "--delete", "--json"])
    assert [row["name"] for row in json.loads(done.stdout)["removed"]] == [row["name"] for row in shown["removable"]]
    assert len(toy.contents()) == 3
    assert "nothing to remove" in CliRunner().invoke(app, words).stderr


# ---------------------------------------------------------------- a whole project, with MLflow


def test_a_model_that_lies_in_an_artifact_is_found_by_its_address(tmp_path):
    store = tmp_path / "a store"
    place = store / "package" / "0123456789abcdef" / "model"
    assert inside(place.as_uri(), store) == inside(str(place), store) == ["package/0123456789abcdef/model"]
    assert inside("models:/m-1", store) == inside("s3://bucket/x", store) == []


@pytest.mark.slow
def test_every_kept_report_is_verified_after_all_else_is_gone(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    (project.store / "mlflow.db").unlink()  # its paths are those of the original
    shutil.rmtree(project.store / "mlflow-artifacts")
    command = ["reindex", str(project.config)]
    assert CliRunner().invoke(app, command).exit_code == 0
    quiet = {"say": lambda line: None}
    results = [run(*project.load(f"report.title=title {n}"), **quiet) for n in range(2)]
    results.append(run(*project.load("calibrate.recall_targets=[0.75]"), **quiet))
    config, card, secret = project.load()
    store = Store(project.store)
    shutil.rmtree(results[0].report.parent)
    lost = results[0].artifacts["report"]
    before = len(tracking.known_runs(project.store, None))

    found = examine(config, card, secret)
    assert [i.name for i in found.removable if i.kind == "artifact"] == [f"report/{lost.key}"]
    runs = [item for item in found.removable if item.kind == "mlflow"]
    assert len(runs) == 2  # that of the report and that of the pipeline
    assert all(item.size_bytes > 0 for item in runs)
    delete(config, found, print)

    assert store.find("report", lost.key) is None
    assert len(tracking.known_runs(project.store, None)) == before - 2
    assert not any(item.thing.folder.exists() for item in runs)
    kept = sorted(project.folder.glob("reports/*/report.pdf"))
    assert len(kept) == 3
    for pdf in kept:
        assert trace(pdf, store)["artifacts"]
        assert verify(pdf, store, lambda line: None) == []
    assert examine(config, card, secret).removable == []
    assert CliRunner().invoke(app, command).stdout.startswith(f"{sum(len(store.all(s)) for s in NAMES)} artifacts")

    # What a registered model was made from stays without any report or newest run.
    middle = results[1]
    client = tracking.mlflow.MlflowClient(tracking_uri=tracking.default_uri(project.store))
    client.create_registered_model("mini")
    run_id = next(r.run_id for r in tracking.known_runs(project.store, None)
                  if r.kind == "pipeline" and r.key == f"report/{middle.artifacts['report'].key}")  # fmt: skip
    client.create_model_version("mini", f"runs:/{run_id}/model", run_id=run_id)
    shutil.rmtree(middle.report.parent)
    found = examine(config, card, secret)
    reasons = {item.name: item.reason for item in found.kept}
    assert reasons[f"report/{middle.artifacts['report'].key}"] == "registered model mini version 1"
    assert "a registered model is of it" in reasons.values()


def test_runs_of_a_server_that_this_store_does_not_know_are_left_alone(toy, monkeypatch):
    make(toy)
    config, card, secret = toy.load()
    server = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": "http://server"})})
    now = datetime.now(UTC)
    known = tracking.KnownRun("1", "toy", "stage", "score/" + "f" * 16, "score ffff", False, now, None)
    strange = replace(known, run_id="2", key="gone/" + "e" * 16)
    alive = replace(known, run_id="3", at_work=True)
    runs = [known, strange]
    for module in ("known_runs", "registered_models"):
        monkeypatch.setattr(f"pipeline.commands.gc.{module}", lambda *_, m=module: runs if m == "known_runs" else [])
    assert names(examine(server, card, secret).removable, "mlflow") == set()
    assert len([i for i in examine(config, card, secret).removable if i.kind == "mlflow"]) == 2
    runs.append(alive)
    assert "its process is at work" in {item.reason for item in examine(config, card, secret).kept}


def test_a_run_whose_process_lives_is_at_work_and_one_of_a_dead_process_is_not(tmp_path):
    tracker = tracking.Tracker("toy", tmp_path)
    tracker.open("stage", "score/" + "f" * 16, "score")
    (run_,) = tracking.known_runs(tmp_path, None)
    assert run_.at_work
    assert run_.folder is not None
    assert run_.folder.parent == tmp_path / "mlflow-artifacts" / "toy"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    tracker.tags(run_.run_id, {tracking.PROCESS: str(dead.pid)})
    (run_,) = tracking.known_runs(tmp_path, None)
    assert not run_.at_work
    tracking.remove_run(tmp_path, None, run_)
    assert tracking.known_runs(tmp_path, None) == []


def test_where_nothing_was_run_yet_nothing_is_found(toy):
    found = look(toy)
    assert found.items == []
    assert not list(toy.store.root.glob("*/*"))
