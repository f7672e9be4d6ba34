"""Small projects beside that of project.py: with further labels, and of volumes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import yaml
from project import SETTINGS, Project
from stages.sources_run import make_card

SHAPE = (20, 28, 22)  # right, anterior, superior, as NIfTI has them, mm
IMAGE_SIZE = [24, 32, 24]
VOLUMES = 90
HOSTILE = '#import "x" *b* <script>alert(1)</script> =1+1'


def add_further_labels(project: Project) -> None:
    """Let table and card of a project hold two more labels: one in a column of its own, one a class of the main's."""
    table = pd.read_csv(project.labels)
    # Every image gets a class; nobody looked for the sign in every tenth.
    table["sign"] = table["label"].map({"pneumonia": "yes", "normal": "no"}).where(table.index % 10 > 0)
    table.to_csv(project.labels, index=False)
    card = yaml.safe_load((project.folder / "card.yaml").read_text())
    words = {"definition": HOSTILE, "reference_standard": "nobody"}
    card["further_labels"] = [
        {"id": "sign", "name": HOSTILE, **words, "column": "sign", "positive": ["yes"], "negative": ["no"]},
        {"id": "healthy", "name": "no finding", **words, "positive": ["normal"], "negative": ["pneumonia"]},
    ]
    (project.folder / "card.yaml").write_text(yaml.safe_dump(card))


def make_volumes(folder: Path) -> Project:
    """Write a project of made-up NIfTI volumes, one of each patient: noise, with a bright ball in those who are ill."""
    project = Project(folder)
    generator = np.random.default_rng(5)
    rows = ["path,patient,label"]
    (folder / "studies").mkdir(parents=True)
    for patient in range(VOLUMES):
        ill = patient % 2 == 0
        name = f"{patient:03d}.nii"
        content = volume(generator, ill, np.uint8 if patient % 3 else np.float32)
        (folder / "studies" / name).write_bytes(content)
        rows.append(f"{name},{patient},{'ill' if ill else 'well'}")
    project.labels.write_text("\n".join(rows) + "\n")
    # A key of its own, as each run would make one, and the division of the patients with it: another test each time.
    key = folder / "volumes.key"
    key.write_text("7f" * 32 + "\n")
    key.chmod(0o600)
    (folder / "card.yaml").write_text(yaml.safe_dump(make_card(path="path", patient_id="patient").model_dump()))
    settings = {
        **SETTINGS,
        "data": {**SETTINGS["data"], "studies": ["../studies"], "key_file": "../volumes.key"},
        "preprocess": {"image_size": IMAGE_SIZE, "spacing_mm": [1.0, 1.0, 1.0]},
        "pretrain": {
            **SETTINGS["pretrain"],
            "encoder": {**SETTINGS["pretrain"]["encoder"], "patch_size": [8, 8, 8]},
            "max_steps": 12,  # a trial: the balls lie in noise, which nothing can predict
        },
        "finetune": {"arms": ["mae", "linear_probe"], "seeds": [1], "epochs": 4, "warmup_epochs": 1.0},
        "calibrate": {"recall_targets": [0.7], "confidence": 0.9, "arm": "mae"},
        "report": {"title": "Balls", "examples": 2},
    }
    project.config.parent.mkdir()
    project.config.write_text("# volumes\n" + yaml.safe_dump(settings))
    return project


def volume(generator: np.random.Generator, ill: bool, dtype: type) -> bytes:
    """Return noise as a NIfTI file, with a bright ball in ill patients, on a scale of its own."""
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    distance = np.linalg.norm(places - np.array(SHAPE) * generator.uniform(0.4, 0.6, 3), axis=-1)
    values = generator.uniform(40, 80, SHAPE) + 120 * (ill & (distance < 5))
    scale = 1 if dtype is np.uint8 else generator.uniform(1, 1000)
    image = nib.Nifti1Image((values * scale).astype(dtype), np.eye(4), dtype=dtype)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()
