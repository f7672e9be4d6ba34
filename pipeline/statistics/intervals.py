"""Confidence intervals of proportions, their differences and ratios, and of any statistic by patient bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.special import betaincinv, ndtri

from pipeline.statistics.errors import warn
from pipeline.store.results.interval import Interval


def undefined(level: float, method: str, n: int = 0) -> Interval:
    """Return the interval of a quantity that does not exist: all NaN."""
    return Interval(math.nan, math.nan, math.nan, level, method, n)


def proportion_ci(k: int, n: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson") -> Interval:
    """Return k/n with its two-sided Wilson (1927) or exact (Clopper & Pearson 1934) interval.

    n = 0 gives NaN and the warning `empty_denominator`. Raises ValueError unless 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"a proportion needs 0 <= k <= n, not k = {k}, n = {n}")
    if n == 0:
        warn("empty_denominator", "a proportion of no patients is undefined")
        return undefined(level, method)
    # scipy's binomtest has both, but computes a p-value first, which takes ten times as long.
    low, high = (_wilson if method == "wilson" else _exact)(int(k), int(n), (1 - level) / 2)
    return Interval(k / n, low, high, level, method, int(n))


def _wilson(k: int, n: int, tail: float) -> tuple[float, float]:
    z = float(ndtri(1 - tail))
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    # Rounding must not keep the limits of 0 of n and n of n from the end.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def _exact(k: int, n: int, tail: float) -> tuple[float, float]:
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def newcombe(
    k1: int, n1: int, k2: int, n2: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Interval:
    """Return k1/n1 - k2/n2 of independent samples with its hybrid score interval.

    Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10, which joins Wilson's limits of both. With `exact`,
    those of Clopper & Pearson are joined in the same way: Wilson's are right in the mean, but at levels above 0.99 and
    shares near 1 they leave out too much to one side. NaN when a sample is empty.
    """
    first, second = proportion_ci(k1, n1, level, method), proportion_ci(k2, n2, level, method)
    difference = first.value - second.value
    low = difference - math.hypot(first.value - first.low, second.high - second.value)
    high = difference + math.hypot(first.high - first.value, second.value - second.low)
    return Interval(difference, low, high, level, "newcombe" if method == "wilson" else "mover_exact", n1 + n2)


def ratio_ci(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> Interval:
    """Return the ratio (k1/n1) / (k2/n2) of independent proportions with its interval from Wilson limits.

    Donner & Zou, Statistical Methods in Medical Research 21 (2012) 347-359 (MOVER-R). It has limits where the
    log method has none: k1 = 0 still has an upper limit. k2 = 0 gives value and upper limit NaN, the lower
    limit, and the warning `zero_denominator`.
    """
    if n1 == 0 or n2 == 0:
        warn("empty_denominator", "a ratio of proportions of no patients is undefined")
        return undefined(level, "mover_wilson", n1 + n2)
    first, second = proportion_ci(k1, n1, level), proportion_ci(k2, n2, level)
    p, q = first.value, second.value

    def root(x: float, y: float) -> float:
        return math.sqrt(max((p * q) ** 2 - x * y, 0.0))

    # Donner & Zou divide by u2 (2q - u2), which can be 0; multiplied by the conjugate, it cannot.
    x, y = first.low * (2 * p - first.low), second.high * (2 * q - second.high)
    low = x / (p * q + root(x, y)) if x > 0 else 0.0
    if k2 == 0:
        warn("zero_denominator", "a likelihood ratio divides by a proportion of 0; only its lower limit exists")
        return Interval(math.nan, low, math.nan, level, "mover_wilson", n1 + n2)
    x, y = first.high * (2 * p - first.high), second.low * (2 * q - second.low)
    high = (p * q + root(x, y)) / y
    return Interval(p / q, low, high, level, "mover_wilson", n1 + n2)


def bootstrap(
    stat: Callable[..., float],
    y: np.ndarray,
    s: np.ndarray,
    patient_id: np.ndarray | None = None,
    *,
    weight: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
    stratify: bool = True,
    level: float = 0.95,
) -> Interval:
    """Return `stat(y, s)`, or `stat(y, s, weight)`, with its interval from resampled patients.

    y, s, weight: (n,); patient_id: (n,), None when every row is a patient. All rows of a drawn patient are
    taken; with `stratify`, patients with and without the condition (any row positive) are drawn separately.
    Resamples whose statistic is NaN are
    left out and counted in the warning `bootstrap_undefined`.
    """
    rows_of = _patient_rows(len(y), patient_id)
    positive = np.array([y[rows].max() > 0 for rows in rows_of]) if patient_id is not None else y > 0
    strata = [np.flatnonzero(positive), np.flatnonzero(~positive)] if stratify else [np.arange(len(rows_of))]
    columns = (y, s) if weight is None else (y, s, weight)
    generator = np.random.default_rng(seed)
    values = np.empty(resamples)
    for i in range(resamples):
        drawn = np.concatenate(
            [stratum[generator.integers(0, len(stratum), len(stratum))] for stratum in strata if len(stratum)]
        )
        rows = drawn if patient_id is None else np.concatenate([rows_of[j] for j in drawn])
        values[i] = stat(*(column[rows] for column in columns))
    bad = int(np.isnan(values).sum())
    if bad:
        warn(
            "bootstrap_undefined",
            f"the statistic is undefined in {bad} of {resamples} resamples, which were left out",
        )
    value = float(stat(*columns))
    method = "patient_bootstrap"
    if bad == resamples:
        return Interval(value, math.nan, math.nan, level, method, len(rows_of))
    tail = (1 - level) / 2
    low, high = (float(q) for q in np.nanquantile(values, [tail, 1 - tail]))
    return Interval(value, low, high, level, method, len(rows_of))


def _patient_rows(n: int, patient_id: np.ndarray | None) -> list[np.ndarray] | np.ndarray:
    """Return the row numbers of each patient, patients in sorted order."""
    if patient_id is None:
        return np.arange(n)
    _, inverse, counts = np.unique(patient_id, return_inverse=True, return_counts=True)
    return np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
