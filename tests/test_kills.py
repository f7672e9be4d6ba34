"""`kill -9` anywhere, start again: the same keys and the same bytes as if nothing had happened."""

import time
from pathlib import Path

import pytest
from project import Project, make_project
from starting import kill, start

from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.run import run
from pipeline.store.artifacts import Store


def kill_during(project: Project, stage: str) -> None:
    """Start the run and kill it once `stage` has begun and, within a moment, left something."""
    said = project.folder / "said.txt"
    process = start("run", project.config, said=said)
    try:
        while not (partial := list((project.store / stage).glob("*.partial"))):
            assert process.is_alive(), f"{stage} was never killed: {said.read_text()}"
            time.sleep(0.001)
        patience = time.monotonic() + 0.5
        while time.monotonic() < patience and not any(path.is_file() for path in partial[0].rglob("*")):
            time.sleep(0.001)
    finally:
        kill(process)


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
