"""Points of the ROC, precision-recall, reliability and decision curves, in the columns of the curve table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.statistics.intervals import Interval
from pipeline.statistics.metrics import Counts, confusion, net_benefit, net_benefit_at
from pipeline.statistics.patients import Patients
from pipeline.statistics.reliability import reliability_bins

MAX_POINTS = 500
PROBABILITIES = np.arange(1, 100) / 100


def curve_table(
    arms: Mapping[str, Patients],
    reported: str,
    before: np.ndarray,
    after: np.ndarray,
    bins: int,
    level: float,
    threshold: float | None = None,
    at: tuple[float, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Return every curve: ROC and precision-recall of each arm; reliability and net benefit of the reported one.

    `before` and `after` are its patients' probabilities, uncalibrated and calibrated; `threshold` is the operating
    point on its scores, if there is one. `at` is a prevalence and the probabilities carried to it:
    with it come the decision curves there.
    """
    y, s = arms[reported].y, arms[reported].s
    return pd.concat(
        [
            *(roc_points(p.y, p.s, name) for name, p in arms.items()),
            *(precision_recall_points(p.y, p.s, name) for name, p in arms.items()),
            reliability_points(y, before, reported, "reliability_before", bins, level),
            reliability_points(y, after, reported, "reliability_after", bins, level),
            *decision_points(y, s, after, reported, level, threshold),
            *([] if at is None else screening_points(y, s, at[1], reported, level, threshold, at[0])),
        ],
        ignore_index=True,
    )


def roc_points(y: np.ndarray, s: np.ndarray, arm: str) -> pd.DataFrame:
    """Return the ROC curve, by rising false-positive rate, thinned to 500 points; empty when a class is absent."""
    if y.min() == y.max():
        return _points("roc", arm, np.empty(0), np.empty(0))
    false_positive_rate, recall, _ = roc_curve(y, s)
    return _points("roc", arm, *_thinned(false_positive_rate, recall))


def precision_recall_points(y: np.ndarray, s: np.ndarray, arm: str) -> pd.DataFrame:
    """Return the precision-recall curve, by rising recall, thinned to 500 points; empty when a class is absent.

    The point (0, 1) that scikit-learn appends belongs to no threshold and is left out.
    """
    if y.min() == y.max():
        return _points("precision_recall", arm, np.empty(0), np.empty(0))
    precision, recall, _ = precision_recall_curve(y, s)
    return _points("precision_recall", arm, *_thinned(recall[-2::-1], precision[-2::-1]))


def reliability_points(y: np.ndarray, p: np.ndarray, arm: str, curve: str, bins: int, level: float) -> pd.DataFrame:
    """Return the reliability diagram in equal-mass bins with Wilson limits."""
    points = reliability_bins(y, p, bins, level=level)
    frame = _points(curve, arm, np.array([b.predicted for b in points]), np.array([b.observed.value for b in points]))
    return frame.assign(
        y_low=[b.observed.low for b in points],
        y_high=[b.observed.high for b in points],
        n=pd.array([b.observed.n for b in points], "Int64"),
    )


def decision_points(
    y: np.ndarray, s: np.ndarray, p: np.ndarray, arm: str, level: float, threshold: float | None
) -> list[pd.DataFrame]:
    """Return the decision curve at threshold probabilities of 1 to 99 %: net benefit at these patients' prevalence.

    `net_benefit` refers by probability, `net_benefit_all` refers everyone, and `net_benefit_operating_point` decides
    by the operating threshold, which does not move. To refer no one has the net benefit 0.
    """
    fixed = {"net_benefit_all": confusion(y, np.zeros(len(y)), 0.0)}
    if threshold is not None:
        fixed["net_benefit_operating_point"] = confusion(y, s, threshold)
    moving = [net_benefit(confusion(y, p, pt), pt, level) for pt in PROBABILITIES]
    return [
        _benefit("net_benefit", arm, moving),
        *(_benefit(curve, arm, [net_benefit(c, pt, level) for pt in PROBABILITIES]) for curve, c in fixed.items()),
    ]


def screening_points(
    y: np.ndarray, s: np.ndarray, p: np.ndarray, arm: str, level: float, threshold: float | None, prevalence: float
) -> list[pd.DataFrame]:
    """Return the decision curves where a share `prevalence` has the condition; `p` are probabilities there.

    `screening_benefit`, with _all and _operating_point, as `decision_points` has them for these patients' own share;
    nothing when a class is absent.
    """
    if y.min() == y.max():
        return []

    def benefit(counts: Counts, pt: float) -> Interval:
        return net_benefit_at(counts, pt, prevalence, level)

    fixed = {"screening_benefit_all": confusion(y, np.zeros(len(y)), 0.0)}
    if threshold is not None:
        fixed["screening_benefit_operating_point"] = confusion(y, s, threshold)
    moving = [benefit(confusion(y, p, pt), pt) for pt in PROBABILITIES]
    return [
        _benefit("screening_benefit", arm, moving),
        *(_benefit(curve, arm, [benefit(c, pt) for pt in PROBABILITIES]) for curve, c in fixed.items()),
    ]


def _benefit(curve: str, arm: str, values: Sequence[Interval]) -> pd.DataFrame:
    frame = _points(curve, arm, PROBABILITIES, np.array([v.value for v in values]))
    if curve.endswith("_all"):
        return frame  # at a given prevalence it is exact
    return frame.assign(y_low=[v.low for v in values], y_high=[v.high for v in values])


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.unique(np.round(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS))).astype(int))
    return x[kept], y[kept]


def _points(curve: str, arm: str, x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "curve": curve,
            "arm": arm,
            "x": x.astype(float),
            "y": y.astype(float),
            "y_low": np.nan,
            "y_high": np.nan,
            "n": pd.array([pd.NA] * len(x), "Int64"),
        }
    )
