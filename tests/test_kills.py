"""`kill -9` anywhere, start again: the same keys and the same bytes as if nothing had happened."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import Project, make_project

from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.run import run
from pipeline.store.artifacts import Store


def kill_during(project: Project, stage: str) -> None:
    """Start the run and kill it once `stage` has begun and, within a moment, left something."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(project.config)]
    said = project.folder / "said.txt"
    # A file, not a pipe: workers that outlive the killed process for a moment would keep a pipe open.
    with said.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream, stdout=stream)
    try:
        while not (partial := list((project.store / stage).glob("*.partial"))):
            assert process.poll() is None, f"{stage} was never killed: {said.read_text()}"
            time.sleep(0.001)
        patience = time.monotonic() + 0.5
        while time.monotonic() < patience and not any(path.is_file() for path in partial[0].rglob("*")):
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()


def files(project: Project, stage: str) -> tuple[str, dict[str, str]]:
    (artifact,) = Store(project.store).all(stage)
    return artifact.key, artifact.record["files"]


@pytest.mark.slow
def test_killed_in_each_of_the_ten_stages(finished, tmp_path: Path):
    project = make_project(tmp_path / "killed")
    for stage in NAMES:
        kill_during(project, stage)
    run(*project.load(), say=lambda line: None)
    for stage in NAMES[:-1]:
        key, expected = files(finished, stage)
        assert files(project, stage) == (key, expected), stage
    # The report prints when its artifacts were made, so only its key is the same.
    assert files(project, "report")[0] == files(finished, "report")[0]
    assert not list(project.store.glob("*/*.partial"))
