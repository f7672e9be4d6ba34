"""A small project made of real radiographs from the committed demo: settings for seconds, not for quality."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    import pytest
    from mlflow.entities import Run

    from pipeline.store.tracking import Tracker

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "data_manifests" / "demo_chest_xray"
PATIENTS = 180


@dataclass(frozen=True)
class Project:
    """A config file with its studies, labels and store in one folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "configs" / "mini.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.csv"

    def load(self, *overrides: str):
        """Return what `run` and `plan` need: config, card and key."""
        from pipeline.imaging.pseudonyms import load_key
        from pipeline.settings.load import load

        config, card = load(self.config, list(overrides))
        return config, card, load_key(config.data.key_file, identifiers=card.identifiers)

    def copy(self, folder: Path) -> Project:
        """Return a copy, store included; times are kept, so that nothing is hashed again."""
        shutil.copytree(self.folder, folder)
        return Project(folder)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a copy of a project that `make` writes into a folder, once for all processes of these tests."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made, done = base / f"{name}-made", base / f"{name}-is-whole"
    with (base / f"{name}-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(made, ignore_errors=True)
            make(made)
            done.touch()
    copy = shutil.copytree(made, factory.mktemp(name) / "project")
    with closing(sqlite3.connect(copy / "store" / "mlflow.db")) as database, database:
        # MLflow keeps whole addresses of where its files lie.
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(change, (made.as_uri(), copy.as_uri()))
    return copy


def make_project(folder: Path) -> Project:
    """Write a project of the first patients of the demo: about 270 radiographs."""
    _write_studies(folder, slice(PATIENTS))
    shutil.copyfile(DEMO / "card.yaml", folder / "card.yaml")
    shutil.copyfile(DEMO / "demo.key", folder / "demo.key")
    project = Project(folder)
    project.config.parent.mkdir()
    project.config.write_text("# mini\n" + yaml.safe_dump(SETTINGS, sort_keys=False))
    return project


def add_external(project: Project, name: str, patients: slice, *, card: str | None = None, drop: str = "none") -> str:
    """Write an external test set of these patients of the demo; return the override that names it.

    `card` replaces the text of its card. Of the patients labelled `drop`, two in three are left out.
    """
    folder = project.folder / name
    _write_studies(folder, patients, drop)
    (folder / "card.yaml").write_text(card or (DEMO / "card.yaml").read_text())
    where = {"studies": [f"../{name}/studies.zip"], "labels": f"../{name}/labels.csv", "card": f"../{name}/card.yaml"}
    return json.dumps({"name": name, **where})


def add_darker_copy(folder: Path, name: str, as_name: str = "darker.dcm", factor: float = 0.8) -> None:
    """Add a picture of the demo to other studies, darker, and as that of a patient called `another one`."""
    import numpy as np
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    with zipfile.ZipFile(DEMO / "studies.zip") as demo:
        image = pydicom.dcmread(io.BytesIO(demo.read(name)))
    pixels = image.pixel_array
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    image.PixelData = (grey * factor).astype(np.uint8).tobytes()
    image.PhotometricInterpretation, image.SamplesPerPixel = "MONOCHROME2", 1
    if "PlanarConfiguration" in image:
        del image.PlanarConfiguration
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.PatientID, image.SOPInstanceUID = "another one", generate_uid()
    image.SeriesInstanceUID = image.StudyInstanceUID = generate_uid()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    stream = io.BytesIO()
    image.save_as(stream)
    with zipfile.ZipFile(folder / "studies.zip", "a") as studies:
        studies.writestr(as_name, stream.getvalue())


def _write_studies(folder: Path, patients: slice, drop: str = "none") -> None:
    folder.mkdir(parents=True)
    first, *rows = (DEMO / "labels.csv").read_text().splitlines()
    people: dict[str, list[str]] = {}
    for row in rows:
        people.setdefault(str(Path(row).parent), []).append(row)
    chosen = [own for at, own in enumerate(list(people.values())[patients]) if at % 3 == 0 or not own[0].endswith(drop)]
    kept = [row for own in chosen for row in own]
    with zipfile.ZipFile(DEMO / "studies.zip") as demo, zipfile.ZipFile(folder / "studies.zip", "w") as mini:
        for row in kept:
            name = row.split(",")[0]
            mini.writestr(demo.getinfo(name), demo.read(name))
    (folder / "labels.csv").write_text("\n".join([first, *kept]) + "\n")


def pipeline_runs(tracker: Tracker) -> list[Run]:
    """Return what MLflow holds of whole runs of the pipeline, newest first."""
    return [*tracker.client.search_runs([tracker.experiment_id], "tags.`maescreen.kind` = 'pipeline'")]


SETTINGS = {
    "project": "mini",
    "data": {
        "studies": ["../studies.zip"],
        "labels": "../labels.csv",
        "card": "../card.yaml",
        "key_file": "../demo.key",
    },
    "machine": {"workers": 1, "threads": 1, "device": "cpu"},  # a second process costs more than it gives
    "ingest": {"batch_size": 40},
    # With this seed the test patients do not contradict the certificate, which would close the gate.
    "split": {"seed": 3, "fractions": {"train": 0.35, "tune": 0.15, "calibration": 0.3, "test": 0.2}},
    "preprocess": {"image_size": [32, 32], "shard_size": 30},
    "pretrain": {
        "encoder": {"patch_size": [8, 8], "width": 48, "depth": 2, "heads": 4},
        "decoder_width": 48,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "epochs": 8,
        "batch_size": 16,
        "warmup_epochs": 1,
        "base_learning_rate": 2e-2,
    },
    "finetune": {"seeds": [1, 2], "epochs": 6, "warmup_epochs": 1, "batch_size": 16, "hog_image_size": [32, 32]},
    "calibrate": {"recall_targets": [0.8], "confidence": 0.9, "arm": "hog"},
    "report": {"title": "Mini"},
}
