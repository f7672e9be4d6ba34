"""Settings of ingest, split and preprocess: from files to arrays."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.settings.common import GreyValue, Megabytes, Seed, Settings, Share, Side, Spacing


class IngestSettings(Settings):
    """What is accepted, and the thresholds of the quality checks."""

    max_file_mb: Megabytes = Field(512.0, description="larger files are quarantined unread, MB")
    max_pixels_mb: Megabytes = Field(512.0, description="larger decoded images are quarantined, MB")
    timeout_s: float = Field(120.0, gt=0, le=86400, description="seconds a worker may take for one file")
    max_memory_mb: Megabytes = Field(
        1200.0, description="memory a worker may take for one file or series, MB; must hold twice max_pixels_mb"
    )
    modalities: list[str] = Field(default_factory=list, description="accepted DICOM modalities; empty = any image")
    burned_in_annotation: Literal["quarantine", "accept"] = Field(
        "quarantine", description="images whose header says that text is burned into the pixels"
    )
    secondary_capture: Literal["quarantine", "accept"] = Field(
        "quarantine", description="secondary captures and screenshots, which often show names"
    )
    derived: Literal["quarantine", "accept"] = Field(
        "accept", description="images computed from others, as ImageType says; many archives mark originals so, too"
    )
    image_types: list[str] = Field(
        default_factory=list,
        description="third values of ImageType that are accepted, e.g. [M]; empty = all but phase, real and imaginary",
    )
    intent: Literal["presentation", "any"] = Field(
        "presentation", description="any: images for processing, too, whose raw values no reader sees"
    )
    min_slices: int = Field(
        3,
        ge=1,
        description="smaller stacks are refused where the study has a larger one: scouts, bolus tracking",
    )
    colour: Literal["quarantine", "luminance", "keep"] = Field(
        "quarantine",
        description="colour images whose channels differ, in a grey task: refused, or reduced to their luminance; "
        "keep is what preprocess.channels: colour makes of quarantine",
    )
    axes: Literal[2, 3] | None = Field(
        None,
        description="2 = pictures, 3 = volumes; images of the other kind are quarantined; null = as many as "
        "preprocess.image_size has",
    )
    refuse: list[str] = Field(
        ["blank", "two_valued"], description="quality flags that exclude an image; two_valued: masks"
    )
    orientation: Literal["quarantine", "accept"] = Field(
        "quarantine",
        description="NIfTI that does not say how it lies, or says it twice and differently: refused, or "
        "flagged and taken by an assumption",
    )
    links: Literal["refuse", "inside"] = Field(
        "refuse", description="symbolic links: refused, or followed, once, when they lead to a place under the studies"
    )
    slices: Literal["assemble", "separate"] = Field(
        "assemble", description="CT, MR and PET slices: volumes by geometry, or pictures of their own"
    )
    missing_channels: Literal["refuse", "zero"] = Field(
        "refuse", description="studies that lack one of card.channels: refused, or taken with zeros and a flag"
    )
    min_overlap: Share = Field(
        0.9, description="share of the first channel's volume that each other one has to cover, else they are refused"
    )
    min_side: int = Field(32, ge=1, description="smallest accepted height and width of a picture, pixels")
    max_aspect: float = Field(4.0, ge=1, description="longer side / shorter side above which an image is flagged")
    max_clipped: Share = Field(0.25, description="share of pixels at one extreme value above which it is flagged")
    min_spacing_mm: float = Field(0.01, gt=0, description="smaller pixel or slice spacing is flagged, mm")
    max_spacing_mm: float = Field(10.0, gt=0, description="larger pixel or slice spacing is flagged, mm")
    near_duplicates: bool = Field(
        True, description="look for near-duplicates; a second for 5,000 images, growing with the square of their number"
    )
    batch_size: int = Field(200, ge=1, description="files per batch; a finished batch survives a kill")
    LATER: ClassVar[frozenset[str]] = frozenset({"missing_channels", "min_overlap"})

    @field_validator("max_spacing_mm")
    @classmethod
    def _above(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("min_spacing_mm", -math.inf):
            raise ValueError(f"must be above min_spacing_mm {info.data['min_spacing_mm']:g}")
        return value

    @field_validator("refuse")
    @classmethod
    def _flags(cls, value: list[str]) -> list[str]:
        from pipeline.imaging.quarantine import COMPARED_FLAGS, FLAGS

        if unknown := sorted({*value} - {*FLAGS} | {*value} & {*COMPARED_FLAGS}):
            choices = ", ".join(sorted({*FLAGS} - {*COMPARED_FLAGS}))
            raise ValueError(f"{', '.join(unknown)} cannot be refused; the flags that can: {choices}")
        return value


class SplitFractions(Settings):
    """Share of labelled patients per split; unlabelled patients go to `pretrain`."""

    train: Share = Field(0.5, description="the models are fitted to them")
    tune: Share = Field(0.1, description="settings are compared on them")
    calibration: Share = Field(0.2, description="the calibrator is fitted and the threshold certified on them")
    test: Share = Field(0.2, description="read once, by evaluate")

    @model_validator(mode="after")
    def _sum(self) -> SplitFractions:
        total = self.train + self.tune + self.calibration + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"fractions must add up to 1, not {total:g}")
        empty = [name for name, share in self if share == 0]
        if empty:
            raise ValueError(f"every split needs patients; {', '.join(empty)} has share 0")
        return self


class SplitSettings(Settings):
    """How patients are divided. Assignment is a pure function of seed and patient: adding one moves no other."""

    seed: Seed = Field(17, description="which patients go to which split")
    fractions: SplitFractions = Field(
        default_factory=SplitFractions, description="of all patients, or of those that may go to several splits"
    )
    shared_images: Literal["keep_together", "stop"] = Field(
        "keep_together", description="patients who share an image, exactly or nearly: one split for them, or stop"
    )
    crossing: Literal["stop", "train"] = Field(
        "stop", description="patients whom the dataset's own split puts into several: stop, or into train, all of them"
    )


class PreprocessSettings(Settings):
    """From decoded image to array: one definition for training and prediction."""

    image_size: list[Side] = Field([224, 224], min_length=2, max_length=3, description="pixels, slowest axis first")
    spacing_mm: list[Spacing] | None = Field(
        None,
        description="mm; resample to it, then pad or crop to image_size; null = scale to fit inside image_size",
    )
    lower_percentile: float = Field(0.5, ge=0, lt=50, description="grey value mapped to 0, percentile of the image")
    upper_percentile: float = Field(
        99.5, gt=50, le=100, description="grey value mapped to 255, percentile of the image"
    )
    window: list[GreyValue] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="grey values mapped to 0 and 255, for CT in Hounsfield units; null = the image's own percentiles",
    )
    shard_size: int = Field(1024, ge=1, description="images per array file")
    channels: Literal["grey", "colour"] = Field(
        "grey", description="colour: red, green and blue of pictures; grey ones are repeated and flagged"
    )
    crop: Literal["none", "field_of_view"] = Field(
        "none",
        description="field_of_view: cut the disc of a fundus photograph out of its dark surround; where there is none, "
        "the whole image is taken and flagged",
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"channels", "crop"})

    @field_validator("window")
    @classmethod
    def _rises(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("the first value must be below the second")
        return value

    @field_validator("spacing_mm")
    @classmethod
    def _one_per_axis(cls, value: list[float] | None, info: ValidationInfo) -> list[float] | None:
        size = info.data.get("image_size")  # absent when it is wrong itself
        if value is not None and size is not None and len(value) != len(size):
            raise ValueError(f"one spacing per axis of image_size, which has {len(size)}")
        return value
