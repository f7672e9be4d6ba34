"""metrics.json of evaluate: what the frozen model does on the test patients and on each other group of patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from pipeline.store.results.finding import Finding
from pipeline.store.results.interval import Interval
from pipeline.store.results.operating_point import MainPoint, OperatingPoint, OtherPoint, PrevalenceRow, Verdict
from pipeline.store.results.record import Artifact, Number, Record

FIRST = ("arm", "arm_title", "seeds", "aggregation")  # in the file


@dataclass(frozen=True)
class MakeUp(Record):
    """How many patients there are, and how many of them have the condition."""

    STAGE = "evaluate"
    patients: int
    positives: int
    prevalence: Interval


@dataclass(frozen=True)
class Discrimination(Record):
    """How well scores separate patients with the condition from the others."""

    auc: Interval
    average_precision: Interval


@dataclass(frozen=True)
class Reliability(Record):
    """Whether probabilities mean what they say."""

    brier: Interval
    brier_skill: Interval
    ece: Interval
    log_loss: Interval
    slope: Interval
    intercept: Interval
    in_the_large: Interval


@dataclass(frozen=True)
class Calibration(Record):
    """Probabilities before and after calibration; `log_loss_change` is above 0 where it made them worse."""

    bins: int
    before: Reliability
    after: Reliability
    log_loss_change: Interval


@dataclass(frozen=True, kw_only=True)
class GroupMetrics(MakeUp):
    """What the model does on a group of patients; without a threshold no point and no consequences."""

    images: int
    linked: int
    discrimination: Discrimination
    operating_point: OperatingPoint | None
    other_operating_points: tuple[OtherPoint, ...] = ()
    consequences: tuple[PrevalenceRow, ...]
    headline_prevalence: float
    calibration: Calibration

    @property
    def headline(self) -> PrevalenceRow:
        """The consequences at the prevalence of page one."""
        return next(row for row in self.consequences if row.prevalence == self.headline_prevalence)

    def withheld(self) -> Self:
        """Return the same without anything at a threshold."""
        return replace(self, operating_point=None, other_operating_points=(), consequences=())


@dataclass(frozen=True, kw_only=True)
class FurtherMetrics(GroupMetrics):
    """Those of a further label; `problems` are what would close the gate, were it the main label."""

    problems: tuple[Finding, ...]


@dataclass(frozen=True)
class Excluded(Record):
    """Who was left out of an external set, and how many images by the reason."""

    patients: int
    images: dict[str, int]


@dataclass(frozen=True)
class ExternalSet(Record):
    """An external test set; `judged` is None when nobody in it is new."""

    STAGE = "evaluate"
    group: str
    excluded: Excluded
    judged: GroupMetrics | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as one flat dictionary, for JSON."""
        excluded = self.excluded.to_dict()
        if self.judged is None:
            return {"group": self.group, "patients": 0, "excluded": excluded}
        return {"group": self.group, "excluded": excluded, **self.judged.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described. Raises ValueError as `Record.from_dict`."""
        judged = dict(content)
        own = {name: judged.pop(name) for name in ("group", "excluded") if name in judged}
        return super().from_dict({**own, "judged": judged if judged.get("patients") else None})


@dataclass(frozen=True)
class Macro(Record):
    """The means over all labels, each counting the same; None where a label has no threshold."""

    labels: int
    auc: Interval
    recall: Interval | None
    specificity: Interval | None


@dataclass(frozen=True)
class LabelFractions(Record):
    """What fewer labelled patients are enough for, in words and as intervals by name."""

    sentence: str
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class ScoreShift(Record):
    """Two-sample Kolmogorov-Smirnov test of two sets of scores: largest distance, two-sided asymptotic p."""

    statistic: Number
    p: Number


@dataclass(frozen=True)
class Stability(Record):
    """Population stability index over `bins` bins; `by_chance` is what it stays below in 95 % when nothing shifted."""

    index: Number
    by_chance: Number
    bins: int


@dataclass(frozen=True)
class AgainstCalibration:
    """A group of patients against the calibration patients.

    `unseen` counts patients from sites that no calibration patient came from. `slope` and `in_the_large` are the
    calibration line of their probabilities. `differences` says in words why they are not like the calibration
    patients; empty when nothing shows it.
    """

    group: str
    patients: int
    positives: int
    unseen: int
    prevalence: Interval
    score_ks: ScoreShift
    stability: Stability
    slope: Interval
    in_the_large: Interval
    recall: Interval | None
    verification: Verdict | None
    differences: tuple[str, ...]


@dataclass(frozen=True)
class ComparedGroup(AgainstCalibration, Record):
    """What is kept of it; `covered` is false where a difference, or the recall, speaks against the certificate."""

    covered: bool


@dataclass(frozen=True)
class Shift(Record):
    """The calibration patients, and all test patients, each site and each external set against them."""

    calibration: MakeUp
    groups: tuple[ComparedGroup, ...]

    def of(self, group: str) -> ComparedGroup:
        """Return one group by its name."""
        return next(one for one in self.groups if one.group == group)


@dataclass(frozen=True)
class Readings(Record):
    """How often some of these test patients were read, under how many settings and with which arms."""

    times: int
    settings: int
    arms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Metrics(GroupMetrics, Artifact):
    """All numbers of the evaluated arm: the test patients, further labels, external sets, and who differs.

    What earlier code did not write has a default. `readings` is None where no ledger is kept.
    """

    FILE = "metrics.json"
    arm: str
    arm_title: str = ""
    seeds: tuple[int, ...]
    aggregation: Literal["max", "mean"]
    operating_point: MainPoint | None
    comparison_sentence: str
    label_fractions: LabelFractions = LabelFractions("", {})
    further_labels: dict[str, FurtherMetrics] = field(default_factory=dict)
    macro: Macro | None = None
    external: dict[str, ExternalSet] = field(default_factory=dict)
    shift: Shift
    readings: Readings | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, for JSON."""
        own = super().to_dict()
        first = {name: own.pop(name) for name in FIRST}
        return {**first, **own, "external": {name: one.to_dict() for name, one in self.external.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described. Raises ValueError as `Record.from_dict`."""
        external = {name: ExternalSet.from_dict(one) for name, one in content.get("external", {}).items()}
        return super().from_dict({**content, "external": external})
