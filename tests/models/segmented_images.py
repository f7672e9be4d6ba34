"""Images with bright balls in them and a mask of these: a task that is learnt in seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData, Start
from pipeline.models.images import Images
from pipeline.models.masks import Masks
from pipeline.models.training import Hardware
from pipeline.models.vit import EncoderSpec, build_encoder
from pipeline.settings.training import FinetuneSettings
from pipeline.store.tables.masks import NOT_ANNOTATED

CPU = torch.device("cpu")
SIDE = 32
STRUCTURES = {1: "ball", 2: "core"}


def balls(count: int, axes: int, seed: int, size: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels (N, 1, ...), masks (N, ...) and labels: every second image has a ball with a brighter core."""
    generator = np.random.default_rng(seed)
    size = size or (SIDE,) * axes
    labels = np.arange(count) % 2
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    pixels, masks = [], []
    for label in labels:
        centre = [generator.integers(8, side - 8) for side in size]
        distance = np.sqrt(sum((place - at) ** 2 for place, at in zip(places, centre, strict=True)))
        mask = np.where(distance <= 3, 2, np.where(distance <= 6, 1, 0)) * label
        pixels.append(np.clip(70 + 50 * mask + generator.normal(0, 10, size), 0, 255))
        masks.append(mask)
    return np.stack(pixels)[:, None].astype(np.uint8), np.stack(masks).astype(np.uint8), labels


def images_of(name: str, pixels: np.ndarray, labels: np.ndarray) -> Images:
    index = pd.DataFrame({
        "image_id": [f"{name}-{at:03d}" for at in range(len(pixels))],
        "patient_id": [f"{name}-patient-{at // 4 * 2 + at % 2:03d}" for at in range(len(pixels))],
        "label": pd.array(labels, "Int64"),
        "shard": f"{name}-000.npy",
        "row": np.arange(len(pixels)),
    })  # fmt: skip
    return Images(index, {f"{name}-000.npy": pixels})


def data_of(axes: int, train: int = 40, tune: int = 8) -> ArmData:
    """Return made-up patients with masks, one of them not annotated, and a random encoder as a pretrained one."""
    spec = EncoderSpec((SIDE,) * axes, (8,) * axes, 1, 48, 2, 2, (0.3,), (0.1,))
    torch.manual_seed(0)
    start = Start(build_encoder(spec).state_dict(), "a test", 1)
    starts = {name: start for name, arm in ARMS.items() if arm.encoder in ("pretrained", "imported")}
    parts = {name: balls(count, axes, seed) for seed, (name, count) in enumerate((("train", train), ("tune", tune)))}
    parts["train"][1][1] = NOT_ANNOTATED
    masks = Masks({f"{name}-000.npy": masks for name, (_, masks, _) in parts.items()}, STRUCTURES)
    images = {name: images_of(name, pixels, labels) for name, (pixels, _, labels) in parts.items()}
    return ArmData(images["train"], images["tune"], spec, starts, Hardware(CPU), masks)


def settings_of(**changes) -> FinetuneSettings:
    values = {
        "task": "segmentation", "arms": ["mae", "scratch", "classical"], "seeds": [1], "epochs": 8, "batch_size": 8,
        "warmup_epochs": 1.0, "learning_rate": 5e-3, "segmentation": {"decoder_width": 32},
    }  # fmt: skip
    return FinetuneSettings(**{**values, **changes})
