"""What is known of the missed when outcomes come back only for some: verification bias.

In use, people who are referred get the reference standard; those who are not go home. The share of people with the
condition who are found is then not identified by the data, however many there are (Begg & Greenes, Biometrics 39 (1983)
207-215). It becomes so by an audit: outcomes of a random sample of those not referred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.intervals import Interval, proportion_ci
from pipeline.statistics.threshold import min_positives


@dataclass(frozen=True)
class Verified:
    """Outcomes that came back: of those referred, how many had the condition; of the others, how many were audited."""

    referred: int
    referred_positive: int
    not_referred: int
    audited: int
    audited_positive: int

    def __post_init__(self) -> None:
        if not (
            0 <= self.referred_positive <= self.referred
            and 0 <= self.audited_positive <= self.audited <= self.not_referred
        ):
            raise ValueError("of those referred and of those audited, some must have the condition, none more than all")


def recall_in_use(outcomes: Verified, level: float = 0.95) -> Interval:
    """Return the share of people with the condition who are referred, with limits; `n` is the number of outcomes.

    With r people referred who have the condition, and a share w of the N others, it is r / (r + N w). All those
    referred must have their outcome; w takes exact two-sided limits from the audited sample (that it was drawn without
    replacement makes them a little wide). A falling function of w alone, the recall has the limits of w.

    Raises NotEnoughData when nobody was audited although somebody was not referred: recall is not identified, and the
    share found among those with outcomes would be 1 by construction. Its `needed` is the number of audits that bounds
    the missed at 5 per 1,000 people not referred.
    """
    if outcomes.not_referred and not outcomes.audited:
        needed = audits_needed(0.005, level)
        raise NotEnoughData(
            f"outcomes came back for referred people only: how many of the {outcomes.not_referred} others have the"
            f" condition is not known, so neither is recall; outcomes of {needed} of them, drawn at random, would bound"
            f" the missed at 5 per 1,000 if none has it",
            positives=outcomes.referred_positive,
            needed=needed,
        )
    found, others = outcomes.referred_positive, outcomes.not_referred
    n = outcomes.referred + outcomes.audited
    missed = (
        proportion_ci(outcomes.audited_positive, outcomes.audited, level, "exact")
        if others
        else Interval(0.0, 0.0, 0.0, level, "exact", 0)
    )

    def recall(share: float) -> float:
        positives = found + others * share
        return found / positives if positives else math.nan

    return Interval(recall(missed.value), recall(missed.high), recall(missed.low), level, "audit_exact", n)


def audits_needed(missed_share: float, confidence: float = 0.95, positives: int = 0) -> int:
    """Return how many people not referred must be audited so that at most `missed_share` of them have the condition.

    With `positives` found among them: the fewest m with P(Bin(m, missed_share) <= positives) <= 1 - confidence, which
    for none is log(1 - confidence) / log(1 - missed_share), about 3 / missed_share. The same sum as for a certificate.
    """
    return min_positives(1 - missed_share, confidence, positives)
