"""What a set of labels can carry: the recall that can be certified on it, and how surely its test set confirms that.

Numbers of patients in each split are those to expect; since a key decides who goes where, the proposal allows for fewer
(the lower tenth of a binomial distribution).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import binom

from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.planner import best_division, chance_of_confirmation, divisions
from pipeline.statistics.threshold import certifiable_recall, max_misses, min_positives

CONFIDENCE = 0.95
TARGETS = (0.95, 0.9, 0.85, 0.8, 0.7)
SPLITS = ("train", "tune", "calibration", "test")
# From the usual division to those that spend training patients on the certificate.
FRACTIONS = (
    (0.5, 0.1, 0.2, 0.2),
    (0.45, 0.1, 0.25, 0.2),
    (0.4, 0.1, 0.25, 0.25),
    (0.35, 0.1, 0.3, 0.25),
    (0.3, 0.1, 0.35, 0.25),
)
UNLUCKY = 0.1
# For widths and referrals to expect; nobody knows the real ones before the test.
ASSUMED_AUC, ASSUMED_SPECIFICITY = 0.9, 0.8


@dataclass(frozen=True)
class Capacity:
    """What to expect of `positives` and `negatives` patients divided by `fractions`, and the target proposed for them.

    `highest_certifiable` is the recall certified when no calibration patient with the condition is missed, with the
    usual fractions. `target` is None when not even the lowest of TARGETS can be had. Intervals are 95 % (Wilson).
    """

    positives: int
    negatives: int
    fractions: Mapping[str, float]
    positives_per_split: Mapping[str, int]
    highest_certifiable: float
    target: float | None
    misses_allowed: int | None
    chance_confirmed: float | None
    recall_interval: tuple[float, float] | None
    specificity_interval: tuple[float, float] | None
    best_chance: float | None

    def lines(self) -> list[str]:
        """Return it for people."""
        expected = ", ".join(f"{name} {count}" for name, count in self.positives_per_split.items())
        said = [
            f"{self.positives} patients with the condition, {self.negatives} without; expected with it by split: "
            f"{expected}"
        ]
        if self.target is None:
            lowest = min_positives(TARGETS[-1], CONFIDENCE)
            said.append(
                f"no recall worth a promise can be certified: even {TARGETS[-1]:g} needs {lowest} calibration patients "
                f"with the condition. The report will show what the model does and withhold the threshold; add patients"
            )
            return said
        if self.target < TARGETS[0]:
            said.append(
                f"recall {TARGETS[0]:g} with {100 * CONFIDENCE:g} % confidence needs at least "
                f"{min_positives(TARGETS[0], CONFIDENCE)} calibration patients with the condition; with the usual "
                f"fifth, at most {self.highest_certifiable:.3f} can be certified. The config proposes {self.target:g}"
            )
        if tuple(self.fractions.values()) != FRACTIONS[0]:
            shares = ", ".join(f"{name} {share:g}" for name, share in self.fractions.items())
            said.append(f"proposed fractions, so that this can be certified: {shares}")
        misses = {0: "none", 1: "one"}.get(self.misses_allowed or 0, str(self.misses_allowed))
        low, high = self.recall_interval or (0.0, 0.0)
        said.append(
            f"recall {self.target:g} is certified when of {self.positives_per_split['calibration']} calibration "
            f"patients with the condition {misses} is missed; the test set, {self.positives_per_split['test']}, will "
            f"confirm it in {100 * (self.chance_confirmed or 0):.0f} of 100 cases. Its interval for recall will be "
            f"about {low:.2f} to {high:.2f}"
        )
        if self.specificity_interval:
            low, high = self.specificity_interval
            said[-1] += f", for a specificity of {ASSUMED_SPECIFICITY:g} about {low:.2f} to {high:.2f}"
        if (self.chance_confirmed or 0) < 0.5:
            said.append(
                "a test set that cannot confirm is no reason to doubt the certificate; calibrate.deploy: pooled "
                "certifies the threshold to use on test patients as well (see maescreen power)"
            )
        return said


def capacity(positives: int, negatives: int) -> Capacity:
    """Return the highest of TARGETS that can be had, with the fractions that cost the fewest training patients."""
    for target in TARGETS:
        for shares in FRACTIONS:
            unlucky = int(binom.ppf(UNLUCKY, positives, shares[2]))
            if unlucky >= min_positives(target, CONFIDENCE):
                return _described(positives, negatives, shares, target)
    return _described(positives, negatives, FRACTIONS[0], None)


def _described(positives: int, negatives: int, shares: tuple[float, ...], target: float | None) -> Capacity:
    fractions = dict(zip(SPLITS, shares, strict=True))
    by_split = {name: round(positives * share) for name, share in fractions.items()}
    usual = round(positives * FRACTIONS[0][2])
    highest = certifiable_recall(usual, 0, CONFIDENCE) if usual else 0.0
    if target is None:
        return Capacity(positives, negatives, fractions, by_split, highest, None, None, None, None, None, None)
    n, m = by_split["calibration"], by_split["test"]
    allowed = max_misses(n, target, CONFIDENCE) or 0
    expected = round(m * (1 - (allowed + 1) / (n + 1)))
    without = round(negatives * fractions["test"])
    best = best_division(divisions(n + m, ASSUMED_AUC, target, CONFIDENCE))
    return Capacity(
        positives,
        negatives,
        fractions,
        by_split,
        highest,
        target,
        allowed,
        chance_of_confirmation(n, allowed, m, target, CONFIDENCE),
        _interval(expected, m),
        _interval(round(ASSUMED_SPECIFICITY * without), without),
        best.chance if best else None,
    )


def _interval(k: int, n: int) -> tuple[float, float] | None:
    found = proportion_ci(k, n) if n else None
    return (float(found.low), float(found.high)) if found else None
