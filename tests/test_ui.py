"""The server of `maescreen ui`: on this machine alone, announced once it answers, gone when it was asked to go."""

import signal
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest
from test_config_file import CARD, CONFIG

from pipeline.store.tracking import Tracker


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@pytest.mark.slow
def test_the_ui_listens_on_loopback_and_leaves_no_process(tmp_path):
    folder = tmp_path / "a?b%20c#d' e&ü"
    (folder / "studies").mkdir(parents=True)
    (folder / "labels.csv").write_text("path,label\n")
    (folder / "card.yaml").write_text(CARD)
    (folder / "run.yaml").write_text(CONFIG + f"store: '{tmp_path}/a?b store'\n")
    tracker = Tracker("tiny", tmp_path / "a?b store")
    tracker.finish(tracker.open("pipeline", "report/k", "tiny k"), {})
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "ui", str(folder / "run.yaml"), "--port", str(port)]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        address = process.stdout.readline().strip()
        assert address.startswith(f"http://127.0.0.1:{port}/#/experiments/{tracker.experiment_id}/runs?")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert direct.open(f"http://127.0.0.1:{port}/health", timeout=10).status == 200
        own = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        places = {c.laddr for one in own for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert {(place.ip, place.port) for place in places} == {("127.0.0.1", port)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        gone, alive = psutil.wait_procs(own, timeout=5)
        assert (len(gone), alive) == (len(own), [])
    finally:
        process.kill()
        process.wait()
    assert not (folder / "demo.key").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["card.yaml", "labels.csv", "run.yaml", "studies"]
