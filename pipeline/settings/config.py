"""The configuration: one strict model per stage, one complete YAML per run, every mistake reported at once.

The settings of a stage are part of the key of its artifact. `machine`, `tracking`, `store`, `project` and the
paths under `data` are not: they say where and how fast, not what.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Arm = Literal["mae", "scratch", "imported", "linear_probe", "hog"]
Axis = Literal["horizontal", "vertical", "depth"]
SplitName = Literal["pretrain", "train", "tune", "calibration", "test"]
JOINS = ("path", "sop_instance_uid", "series_instance_uid", "study_instance_uid", "patient_id")
Calibration = Literal["logistic", "beta", "isotonic", "temperature", "venn_abers", "auto"]
Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(gt=0.5, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and scikit-learn take
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
Spacing = Annotated[float, Field(ge=1e-3, le=1e3)]
GreyValue = Annotated[float, Field(ge=-1e9, le=1e9)]  # single precision holds their differences
Side = Annotated[int, Field(ge=16, le=16384)]


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked; the message says why and what to do."""


class ConfigError(UsageError):
    """The configuration cannot be used; the message lists every problem with its line."""


class Settings(BaseModel):
    """Strict and immutable: unknown keys, wrong types and impossible values, infinite numbers too, are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------- the dataset card


class CardLabel(Settings):
    """What the label means and which values of the label column stand for it."""

    name: str = Field(description="the condition, as a reader would say it")
    definition: str = Field(description="what makes a patient positive")
    reference_standard: str = Field(description="who decided, how, blinded to what")
    positive: list[str] = Field(min_length=1, description="values of the label column that mean positive")
    negative: list[str] = Field(min_length=1, description="values of the label column that mean negative")
    unused: list[str] = Field(
        default_factory=list, description="values that are no answer, like uncertain: as if the cell were empty"
    )

    @model_validator(mode="after")
    def _disjoint(self) -> CardLabel:
        twice = [value for value, count in Counter([*self.positive, *self.negative, *self.unused]).items() if count > 1]
        if twice:
            raise ValueError(f"values listed more than once among positive, negative and unused: {twice}")
        return self


class FurtherLabel(CardLabel):
    """Another question about the same images, answered beside the main one; other values are no answer to it."""

    id: str = Field(pattern=r"^[a-z0-9_]+$", description="what tables and files call it")
    column: str | None = Field(None, description="its column of the label table; null = that of the main label")


class CardColumns(Settings):
    """Columns of the label table. The finest of the first five joins a row to images."""

    path: str | None = Field(None, description="path of the image inside its source")
    patient_id: str | None = Field(None, description="patient identifier; joins when no other column does")
    study_instance_uid: str | None = Field(None, description="Study Instance UID, as in DICOM headers")
    series_instance_uid: str | None = Field(None, description="Series Instance UID, as in DICOM headers")
    sop_instance_uid: str | None = Field(None, description="SOP Instance UID, as in DICOM headers")
    label: str = Field("label", description="the values that `label` explains")
    split: str | None = Field(None, description="split that the dataset itself names; `splits` says what is meant")
    patient_from: Literal["table", "header"] | None = Field(
        None, description="who is right where the table's patients and the headers' differ; null = stop when they do"
    )
    several_rows: Literal["any_positive"] | None = Field(
        None,
        description="rows of one patient, study or image with different labels: positive when any is; null = refused",
    )
    path_without: str = Field("", description="folders in front of the table's paths that the archive has not")
    path_within: str = Field("", description="folders of the archive in which the table's paths begin")
    path_ignore: list[Literal["folders", "suffix", "case", "escapes"]] = Field(
        default_factory=list, description="what is not compared of paths; escapes: the table writes %20 for a blank"
    )
    id_ignore: list[Literal["leading_zeros", "decimals", "case", "punctuation"]] = Field(
        default_factory=list, description="what is not compared of patient identifiers, when they join"
    )

    @property
    def path_rule(self) -> dict[str, Any]:
        """How paths of the label table lead to files."""
        return {"without": self.path_without, "within": self.path_within, "ignore": tuple(self.path_ignore)}

    @property
    def join(self) -> str:
        """The field that joins labels to images: the finest one named."""
        for field in JOINS:
            if getattr(self, field) is not None:
                return field
        raise ValueError("no join column")  # unreachable: validated below

    @model_validator(mode="after")
    def _joins(self) -> CardColumns:
        if not any(getattr(self, field) for field in JOINS):
            raise ValueError(f"name at least one of {', '.join(JOINS)}")
        return self


class Expected(Settings):
    """What the dataset should consist of; an image that states something else is flagged. Empty = anything."""

    modalities: list[str] = Field(default_factory=list, description="e.g. DX, CR")
    views: list[str] = Field(default_factory=list, description="e.g. PA, AP")
    body_parts: list[str] = Field(default_factory=list, description="e.g. CHEST")


class IntendedUse(Settings):
    """What the report says a model from this dataset is for, and what it is not for."""

    condition: str = Field(description="what a model from this dataset looks for")
    population: str = Field(description="in whom")
    user: str = Field(description="who would act on its decision")
    place: str = Field(description="place in the pathway")
    not_for: list[str] = Field(default_factory=list, description="what it must not be used for")


NOT_STATED = "not stated"


class StudyStatements(Settings):
    """What no file tells about a study, and reporting guidelines ask for. The report lists what is not stated."""

    rationale: str = Field(NOT_STATED, description="Why a model for this is wanted, and which models there are")
    design: str = Field(NOT_STATED, description="Prospective or retrospective, and why the images were taken")
    setting: str = Field(NOT_STATED, description="Kind, number and place of the sites")
    dates: str = Field(NOT_STATED, description="When the images were taken")
    eligibility: str = Field(NOT_STATED, description="Which people and which images were included and excluded")
    sampling: str = Field(NOT_STATED, description="How people were found: a consecutive, random or convenience series")
    treatments: str = Field(NOT_STATED, description="Treatments received, and how they were dealt with")
    acquisition: str = Field(NOT_STATED, description="How the images were taken: equipment and protocol")
    annotators: str = Field(NOT_STATED, description="Who set the labels: number, training, experience")
    annotation: str = Field(NOT_STATED, description="How the labels were set: tools and procedure")
    agreement: str = Field(NOT_STATED, description="How far annotators agreed, and how disagreement was settled")
    blinding: str = Field(NOT_STATED, description="What annotators knew about the person and the model")
    reference_rationale: str = Field(NOT_STATED, description="Why this reference standard was chosen")
    interval: str = Field(NOT_STATED, description="Time and treatment between image and reference standard")
    indeterminate: str = Field(NOT_STATED, description="How unclear reference results were dealt with")
    severity: str = Field(NOT_STATED, description="How severe the condition was in those who have it")
    alternatives: str = Field(NOT_STATED, description="What those without the condition had instead")
    representativeness: str = Field(NOT_STATED, description="How like the people that the model is meant for they are")
    inequalities: str = Field(NOT_STATED, description="Known inequalities between groups, and what fairness asks for")
    sample_size: str = Field(NOT_STATED, description="How many people were planned for, and why")
    adverse_events: str = Field(NOT_STATED, description="Harm done by imaging or by the reference standard")
    ethics: str = Field(NOT_STATED, description="Ethics committee and consent, or why none was needed")
    registration: str = Field(NOT_STATED, description="Register and number")
    protocol: str = Field(NOT_STATED, description="Where the study protocol can be read")
    funding: str = Field(NOT_STATED, description="Who paid, and their part in the study")
    conflicts: str = Field(NOT_STATED, description="Commercial and other competing interests")
    public_involvement: str = Field(NOT_STATED, description="What part patients and the public had")
    data_availability: str = Field(NOT_STATED, description="Where the data can be had, and on what terms")
    code_availability: str = Field(NOT_STATED, description="Where code and model can be had, and on what terms")


class Card(Settings):
    """A dataset: what it is, where it comes from, what its label means, what is known to be wrong with it."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="lower-case identifier")
    title: str = Field(description="what the report calls it")
    source: str = Field(description="where the data comes from")
    licence: str = Field(description="on what terms it may be used")
    attribution: str = Field(description="who is to be named")
    label: CardLabel
    further_labels: list[FurtherLabel] = Field(
        default_factory=list,
        description="learned, certified and reported beside the main label, which alone decides page one and the gate: "
        "findings with columns of their own, or classes of one column, each against the others",
    )
    columns: CardColumns
    identifiers: Literal["real", "synthetic"] = Field(
        description="synthetic: headers are made up, so a published pseudonymisation key does no harm"
    )
    synthetic: str = Field("nothing", description="what in the data is made up")
    intended_use: IntendedUse
    expected: Expected = Field(default_factory=Expected)
    symmetric_axes: list[Axis] = Field(
        default_factory=list,
        description="axes along which a mirrored image could be another patient's, with the same label: only these "
        "may be flipped in training; empty = none, as where an organ has its side",
    )
    splits: dict[str, list[SplitName]] = Field(
        default_factory=dict,
        description="for each value of the column `split`, the splits that its patients may go to, e.g. val: [tune]",
    )
    known_traps: list[str] = Field(default_factory=list, description="what is known to be wrong with the data")
    study: StudyStatements = Field(default_factory=StudyStatements)

    @field_validator("further_labels")
    @classmethod
    def _distinct(cls, value: list[FurtherLabel]) -> list[FurtherLabel]:
        if min(len({label.id for label in value}), len({label.name for label in value})) < len(value):
            raise ValueError("ids and names must be distinct")
        return value

    @model_validator(mode="after")
    def _split_is_explained(self) -> Card:
        if (self.columns.split is None) != (not self.splits):
            raise ValueError("columns.split and splits go together: which column, and what its values mean")
        if any(not names for names in self.splits.values()):
            raise ValueError("splits: every value needs at least one split")
        return self


