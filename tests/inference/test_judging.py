"""Studies of a queue through a model: the results of predict, and no study takes another one with it."""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from pathlib import Path

import pydicom
import pytest
import service

from pipeline.delivery import uploads, worker
from pipeline.delivery.queue import Queue
from pipeline.delivery.worker import Judging, judge
from pipeline.delivery.worker_process import Options, WorkerProcess
from pipeline.inference import batch

ONE = Judging(workers=1)


@pytest.fixture(scope="module")
def model(mae):
    return mae.load()


@pytest.fixture(scope="module")
def films(mae) -> dict[str, list[bytes]]:
    """The files of each study, by Study Instance UID."""
    found: dict[str, list[bytes]] = {}
    with zipfile.ZipFile(mae.studies) as archive:
        for name in sorted(archive.namelist()):
            data = archive.read(name)
            uid = str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).StudyInstanceUID)
            found.setdefault(uid, []).append(data)
    return found


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def send(queue: Queue, content: bytes, name: str = "") -> str:
    entry = queue.receive("http", name)
    upload = entry.files / "upload"
    upload.write_bytes(content)
    uploads.settled(upload)
    return queue.submit(entry).id


def result(queue: Queue, entry_id: str) -> dict:
    return json.loads((queue.root / "finished" / entry_id / "result.json").read_text())


def why(queue: Queue, entry_id: str) -> str:
    return json.loads((queue.root / "failed" / entry_id / "failure.json").read_text())["reason"]


def test_results_are_those_of_predict_bit_for_bit(mae, model, films, tmp_path):
    queue, some = Queue(tmp_path), dict([*films.items()][:7])
    sent = {}
    for uid, files in some.items():
        content = files[0] if len(files) == 1 else zipped({f"{n}.dcm": data for n, data in enumerate(files)})
        sent[uid] = send(queue, content)
    again = send(queue, zipped({f"{n}.dcm": data for n, data in enumerate(next(iter(some.values())))}))  # sent twice
    assert judge(queue, model, ONE) == 8
    expected = {one.study: one.to_row() for one in model.predict([mae.studies], workers=1) if one.study in some}
    apart = {"study", "path"}
    for uid, entry_id in [*sent.items(), (next(iter(some)), again)]:
        row = result(queue, entry_id)["result"]
        assert {k: v for k, v in row.items() if k not in apart} == {
            k: v for k, v in expected[uid].items() if k not in apart
        }
        assert row["study"] == entry_id
        names = sorted(path.name for path in (queue.root / "finished" / entry_id).iterdir())
        assert names == ["attempts", "entry.json", "image.svg", "outline.svg", "page.pdf", "result.json"]
    headers = [pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True) for files in some.values() for data in files]
    planted = {text for h in headers for text in (str(h.PatientID), str(h.PatientName)) if len(text) > 3}
    written = b"".join(path.read_bytes() for path in (queue.root / "finished").rglob("*") if path.is_file())
    assert not [text for text in planted if text.encode() in written]


