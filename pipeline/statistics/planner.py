"""How many patients it takes: to certify a recall, to confirm it on others, and what that costs in referrals.

Everything follows from one fact. The threshold that misses k of n calibration patients with the condition is the
(k+1)-th smallest of n scores, so the share U that it misses of all such patients is Beta(k+1, n-k), whatever the
distribution of scores (continuous ones; ties make it smaller). Hence

- of m other patients with the condition, X given U is Bin(m, U), and X is beta-binomial(m, k+1, n-k);
- the promise is confirmed when X <= j, the most misses that certify the target on m patients by themselves;
- for scores that are normal with equal variance and area A under the ROC curve, the two means lie d = sqrt(2) z_A
  apart, the threshold lies at d + z_U above the healthy mean, and the share referred at prevalence pi is
  pi (1 - U) + (1 - pi) (1 - Phi(d + z_U)), of which the mean over U is taken.

The first two are exact; the third is the mean over U by quadrature, under the assumption named.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import betaln, gammaln, logsumexp, ndtr, ndtri
from scipy.stats import beta

from pipeline.statistics.threshold import max_misses, min_positives

MOST_MISSES = 1 << 14


def misses_at_least(misses: int, positives: int, calibration_positives: int, misses_allowed: int) -> float:
    """Return the probability that at least `misses` of `positives` other patients are missed when nothing differs.

    The upper tail of beta-binomial(positives, misses_allowed + 1, calibration_positives - misses_allowed).
    """
    return (
        1.0 if misses == 0 else max(1 - _misses_up_to(misses - 1, positives, calibration_positives, misses_allowed), 0)
    )


def _misses_up_to(misses: int, positives: int, calibration_positives: int, misses_allowed: int) -> float:
    a, b = misses_allowed + 1, calibration_positives - misses_allowed
    x = np.arange(min(misses, positives) + 1)
    choose = gammaln(positives + 1) - gammaln(x + 1) - gammaln(positives - x + 1)
    return float(min(np.exp(logsumexp(choose + betaln(x + a, positives - x + b) - betaln(a, b))), 1.0))


def chance_of_confirmation(
    calibration_positives: int,
    misses_allowed: int,
    test_positives: int,
    recall: float = 0.95,
    confidence: float = 0.95,
) -> float:
    """Return how often other patients confirm `recall` when nothing differs: a share of all calibrations and tests.

    The threshold misses `misses_allowed` of `calibration_positives`; it may have been certified for a higher recall
    than the one confirmed. 0 where the test patients are too few for any confirmation.
    """
    allowed = max_misses(test_positives, recall, confidence) if test_positives else None
    return 0.0 if allowed is None else _misses_up_to(allowed, test_positives, calibration_positives, misses_allowed)


def confirming_positives(
    chance: float, calibration_positives: int, misses_allowed: int, recall: float = 0.95, confidence: float = 0.95
) -> int | None:
    """Return the fewest test patients with the condition that confirm `recall` with probability `chance`.

    Between two sizes that allow one miss more, the chance falls, so only sizes at which it jumps are looked at. None
    where not even about 16,000 misses' worth of patients is enough: a threshold certified at the recall that is to be
    confirmed fails it in up to 5 % of calibrations, whatever the test set.
    """

    def enough(j: int) -> bool:
        return _misses_up_to(j, min_positives(recall, confidence, j), calibration_positives, misses_allowed) >= chance

    high = 1
    while high <= MOST_MISSES and not enough(high - 1):
        high *= 2
    if high > MOST_MISSES:
        return None
    low = high // 2  # not enough with low - 1 misses, or nothing tried
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle - 1) else (middle, high)
    return min_positives(recall, confidence, high - 1)


def equal_sets_for(
    chance: float, certify: float, confirm: float = 0.95, confidence: float = 0.95, most: int = 5000
) -> int | None:
    """Return the fewest patients with the condition in each of two equal sets, of which the second confirms `confirm`.

    The threshold is certified at `certify` on the first. None where `most` are not enough. The chance rises only at
    sizes with which the second set may miss one more, or with which the first can be certified at all.
    """
    first = min_positives(certify, confidence)
    sizes = [first]
    for j in range(most):
        m = min_positives(confirm, confidence, j)
        if m > most:
            break
        sizes += [m] * (m > first)
    for m in sizes:
        k = max_misses(m, certify, confidence)
        if k is not None and chance_of_confirmation(m, k, m, confirm, confidence) >= chance:
            return m
    return None


def expected_referral(
    auc: float, calibration_positives: int, misses_allowed: int, prevalence: float = 0.05, points: int = 4000
) -> float:
    """Return the mean share of people referred, over calibrations, for scores of normal patients with area `auc`.

    Raises ValueError unless `auc` lies in [0.5, 1) and `prevalence` in (0, 1).
    """
    if not (0.5 <= auc < 1 and 0 < prevalence < 1):
        raise ValueError(f"needs 0.5 <= AUC < 1 and 0 < prevalence < 1, not {auc:g} and {prevalence:g}")
    at = (np.arange(points) + 0.5) / points
    missed = beta.ppf(at, misses_allowed + 1, calibration_positives - misses_allowed)
    return float(_referral(auc, missed, prevalence).mean())


def ideal_referral(auc: float, recall: float = 0.95, prevalence: float = 0.05) -> float:
    """Return the share referred by somebody who knows the threshold with exactly this recall."""
    return float(_referral(auc, np.array([1 - recall]), prevalence)[0])


def _referral(auc: float, missed: np.ndarray, prevalence: float) -> np.ndarray:
    apart = math.sqrt(2) * ndtri(auc)
    return prevalence * (1 - missed) + (1 - prevalence) * ndtr(-(apart + ndtri(missed)))


@dataclass(frozen=True)
class Division:
    """One way to divide patients with the condition between calibration and test."""

    calibration_positives: int
    test_positives: int
    certify: float
    misses_allowed: int
    chance: float
    referral: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)


def divisions(
    positives: int,
    auc: float,
    recall: float = 0.95,
    confidence: float = 0.95,
    prevalence: float = 0.05,
    certify: float | None = None,
    steps: int = 20,
) -> list[Division]:
    """Return the ways to divide `positives` in twentieths, those that can certify `certify` (default: `recall`).

    `chance` is that of confirming `recall` on the test patients, `referral` the expected share referred.
    """
    target = recall if certify is None else certify
    found = []
    for calibration in sorted({round(positives * step / steps) for step in range(1, steps)}):
        allowed = max_misses(calibration, target, confidence) if calibration else None
        if allowed is None:
            continue
        test = positives - calibration
        chance = chance_of_confirmation(calibration, allowed, test, recall, confidence)
        referral = expected_referral(auc, calibration, allowed, prevalence)
        found.append(Division(calibration, test, target, allowed, chance, referral))
    return found


def best_division(found: list[Division], chance: float = 0.8) -> Division | None:
    """Return the division with the lowest expected referral among those that reach `chance`, else the likeliest."""
    reached = [one for one in found if one.chance >= chance]
    if reached:
        return min(reached, key=lambda one: (one.referral, -one.chance))
    return max(found, key=lambda one: (one.chance, -one.referral), default=None)


def subgroup_needs(recall: float, confidence: float, groups: int) -> int:
    """Return the positives needed in each of `groups` so that every one can be certified, all at once."""
    return min_positives(recall, 1 - (1 - confidence) / groups)