# ---------------------------------------------------------------- where and how fast (not part of any key)


class Studies(Settings):
    """Where the studies and labels of one dataset are. Relative paths are relative to the config file."""

    studies: list[Path] = Field(min_length=1, description="folders, zip archives or single files")
    labels: Path = Field(description="CSV or Parquet; columns named in the card")
    card: Path = Field(description="the dataset card, a YAML file")
    include: list[str] = Field(
        default_factory=list,
        description="patterns of paths inside the studies, e.g. *.dcm or images/**; what fits none is left out and "
        "counted; empty = all. * stands for anything within a name, ** for whole folders; a pattern fits a folder "
        "with all that is in it, and without / at any depth",
    )
    exclude: list[str] = Field(default_factory=list, description="patterns of paths that are left out and counted")

    @field_validator("include", "exclude")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        from pipeline.imaging.archive.choice import Choice

        if any(not pattern.strip("./") for pattern in value):
            raise ValueError("a pattern needs at least one character of a name; all = leave the list empty")
        try:
            Choice(include=tuple(value)).takes("")
        except re.error:
            raise ValueError("a range in [...] ends before it begins") from None
        return value


class ExternalSet(Studies):
    """A test set from elsewhere: scored with the frozen model and threshold, and used for nothing else."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="what plan and report call it")


class Data(Studies):
    """The studies of the run, and those that it is tested on besides."""

    key_file: Path = Field(description="secret key of the pseudonyms; created on first use outside the data")
    imported_weights: Path | None = Field(
        None,
        description="arm imported: ViT weights in the layout of timm, facebookresearch/mae, Hugging Face or MONAI; "
        ".safetensors or .pth. Their content is part of the key, their licence is yours to keep",
    )
    external: list[ExternalSet] = Field(
        default_factory=list, description="test sets from elsewhere: name, studies, labels and card of each"
    )

    @field_validator("external")
    @classmethod
    def _distinct(cls, value: list[ExternalSet]) -> list[ExternalSet]:
        if len({one.name for one in value}) != len(value):
            raise ValueError("names must be distinct")
        return value


class Tracking(Settings):
    """The MLflow server."""

    uri: str | None = Field(None, description="any MLflow tracking URI; null = SQLite inside the store")
    pictures: bool = Field(
        False,
        description="send a server pictures and rows of single patients, too: the whole report, reconstructions",
    )


class Machine(Settings):
    """Hardware to use."""

    workers: int = Field(2, ge=1, le=4096, description="processes for reading studies")
    backend: Literal["processes", "dask"] = Field("processes", description="where these workers run")
    scheduler: str | None = Field(None, description="address of the Dask scheduler; null = a local cluster")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = the GPU if there is one")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of torch; null = all cores")
    images_per_pass: int | None = Field(
        None, ge=1, description="most images of a training step in memory at once; null = the whole batch"
    )
    on_out_of_memory: Literal["stop", "halve"] = Field(
        "stop", description="when a training step does not fit: stop with advice, or halve images_per_pass and go on"
    )
    gradient_checkpointing: bool = Field(
        False, description="train with less memory and a third more time: inner values are computed twice"
    )
    compile: bool = Field(False, description="torch.compile; takes a minute per network, pays on a GPU in long runs")
    max_minutes: float | None = Field(
        None, gt=0, description="after so many minutes save and leave, as on SIGTERM; null = no limit"
    )


# ---------------------------------------------------------------- one model per stage


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
    colour: Literal["quarantine", "luminance"] = Field(
        "quarantine", description="colour images whose channels differ: refused, or reduced to their luminance"
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
    min_side: int = Field(32, ge=1, description="smallest accepted height and width of a picture, pixels")
    max_aspect: float = Field(4.0, ge=1, description="longer side / shorter side above which an image is flagged")
    max_clipped: Share = Field(0.25, description="share of pixels at one extreme value above which it is flagged")
    min_spacing_mm: float = Field(0.01, gt=0, description="smaller pixel or slice spacing is flagged, mm")
    max_spacing_mm: float = Field(10.0, gt=0, description="larger pixel or slice spacing is flagged, mm")
    near_duplicates: bool = Field(
        True, description="look for near-duplicates; a second for 5,000 images, growing with the square of their number"
    )
    batch_size: int = Field(200, ge=1, description="files per batch; a finished batch survives a kill")

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


ENCODER_SIZES: dict[str, dict[str, int]] = {
    # Touvron et al. 2021 (tiny, small), Dosovitskiy et al. 2021 (base, large); 5.5, 21, 86 and 303 M parameters.
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}


class EncoderSettings(Settings):
    """The vision transformer: a `size` by name, or width, depth and heads; what is not given is that of `small`."""

    patch_size: list[Annotated[int, Field(ge=1)]] = Field(
        [16, 16], min_length=2, max_length=3, description="pixels per axis"
    )
    # Not recorded, since width, depth and heads are: the same network has the same key, however it was named.
    size: Literal["tiny", "small", "base", "large"] | None = Field(
        None, exclude=True, description="a name for width, depth and heads, instead of them"
    )
    width: int = Field(384, ge=16, description="hidden size of the encoder")
    depth: int = Field(12, ge=1, description="transformer blocks of the encoder")
    heads: int = Field(6, ge=1, description="attention heads of the encoder")
    positions: Literal["sin_cos", "learned"] = Field(
        "sin_cos", description="position embedding: fixed waves, or learned"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        size = values.get("size") if isinstance(values, dict) else None
        if not isinstance(size, str) or size not in ENCODER_SIZES:
            return values
        named = ENCODER_SIZES[size]
        if twice := [name for name in named if name in values]:
            says = ", ".join(f"{name} {value}" for name, value in named.items())
            raise ValueError(f"size {size} says {says}; remove size, or {' and '.join(twice)}")
        return {**values, **named}

    @model_validator(mode="after")
    def _divides(self) -> EncoderSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Mirroring(Settings):
    """Axes that are mirrored in half of the cases."""

    flips: list[Axis] = Field(
        default_factory=list, description="allowed where the card lists the axis in symmetric_axes; laterality matters"
    )

    @field_validator("flips")
    @classmethod
    def _distinct(cls, value: list) -> list:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return value


class PretrainAugmentation(Mirroring):
    """How images are changed for pretraining, which has to reproduce them: not in their values."""

    crop_min: float = Field(0.5, gt=0, le=1, description="smallest share of the area kept by the random crop")


class FinetuneAugmentation(Mirroring):
    """How far images are changed at random for training, alike in every arm; 0 = off."""

    crop_min: float = Field(0.8, gt=0, le=1, description="smallest share of the area kept by the random crop")
    rotate_degrees: float = Field(7.0, ge=0, le=45, description="in the image's plane, either way")
    tilt_degrees: float = Field(0.0, ge=0, le=45, description="in the two other planes of a volume, either way")
    shear: float = Field(0.0, ge=0, le=0.5, description="pixels along one axis per pixel along another")
    scale: float = Field(0.0, ge=0, le=0.5, description="relative change of each axis' length, by itself")
    translate: float = Field(0.0, ge=0, le=0.5, description="along each axis, share of its side")
    contrast: float = Field(0.1, ge=0, le=0.5, description="relative change about mid grey")
    brightness: float = Field(0.1, ge=0, le=0.5, description="share of the range")
    gamma: float = Field(0.0, ge=0, le=0.9, description="distance of the exponent from 1")
    noise: float = Field(0.0, ge=0, le=0.5, description="standard deviation, share of the range; half of the images")
    blur_pixels: float = Field(0.0, ge=0, le=10, description="standard deviation; half of the images")
    cutout: float = Field(
        0.0, ge=0, le=0.9, description="side of a box made black, share of the image's; half of the images"
    )


class PretrainSettings(Settings):
    """The masked autoencoder (He et al. 2021)."""

    seed: Seed = Field(17, description="weights, order of images, masks and augmentation")
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    decoder: Literal["self_attention", "cross_attention"] = Field(
        "self_attention",
        description="cross_attention: hidden patches attend to visible ones only (Fu et al. 2024); a step costs less",
    )
    decoder_width: int = Field(256, ge=16, description="size of a token in the decoder")
    decoder_depth: int = Field(4, ge=1, description="layers of the decoder")
    decoder_heads: int = Field(8, ge=1, description="attention heads in each layer of the decoder")
    mask: Literal["random", "block", "grid"] = Field(
        "random", description="hidden patches: drawn one by one, in contiguous blocks, or all but a regular lattice"
    )
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches the encoder does not see")
    normalise_targets: bool = Field(True, description="predict each patch after removing its mean and spread")
    decoded_share: float = Field(1.0, gt=0, le=1, description="share of masked patches that are decoded per step")
    epochs: int = Field(200, ge=1, description="passes over the images of train and pretrain")
    batch_size: int = Field(64, ge=1, description="images per step")
    base_learning_rate: float = Field(1.5e-4, gt=0, description="per 256 images; scaled by batch size / 256")
    min_learning_rate: float = Field(1e-4, ge=0, description="floor of the scaled peak rate, for small batches")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not of biases and normalisation")
    warmup_epochs: float = Field(10.0, ge=0, description="the learning rate rises from 0 in these")
    augmentation: PretrainAugmentation = Field(default_factory=PretrainAugmentation)
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many steps, the schedule shortened to them; null = all epochs"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; the others on a GPU only, fp16 where bf16 is missing"
    )
    checkpoint_every_epochs: int = Field(1, ge=1, description="epochs after which an interrupted training can go on")

    @model_validator(mode="after")
    def _consistent(self) -> PretrainSettings:
        problems = []
        if self.decoder_width % self.decoder_heads:
            problems.append(f"decoder_width {self.decoder_width} must be a multiple of decoder_heads")
        if self.mask == "grid" and self.mask_ratio < 0.5:
            problems.append(f"mask grid needs a mask_ratio of at least 0.5 to leave a lattice, not {self.mask_ratio:g}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class FinetuneSettings(Settings):
    """The classifiers: same patients, same budget for every arm."""

    arms: list[Arm] = Field(
        ["mae", "scratch", "linear_probe", "hog"],
        min_length=1,
        description="imported as well: the same network started from data.imported_weights",
    )
    seeds: list[Seed] = Field(
        [1, 2, 3], min_length=1, description="one training per seed; an arm's score is their mean logit, an ensemble"
    )
    epochs: int = Field(50, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per step")
    learning_rate: float = Field(5e-4, gt=0, description="peak rate of the networks")
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="rate multiplier per block, counted from the head; arms mae and imported"
    )
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not of biases and normalisation")
    drop_path: float = Field(0.1, ge=0, lt=1, description="share of residual branches dropped in the last block")
    warmup_epochs: float = Field(5.0, ge=0, description="the learning rate rises from 0 in these")
    augmentation: FinetuneAugmentation = Field(default_factory=FinetuneAugmentation)
    loss: Literal["bce", "weighted", "focal"] = Field(
        "bce", description="weighted: classes count alike; the default keeps logits at the data's own log odds"
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="loss focal: 0 is bce; 2 as in Lin et al. 2017")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over both classes")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced: each epoch draws as many images of either class"
    )
    mixup: float = Field(0.0, ge=0, le=10, description="parameter of the Beta distribution of mixtures; 0 = none")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="weights averaged over about the last 1 / (1 - decay) steps are kept; null = off"
    )
    early_stopping_epochs: int | None = Field(
        None, ge=1, description="stop after so many without a higher tune AUC, keep the best; null = the last epoch's"
    )
    trainable_blocks: int | None = Field(
        None, ge=0, description="arms mae and imported: last blocks trained, 0 = the head alone; null = all layers"
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="of each training; the schedule is shortened to them; null = all epochs",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="as in pretrain")
    hog_image_size: list[Side] = Field([64, 64], min_length=2, max_length=2, description="pixels, baseline arm")
    labelled_patients: list[Annotated[int, Field(ge=2)]] = Field(
        default_factory=list,
        description="train every arm with so many labelled patients as well, e.g. [100, 300, 1000]; empty = only all",
    )

    @field_validator("arms", "seeds", "labelled_patients")
    @classmethod
    def _distinct(cls, value: list) -> list:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSettings:
        problems = []
        if self.loss == "weighted" and self.sampling == "balanced":
            problems.append("loss weighted and sampling balanced correct for imbalance twice; choose one")
        if self.early_stopping_epochs is not None and self.early_stopping_epochs >= self.epochs:
            problems.append(f"early_stopping_epochs {self.early_stopping_epochs} must be below epochs {self.epochs}")
        if self.labelled_patients and "mae" not in self.arms:
            problems.append("labelled_patients shows what pretraining is worth; add mae to arms, or leave it empty")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ScoreSettings(Settings):
    """Scores of every arm and seed on tune, calibration and test."""

    batch_size: int = Field(64, ge=1, description="images judged at once; changes no score")
    flips: bool = Field(
        False,
        description="mean logit of an image and its mirror image; needs horizontal in finetune.augmentation.flips",
    )


class CalibrateSettings(Settings):
    """The reported model, its calibrator and its operating threshold."""

    arm: Arm = Field("mae", description="the model reported; chosen before calibration, never on calibration data")
    models_compared: int = Field(
        1, ge=1, le=1000, description="models compared on calibration data; divides the confidence"
    )
    aggregation: Literal["max", "mean"] = Field("max", description="patient's score from those of their images")
    calibrator: Calibration = Field(
        "logistic",
        description="from score to probability; auto = logistic unless cross-validation clearly says otherwise",
    )
    local_prevalence: float | None = Field(
        None, gt=0, lt=1, description="share with the condition where the model is used; shifts displayed probabilities"
    )
    recall_targets: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.95],
        min_length=1,
        description="the first is the operating point; others are certified and reported beside it",
    )
    cost_per_person: float = Field(0.0, ge=0, description="of screening one, in any currency; for the sweep table")
    cost_per_referral: float = Field(1.0, ge=0, description="of examining one who is referred; 0 and 1 count referrals")
    confidence: Confidence = Field(0.95, description="of each target's certificate by itself")
    deploy: Literal["calibration", "pooled"] = Field(
        "calibration",
        description="positives that certify the threshold to use after the test: calibration, or those and the test's",
    )
    band_missed_share: float = Field(
        0.1, gt=0, le=0.5, description="largest share missed for which rows of the sweep are promised all at once"
    )
    subgroup_attributes: list[Literal["sex", "age band", "view", "manufacturer", "site"]] = Field(
        [], description="certified group by group as well, where a group has enough positives"
    )
    subgroup_threshold: Literal["report", "minimum", "each"] = Field(
        "report",
        description="threshold to use: everybody's; the lowest, so that every group's promise holds; or each one's own",
    )

    @field_validator("recall_targets", "subgroup_attributes")
    @classmethod
    def _distinct(cls, value: list[float | str]) -> list[float | str]:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return value


class EvaluateSettings(Settings):
    """The locked test set."""

    seed: Seed = Field(17, description="of the bootstrap")
    level: Confidence = Field(0.95, description="confidence level of intervals")
    prevalences: list[float] = Field(
        [0.005, 0.02, 0.05, 0.1, 0.2], min_length=1, description="for consequences per 1,000"
    )
    headline_prevalence: float = Field(
        0.05, gt=0, lt=1, description="prevalence of page one, of the decision curve and of the referral to expect"
    )
    min_subgroup_positives: int = Field(
        10, ge=2, description="below this no recall of a group; with as few without the condition, no specificity"
    )
    calibration_bins: int = Field(10, ge=2, le=1000, description="equal-mass bins of the reliability diagram")

    @field_validator("prevalences")
    @classmethod
    def _open(cls, value: list[float]) -> list[float]:
        if any(not 0 < p < 1 for p in value):
            raise ValueError("prevalences lie strictly between 0 and 1")
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return value


class PackageSettings(Settings):
    """The finished model as a folder of its own."""

    typicality_rate: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="share of ordinary patients that predict says are unlike the calibration patients",
    )
    not_for: list[str] = Field(
        default_factory=list, description="what the model must not be used for, besides the card's intended_use.not_for"
    )


class ReportSettings(Settings):
    """What the report is called and who answers for it."""

    title: str = Field(description="what stands at the top of page one")
    contact: str = Field("not stated", description="who answers questions about this report")
    examples: int = Field(4, ge=0, le=12, description="most confident misses and false alarms shown, each")
    # Where the fonts are is none of the key; what is in them is, as a source.
    fonts: Path | None = Field(
        None, exclude=True, description="folder of fonts for what DejaVu Sans lacks, such as Chinese; null = none"
    )


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

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        problems = []
        size, patch = self.preprocess.image_size, self.pretrain.encoder.patch_size
        if len(size) != len(patch):
            problems.append(f"preprocess.image_size has {len(size)} axes, pretrain.encoder.patch_size {len(patch)}")
        elif any(s % p for s, p in zip(size, patch, strict=True)):
            problems.append(f"preprocess.image_size {size} must be a multiple of pretrain.encoder.patch_size {patch}")
        elif size == patch:
            problems.append(
                f"pretrain.encoder.patch_size {patch} makes the image one patch, of which none can be hidden"
            )
        if len(size) == 2:
            for stage in ("pretrain", "finetune"):
                if "depth" in getattr(self, stage).augmentation.flips:
                    problems.append(f"{stage}.augmentation.flips has depth; preprocess.image_size has no such axis")
            if self.finetune.augmentation.tilt_degrees:
                problems.append("finetune.augmentation.tilt_degrees is for volumes; preprocess.image_size has two axes")
        if "imported" in self.finetune.arms and self.data.imported_weights is None:
            problems.append("finetune.arms names imported; data.imported_weights must say which weights")
        blocks, depth = self.finetune.trainable_blocks, self.pretrain.encoder.depth
        if blocks is not None and blocks > depth:
            problems.append(f"finetune.trainable_blocks {blocks} is above pretrain.encoder.depth {depth}")
        if self.score.flips and "horizontal" not in self.finetune.augmentation.flips:
            problems.append(
                "score.flips needs horizontal among finetune.augmentation.flips: a model cannot judge what it never saw"
            )
        if self.calibrate.arm not in self.finetune.arms:
            problems.append(f"calibrate.arm {self.calibrate.arm} is not among finetune.arms {self.finetune.arms}")
        if len(size) == 3 and "hog" in self.finetune.arms:
            problems.append("finetune.arms names hog, which needs 2-D images; remove it for volumes")
        if self.ingest.axes not in (None, len(size)):
            problems.append(f"ingest.axes is {self.ingest.axes}, but preprocess.image_size has {len(size)} axes")
        if problems:
            raise ValueError("; ".join(problems))
        if self.ingest.axes is None:  # spelt out, so that what ingest does is in its key
            object.__setattr__(self, "ingest", self.ingest.model_copy(update={"axes": len(size)}))
        return self
