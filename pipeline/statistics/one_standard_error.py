"""The one-standard-error rule: of several models judged on the same few patients, the simplest that is not shown to be
worse than the best by more than that best's own standard error (Breiman et al., Classification and Regression Trees,
1984, section 3.4.3; Hastie, Tibshirani and Friedman 2009, section 7.10).

The highest of several noisy areas is partly luck. A change that gains less than one standard error is not followed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.statistics.discrimination import auc_value

RESAMPLES = 500


def auc_standard_error(y: Any, s: Any, patient_id: Any, seed: int = 0) -> float:
    """Return the standard error of the AUC per image by a bootstrap over patients: y, s, patient_id (n,).

    Patients with and without the condition are drawn separately, each with all of their images. NaN when a class is
    absent or no resample has both.
    """
    labels, scores = np.asarray(y, dtype=float), np.asarray(s, dtype=float)
    patients, inverse = np.unique(np.asarray(patient_id), return_inverse=True)
    rows_of = [np.flatnonzero(inverse == at) for at in range(len(patients))]
    positive = np.array([labels[rows].max() > 0 for rows in rows_of])
    strata = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([stratum[generator.integers(0, len(stratum), len(stratum))]
                                for stratum in strata if len(stratum)])  # fmt: skip
        rows = np.concatenate([rows_of[patient] for patient in drawn])
        values.append(auc_value(labels[rows], scores[rows]))
    known = np.array(values)[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan


def simplest_within(values: Sequence[float], errors: Sequence[float]) -> int:
    """Return the place of the first value that is at least the highest less that one's standard error.

    `values` stand from the simplest model to the least simple; of equal highest ones the first gives the error. One
    that is NaN adds nothing. Raises ValueError when there is no value.
    """
    if not values:
        raise ValueError("there is nothing to choose from")
    best = int(np.argmax(values))
    error = 0.0 if math.isnan(errors[best]) else errors[best]
    return next(at for at, value in enumerate(values) if value >= values[best] - error)
