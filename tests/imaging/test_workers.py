"""A file that kills, hangs or confuses its worker costs one file; the others are done, in order."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from imaging.files import double, fragile, slow_to_end

from pipeline.imaging.archive.workers import Pool, WorkersError, alone, each_batch
from pipeline.imaging.quarantine import Refusal

pytestmark = pytest.mark.usefixtures("small_pools")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def outcome(task, batches, tmp_path, **choices) -> dict[int, list]:
    pool = Pool(**{"workers": 2, "timeout_s": 20.0} | choices)
    return dict(each_batch(task, batches, pool, tmp_path))


def test_every_batch_comes_back_in_order(tmp_path):
    batches = {number: list(range(number, number + 5)) for number in range(9)}
    assert outcome(double, batches, tmp_path) == {n: [2 * i for i in items] for n, items in batches.items()}
    assert list(tmp_path.iterdir()) == []


def test_work_that_comes_while_an_idle_worker_ends_is_done_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.imaging.archive.workers.IDLE_S", 0.5)
    assert outcome(slow_to_end, {0: [1]}, tmp_path, workers=1) == {0: [1]}
    time.sleep(1)  # it has said that it ends, which takes it two seconds
    found: dict[int, list] = {}
    late = threading.Thread(target=lambda: found.update(outcome(double, {0: [1]}, tmp_path, workers=1)), daemon=True)
    late.start()
    late.join(30)
    assert found == {0: [2]}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_crashes_costs_one_file(tmp_path, workers):
    batches = {0: ["a", "crash", "b"], 1: ["c", "d"], 2: ["exit", "e"], 3: ["f"]}
    assert outcome(fragile, batches, tmp_path, workers=workers) == {
        0: ["a", Refusal("decoder_crash", "exit code -11"), "b"],
        1: ["c", "d"],
        2: [Refusal("decoder_crash", "exit code 7"), "e"],
        3: ["f"],
    }


def test_a_decoder_that_hangs_costs_one_file(tmp_path):
    found = outcome(fragile, {0: ["a", "hang", "b"]}, tmp_path, timeout_s=1.5)
    assert found == {0: ["a", Refusal("timeout", "1.5 s"), "b"]}


def test_a_crash_that_does_not_happen_again_costs_nothing(tmp_path):
    (tmp_path / "scratch").mkdir()
    items = ["a", f"crash {tmp_path / 'happened'}", "b"]
    assert outcome(fragile, {0: items}, tmp_path / "scratch") == {0: ["a", "recovered", "b"]}


def test_refusals_and_every_kind_of_exception_are_verdicts_without_their_text(tmp_path):
    found = outcome(fragile, {0: ["refuse", "panic", "raise", "a"]}, tmp_path)[0]
    assert found == [
        Refusal("colour", "as asked"),
        Refusal("damaged_pixels", "BaseException"),
        Refusal("damaged_pixels", "ValueError"),
        "a",
    ]


def test_workers_that_die_before_their_first_file_end_the_run_with_their_exit_status(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIVE", "1")
    from imaging import dies_at_import

    monkeypatch.delenv("ALIVE")
    with pytest.raises(WorkersError, match=r"end before they look at any file \(EXIT\(23\)"):
        outcome(dies_at_import.task, {0: ["a"], 1: ["b"]}, tmp_path)
    with pytest.raises(WorkersError, match=r"\(EXIT\(23\)\)"):
        alone(dies_at_import.task, "a", Pool(1, 20.0))


@pytest.mark.slow
def test_the_same_on_a_dask_cluster(tmp_path):
    pytest.importorskip("distributed")
    found = outcome(fragile, {0: ["a", "exit", "b"], 1: ["c"], 2: ["raise"]}, tmp_path, backend="dask")
    assert found == {
        0: ["a", Refusal("decoder_crash", "exit code 7"), "b"],
        1: ["c"],
        2: [Refusal("damaged_pixels", "ValueError")],
    }


def test_workers_end_when_their_parent_is_killed(tmp_path):
    """The parent is killed while its workers are idle; nothing else would tell them."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline.imaging.archive.workers import Pool, each_batch\n"
        "from imaging.files import process_id\n"
        "done = each_batch(process_id, {0: [0], 1: [1]}, Pool(2, 30.0), Path(sys.argv[1]))\n"
        "print(*{pid for _, pids in done for pid in pids}, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in workers)
