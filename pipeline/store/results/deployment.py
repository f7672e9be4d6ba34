"""deployment.json of evaluate: the threshold to use from now on, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from pipeline.store.results.interval import Interval
from pipeline.store.results.record import Artifact, Record


@dataclass(frozen=True, kw_only=True)
class ToUse(Record):
    """The certificate of the threshold to use, and what is expected of it.

    `specificity` is that of `negatives`, all patients without the condition whom the model had not seen; `referral` the
    share referred of people of whom a share `prevalence` has the condition.
    """

    threshold: float
    recall_target: float
    confidence: float
    confidence_used: float
    models_compared: int
    labels_certified: int
    positives: int
    negatives: int
    misses_allowed: int
    misses_seen: int
    specificity: Interval
    certified_recall: float
    certifiable_recall: float
    positives_needed: int
    threshold_hex: str
    expected_recall: float
    prevalence: float
    referral: Interval


@dataclass(frozen=True)
class Group(Record):
    """What is promised of a group of patients, at once with all others; no threshold where it has too few positives."""

    attribute: str
    group: str
    patients: int
    positives: int
    positives_needed: int
    misses: int
    certifiable_recall: float
    certified: bool
    threshold: float | None
    threshold_hex: str | None
    misses_allowed: int | None
    certified_recall: float | None


@dataclass(frozen=True)
class Certified(Record):
    """What there is only where the operating point may be used.

    `referral_of_calibration_alone` is what the threshold of the calibration patients alone would refer.
    """

    to_use: ToUse
    subgroups: tuple[Group, ...]
    referral_of_calibration_alone: Interval


@dataclass(frozen=True)
class Deployment(Artifact):
    """The rule, `decided` when, and what came of it; `made` is None where no operating point may be used."""

    STAGE = "evaluate"
    FILE = "deployment.json"
    rule: Literal["calibration", "pooled"]
    subgroup_threshold: Literal["report", "minimum"]
    decided: str
    reasons: tuple[str, ...]
    calibration_threshold_hex: str | None
    made: Certified | None

    @property
    def to_use(self) -> ToUse | None:
        """The certificate of the threshold to use; None where there is none."""
        return None if self.made is None else self.made.to_use

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as one flat dictionary, for JSON."""
        own = super().to_dict()
        made, usable = own.pop("made"), {"usable": self.made is not None}
        ordered = {name: own.pop(name) for name in ("rule", "subgroup_threshold", "decided")} | usable | own
        return ordered if made is None else {**ordered, **made.pop("to_use"), **made}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described. Raises ValueError as `Record.from_dict`."""
        own = dict(content)
        if not own.pop("usable", False):
            return super().from_dict({**own, "made": None})
        to_use, made = (
            {one.name: own.pop(one.name) for one in fields(kind) if one.name in own} for kind in (ToUse, Certified)
        )
        return super().from_dict({**own, "made": {"to_use": to_use, **made}})
