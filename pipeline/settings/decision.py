"""Settings of score, calibrate, evaluate, package and report: from logits to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.settings.common import Arm, Confidence, Seed, Settings, distinct

Calibration = Literal["logistic", "beta", "isotonic", "temperature", "venn_abers", "auto"]


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
    subgroup_threshold: Literal["report", "minimum"] = Field(
        "report", description="threshold to use: everybody's; or the lowest, so that every group's promise holds"
    )

    _distinct = field_validator("recall_targets", "subgroup_attributes")(distinct)


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
    surface_tolerance_mm: float = Field(
        1.0, gt=0, le=100, description="of masks: surfaces this near agree; the distance at which two readers differ"
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"surface_tolerance_mm"})

    @field_validator("prevalences")
    @classmethod
    def _open(cls, value: list[float]) -> list[float]:
        if any(not 0 < p < 1 for p in value):
            raise ValueError("prevalences lie strictly between 0 and 1")
        return distinct(value)


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
