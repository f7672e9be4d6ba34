"""Scores of calibration patients as a few counts, which say of no patient what his score is.

A model in use is held against them (`drift`). Between n scores lie n + 1 gaps, into each of which the next score falls
with the same probability: bins are counted in gaps.
"""

from __future__ import annotations

import numpy as np

LEAST_GAPS = 5  # no bin is about fewer patients
MOST_BINS = 8


def score_bins(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return edges (K - 1,) and gaps (K,) of bins that are cut at some of the `scores` (n,), in about equal parts.

    Edges are rounded to a thousandth. No bin has fewer than LEAST_GAPS gaps; with too few scores there is one bin.
    """
    ordered = np.sort(np.asarray(scores, float))
    bins = max(1, min(MOST_BINS, (len(ordered) + 1) // LEAST_GAPS))
    ranks = np.arange(1, bins) * (len(ordered) + 1) // bins
    edges, first = np.unique(np.round(ordered[ranks - 1], 3), return_index=True) if bins > 1 else (np.empty(0), ranks)
    return edges, np.diff([0, *ranks[first], len(ordered) + 1])
