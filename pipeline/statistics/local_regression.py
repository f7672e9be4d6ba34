"""A smooth calibration curve: local regression of the outcome on the predicted probability, with a bootstrap band.

Loess (Cleveland, JASA 74 (1979) 829-836) as Austin and Steyerberg, Statistics in Medicine 33 (2014) 517-535, use it
to judge calibration graphically: no bins, whose number and limits change the picture.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.patients import validate

SPAN, POINTS, LEAST = 0.75, 51, 10
DRAWN_AT_ONCE = 50  # resamples, which bounds the memory to so many numbers per patient


@dataclass(frozen=True)
class Curve:
    """The observed share with the condition, by predicted probability, with limits at each; all of shape (points,).

    `with_condition` and `without` count the patients whose probability is nearest to that of the place.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    with_condition: np.ndarray
    without: np.ndarray


def calibration_curve(
    y: Any, p: Any, level: float = 0.95, *, span: float = SPAN, seed: int = 0, resamples: int = 500
) -> Curve:
    """Return the local linear regression of y (n,), 0 or 1, on probabilities p (n,) at 51 places between their ends.

    At each place the `span` nearest patients count, by the tricube of their distance. The limits are pointwise: the
    percentiles of fits to patients drawn anew, whatever their label, with the widths of the whole sample. Raises
    NotEnoughData with fewer than 10 patients of a kind or with one probability alone, ValueError for p outside [0, 1].
    """
    clean = validate(y, p)
    y, p = clean.y, clean.s
    if ((p < 0) | (p > 1)).any():
        raise ValueError("probabilities lie between 0 and 1; some of these do not")
    positives = int(y.sum())
    if min(positives, len(y) - positives) < LEAST or np.ptp(p) == 0:
        raise NotEnoughData(
            f"a calibration curve needs {LEAST} patients with and {LEAST} without the condition and more than one "
            f"probability; there are {positives} and {len(y) - positives}, and {len(np.unique(p))} probabilities",
            positives=positives,
            needed=LEAST,
        )
    at = np.linspace(p.min(), p.max(), POINTS)
    terms = _terms(at, p, y, span)
    observed = _fit(terms, np.ones((len(y), 1)))[:, 0]
    rng = np.random.default_rng(seed)
    drawn = []
    for first in range(0, resamples, DRAWN_AT_ONCE):
        times = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=min(DRAWN_AT_ONCE, resamples - first))
        drawn.append(_fit(terms, times.T.astype(float)))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(drawn, axis=1), [tail, 100 - tail], axis=1)
    nearest = np.clip(np.round((p - at[0]) / (at[1] - at[0])).astype(int), 0, POINTS - 1)
    counts = [np.bincount(nearest[y == kind], minlength=POINTS) for kind in (1, 0)]
    return Curve(at, observed, np.minimum(low, observed), np.maximum(high, observed), *counts)


def calibration_curves(y: Any, before: Any, after: Any, level: float, seed: int) -> pd.DataFrame | None:
    """Return both curves of the same patients in the columns of the table; None where patients are too few.

    Without a curve before calibration, all probabilities being equal, that after it may be there alone.
    """
    parts = []
    for name, p in (("before", before), ("after", after)):
        with suppress(NotEnoughData):
            curve = calibration_curve(y, p, level, seed=seed)
            parts.append(pd.DataFrame({"calibrated": name, **vars(curve)}))
    return pd.concat(parts, ignore_index=True) if parts else None


def _terms(at: np.ndarray, p: np.ndarray, y: np.ndarray, span: float) -> tuple[np.ndarray, ...]:
    """Return what each patient adds to the sums of each place's weighted regression, each of shape (points, n)."""
    distance = np.abs(at[:, None] - p)
    nearest = min(max(int(np.ceil(span * len(p))), 2), len(p)) - 1
    width = np.partition(distance, nearest, axis=1)[:, nearest]
    # Where ties fill the neighbourhood of a place, whoever lies beyond them still counts a little.
    width = np.maximum(width, 1e-3) * (1 + 1e-9)
    weight = np.clip(1 - (distance / width[:, None]) ** 3, 0, None) ** 3
    x = p - at[:, None]
    return weight, weight * x, weight * x**2, weight * y, weight * x * y


def _fit(terms: tuple[np.ndarray, ...], times: np.ndarray) -> np.ndarray:
    """Return the value of each place's line there, (points, draws), for patients that count `times` (n, draws)."""
    w, wx, wxx, wy, wxy = (term @ times for term in terms)
    spread = w * wxx - wx**2
    mean = wy / np.maximum(w, 1e-12)
    # A neighbourhood of one probability has a mean and no slope.
    line = np.divide(wxx * wy - wx * wxy, spread, out=mean.copy(), where=spread > 1e-12 * np.maximum(w * wxx, 1e-12))
    return np.clip(line, 0, 1)
