"""The queue on disk: whatever is killed when, a study lies in one folder, and none is lost or judged twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.delivery.queue import MOST_ATTEMPTS, STATES, Queue, QueueError


def submitted(queue: Queue, content: bytes = b"image", name: str = ""):
    entry = queue.receive("http", name)
    (entry.files / "upload").write_bytes(content)
    return queue.submit(entry)


def everywhere(queue: Queue) -> list[str]:
    return sorted(entry_id for state in STATES for entry_id in queue.ids(state))


def dead(queue: Queue) -> None:
    """Let go of what a queue object holds, as the end of its process does."""
    for descriptor in queue._held.values():
        os.close(descriptor)
    queue._held.clear()


def end(queue: Queue, how: str, entry) -> None:
    if how == "finish":
        queue.finish(entry, {"result.json": b"{}"})
    elif how == "fail":
        queue.fail(entry, "a reason")
    else:
        queue.give_back(entry)


def test_a_study_goes_from_folder_to_folder(tmp_path):
    queue = Queue(tmp_path / "queue")
    entry = queue.receive("http", "chest 7")
    assert (entry.state, queue.find(entry.id), queue.take(9)) == ("receiving", None, [])
    (entry.files / "upload").write_bytes(b"image")
    assert queue.submit(entry).folder == tmp_path / "queue" / "incoming" / entry.id
    (taken,) = queue.take(9)
    assert (taken.state, taken.name, taken.attempts, queue.take(9)) == ("processing", "chest 7", 1, [])
    finished = queue.finish(taken, {"result.json": b"{}"})
    assert sorted(path.name for path in finished.folder.iterdir()) == ["attempts", "entry.json", "result.json"]
    assert queue.find(entry.id) == finished
    assert queue.counts() == {"receiving": 0, "incoming": 0, "processing": 0, "finished": 1, "failed": 0}
    assert not list((tmp_path / "queue" / ".bin").iterdir())


def test_failed_studies_keep_their_files_and_say_why(tmp_path):
    queue = Queue(tmp_path)
    submitted(queue)
    (taken,) = queue.take(1)
    failed = queue.fail(taken, "it holds no file")
    assert (failed.files / "upload").read_bytes() == b"image"
    assert json.loads((failed.folder / "failure.json").read_text())["reason"] == "it holds no file"
    # Moved back by hand, it is tried once more.
    failed.folder.rename(tmp_path / "incoming" / failed.id)
    assert [entry.attempts for entry in queue.take(1)] == [2]


def test_what_was_kept_stays_and_what_was_discarded_goes(tmp_path):
    queue = Queue(tmp_path)
    submitted(queue)
    (taken,) = queue.take(1)
    assert (queue.finish(taken, {}, keep_files=True).files / "upload").is_file()
    entry = queue.receive("http")
    queue.discard(entry)
    assert queue.counts()["receiving"] == 0
    with pytest.raises(QueueError, match="is no longer receiving"):
        queue.submit(entry)
    with pytest.raises(QueueError, match="not discarded"):
        queue.discard(submitted(queue))


def test_the_oldest_go_first_and_two_takers_share(tmp_path):
    queue, other = Queue(tmp_path), Queue(tmp_path)
    ids = [submitted(queue).id for _ in range(7)]
    first, second = queue.take(3), other.take(9)
    assert sorted(entry.id for entry in [*first, *second]) == sorted(ids)
    assert sorted(ids)[:3] == [entry.id for entry in first]
    # What a living process has is not taken back from it.
    assert queue.requeue_interrupted() == other.requeue_interrupted() == Queue(tmp_path).requeue_interrupted() == []
    dead(other)
    assert sorted(e.id for e in queue.requeue_interrupted()) == sorted(e.id for e in second)


def test_a_study_that_interrupts_again_and_again_is_given_up_alone(tmp_path):
    for _ in range(2):
        submitted(Queue(tmp_path))
    for attempt in range(1, MOST_ATTEMPTS + 1):
        queue = Queue(tmp_path)
        queue.requeue_interrupted()
        assert len(queue.take(9)) == (2 if attempt == 1 else 1)
        dead(queue)
    queue = Queue(tmp_path)
    assert len(queue.requeue_interrupted()) == 0
    assert queue.counts() | {"receiving": 0} == {
        "receiving": 0, "incoming": 1, "processing": 0, "finished": 0, "failed": 1,
    }  # fmt: skip


def test_a_study_given_back_was_never_begun(tmp_path):
    queue = Queue(tmp_path)
    submitted(queue)
    (taken,) = queue.take(1)
    (taken.folder / "result.json").write_text("{}")
    queue.give_back(taken)
    (again,) = queue.take(1)
    assert again.attempts == 1
    assert not (again.folder / "result.json").exists()


def test_what_a_receiver_left_behind_is_found_by_its_source_alone(tmp_path):
    queue = Queue(tmp_path)
    dicom, http, own = queue.receive("dicom"), queue.receive("http"), Queue(tmp_path).receive("dicom")
    (tmp_path / "incoming" / ".20260101T000000000Z-0123456789abcdef").mkdir()  # ended before its note
    assert Queue(tmp_path).unfinished("dicom") == []
    dead(queue)
    later = Queue(tmp_path)
    assert [entry.id for entry in later.unfinished("dicom")] == [dicom.id] != [own.id]
    assert later.unfinished("dicom") == []  # it is held now
    assert [entry.id for entry in later.unfinished("http")] == [http.id]
    later.discard(http)
    assert later.submit(dicom).state == "incoming"


@pytest.mark.parametrize("bad", ["", "..", "../finished", "a", "20260101T000000000Z-0123456789abcde/", "%2e%2e", "\0"])
def test_no_id_leads_out_of_the_queue(tmp_path, bad):
    assert Queue(tmp_path).find(bad) is None


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(QueueError, match="holds other files"):
        Queue(tmp_path)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["submit", "take", "finish", "fail", "give back", "die"]), max_size=15))
def test_nothing_is_lost_or_doubled_whatever_happens_in_what_order(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("queue")
    queue, sent = Queue(folder), []
    taken: list = []
    for step in steps:
        if step == "submit":
            sent.append(submitted(queue).id)
        elif step == "take":
            taken += queue.take(2)
        elif step == "die":
            dead(queue)
            queue, taken = Queue(folder), []
            queue.requeue_interrupted()
        elif taken:
            end(queue, step, taken.pop())
    assert everywhere(queue) == sorted(sent)
    dead(queue)


WORKER = """
import sys
from pathlib import Path
from pipeline.delivery.queue import Queue
queue = Queue(Path(sys.argv[1]))
for entry in queue.unfinished("http"):
    queue.discard(entry)
