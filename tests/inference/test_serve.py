"""`maescreen serve` as it is started: killed and started again, asked by several at once, and ended."""

from __future__ import annotations

import os
import signal
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from service import TOKEN, started
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.delivery.queue import STATES, Queue


def everywhere(queue: Queue) -> list[str]:
    return sorted(entry_id for state in STATES for entry_id in queue.ids(state))


@pytest.mark.slow
def test_killed_and_started_again_it_judges_every_study_once_and_leaves_no_process(mae, tmp_path):
    with zipfile.ZipFile(mae.studies) as archive:
        films = [archive.read(name) for name in sorted(archive.namelist())[:8]]
    sent: list[str] = []
    process, client = started(tmp_path, mae.model, "--dicom", "sr")

    def send(some: list[bytes]) -> None:
        sent.extend(client.ask("POST", "/studies?name=film", film).json["id"] for film in some)

    try:
        senders = [threading.Thread(target=send, args=(films[n::4],)) for n in range(4)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        queue = Queue(tmp_path / "queue")
        while not queue.ids("processing"):
            time.sleep(0.01)
        own = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert everywhere(queue) == sorted(sent)
        process, client = started(tmp_path, mae.model, "--dicom", "sr")
        assert client.get("/readyz").status == 200
        assert everywhere(queue) == sorted(sent)
        until = time.monotonic() + 120
        while len(queue.ids("finished")) < len(sent) and time.monotonic() < until:
            time.sleep(0.05)
        assert queue.ids("finished") == sorted(sent)
        found = [client.get(f"/studies/{entry_id}").json for entry_id in sent]
        assert {one["result"]["decision"] for one in found} <= {"refer", "no refer"}
        assert client.get(f"/studies/{sent[0]}/page.pdf").body.startswith(b"%PDF")
        assert client.get(f"/studies/{sent[0]}/sr.dcm").body[128:132] == b"DICM"
        assert "film" in client.get("/").text
        own += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
        assert psutil.wait_procs(own, timeout=20)[1] == []
    finally:
        process.kill()
        process.wait()
    # What the killed process left behind is cleared away, which joblib tells of now and then.
    said = (tmp_path / "said.txt").read_text().splitlines()
    assert [line for line in said if "resource_tracker" not in line and "warnings.warn" not in line] == []
    assert os.stat(tmp_path / "queue").st_mode & 0o777 == 0o700


def test_what_cannot_be_served_is_said_in_one_line(mae, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("chapter 1")

    def said(*options: str, queue: Path = tmp_path / "queue", model: Path = mae.model) -> str:
        words = ["serve", str(model), "--queue", str(queue), "--token-file", str(token), *options]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        assert done.output.count("\n") == 1
        assert TOKEN not in done.output
        return done.output

    assert "can be read or changed by others" in said()
    token.chmod(0o600)
    assert "holds other files" in said(queue=other)
    assert "needs both --ssl-certfile and --ssl-keyfile" in said("--ssl-certfile", str(token))
    assert "is in use, or" in said("--host", "192.0.2.7")
    assert "it is no finished model" in said(model=other)
    assert "no such file" in said("--token-file", str(tmp_path / "none"))
