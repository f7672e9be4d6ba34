"""The configuration: one strict model per stage, one complete YAML per run, every mistake reported at once.

The settings of a stage are part of the key of its artifact. `machine`, `tracking`, `store`, `project` and the
paths under `data` are not: they say where and how fast, not what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.models.arm_registry import ARMS, pretrained
from pipeline.settings.common import Settings
from pipeline.settings.decision import (
    CalibrateSettings,
    EvaluateSettings,
    PackageSettings,
    ReportSettings,
    ScoreSettings,
)
from pipeline.settings.images import IngestSettings, PreprocessSettings, SplitSettings
from pipeline.settings.training import FinetuneSettings, PretrainSettings
from pipeline.settings.where import Data, Machine, Tracking

OF_COLOUR = ("saturation", "hue", "channel_brightness")


class Config(Settings):
    """A complete run."""

    project: str = Field(pattern=r"^[a-z0-9_]+$", description="name of the MLflow experiment and of the report folder")
    store: Path = Field(Path("../store"), description="folder of artifacts")
    reports: Path = Field(Path("../reports"), description="folder of finished reports")
    data: Data
    tracking: Tracking = Field(default_factory=Tracking)
    machine: Machine = Field(default_factory=Machine)
    ingest: IngestSettings = Field(default_factory=IngestSettings)
    split: SplitSettings = Field(default_factory=SplitSettings)
    preprocess: PreprocessSettings = Field(default_factory=PreprocessSettings)
    pretrain: PretrainSettings = Field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = Field(default_factory=FinetuneSettings)
    score: ScoreSettings = Field(default_factory=ScoreSettings)
    calibrate: CalibrateSettings = Field(default_factory=CalibrateSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    package: PackageSettings = Field(default_factory=PackageSettings)
    report: ReportSettings

    @property
    def starts_from_weights(self) -> bool:
        """Whether pretraining or an arm starts from `data.imported_weights`."""
        return self.data.imported_weights is not None and (
            "imported" in self.finetune.arms or self.pretrain.start == "imported"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        problems = []
        size = self.preprocess.image_size
        if pretrained(self.finetune.arms):
            problems += _of_encoder(size, self.pretrain.encoder.patch_size)
            window = self.finetune.segmentation.window
            if self.finetune.task == "segmentation" and window is not None:
                problems += _of_window(window, size, self.pretrain.encoder.patch_size)
        if len(size) == 2:
            for stage in ("pretrain", "finetune"):
                if "depth" in getattr(self, stage).augmentation.flips:
                    problems.append(f"{stage}.augmentation.flips has depth; preprocess.image_size has no such axis")
            if self.finetune.augmentation.tilt_degrees:
                problems.append("finetune.augmentation.tilt_degrees is for volumes; preprocess.image_size has two axes")
        if "imported" in self.finetune.arms and self.data.imported_weights is None:
            problems.append("finetune.arms names imported; data.imported_weights must say which weights")
        if self.pretrain.start == "imported" and self.data.imported_weights is None:
            problems.append("pretrain.start is imported; data.imported_weights must say which weights")
        blocks, depth = self.finetune.trainable_blocks, self.pretrain.encoder.depth
        if blocks is not None and blocks > depth:
            problems.append(f"finetune.trainable_blocks {blocks} is above pretrain.encoder.depth {depth}")
        if self.score.flips and "horizontal" not in self.finetune.augmentation.flips:
            problems.append(
                "score.flips needs horizontal among finetune.augmentation.flips: a model cannot judge what it never saw"
            )
        if self.calibrate.arm not in self.finetune.arms:
            problems.append(
                f"calibrate.arm {self.calibrate.arm} is not among finetune.arms: {', '.join(self.finetune.arms)}"
            )
        for arm in (ARMS[name] for name in self.finetune.arms if len(size) not in ARMS[name].axes):
            needed, given = ("2-D", "volumes") if len(size) == 3 else ("3-D", "pictures")
            problems.append(f"finetune.arms names {arm.name}, which needs {needed} images; remove it for {given}")
        if self.ingest.axes not in (None, len(size)):
            problems.append(f"ingest.axes is {self.ingest.axes}, but preprocess.image_size has {len(size)} axes")
        in_colour = self.preprocess.channels == "colour"
        if in_colour and len(size) == 3:
            problems.append("preprocess.channels colour is for pictures; preprocess.image_size has 3 axes")
        coloured = [name for name in OF_COLOUR if getattr(self.finetune.augmentation, name)]
        if coloured and not in_colour:
            names = ", ".join(f"finetune.augmentation.{name}" for name in coloured)
            problems.append(f"{names} {'needs' if len(coloured) == 1 else 'need'} preprocess.channels: colour")
        if self.preprocess.crop != "none" and len(size) == 3:
            problems.append("preprocess.crop field_of_view is for pictures; preprocess.image_size has 3 axes")
        if in_colour and self.ingest.colour == "luminance":
            problems.append("ingest.colour luminance takes the colours that preprocess.channels: colour is to keep")
        if not in_colour and self.ingest.colour == "keep":
            problems.append("ingest.colour keep needs preprocess.channels: colour")
        if problems:
            raise ValueError("; ".join(problems))
        spelt_out = {"axes": len(size)} | ({"colour": "keep"} if in_colour else {})  # what ingest does is in its key
        object.__setattr__(self, "ingest", self.ingest.model_copy(update=spelt_out))
        return self


def _of_window(window: Sequence[int], size: Sequence[int], patch: Sequence[int]) -> list[str]:
    """Return how windows do not fit the images or their patches."""
    name = f"finetune.segmentation.window {window}"
    if len(window) != len(size):
        return [f"{name} has {len(window)} axes, preprocess.image_size {len(size)}"]
    problems = (
        [f"{name} is larger than preprocess.image_size"]
        if any(w > s for w, s in zip(window, size, strict=True))
        else []
    )
    if len(patch) == len(window) and any(w % p for w, p in zip(window, patch, strict=True)):
        problems.append(f"{name} must be a multiple of pretrain.encoder.patch_size {patch}")
    return problems


def _of_encoder(size: Sequence[int], patch: Sequence[int]) -> list[str]:
    """Return how patches do not fit the images."""
    if len(size) != len(patch):
        return [f"preprocess.image_size has {len(size)} axes, pretrain.encoder.patch_size {len(patch)}"]
    if any(s % p for s, p in zip(size, patch, strict=True)):
        return [f"preprocess.image_size {size} must be a multiple of pretrain.encoder.patch_size {patch}"]
    if size == patch:
        return [f"pretrain.encoder.patch_size {patch} makes the image one patch, of which none can be hidden"]
    return []
