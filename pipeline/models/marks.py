"""Marks: the places in an image that a model holds for a structure, with how sure it is of each.

A mark is a connected piece, corners included, of the pixels where a structure's probability is above a low threshold.
Its score, the suspicion, is the highest probability in it; a reader of results chooses from which score on marks count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Mark:
    """One mark. `structure` is its number, `peak` the pixel with the highest probability, slowest axis first."""

    structure: int
    score: float
    peak: tuple[int, ...]
    voxels: int
    mark: int = 0  # from 1 in an image, the surest first


@dataclass(frozen=True)
class Suspects:
    """The pixels of an image whose probability of a structure is above the threshold: `places` flat, with `values`."""

    places: np.ndarray
    values: np.ndarray


def marks_of(suspects: Sequence[Suspects], size: Sequence[int]) -> list[Mark]:
    """Return all marks of an image of this size, the surest first, of the suspects of each structure from 1."""
    found = [mark for number, one in enumerate(suspects, start=1) for mark in _of_structure(number, one, size)]
    found.sort(key=lambda mark: (-mark.score, mark.structure, mark.peak))
    return [replace(mark, mark=number) for number, mark in enumerate(found, start=1)]


def _of_structure(number: int, suspects: Suspects, size: Sequence[int]) -> list[Mark]:
    if not len(suspects.places):
        return []
    places = np.stack(np.unravel_index(suspects.places, tuple(size)))
    corner = places.min(axis=1, keepdims=True)
    inside = np.zeros(tuple(places.max(axis=1) - corner[:, 0] + 1), bool)
    inside[tuple(places - corner)] = True
    pieces, count = ndimage.label(inside, structure=np.ones((3,) * len(size), bool))
    piece = pieces[tuple(places - corner)] - 1
    voxels = np.bincount(piece, minlength=count)
    # Of equal probabilities the first pixel is the peak.
    order = np.lexsort((suspects.places, -suspects.values, piece))
    peaks = order[np.searchsorted(piece[order], np.arange(count))]
    return [
        Mark(number, float(suspects.values[peak]), tuple(int(at) for at in places[:, peak]), int(voxels[n]))
        for n, peak in enumerate(peaks)
    ]
