"""The table of operating points: what each threshold would find and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.statistics.band import recall_band
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.metrics import Counts
from pipeline.statistics.patients import validate
from pipeline.statistics.threshold import certifiable_recall


def sweep_thresholds(y: Any, s: Any, operating: Sequence[float] = (), limit: int = 90) -> np.ndarray:
    """Return the thresholds that matter, rising: every score of a positive patient, where recall changes.

    Between two of them the higher always refers fewer for the same recall. The lowest score (refer everyone)
    and `operating` are added. When there are more than `limit`, the lowest half of `limit` is kept whole,
    since screening works there, and the rest is thinned evenly.
    """
    clean = validate(y, s)
    scores = np.unique(clean.s[clean.y == 1])
    if len(scores) > limit:
        half = limit // 2
        kept = np.round(np.linspace(half, len(scores) - 1, limit - half)).astype(int)
        scores = np.concatenate([scores[:half], scores[kept]])
    return np.unique(np.concatenate([scores, [clean.s.min()], operating]))


def threshold_sweep(
    y: Any,
    s: Any,
    thresholds: Any = None,
    *,
    confidence: float = 0.95,
    level: float = 0.95,
    cost_per_person: float = 0.0,
    cost_per_referral: float = 1.0,
    band_missed_share: float = 0.1,
) -> pd.DataFrame:
    """Return one row per threshold with counts, recall, specificity, predictive values, referral rate and cost.

    The columns are those of the calibration tool of WHO/TDR for computer-aided detection of tuberculosis, which
    shows, at every threshold, counts, cases found and missed, total cost and cost per case found. The costs, in any
    currency, are of screening a person and of examining one who is referred: 0 and 1 count referrals.
    Limits are Wilson's at `level`; `certified_recall` is the one-sided Clopper-Pearson lower bound at
    `confidence`, valid for a threshold chosen before looking. `band_recall` is the lower bound that holds in all rows
    at once with `confidence`, so that a row may be picked after looking; NaN in those that miss more than
    `band_missed_share`. Predictive values are at the prevalence of these patients. Undefined numbers are NaN.
    """
    clean = validate(y, s)
    thresholds = sweep_thresholds(y, s) if thresholds is None else np.asarray(thresholds, np.float64)
    positives, negatives = np.sort(clean.s[clean.y == 1]), np.sort(clean.s[clean.y == 0])
    missed, cleared = (np.searchsorted(group, thresholds, side="left") for group in (positives, negatives))
    counts = [
        Counts(tp=len(positives) - int(fn), fp=len(negatives) - int(tn), tn=int(tn), fn=int(fn))
        for fn, tn in zip(missed, cleared, strict=True)
    ]
    costs = cost_per_person, cost_per_referral
    rows = [_row(float(t), c, confidence, level, costs) for t, c in zip(thresholds, counts, strict=True)]
    band = recall_band(len(positives), confidence, band_missed_share) if len(positives) else np.empty(0)
    promised = [band[c.fn] if c.fn < len(band) else np.nan for c in counts]
    return pd.DataFrame(rows).assign(band_recall=np.array(promised, np.float64))


def _row(
    threshold: float, c: Counts, confidence: float, level: float, costs: tuple[float, float]
) -> dict[str, float | int]:
    cost = costs[0] * c.n + costs[1] * (c.tp + c.fp)
    return {
        "threshold": threshold,
        "true_positive": c.tp,
        "false_positive": c.fp,
        "true_negative": c.tn,
        "false_negative": c.fn,
        **_limits("recall", c.tp, c.positives, level),
        "missed_share": c.fn / c.positives if c.positives else np.nan,
        "certified_recall": certifiable_recall(c.positives, c.fn, confidence) if c.positives else np.nan,
        **_limits("specificity", c.tn, c.negatives, level),
        "ppv": c.tp / (c.tp + c.fp) if c.tp + c.fp else np.nan,
        "npv": c.tn / (c.tn + c.fn) if c.tn + c.fn else np.nan,
        "referral_rate": (c.tp + c.fp) / c.n,
        "total_cost": cost,
        "cost_per_found": cost / c.tp if c.tp else np.nan,
    }


def _limits(name: str, k: int, n: int, level: float) -> dict[str, float]:
    if n == 0:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    interval = proportion_ci(k, n, level)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
