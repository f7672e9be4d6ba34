"""MLflow as an index: safe to create at once, one run per artifact, dead runs closed."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from project import pipeline_runs

from pipeline.store import tracking
from pipeline.store.indexed import readable
from pipeline.store.tracking import BOOT, PROCESS, Tracker, TrackingError, closing, experiment_id, reachable


@pytest.fixture(autouse=True)
def made_by_mlflow(one_database, monkeypatch):
    """Here no database is a copy."""
    monkeypatch.setattr(tracking, "_create_database", one_database)


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory) -> Path:
    """A store whose database was made by four processes at once."""
    store = tmp_path_factory.mktemp("fresh")
    code = (
        "import sys; from pathlib import Path; from pipeline.store.tracking import Tracker\n"
        "t = Tracker('p', Path(sys.argv[1])); t.close(t.open('stage', sys.argv[2], sys.argv[2]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(store), f"ingest/{i}"]) for i in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    return store


@pytest.fixture
def tracker(fresh_store, tmp_path) -> Tracker:
    shutil.copytree(fresh_store, tmp_path / "store")
    return Tracker("p", tmp_path / "store")


def test_four_processes_open_a_fresh_database_at_once(fresh_store):
    tracker = Tracker("p", fresh_store)
    assert all(tracker.find("stage", f"ingest/{i}") for i in range(4))


def test_a_run_is_reopened_not_duplicated(tracker):
    first = tracker.open("stage", "fit/k", "fit k")
    with pytest.raises(KeyboardInterrupt), closing(tracker, first):
        raise KeyboardInterrupt
    assert tracker.client.get_run(first).info.status == "KILLED"
    assert tracker.open("stage", "fit/k", "fit k") == first
    assert tracker.client.get_run(first).info.status == "RUNNING"


def test_a_run_counts_as_indexed_only_when_it_was_finished_last(tracker):
    run_id = tracker.open("stage", "fit/k", "fit k")
    tracker.finish(run_id, {})
    assert "fit/k" in tracker.indexed("stage")
    tracker.open("stage", "fit/k", "fit k")
    assert "fit/k" not in tracker.indexed("stage")


def test_runs_of_dead_processes_are_closed_at_the_next_start(tracker, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    run_id = tracker.open("stage", "fit/k", "fit k")
    tracker.tags(run_id, {PROCESS: str(dead.pid)})
    elsewhere = tracker.open("stage", "fit/other", "fit other")
    tracker.tags(elsewhere, {PROCESS: str(dead.pid), BOOT: "another machine"})
    again = Tracker("p", tmp_path / "store")
    assert again.client.get_run(run_id).info.status == "KILLED"
    assert again.client.get_run(elsewhere).info.status == "RUNNING"


def test_runs_of_another_container_on_this_machine_are_left_alone(tracker, tmp_path):
    """A new process-id namespace, as a container has: there the number of a live process here means nobody."""
    mine = tracker.open("stage", "fit/k", "fit k")
    code = (
        "import sys; from pathlib import Path; from pipeline.store.tracking import PROCESS, Tracker\n"
        "t = Tracker('p', Path(sys.argv[1])); run = t.open('stage', 'fit/other', 'x')\n"
        "print(run, t.client.get_run(run).data.tags[PROCESS])"
    )
    contained = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, str(tmp_path / "store")]
    try:
        done = subprocess.run(contained, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("this user may not make namespaces")
    assert done.returncode == 0, done.stderr
    theirs, process = done.stdout.split()
    assert int(process) < 100  # counted anew
    assert tracker.client.get_run(mine).info.status == "RUNNING"
    tracker.tags(theirs, {PROCESS: str(2**22 + 1)})  # no such process here, which says nothing of one there
    assert Tracker("p", tmp_path / "store").client.get_run(theirs).info.status == "RUNNING"


def test_parameters_metrics_datasets_and_tables_arrive(tracker, tmp_path):
    run_id = tracker.open("pipeline", "report/k", "p")
    with closing(tracker, run_id):
        tracker.parameters(run_id, {f"pretrain.setting_{i}": i for i in range(250)})
        tracker.metrics(run_id, {"test_auc": 0.9, "test_auc_low": 0.8}, step=3)
        tracker.datasets(run_id, {"labels": "ab" * 32})
        tracker.table(run_id, {"threshold": [0.1, 0.2], "recall": [1.0, 0.9]}, "sweep.json")
        (tmp_path / "report.pdf").write_bytes(b"%PDF")
        (tmp_path / "weights.safetensors").write_bytes(b"w")
        tracker.files(run_id, tmp_path, ["report.pdf", "weights.safetensors"])
    run = tracker.client.get_run(run_id)
    assert len(run.data.params) == 250
    assert run.data.metrics == {"test_auc": 0.9, "test_auc_low": 0.8}
    assert run.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:32]
    assert {file.path for file in tracker.client.list_artifacts(run_id)} == {"sweep.json", "report.pdf"}
    assert [found.info.run_id for found in pipeline_runs(tracker)] == [run_id]


def test_nothing_of_the_machine_or_the_user_is_tagged(tracker):
    run = tracker.client.get_run(tracker.open("stage", "fit/k", "fit k"))
    assert run.info.user_id == "unknown"
    assert socket.gethostname() not in str(run.data.tags)
    assert str(Path.cwd()) not in str(run.data.tags)


def test_a_database_whose_making_was_killed_is_made_again(tmp_path):
    """A first migration that stopped half-way would otherwise fail at every later start."""
    (tmp_path / "mlflow.db.new").write_bytes(b"half a database")
    (tmp_path / "mlflow.db.new-journal").write_bytes(b"half a journal")
    assert Tracker("project", tmp_path).experiment_id
    assert not list(tmp_path.glob("mlflow.db.new*"))


@pytest.mark.parametrize("name", ["a?b=c%20d#e", 'it\'s "a" b &$;ü 胸'])
def test_database_and_files_stay_in_the_store_whatever_its_folder_is_called(tmp_path, name):
    store = tmp_path / name / "store"
    (tmp_path / "numbers.json").write_text("{}")
    tracker = Tracker("project", store)
    run_id = tracker.open("stage", "fit/k", "fit k")
    tracker.files(run_id, tmp_path, ["numbers.json"])
    tracker.finish(run_id, {})
    assert Tracker("project", store).indexed("stage") == {"fit/k"}
    assert readable(store) == ""
    assert {file.path for file in tracker.client.list_artifacts(run_id)} == {"numbers.json"}
    assert (store / "mlflow.db").is_file()
    assert len(list((store / "mlflow-artifacts").rglob("numbers.json"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {name, "numbers.json"}
    assert list((tmp_path / name).iterdir()) == [store]


def test_to_look_for_runs_makes_no_database(tmp_path):
    assert experiment_id("project", tmp_path, None) is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_named_with_what_to_do(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database " * 100)
    with pytest.raises(TrackingError, match=r"mlflow.db in the store cannot be used .*maescreen reindex CONFIG"):
        experiment_id("project", tmp_path, None)


def test_a_server_that_does_not_answer_is_told_of_at_once(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens on it
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TrackingError, match=r"the MLflow server cannot be used \(URLError\); check tracking.uri"):
            Tracker("mini", tmp_path, uri)
        with pytest.raises(TrackingError, match=r"check tracking\.uri"):
            experiment_id("mini", tmp_path, uri)
        assert reachable(uri) == "does not answer (URLError)"