queue.requeue_interrupted()
journal = open(sys.argv[2], "a", buffering=1)
while True:
    if len(queue.ids("incoming")) < 4:
        entry = queue.receive("http")
        (entry.files / "upload").write_bytes(b"image")
        # Said before it is certain: of these, each but the last must be there in the end.
        journal.write(entry.id + chr(10))
        queue.submit(entry)
    for entry in queue.take(3):
        queue.finish(entry, {"result.json": b"{}", "page.pdf": bytes(2000)})
"""


def test_killed_at_random_moments(tmp_path):
    chance, ended, journal = random.Random(5), [], tmp_path / "journal"
    for _ in range(6):
        before = journal.read_text().split() if journal.exists() else []
        command = [sys.executable, "-c", WORKER, str(tmp_path / "queue"), str(journal)]
        process = subprocess.Popen(command, cwd=os.getcwd())
        while not journal.exists() or len(journal.read_text().split()) <= len(before):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        ended.append(journal.read_text().split()[-1])
    queue = Queue(tmp_path / "queue")
    queue.requeue_interrupted()
    assert len(queue.ids("processing")) == 0
    there = everywhere(queue)
    said = journal.read_text().split()
    assert len(there) == len({*there})
    assert {*said} - {*ended} <= {*there} <= {*said}
    for entry_id in queue.ids("finished"):
        folder = queue.root / "finished" / entry_id
        assert (folder / "result.json").read_bytes() == b"{}"
        assert (folder / "page.pdf").stat().st_size == 2000
