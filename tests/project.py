"""A small project made of real radiographs from the committed demo: settings for seconds, not for quality."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

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
        from pipeline.config_file import load
        from pipeline.imaging.pseudonyms import load_key

        config, card = load(self.config, list(overrides))
        return config, card, load_key(config.data.key_file, identifiers=card.identifiers)

    def copy(self, folder: Path) -> Project:
        """Return a copy, store included; times are kept, so that nothing is hashed again."""
        shutil.copytree(self.folder, folder)
        return Project(folder)


def make_project(folder: Path) -> Project:
    """Write a project of the first patients of the demo: about 270 radiographs."""
    folder.mkdir(parents=True)
    rows = (DEMO / "labels.csv").read_text().splitlines()
    with zipfile.ZipFile(DEMO / "studies.zip") as demo, zipfile.ZipFile(folder / "studies.zip", "w") as mini:
        folders = sorted({str(Path(name).parent) for name in demo.namelist() if name.endswith(".dcm")})[:PATIENTS]
        names = [name for name in demo.namelist() if str(Path(name).parent) in folders and name.endswith(".dcm")]
        for name in names:
            mini.writestr(demo.getinfo(name), demo.read(name))
    kept = [row for row in rows[1:] if row.split(",")[0] in set(names)]
    (folder / "labels.csv").write_text("\n".join([rows[0], *kept]) + "\n")
    shutil.copyfile(DEMO / "card.yaml", folder / "card.yaml")
    shutil.copyfile(DEMO / "demo.key", folder / "demo.key")
    project = Project(folder)
    project.config.parent.mkdir()
    project.config.write_text("# mini\n" + yaml.safe_dump(SETTINGS, sort_keys=False))
    return project


SETTINGS = {
    "project": "mini",
    "data": {
        "studies": ["../studies.zip"],
        "labels": "../labels.csv",
        "card": "../card.yaml",
        "key_file": "../demo.key",
    },
    "machine": {"workers": 2, "threads": 1, "device": "cpu"},
    "ingest": {"batch_size": 40},
    "split": {"fractions": {"train": 0.35, "tune": 0.15, "calibration": 0.3, "test": 0.2}},
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
