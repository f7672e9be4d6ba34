"""Packaged models of the small project, and studies that they have not seen."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import PATIENTS, Project, add_external, made_once

from pipeline.inference.model import Model
from pipeline.orchestration.run import run
from pipeline.store.tables.io import read_table
from pipeline.store.tables.score import SCORES


@dataclass(frozen=True)
class Packaged:
    """A model folder, the folder of new studies, and what `score` made of the same studies as an external set."""

    model: Path
    studies: Path
    scores: object
    arm: str
    secret: bytes

    def load(self) -> Model:
        return Model.load(self.model, device="cpu", threads=1, say=lambda line: None)

    def unpacked(self, folder: Path) -> Path:
        with zipfile.ZipFile(self.studies) as archive:
            for name in archive.namelist():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(archive.read(name))
        return folder


@pytest.fixture(scope="session")
def judged(finished, tmp_path_factory) -> tuple[Project, str]:
    def make(folder: Path) -> None:
        made = finished.copy(folder)
        override = f"data.external=[{add_external(made, 'new', slice(PATIENTS, PATIENTS + 30))}]"
        (folder / "override.txt").write_text(override)
        for arm in ("hog", "mae"):
            _packaged((made, override), arm)

    project = Project(made_once(tmp_path_factory, "inference", make))
    return project, (project.folder / "override.txt").read_text()


# Arms that the finished run does not train, with settings for seconds.
FURTHER = (
    "finetune.arms=[cnn, classical, ensemble]",
    "finetune.ensemble=[cnn, classical]",
    "finetune.cnn={depth: 10, width: 8}",
    "finetune.seeds=[1, 2]",
)


def _packaged(judged: tuple[Project, str], arm: str, *overrides: str) -> Packaged:
    project, external = judged
    loaded = project.load(external, f"calibrate.arm={arm}", "machine.workers=1", *overrides)
    result = run(*loaded, until="package", say=lambda line: None)
    scores = read_table(result.artifacts["score@new"].file("scores_test.parquet"), SCORES)
    own = scores[scores["arm"] == arm]
    return Packaged(
        result.artifacts["package"].path / "model", project.folder / "new" / "studies.zip", own, arm, loaded[2]
    )


@pytest.fixture(scope="session")
def hog(judged) -> Packaged:
    return _packaged(judged, "hog")


@pytest.fixture(scope="session")
def mae(judged) -> Packaged:
    return _packaged(judged, "mae")


@pytest.fixture(scope="session")
def attentive(judged) -> Packaged:
    return _packaged(judged, "attentive_probe", "finetune.arms=[attentive_probe]")


@pytest.fixture(scope="session")
def cnn(judged) -> Packaged:
    return _packaged(judged, "cnn", *FURTHER)


@pytest.fixture(scope="session")
def classical(judged) -> Packaged:
    return _packaged(judged, "classical", *FURTHER)


@pytest.fixture(scope="session")
def ensemble(judged) -> Packaged:
    return _packaged(judged, "ensemble", *FURTHER)
