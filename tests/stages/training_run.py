"""A tiny preprocessed data set, and the training stages run on it as the pipeline would run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.orchestration.graph import STAGES
from pipeline.settings.decision import ScoreSettings
from pipeline.settings.training import FinetuneSettings, PretrainSettings
from pipeline.settings.where import Machine
from pipeline.stages.finetune import finetune
from pipeline.stages.pretrain import pretrain
from pipeline.stages.score import score
from pipeline.store.artifacts import Artifact, Inputs
from pipeline.store.files import sha256_file, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.io import write_table
from pipeline.store.tables.preprocess import INDEX

READS = {stage.name: stage.reads for stage in STAGES}
FUNCTIONS: dict[str, Callable[..., None]] = {"pretrain": pretrain, "finetune": finetune, "score": score}
SETTINGS = {
    "pretrain": PretrainSettings(
        encoder={"patch_size": [4, 4], "width": 16, "depth": 2, "heads": 2},
        decoder_width=16, decoder_depth=1, decoder_heads=2, epochs=12, batch_size=16, min_learning_rate=1e-2,
        warmup_epochs=1.0,
    ),
    "finetune": FinetuneSettings(seeds=[1, 2], epochs=4, batch_size=16, warmup_epochs=1.0, learning_rate=3e-3,
                                 hog_image_size=[16, 16]),
    "score": ScoreSettings(batch_size=7),
}  # fmt: skip
PATIENTS = {"train": 40, "tune": 14, "calibration": 14, "test": 14, "pretrain": 9}


def make_images(folder: Path, *, shape: tuple[int, ...] = (1, 16, 16), seed: int = 0) -> Path:
    """Write the preprocess artifact: gratings across (negative) or along (positive), one or two per patient.

    Two shards for training, one unlabelled image among the tuning images, unlabelled images to pretrain on.
    """
    generator = np.random.default_rng(seed)
    work = folder / "preprocess"
    work.mkdir(parents=True)
    for split, patients in PATIENTS.items():
        people = np.repeat(np.arange(patients), 1 + np.arange(patients) % 2)
        labels = people % 2
        waves = np.sin(np.arange(shape[-1]) * 1.3 + generator.uniform(0, 1, (len(people), 1)))
        along = np.broadcast_to(waves.reshape(-1, *[1] * (len(shape) - 1), shape[-1]), (len(people), *shape))
        pictures = np.where((labels == 1).reshape(-1, *[1] * len(shape)), along, np.swapaxes(along, -1, -2))
        noisy = 128 + 40 * pictures + generator.normal(0, 12, (len(people), *shape))
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        half = (len(people) + 1) // 2
        for number, rows in enumerate((slice(0, half), slice(half, None))):
            np.save(work / f"{split}-{number:03d}.npy", pixels[rows])
        place = np.arange(len(people))
        known = pd.array(labels, dtype="Int64")
        if split == "pretrain":
            known[:] = pd.NA
        elif split == "tune":
            known[3] = pd.NA
        index = pd.DataFrame({
            "image_id": [f"{split}-image-{i:03d}" for i in place],
            "patient_id": [f"{split}-patient-{i:03d}" for i in people],
            "label": known,
            "shard": [f"{split}-{int(i >= half):03d}.npy" for i in place],
            "row": place % half,
            "padding": [[0.0] * 2 * (len(shape) - 1)] * len(place),
        })  # fmt: skip
        write_table(work / f"index_{split}.parquet", index, INDEX)
    write_json(work / "summary.json", {"image_size": list(shape[1:])})
    publish(work)
    return folder


def publish(work: Path) -> None:
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name != "artifact.json")
    record = {"files": {str(path.relative_to(work)): sha256_file(path) for path in files}}
    write_json(work / "artifact.json", record)


def inputs(folder: Path, stage: str) -> Inputs:
    """What the pipeline would hand to a stage, and no more."""
    artifacts = {name: Artifact(name, f"{name}-key", folder / name) for name in READS[stage]}
    machine, weights = Machine(device="cpu", threads=1), folder / "weights.safetensors"
    imported = weights if weights.exists() else None
    return Inputs(None, machine, artifacts, READS[stage], imported_weights=imported)  # type: ignore[arg-type]


def run_stage(
    folder: Path, stage: str, sink: Callable[..., None] | None = None, **changes: Any
) -> tuple[dict[str, str], RunLog]:
    """Run a stage, going on where an earlier attempt stopped; publish it; return its files' hashes and its log."""
    settings = SETTINGS[stage].model_copy(update=changes)
    work = folder / stage
    work.mkdir(exist_ok=True)
    log = RunLog(stage, sink=sink, quiet=True)
    FUNCTIONS[stage](settings, inputs(folder, stage), work, log)
    publish(work)
    names = sorted(path for path in work.rglob("*") if path.is_file())
    return {str(path.relative_to(work)): sha256_file(path) for path in names}, log


class Killed(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


def killer(at: int) -> Callable[..., None]:
    """Return a metrics sink that dies at the `at`-th report: after an epoch, before its checkpoint."""
    calls = 0

    def sink(values: Any, step: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed

    return sink
