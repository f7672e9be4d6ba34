"""threshold.json of calibrate: what was promised of each recall target, on whom, and what that stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from pipeline.store.results.interval import Interval
from pipeline.store.results.record import Artifact, Record

# The order of a target in the file, certified or not; what needs a threshold is null where there is none.
CERTIFIED = (
    *("certified", "threshold", "recall_target", "confidence", "confidence_used", "models_compared"),
    *("labels_certified", "positives", "negatives", "misses_allowed", "misses_seen", "recall", "specificity"),
    *("referral_rate", "certified_recall", "certifiable_recall", "positives_needed", "threshold_hex", "probability"),
    *("message", "advice"),
)
REFUSED = (
    *("certified", "threshold", "threshold_hex", "misses_allowed", "misses_seen", "certified_recall", "recall"),
    *("specificity", "referral_rate", "recall_target", "confidence", "confidence_used", "models_compared"),
    *("labels_certified", "positives", "negatives", "certifiable_recall", "positives_needed", "probability"),
    *("message", "advice"),
)


@dataclass(frozen=True)
class AtThreshold(Record):
    """A certified threshold on the logit, and what it did on the patients that certified it.

    `probability` is the calibrated one that is displayed at the threshold.
    """

    threshold: float
    probability: float
    certified_recall: float
    misses_allowed: int
    misses_seen: int
    recall: Interval
    specificity: Interval
    referral_rate: Interval

    @property
    def threshold_hex(self) -> str:
        """The threshold, bit for bit."""
        return float(self.threshold).hex()


@dataclass(frozen=True, kw_only=True)
class Target(Record):
    """What came of one recall target; `at` is None where it could not be certified, or may not be used.

    `confidence_used` is the confidence of this certificate, so that `confidence` holds whichever of `models_compared`
    was chosen, and for all of `labels_certified` at once. `message` says what is promised, or why nothing is.
    """

    STAGE = "calibrate"
    certified: bool
    at: AtThreshold | None
    recall_target: float
    confidence: float
    confidence_used: float
    models_compared: int
    labels_certified: int
    positives: int
    negatives: int
    certifiable_recall: float
    positives_needed: int
    message: str
    advice: str

    @property
    def threshold(self) -> float | None:
        """The logit from which patients are referred; None where there is none to be used."""
        return None if self.at is None else self.at.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as one flat dictionary, for JSON; the threshold also as an exact hexadecimal float."""
        own = super().to_dict()
        at = own.pop("at") or dict.fromkeys(one.name for one in fields(AtThreshold))
        flat = {**own, **at, "threshold_hex": None if self.at is None else self.at.threshold_hex}
        return {name: flat.pop(name) for name in (CERTIFIED if self.certified else REFUSED)} | flat

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described, the threshold bit for bit. Raises ValueError as `Record.from_dict`."""
        own = dict(content)
        exactly = own.pop("threshold_hex", None)
        at = {one.name: own.pop(one.name) for one in fields(AtThreshold) if one.name in own}
        found = None if exactly is None else {**at, "threshold": float.fromhex(exactly)}
        return super().from_dict({**own, "at": found})


@dataclass(frozen=True)
class Costs(Record):
    """Of screening one person, and of examining one who is referred."""

    cost_per_person: float
    cost_per_referral: float


@dataclass(frozen=True, kw_only=True)
class Threshold(Target, Artifact):
    """The operating point, which is the first target, the others, and what they stand on.

    `probability_prevalence` is the share with the condition that displayed probabilities assume, None where it is
    withheld; `planning` how likely other patients are to confirm the first target, and how many that takes.
    """

    FILE = "threshold.json"
    other_operating_points: tuple[Target, ...]
    local_prevalence: float | None
    probability_prevalence: float | None
    costs: Costs
    deploy: Literal["calibration", "pooled"]
    subgroup_threshold: Literal["report", "minimum"]
    subgroup_attributes: tuple[str, ...]
    band_missed_share: float
    joint_confidence: float | None
    planning: dict[str, float | int | None] | None
    linked_patients: int
    arm: str
    seeds: tuple[int, ...]
    aggregation: Literal["max", "mean"]
    model_sha256: dict[str, str]
    data_sha256: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, for JSON, as those of `Target`."""
        return {**super().to_dict(), "other_operating_points": [one.to_dict() for one in self.other_operating_points]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described. Raises ValueError as `Record.from_dict`."""
        others = tuple(Target.from_dict(one) for one in content.get("other_operating_points", ()))
        return super().from_dict({**content, "other_operating_points": others})
