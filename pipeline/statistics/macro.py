"""Unweighted means over several labels of the same patients, each label counting the same however rare it is.

Shapes: n patients, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from pipeline.statistics.errors import warn
from pipeline.statistics.intervals import Interval, bootstrap
from pipeline.statistics.patients import Patients
from pipeline.store.results.metrics import Macro


def macro_averages(
    labels: Sequence[Patients], thresholds: Sequence[float | None], level: float = 0.95, *, seed: int = 0
) -> Macro:
    """Return the macro AUC, recall and specificity; recall and specificity are None where a threshold is missing.

    Patients may lack some of the labels. Limits are percentiles of the mean over 2,000 resamples of patients, drawn
    with all their labels, so that what labels share is kept. NaN limits and the warning `macro_boundary` where every
    resample gives the same; close to that, percentiles are too narrow.
    """
    ids = np.unique(np.concatenate([one.ids for one in labels]))
    y = np.full((len(ids), len(labels)), np.nan)
    ranks, referred = np.zeros(y.shape, np.int64), np.zeros(y.shape, bool)
    for column, (one, threshold) in enumerate(zip(labels, thresholds, strict=True)):
        rows = np.searchsorted(ids, one.ids)
        y[rows, column] = one.y
        ranks[rows, column] = rankdata(one.s, "dense") - 1
        referred[rows, column] = one.s >= threshold if threshold is not None else False

    def mean(stat: Callable[[np.ndarray, np.ndarray], float], of: np.ndarray) -> Interval:
        found = bootstrap(stat, y, of, stratify=False, seed=seed, level=level)
        if found.low < found.high or math.isnan(found.low):
            return found
        warn("macro_boundary", "a mean over labels is the same in every resample, which says nothing; no interval")
        return replace(found, low=math.nan, high=math.nan)

    certified = None not in thresholds
    return Macro(
        labels=len(labels),
        auc=mean(_mean_auc, ranks),
        recall=mean(lambda y, r: _mean_share(y == 1, r), referred) if certified else None,
        specificity=mean(lambda y, r: _mean_share(y == 0, ~r), referred) if certified else None,
    )


def _mean_share(of: np.ndarray, chosen: np.ndarray) -> float:
    """Return the mean over columns of the share of `of` that is chosen; NaN where a column of `of` is empty."""
    with np.errstate(invalid="ignore"):
        return float(((of & chosen).sum(axis=0) / of.sum(axis=0)).mean())


def _mean_auc(y: np.ndarray, ranks: np.ndarray) -> float:
    return float(np.mean([_auc(y[:, column], ranks[:, column]) for column in range(y.shape[1])]))


def _auc(y: np.ndarray, ranks: np.ndarray) -> float:
    """Return the area under the ROC curve from dense ranks (n,) without sorting them; NaN when a class is absent."""
    length = int(ranks.max()) + 1
    positive, negative = (np.bincount(ranks[y == value], minlength=length) for value in (1, 0))
    pairs = int(positive.sum()) * int(negative.sum())
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / pairs) if pairs else math.nan
