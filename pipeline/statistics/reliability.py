"""Whether probabilities mean what they say: Brier score, log loss, calibration error, calibration line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import logit
from scipy.stats import norm

from pipeline.statistics.errors import warn
from pipeline.statistics.intervals import Interval, bootstrap, proportion_ci, undefined
from pipeline.statistics.logistic import fit_logistic
from pipeline.statistics.patients import Clean, validate


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: mean predicted probability, observed share with Wilson limits."""

    predicted: float
    observed: Interval


@dataclass(frozen=True)
class CalibrationLine:
    """Slope and intercept of the logistic recalibration line, and the intercept when the slope is held at 1."""

    slope: Interval
    intercept: Interval
    in_the_large: Interval


def _checked(y: Any, p: Any, weight: Any = None) -> tuple[Clean, np.ndarray]:
    clean = validate(y, p, weight=weight)
    if ((clean.s < 0) | (clean.s > 1)).any():
        raise ValueError("probabilities lie between 0 and 1; some of these do not")
    return clean, clean.s


def brier(y: Any, p: Any, weight: Any = None) -> float:
    """Return the mean squared difference between probability and outcome (Brier 1950)."""
    clean, p = _checked(y, p, weight)
    return float(np.average((p - clean.y) ** 2, weights=clean.weight))


def brier_skill(y: Any, p: Any, weight: Any = None) -> float:
    """Return 1 - Brier/(ybar(1-ybar)): 0 is as good as always stating the prevalence. NaN with one class."""
    clean, p = _checked(y, p, weight)
    prevalence = float(np.average(clean.y, weights=clean.weight))
    if prevalence in (0.0, 1.0):
        warn("single_class", "all patients have the same label: Brier skill is undefined")
        return math.nan
    return 1 - brier(y, p, weight) / (prevalence * (1 - prevalence))


def log_loss(y: Any, p: Any, eps: float = 1e-7) -> float:
    """Return the mean negative log-likelihood, in nats, of probabilities clipped to [eps, 1-eps]."""
    clean, p = _checked(y, p)
    return float(_losses(clean.y, p, eps).mean())


def _bins(p: np.ndarray, bins: int, scheme: str) -> np.ndarray:
    """Return the bin number of each probability; with scheme `mass`, equal values share a bin."""
    if scheme == "width":
        return np.minimum((p * bins).astype(int), bins - 1)
    if scheme != "mass":
        raise ValueError(f"bins are by mass or width, not {scheme}")
    # The rank of the first of equal values decides, so that a tie is never split.
    ranks = np.searchsorted(np.sort(p), p, side="left")
    return ranks * bins // len(p)


def ece(y: Any, p: Any, bins: int = 10, scheme: Literal["mass", "width"] = "mass", weight: Any = None) -> float:
    """Return the expected calibration error: mean |observed - predicted| over bins, weighted by their patients."""
    clean, p = _checked(y, p, weight)
    w = np.ones(len(p)) if clean.weight is None else clean.weight
    return _ece(clean.y, p, w, bins, scheme)


def _ece(y: np.ndarray, p: np.ndarray, w: np.ndarray, bins: int, scheme: str = "mass") -> float:
    gaps = np.bincount(_bins(p, bins, scheme), w * (y - p))
    return float(np.abs(gaps).sum() / w.sum())


def reliability_bins(
    y: Any, p: Any, bins: int = 10, scheme: Literal["mass", "width"] = "mass", level: float = 0.95
) -> list[Bin]:
    """Return the non-empty bins of a reliability diagram, by rising probability."""
    clean, p = _checked(y, p)
    number = _bins(p, bins, scheme)
    return [
        Bin(float(p[inside].mean()), proportion_ci(int(clean.y[inside].sum()), int(inside.sum()), level))
        for inside in (number == b for b in np.unique(number))
    ]


