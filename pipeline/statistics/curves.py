"""Points of the ROC, precision-recall and reliability curves, in the columns of the curve table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.statistics.patients import Patients
from pipeline.statistics.reliability import reliability_bins

MAX_POINTS = 500


def curve_table(
    arms: Mapping[str, Patients], reported: str, before: np.ndarray, after: np.ndarray, bins: int, level: float
) -> pd.DataFrame:
    """Return every curve: ROC and precision-recall of each arm, and the reported arm's reliability.

    `before` and `after` are its patients' probabilities, uncalibrated and calibrated.
    """
    y = arms[reported].y
    return pd.concat(
        [
            *(roc_points(p.y, p.s, name) for name, p in arms.items()),
            *(precision_recall_points(p.y, p.s, name) for name, p in arms.items()),
            reliability_points(y, before, reported, "reliability_before", bins, level),
            reliability_points(y, after, reported, "reliability_after", bins, level),
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
