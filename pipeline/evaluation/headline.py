"""The numbers of an evaluation that a tracker is told."""

from __future__ import annotations

import pandas as pd

from pipeline.store.results.metrics import Metrics
from pipeline.store.results.operating_point import AtTarget


def headline(metrics: Metrics, comparison: pd.DataFrame) -> dict[str, float]:
    """Return the numbers of metrics.json by which evaluations are compared; intervals as name, name_low, name_high."""
    points: dict[str, AtTarget | None] = {"": metrics.operating_point} | {
        f"_at_{other.recall_target:g}": other.operating_point for other in metrics.other_operating_points
    }
    rates = ("recall", "specificity", "ppv", "npv", "referral_rate")
    intervals = {
        "test_auc": metrics.discrimination.auc,
        "test_average_precision": metrics.discrimination.average_precision,
        "test_brier": metrics.calibration.after.brier,
        "test_ece": metrics.calibration.after.ece,
        **{f"test_{name}{at}": getattr(point, name) for at, point in points.items() if point for name in rates},
        **{f"test_{name}": value for name, value in metrics.label_fractions.intervals.items()},
    }
    values = {f"auc_{arm}": float(auc) for arm, auc in zip(comparison["arm"], comparison["auc"], strict=True)}
    for name, interval in intervals.items():
        values |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    # A tracker has no word for a number that does not exist.
    return {name: value for name, value in values.items() if value == value}
