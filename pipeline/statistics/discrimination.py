"""How well scores separate patients with from patients without the condition, whatever the threshold."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.statistics.errors import warn
from pipeline.statistics.intervals import Interval, bootstrap, undefined
from pipeline.statistics.patients import validate


def placements(y: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's placement values (V10, V01) of the positives and the negatives, in row order.

    V10 is the share of negatives below a positive, V01 the share of positives above a negative, ties counting
    one half. DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988) 837-845, by the midranks of Sun & Xu, IEEE
    Signal Processing Letters 21 (2014) 1389-1393.
    """
    positive = y == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(s)
    v10 = (ranks[positive] - rankdata(s[positive])) / n0
    v01 = 1 - (ranks[~positive] - rankdata(s[~positive])) / n1
    return v10, v01


def auc_value(y: np.ndarray, s: np.ndarray) -> float:
    """Return the area under the ROC curve, NaN when a class is absent; for checked arrays."""
    n1 = int((y == 1).sum())
    if n1 in (0, len(y)):
        return math.nan
    return float(placements(y, s)[0].mean())


def roc_auc(
    y: Any,
    s: Any,
    level: float = 0.95,
    ci: Literal["delong_logit", "delong", "bootstrap"] = "delong_logit",
    patient_id: Any = None,
    *,
    weight: Any = None,
    seed: int = 0,
) -> Interval:
    """Return the area under the ROC curve with its interval. y, s, patient_id, weight: (n,).

    `delong_logit`: DeLong variance, limits on the logit scale, which near 1 covers far better than `delong`.
    `bootstrap` resamples patients, and is the only interval with several rows per patient or with weights
    (ValueError otherwise). NaN limits, with a warning, where no variance exists: `single_class`, `tiny_n`
    (fewer than 2 in a class), `constant_score`. At exactly 0 or 1 both variances are 0 and say nothing: the limits are
    those of `newcombe_auc`, with the warning `auc_boundary`; with `bootstrap`, NaN.
    """
    clean = validate(y, s, patient_id, weight)
    labels, scores = clean.y, clean.s
    n, n1 = len(labels), int(labels.sum())
    if ci != "bootstrap" and clean.patient_id is not None and len(np.unique(clean.patient_id)) < n:
        raise ValueError("several rows per patient are not independent: aggregate them first, or use ci='bootstrap'")
    if ci != "bootstrap" and clean.weight is not None:
        raise ValueError("DeLong's variance takes no weights: use ci='bootstrap'")
    if n1 in (0, n):
        warn("single_class", "all patients have the same label: the AUC is undefined")
        return undefined(level, ci, n)
    value = _weighted_auc(labels, scores, clean.weight)
    unknown = Interval(value, math.nan, math.nan, level, ci, n)
    if np.ptp(scores) == 0:
        warn("constant_score", "all scores are equal: the AUC is 0.5 and has no interval")
        return unknown
    if min(n1, n - n1) < 2:
        warn("tiny_n", "fewer than 2 patients in a class: the AUC has no interval")
        return unknown
    if value in (0.0, 1.0):
        if ci == "bootstrap":
            warn("auc_boundary", f"the AUC is exactly {value:g} in every resample, which says nothing; no interval")
            return unknown
        warn("auc_boundary", f"the AUC is exactly {value:g}: its variance is 0; the limits are Newcombe's")
        return newcombe_auc(value, n1, n - n1, level)
    if ci == "bootstrap":
        return bootstrap(_weighted_auc, labels, scores, clean.patient_id, weight=clean.weight, seed=seed, level=level)
    v10, v01 = placements(labels, scores)
    se = math.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    z = float(norm.ppf((1 + level) / 2))
    if ci == "delong":
        return Interval(value, value - z * se, value + z * se, level, ci, n)
    half = z * se / (value * (1 - value))
    return Interval(value, float(expit(logit(value) - half)), float(expit(logit(value) + half)), level, ci, n)


def newcombe_auc(value: float, positives: int, negatives: int, level: float = 0.95) -> Interval:
    """Return an AUC of 0 or 1 with its score interval: method 5 of Newcombe, Statistics in Medicine 25 (2006) 559-573.

    As Wilson's does for a proportion, it holds the areas t that differ from the one seen by at most z standard errors,
    the errors being those at t: Hanley & McNeil's (Radiology 143 (1982) 29-36) with both (m - 1) and (n - 1) replaced
    by N - 1 for N = (m + n)/2,

        V(t) = t(1-t)/(mn) (1 + (N-1)(1-t)/(2-t) + (N-1) t/(1+t)).

    Raises ValueError for other values, for which DeLong's interval is the narrower one.
    """
    if value not in (0.0, 1.0):
        raise ValueError(f"meant for an AUC of exactly 0 or 1, not {value:g}")
    z = float(norm.ppf((1 + level) / 2))
    more = (positives + negatives) / 2 - 1

    def beyond(t: float) -> float:  # (1-t)^2 <= z^2 V(t), divided by (1-t)
        spread = 1 + more * (1 - t) / (2 - t) + more * t / (1 + t)
        return (1 - t) * positives * negatives - z * z * t * spread

    low = float(root_scalar(beyond, bracket=(0.0, 1.0), method="brentq").root)
    low, high = (low, 1.0) if value == 1 else (0.0, 1 - low)
    return Interval(value, low, high, level, "newcombe_score", positives + negatives)


def _weighted_auc(y: np.ndarray, s: np.ndarray, weight: np.ndarray | None = None) -> float:
    if weight is None:
        return auc_value(y, s)
    return float(roc_auc_score(y, s, sample_weight=weight))


def average_precision(
    y: Any, s: Any, level: float = 0.95, patient_id: Any = None, *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Return average precision with its interval by patient bootstrap; NaN and `single_class` with one class.

    The value is scikit-learn's, which calls it 1 when all are positive; that case never reaches it.
    """
    clean = validate(y, s, patient_id)
    if clean.y.min() == clean.y.max():
        warn("single_class", "all patients have the same label: average precision is undefined")
        return undefined(level, "patient_bootstrap", len(clean.y))
    value = float(average_precision_score(clean.y, clean.s))
    if value == 1 or np.ptp(clean.s) == 0:
        code = "auc_boundary" if value == 1 else "constant_score"
        warn(code, "average precision is the same in every resample, which says nothing; no interval")
        return Interval(value, math.nan, math.nan, level, "patient_bootstrap", len(clean.y))
    interval = bootstrap(
        _average_precision, clean.y, clean.s, clean.patient_id, seed=seed, level=level, resamples=resamples
    )
    return Interval(value, interval.low, interval.high, level, interval.method, interval.n)


def _average_precision(y: np.ndarray, s: np.ndarray) -> float:
    # scikit-learn's definition without its input checks, which take most of the time of 2,000 resamples.
    order = np.argsort(-s)
    last_of_tie = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    tp = np.cumsum(y[order])[last_of_tie]
    return float((np.diff(tp, prepend=0) * tp / (last_of_tie + 1)).sum() / tp[-1])
