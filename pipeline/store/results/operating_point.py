"""What a threshold does on patients: the one type of metrics.json that holds such numbers, and what hangs on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.store.results.interval import Interval
from pipeline.store.results.record import Number, Record

Verdict = Literal["confirmed", "not_confirmed", "contradicted"]


@dataclass(frozen=True)
class Counts(Record):
    """The 2x2 table: patients with (tp + fn) and without (fp + tn) the condition, referred (tp, fp) or not."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def positives(self) -> int:
        """Patients with the condition."""
        return self.tp + self.fn

    @property
    def negatives(self) -> int:
        """Patients without the condition."""
        return self.fp + self.tn

    @property
    def n(self) -> int:
        """All patients."""
        return self.positives + self.negatives


@dataclass(frozen=True)
class PrevalenceRow(Record):
    """What screening `per` people finds and costs when a share `prevalence` of them has the condition."""

    prevalence: float
    per: int
    found: Interval
    missed: Interval
    false_alarms: Interval
    referred: Interval
    ppv: Interval
    npv: Interval
    number_needed_to_recall: Interval


@dataclass(frozen=True, kw_only=True)
class AtTarget(Record):
    """What the threshold that was certified for a recall target does on other patients.

    `probability` is the calibrated one that is displayed at the threshold. Without a patient with the condition there
    is no `verification`, the verdict on the certificate, and no one-sided limit of the recall.
    """

    threshold: float
    probability: float
    probability_prevalence: float | None
    counts: Counts
    recall: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    referral_rate: Interval
    f1: Interval
    youden: Interval
    balanced_accuracy: Interval
    lr_positive: Interval
    lr_negative: Interval
    verification: Verdict | None
    recall_lower_one_sided: float | None
    recall_upper_one_sided: float | None
    positives_to_confirm: int
    can_confirm: bool
    chance_of_confirmation: float
    verification_in_words: str


@dataclass(frozen=True)
class OtherPoint(Record):
    """What came of a further recall target; None where it could not be certified."""

    recall_target: float
    operating_point: AtTarget | None


@dataclass(frozen=True)
class FirstImage(Record):
    """What the first image of each patient alone would do."""

    recall: Interval
    specificity: Interval


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(AtTarget):
    """The first target; `first_image` is None where patients have one image each, or are of one kind."""

    first_image: FirstImage | None


@dataclass(frozen=True)
class Gap(Record):
    """A group less all other patients, with limits that hold for all groups at once."""

    attribute: str
    group: str
    gap: Number
    gap_low: Number
    gap_high: Number


@dataclass(frozen=True)
class LowestGroup(Record):
    """The lowest share of several groups, with limits for all at once, and which may be as low as which share."""

    attribute: str
    group: str
    share: float
    share_low: float
    share_high: float
    groups: int
    lowest_possible: float
    lowest_possible_attribute: str
    lowest_possible_group: str
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, kw_only=True)
class LowestGroups(Record):
    """The lowest of groups in recall and in specificity; None where nothing is to be said."""

    level: float
    recall: LowestGroup | None
    specificity: LowestGroup | None


@dataclass(frozen=True)
class Band(Record):
    """The band that was declared for the share referred."""

    low: float
    high: float


@dataclass(frozen=True)
class Watching(Record):
    """What it takes to notice that a model in use got worse: medians, by what changed, None where it takes thousands.

    The keys of `audits_to_bound_missed` are shares of people not referred.
    """

    false_alarm_ever: float
    alarm_at: float
    recall: float
    audited_positives_to_notice: dict[str, int | None]
    audits_to_bound_missed: dict[str, int]
    referral_band: Band | None
    people_to_notice: dict[str, int | None]


@dataclass(frozen=True)
class Tail(Record):
    """Patients with the condition who are missed, beside what is expected when nothing differs from calibration.

    `p` is the probability of as many or more. `noticed` is, by recall in these patients, the probability that as many
    are missed as to say so: by this test, or by contradicting the certificate.
    """

    misses: int
    positives: int
    expected: float
    p: float
    noticed: dict[str, float]


@dataclass(frozen=True)
class Held(Record):
    """What came of holding a group against the certificate: the tail test and its verdict by itself."""

    group: str
    tail: Tail | None
    verification_alone: Verdict | None


@dataclass(frozen=True, kw_only=True)
class MainPoint(OperatingPoint):
    """The operating point of the main label on the test patients, with what is said of groups and of watching it."""

    lowest_groups: LowestGroups
    watching: Watching
    held_against_certificate: tuple[Held, ...]
