"""How much each image looks like the average of its kind: a negative among positives shows itself at once."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.imaging.copies.fingerprints import SMALL_SIDE, SmallCopies

KIND = ["axes", "modality", "body_part", "view"]
# Fewer images of a kind make no average to compare with.
FEWEST_OF_A_KIND = 20
INVERTED_BELOW = -0.3
CHUNK = 512


def likeness(images: pd.DataFrame, small: SmallCopies) -> np.ndarray:
    """Return the correlation of each of N images with the mean of all of the same kind; NaN for few or blank.

    `small` reads the small copies, which happens piece by piece.
    """
    kind = images.groupby(KIND, sort=True).ngroup().to_numpy()
    kinds = int(kind.max()) + 1 if len(kind) else 0
    sums, counts = np.zeros((kinds, SMALL_SIDE**2)), np.zeros(kinds)
    for start in range(0, len(images), CHUNK):
        piece, of = _standardised(small(start, start + CHUNK)), kind[start : start + CHUNK]
        seen = np.isfinite(piece[:, 0])
        np.add.at(sums, of[seen], piece[seen])
        np.add.at(counts, of[seen], 1)
    sums[counts < FEWEST_OF_A_KIND] = np.nan
    found = np.empty(len(images))
    for start in range(0, len(images), CHUNK):
        piece, of = _standardised(small(start, start + CHUNK)), kind[start : start + CHUNK]
        found[start : start + CHUNK] = (piece * _standardised(sums[of])).mean(axis=1)
    return found


def _standardised(rows: np.ndarray) -> np.ndarray:
    """Return rows less their mean over their spread; NaN where they have none."""
    rows = rows.astype(float)
    spread = rows.std(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rows - rows.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, np.nan)
