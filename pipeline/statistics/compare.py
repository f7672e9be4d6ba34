"""Two models on the same patients."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from pipeline.statistics.discrimination import placements
from pipeline.statistics.errors import warn
from pipeline.statistics.patients import validate


@dataclass(frozen=True)
class PairedResult:
    """A paired difference, first minus second, with its limits, z and two-sided p."""

    diff: float
    low: float
    high: float
    z: float
    p: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)


def delong_covariance(y: np.ndarray, *scores: np.ndarray) -> np.ndarray:
    """Return the covariance matrix (m, m) of the AUCs of m scores on the same patients (DeLong et al. 1988)."""
    v10, v01 = zip(*(placements(y, s) for s in scores), strict=True)
    return np.atleast_2d(np.cov(v10)) / len(v10[0]) + np.atleast_2d(np.cov(v01)) / len(v01[0])


def delong_test(y: Any, s1: Any, s2: Any, level: float = 0.95) -> PairedResult:
    """Compare the AUCs of two scores on the same patients: y, s1, s2: (n,).

    DeLong, DeLong & Clarke-Pearson (1988). Scores with the same ranks give difference 0, z 0 and p 1. NaN,
    with a warning, for one class (`single_class`), fewer than 2 patients in a class (`tiny_n`), or a
    difference without variance (`auc_boundary`).
    """
    first, second = validate(y, s1), validate(y, s2)
    smaller = min(int(first.y.sum()), int((1 - first.y).sum()))
    if smaller < 2:
        warn(
            *(
                ("single_class", "all patients have the same label")
                if smaller == 0
                else ("tiny_n", "fewer than 2 in a class")
            )
        )
        return PairedResult(*[math.nan] * 5)
    difference = float(placements(first.y, first.s)[0].mean() - placements(first.y, second.s)[0].mean())
    contrast = np.array([1.0, -1.0])
    variance = float(contrast @ delong_covariance(first.y, first.s, second.s) @ contrast)
    if np.array_equal(rankdata(first.s), rankdata(second.s)):
        return PairedResult(0.0, 0.0, 0.0, 0.0, 1.0)
    if variance <= 1e-18:
        warn("auc_boundary", "the difference of the AUCs has no variance: no interval")
        return PairedResult(difference, math.nan, math.nan, math.nan, math.nan)
    se = math.sqrt(variance)
    half = float(norm.ppf((1 + level) / 2)) * se
    z = difference / se
    return PairedResult(difference, difference - half, difference + half, z, float(2 * norm.sf(abs(z))))
