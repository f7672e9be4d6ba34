"""How sure a calibrated probability is: percentile limits over calibrators fitted to resampled patients."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.statistics.calibration import fit_calibrator
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.patients import validate

RESAMPLES = 300
GRID = 101


def probability_band(
    y: Any, s: Any, method: str, level: float = 0.95, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores (GRID,) and, at each, lower and upper limits of the probability that `fit_calibrator` gives.

    y, s: (n,), one row per patient. Patients are drawn with replacement, so that the prevalence varies as well; a draw
    with too few patients of a class is drawn again. Percentile bootstrap (Efron & Tibshirani 1993, chapter 13). It
    speaks of the fit alone: that other patients are like these is not in it.

    Raises NotEnoughData when hardly any draw can be fitted.
    """
    clean = validate(y, s)
    grid = np.linspace(clean.s.min(), clean.s.max(), GRID)
    rng = np.random.default_rng(seed)
    fits: list[np.ndarray] = []
    for _ in range(4 * RESAMPLES):
        drawn = rng.integers(0, len(clean.y), len(clean.y))
        with collect_warnings():
            try:
                fits.append(fit_calibrator(clean.y[drawn], clean.s[drawn], method).predict(grid))
            except NotEnoughData:
                continue
        if len(fits) == RESAMPLES:
            break
    if len(fits) < RESAMPLES:
        positives = int(clean.y.sum())
        raise NotEnoughData("too few patients of a class for an interval", positives=positives, needed=20)
    low, high = np.quantile(fits, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return grid, np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
