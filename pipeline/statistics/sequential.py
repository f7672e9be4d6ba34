"""Watching a model in use: alarms that may be looked at after every patient, for ever.

A test martingale is a bet against the claim that all is well: it starts at 1, and while the claim is true its mean
never rises. By Ville's inequality it then reaches 1/alpha with probability at most alpha, at any time whatever, so that
looking daily costs nothing (Shafer 2021; Waudby-Smith & Ramdas, JRSS-B 86 (2024) 1-27; Podkopaev & Ramdas, ICLR 2022).

For outcomes that are 1 with probability p, and the claim p <= q, each r in (q, 1) gives such a bet: the likelihood
ratio of r against q, which grows by r/q with a 1 and by (1-r)/(1-q) with a 0, in the mean by 1 + (p-q)(r-q)/(q(1-q))
<= 1. Their mean over r is one too. With r from Beta(a, b) cut to (q, 1), k ones in n outcomes give, in closed form,

    E = B(a+k, b+n-k) S(q; a+k, b+n-k) / (B(a, b) S(q; a, b) q^k (1-q)^(n-k)),

S being the upper tail of the beta distribution. E depends on n and k alone, so that the law of the first alarm is
computed exactly, without simulation, by carrying the distribution of k from n to n + 1.

Misses are watched among *audited* patients with the condition: those referred, and a random share of the others whose
outcome was sought. Where outcomes come back for referred people only, there is nothing to watch (`verification`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import betaincc, betaln, xlog1py, xlogy

from pipeline.statistics.verification import audits_needed
from pipeline.store.results.operating_point import Band, Watching

# The probability of a false alarm, ever.
ALPHA = 0.05


def _prior(q: float) -> tuple[float, float]:
    """Return a and b of the bet against p <= q, before it is cut to (q, 1): its mean is three times a small q."""
    return 1.0, max(1.0, 1 / (3 * q) - 1)


def log_e_value(ones: int, n: int, at_most: float) -> float:
    """Return the logarithm of the evidence against p <= `at_most` after `ones` among `n` outcomes.

    Raises ValueError unless 0 <= ones <= n and 0 < at_most < 1.
    """
    if not (0 <= ones <= n and 0 < at_most < 1):
        raise ValueError(f"needs 0 <= ones <= n and a rate in (0, 1), not {ones}, {n} and {at_most:g}")
    return float(log_e_values(np.asarray(ones), np.asarray(n), at_most))


def log_e_values(ones: np.ndarray, n: np.ndarray, at_most: float) -> np.ndarray:
    """Return `log_e_value` for arrays of any one shape, whose values are not checked."""
    a, b = _prior(at_most)
    with np.errstate(divide="ignore"):  # no bet above `at_most` has anything left: minus infinity
        tail = np.log(betaincc(a + ones, b + n - ones, at_most) / betaincc(a, b, at_most))
    return betaln(a + ones, b + n - ones) - betaln(a, b) + tail - xlogy(ones, at_most) - xlog1py(n - ones, -at_most)


def alarm_counts(longest: int, at_most: float, alpha: float = ALPHA) -> np.ndarray:
    """Return the fewest ones among 1, 2, ..., `longest` outcomes that raise the alarm; n + 1 where none do.

    Shape (longest,). The alarm is evidence of 1/alpha or more.
    """
    needed = math.log(1 / alpha)
    counts = np.empty(longest, np.int64)
    k = 0
    for n in range(1, longest + 1):
        # One outcome more never lowers the number that it takes.
        while k <= n and log_e_value(k, n, at_most) < needed:
            k += 1
        counts[n - 1] = k
    return counts


def alarm_probability(counts: np.ndarray, rate: float) -> np.ndarray:
    """Return the exact probability that an alarm was raised after each number of outcomes, ones being independent.

    counts: (n,) of `alarm_counts`; returns (n,). The distribution of ones among those without an alarm is carried on.
    """
    silent = np.ones(1)
    raised = np.empty(len(counts))
    for n, limit in enumerate(counts):
        silent = np.append(silent, 0.0) * (1 - rate) + np.append(0.0, silent) * rate
        silent = silent[: max(int(limit), 1)]
        if limit == 0:
            silent[:] = 0
        raised[n] = 1 - silent.sum()
    return raised


@lru_cache(maxsize=64)
def outcomes_to_notice(
    rate: float, at_most: float, chance: float = 0.5, alpha: float = ALPHA, longest: int = 5000
) -> int | None:
    """Return after how many outcomes a `rate` above `at_most` has raised the alarm with probability `chance`.

    None where that takes more than `longest`.
    """
    reached = np.flatnonzero(alarm_probability(alarm_counts(longest, at_most, alpha), rate) >= chance)
    return int(reached[0]) + 1 if len(reached) else None


def watching(recall: float, referral: tuple[float, float] | None, alpha: float = ALPHA) -> Watching:
    """Return what it takes to notice that a model in use got worse: stated beforehand, before anybody watches.

    `referral`: the band that is declared for the share of people referred; None where there is none. Numbers are
    medians, by the true recall and the true share referred; None where it takes thousands.
    """
    falls = [round(1 - times * (1 - recall), 6) for times in (2, 3, 4) if times * (1 - recall) < 1]
    notice = {f"{fallen:g}": outcomes_to_notice(1 - fallen, 1 - recall, alpha=alpha) for fallen in falls}
    band, people = None, {}
    if referral is not None and 0 < referral[0] < referral[1] < 1:
        band = Band(*referral)
        people = {f"{r:g}": people_to_notice(r, *referral, alpha=alpha) for r in _outside(*referral)}
    bound = {f"{share:g}": audits_needed(share) for share in (0.005, 0.01, 0.02)}
    return Watching(alpha, 1 / alpha, recall, notice, bound, band, people)


def _outside(low: float, high: float) -> list[float]:
    """Return shares outside a band, in whole per cents where these lie outside: half, a quarter more, halfway to all.

    A quarter more is left out where that is about halfway to all.
    """
    halfway = (high + 1) / 2
    shares = [low / 2, *([1.25 * high] if 1.25 * high < halfway - 0.05 else []), halfway]
    return [whole if 0 < (whole := round(share, 2)) < low or high < whole < 1 else round(share, 3) for share in shares]


# ---------------------------------------------------------------- a rate within a declared band


def log_e_band(ones: int, n: int, low: float, high: float) -> float:
    """Return the logarithm of the evidence that a rate lies outside `low` to `high`: the mean of two one-sided bets.

    At most one of the two claims is false, and a mean of test martingales is one. Raises ValueError unless
    0 < low < high < 1.
    """
    if not 0 < low < high < 1:
        raise ValueError(f"a band needs 0 < low < high < 1, not {low:g} to {high:g}")
    above, below = log_e_value(ones, n, high), log_e_value(n - ones, n, 1 - low)
    return float(np.logaddexp(above, below) - math.log(2))


@lru_cache(maxsize=64)
def people_to_notice(
    rate: float, low: float, high: float, chance: float = 0.5, alpha: float = ALPHA, longest: int = 2500
) -> int | None:
    """Return after how many people a referral `rate` outside the band has raised the alarm with probability `chance`.

    None where that takes more than `longest`.
    """
    reached = np.flatnonzero(band_alarm_probability(rate, low, high, alpha, longest) >= chance)
    return int(reached[0]) + 1 if len(reached) else None


def band_alarm_probability(
    rate: float, low: float, high: float, alpha: float = ALPHA, longest: int = 2500
) -> np.ndarray:
    """Return the exact probability that an alarm was raised after each number of people, (longest,)."""
    needed = math.log(1 / alpha)
    silent = np.ones(1)
    raised = np.empty(longest)
    few, many = -1, 1  # alarm at k <= few and at k >= many; both only rise with n
    for n in range(1, longest + 1):
        silent = np.append(silent, 0.0) * (1 - rate) + np.append(0.0, silent) * rate
        while many <= n and log_e_band(many, n, low, high) < needed:
            many += 1
        while few + 1 < many and log_e_band(few + 1, n, low, high) >= needed:
            few += 1
        silent[many:] = 0
        silent[: few + 1] = 0
        raised[n - 1] = 1 - silent.sum()
    return raised


def confidence_sequence(ones: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return limits of a rate that hold after every number of outcomes at once, with probability 1 - alpha.

    They are the rates p that the bet spread evenly over all alternatives does not refuse: those with
    B(1+k, 1+n-k) / (p^k (1-p)^(n-k)) < 1/alpha (Robbins 1970; the mixture by Beta(1, 1)).
    """
    spread = betaln(1 + ones, 1 + n - ones) - math.log(1 / alpha)

    def refused(p: float) -> float:
        return float(spread - xlogy(ones, p) - xlog1py(n - ones, -p))

    at = ones / n

    def limit(end: float) -> float:
        return float(root_scalar(refused, bracket=sorted((end, at)), method="brentq").root)

    return 0.0 if ones == 0 else limit(1e-300), 1.0 if ones == n else limit(1 - 1e-16)