def test_hostile_uploads_cost_themselves_alone(model, films, tmp_path):
    first, second = ([*films.values()][n] for n in (0, 1))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for n in range(20):
            archive.writestr(f"{n}.dcm", bytes(16 * 1024**2))
    crowd = zipped({f"{n}.dcm": b"" for n in range(60)})
    # Directories that zipfile would read whole: at the end, and by way of ZIP64.
    end = b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + bytes(8) + (5 * 1024**2).to_bytes(4, "little") + bytes(6)
    record = b"PK\x06\x06" + bytes(36) + (5 * 1024**3).to_bytes(8, "little") + bytes(8)
    locator = b"PK\x06\x07" + bytes(4) + (104).to_bytes(8, "little") + bytes(4)
    far = b"PK\x03\x04" + bytes(100) + record + locator + b"PK\x05\x06" + bytes(18)
    queue = Queue(tmp_path)
    ids = {
        name: send(queue, content)
        for name, content in {
            "good": first[0],
            "truncated": first[0][: len(first[0]) // 2],
            "no image": b"Dear colleague, " * 100,
            "outward": zipped({"../../../../tmp/owned.dcm": first[0], "/etc/owned": b"x"}),
            "two studies": zipped({"a.dcm": first[0], "b.dcm": second[0]}),
            "no file": zipped({}),
            "bomb": bomb.getvalue(),
            "crowd": crowd,
            "directory": end,
            "directory of ZIP64": far,
            "damaged zip": b"PK\x03\x04" + random.Random(1).randbytes(3000),
            "also good": second[0],
        }.items()
    }
    begun = time.process_time()
    judge(queue, model, Judging(workers=1, most_files=50, most_mb=200))
    assert time.process_time() - begun < 60
    assert {name for name, entry_id in ids.items() if entry_id in queue.ids("failed")} == {
        *("two studies", "bomb", "crowd", "directory", "directory of ZIP64")
    }
    assert queue.counts()["finished"] == 7
    decided = {name: result(queue, ids[name]) for name in ids if ids[name] in queue.ids("finished")}
    assert [name for name, found in decided.items() if found["result"]["decision"] == "not assessable"] == [
        *("truncated", "no image", "outward", "no file", "damaged zip")
    ]
    assert {why(queue, ids[name]) for name in ("bomb", "crowd", "two studies")} == {
        "its files unpack to more than 200 MB, the limit for one study",
        "it holds more than 50 files, the limit for one study",
        worker.SEVERAL.format(2),
    }
    assert {why(queue, ids[name]).split(" of ")[0] for name in ("directory", "directory of ZIP64")} == {
        "its archive has a directory"
    }
    assert not Path("/tmp/owned.dcm").exists()


def test_a_study_that_crashes_its_decoder_is_not_assessable_and_the_others_are_judged(
    model, films, tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "_see", service.see_or_die)
    queue, good = Queue(tmp_path), next(iter(films.values()))[0]
    ids = [send(queue, content) for content in (good, good[:-100] + b"crash the decoder" + good[-83:], good)]
    judge(queue, model, ONE)
    found = [result(queue, entry_id) for entry_id in ids]
    assert [one["result"]["decision"] for one in found][1] == "not assessable"
    assert "its decoder crashed" in " ".join(found[1]["why"]) or found[1]["quarantine"][0]["reason"] == "decoder_crash"
    assert found[0]["result"]["score_hex"] == found[2]["result"]["score_hex"]


def test_a_study_that_breaks_the_pass_is_given_up_alone(model, films, tmp_path, monkeypatch):
    queue, good = Queue(tmp_path), next(iter(films.values()))[0]
    ids = [send(queue, good) for _ in range(3)]
    real = worker.Predictions._result

    def breaking(self, group, seen, *found):
        if group.name == ids[1]:
            raise RuntimeError("DOE^JANE")
        return real(self, group, seen, *found)

    monkeypatch.setattr(worker.Predictions, "_result", breaking)
    judge(queue, model, ONE)
    assert [queue.find(entry_id).state for entry_id in ids] == ["finished", "failed", "finished"]
    assert why(queue, ids[1]) == worker.BROKEN.format("RuntimeError")


def test_without_room_on_the_disk_every_study_waits(model, films, tmp_path, monkeypatch):
    queue, good = Queue(tmp_path), next(iter(films.values()))[0]
    ids = [send(queue, good) for _ in range(2)]
    with monkeypatch.context() as full:
        full.setattr(Queue, "finish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            judge(queue, model, ONE)
    assert queue.ids("incoming") == sorted(ids)
    assert judge(queue, model, ONE, stopping=lambda: True) == 2
    assert len(queue.ids("incoming")) == 1  # one was at hand; the other waits for the next start
    assert judge(queue, model, ONE) == 1
    assert [queue.find(entry_id).attempts for entry_id in ids] == [1, 1]


def test_what_cannot_be_written_beside_a_result_is_named_and_costs_no_result(model, films, tmp_path):
    def broken(*_):
        raise ValueError("DOE^JANE")

    queue = Queue(tmp_path)
    entry_id = send(queue, next(iter(films.values()))[0])
    judge(queue, model, Judging(workers=1, keep_files=True, writers={"page": worker.page_files, "dicom": broken}))
    assert result(queue, entry_id)["not_written"] == ["dicom"]
    assert (queue.find(entry_id).files / "upload").is_file()


def test_the_process_that_judges_is_started_again_and_ends_when_asked(mae, films, tmp_path):
    queue, said = Queue(tmp_path), []
    process = WorkerProcess(tmp_path, Options(model=mae.model, workers=1, threads=1, device="cpu"), said.append)
    process.start()
    assert process.wait_until_ready().state == "ready"
    process._process.kill()
    entry_id = send(queue, next(iter(films.values()))[0])
    until = time.monotonic() + 120
    while queue.find(entry_id).state != "finished" and time.monotonic() < until:
        process.look()
        time.sleep(0.05)
    assert result(queue, entry_id)["result"]["score"] is not None
    assert said == ["the process that judges has ended (exit code -9); it starts again in 1 s"]
    pid = process._process.pid
    process.stop()
    assert not Path(f"/proc/{pid}").exists()
    wrong = WorkerProcess(tmp_path, Options(model=tmp_path, workers=1), said.append)
    wrong.start()
    assert "it is no finished model" in wrong.wait_until_ready().why