def calibration_line(y: Any, p: Any, level: float = 0.95) -> CalibrationLine:
    """Return the logistic recalibration of y on logit(p), p clipped to [1e-7, 1-1e-7], with Wald limits.

    Slope 1 and intercept 0 are perfect; slope below 1 means probabilities too extreme (Cox 1958; Van Calster
    et al. 2019). NaN, with a warning, for one class (`single_class`), one probability (`constant_score`:
    slope and intercept only) or separated classes (`separated`).
    """
    clean, p = _checked(y, p)
    n = len(p)
    x = logit(np.clip(p, 1e-7, 1 - 1e-7))
    nothing = undefined(level, "wald", n)
    if clean.y.min() == clean.y.max():
        warn("single_class", "all patients have the same label: the calibration line is undefined")
        return CalibrationLine(nothing, nothing, nothing)
    z = float(norm.ppf((1 + level) / 2))

    def wald(value: float, variance: float) -> Interval:
        half = z * math.sqrt(variance)
        return Interval(float(value), float(value - half), float(value + half), level, "wald", n)

    beta, covariance = fit_logistic(np.ones((n, 1)), clean.y, offset=x)
    in_the_large = wald(beta[0], covariance[0, 0])
    if np.ptp(x) == 0:
        warn("constant_score", "all probabilities are equal: the calibration slope is undefined")
        return CalibrationLine(nothing, nothing, in_the_large)
    beta, covariance = fit_logistic(np.column_stack([np.ones(n), x]), clean.y)
    if np.isnan(beta).any():
        warn("separated", "the classes are separated: the calibration slope has no finite value")
        return CalibrationLine(nothing, nothing, in_the_large)
    return CalibrationLine(wald(beta[1], covariance[1, 1]), wald(beta[0], covariance[0, 0]), in_the_large)


def calibration_summary(
    y: Any, p: Any, bins: int = 10, level: float = 0.95, *, seed: int = 0, resamples: int = 2000
) -> dict[str, Interval]:
    """Return every measure of calibration with its interval: patient bootstrap, and Wald for the line.

    Patients are drawn without regard to their label. These measures depend on the share with the condition, which
    chance decided when patients were divided; to hold it fixed leaves out the larger part of their variance where
    few have it (at 5 %, limits at 95 % then cover in 70 to 85 %).
    """
    clean, p = _checked(y, p)

    def drawn(stat: Callable[[np.ndarray, np.ndarray], float], values: np.ndarray) -> Interval:
        return bootstrap(stat, clean.y, values, seed=seed, level=level, resamples=resamples, stratify=False)

    def mean(values: np.ndarray) -> Interval:
        return drawn(lambda _, v: float(v.mean()), values)

    squares = (p - clean.y) ** 2
    value = brier_skill(clean.y, p)
    skill = undefined(level, "patient_bootstrap", len(p)) if math.isnan(value) else drawn(_skill, squares)
    line = calibration_line(y, p, level)
    return {
        "brier": mean(squares),
        "brier_skill": skill,
        "ece": _ece_interval(clean.y, p, bins, level, seed, resamples),
        "log_loss": mean(_losses(clean.y, p)),
        "slope": line.slope,
        "intercept": line.intercept,
        "in_the_large": line.in_the_large,
    }


def _losses(y: np.ndarray, p: np.ndarray, eps: float = 1e-7) -> np.ndarray:
    clipped = np.clip(p, eps, 1 - eps)
    return -np.where(y == 1, np.log(clipped), np.log1p(-clipped))


def _skill(y: np.ndarray, squares: np.ndarray) -> float:
    share = y.mean()
    return float(1 - squares.mean() / (share * (1 - share))) if 0 < share < 1 else math.nan


def log_loss_change(
    y: Any, before: Any, after: Any, level: float = 0.95, *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Return by how much calibration changed the log loss of the same patients, after minus before: above 0 is worse.

    y, before, after: (n,). Limits by the unstratified patient bootstrap of the paired differences.
    """
    (clean, first), (_, second) = _checked(y, before), _checked(y, after)
    change = _losses(clean.y, second) - _losses(clean.y, first)
    return bootstrap(
        lambda _, v: float(v.mean()), clean.y, change, seed=seed, level=level, resamples=resamples, stratify=False
    )


def _ece_interval(y: np.ndarray, p: np.ndarray, bins: int, level: float, seed: int, resamples: int) -> Interval:
    """Return ECE in equal-mass bins with an interval that holds for perfect probabilities too.

    Noise makes ECE positive even then, and its resamples more so, so that percentiles would never reach 0. ECE is
    a norm of the bins' gaps: by the triangle inequality it is off by at most the norm of the gaps' error, whose
    quantile the resamples give; that is the lower limit. The upper one is the percentile, which errs upwards.
    """
    number, residual = _bins(p, bins, "mass"), y - p
    gaps = np.bincount(number, residual, bins)

    def upper(stat: Callable[[np.ndarray], np.ndarray]) -> float:
        def norm_of(_: np.ndarray, rows: np.ndarray) -> float:
            return float(np.abs(stat(np.bincount(number[rows], residual[rows], bins))).sum() / len(y))

        rows = np.arange(len(y))
        return bootstrap(norm_of, y, rows, seed=seed, level=level, resamples=resamples, stratify=False).high

    value = float(np.abs(gaps).sum() / len(y))
    low, high = value - upper(lambda drawn: drawn - gaps), upper(lambda drawn: drawn)
    return Interval(value, max(low, 0.0), max(high, value), level, "patient_bootstrap_norm", len(y))
