"""The image sizes and networks among which `maescreen init` chooses, the largest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.commands.fingerprint import Fingerprint
from pipeline.orchestration.work import Job, resnet_seconds, step_seconds
from pipeline.settings.training import PretrainSettings

FEW_TRAINING, SOME_TRAINING = 300, 1500
LEAST_VOLUME_SIDE = 16
VOLUME_PATCH = 8


@dataclass(frozen=True)
class Rung:
    """An image size and a network for it. `peak` is the highest rate of either training, which small networks bear."""

    image_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    width: int
    depth: int
    pretrain_peak: float
    finetune_peak: float
    gpu: bool = False
    volume_spacing_mm: float | None = None

    @property
    def sides(self) -> str:
        """The size in words."""
        return " × ".join(map(str, self.image_size))


PICTURES = (
    Rung((224, 224), (16, 16), 384, 12, 6e-4, 5e-4, gpu=True),
    Rung((128, 128), (8, 8), 192, 6, 1e-3, 1e-3),
    Rung((96, 96), (8, 8), 128, 6, 1.5e-3, 1e-3),
    Rung((64, 64), (8, 8), 96, 4, 2e-3, 2e-3),
    Rung((32, 32), (4, 4), 96, 4, 2e-3, 2e-3),
)
VOLUME_TOKENS = (512, 288, 144, 64)
UNSPACED_SIDES = (64, 48, 32)
RESIDUAL_WIDTHS = (64, 48, 32, 24, 16, 8)
LIKE = 1.75  # a step of the residual network may cost so many times the transformer's


def rungs(studies: Fingerprint, gpu: bool, training_images: int) -> list[Rung]:
    """Return what could be chosen, the largest first: nothing above the studies' own resolution, or their number."""
    if studies.axes == 3:
        return _volume_rungs(studies)
    longest = max(studies.median_size, default=64)
    most = 96 if training_images < FEW_TRAINING else 128 if training_images < SOME_TRAINING else 224
    fitting = [
        one
        for one in PICTURES
        if (gpu or not one.gpu) and one.image_size[0] <= most and one.image_size[0] < 1.3 * longest
    ]
    return fitting or [PICTURES[-1]]


def _volume_rungs(studies: Fingerprint) -> list[Rung]:
    """Return sizes that hold the volumes at a coarser and coarser spacing, at most so many patches each."""
    patch = (VOLUME_PATCH,) * 3
    if studies.extent_mm is None or studies.spacing_mm is None:
        return [Rung((side,) * 3, patch, 96, 4, 2e-3, 1e-3) for side in UNSPACED_SIDES]
    found: list[Rung] = []
    finest = min(studies.spacing_mm)
    for tokens in VOLUME_TOKENS:
        spacing, size = finest, _sides(studies.extent_mm, finest)
        while math.prod(size) > tokens * VOLUME_PATCH**3 and spacing < 100 * finest:
            spacing *= 1.05
            size = _sides(studies.extent_mm, spacing)
        rung = Rung(size, patch, 96, 4, 2e-3, 1e-3, volume_spacing_mm=float(f"{spacing:.3g}"))
        if not found or rung.image_size != found[-1].image_size:
            found.append(rung)
    return found


def _sides(extent_mm: Sequence[float], spacing: float) -> tuple[int, ...]:
    sides = (VOLUME_PATCH * math.ceil(extent / spacing / VOLUME_PATCH - 0.25) for extent in extent_mm)
    return tuple(max(LEAST_VOLUME_SIDE, side) for side in sides)


def pretrain_settings(rung: Rung, epochs: int, batch: int) -> PretrainSettings:
    """Return the settings of pretraining for a rung."""
    width = 32 * max(2, round(rung.width / 64))
    return PretrainSettings.model_validate(
        {
            "encoder": {
                "patch_size": list(rung.patch_size),
                "width": rung.width,
                "depth": rung.depth,
                "heads": rung.width // 32,
            },
            "decoder": "cross_attention",
            "decoder_width": width,
            "decoder_depth": 2,
            "decoder_heads": width // 32,
            "decoded_share": 0.34 if len(rung.image_size) == 3 else 0.5,
            "epochs": epochs,
            "batch_size": batch,
            "base_learning_rate": float(f"{rung.pretrain_peak * 256 / batch:.3g}"),
            "warmup_epochs": float(max(1, round(0.05 * epochs))),
            "checkpoint_every_epochs": max(1, epochs // 30),
        }
    )


def residual_width(job: Job) -> int:
    """Return the widest first stage of the residual network whose training costs about what the transformer's does."""
    _, step = step_seconds(job)
    return next((width for width in RESIDUAL_WIDTHS if resnet_seconds(job, width) <= LIKE * step), RESIDUAL_WIDTHS[-1])
