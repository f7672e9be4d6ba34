"""One orientation for every volume: axes superior, anterior, right, slowest first (RAS+ with the axes reversed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Canvas:
    """A volume to be filled, seen in two ways that share memory.

    `stored` takes voxels in the order in which a file has them; `canonical`, C-contiguous, has indices that rise
    towards the patient's superior, anterior and right side. `spacing_mm` and `affine`, from index to RAS+ mm, are
    those of `canonical`.
    """

    stored: np.ndarray
    canonical: np.ndarray
    spacing_mm: tuple[float, ...]
    affine: np.ndarray


def canvas(shape: Sequence[int], affine: np.ndarray, dtype: type = np.float32) -> Canvas:
    """Return an empty volume for voxels of `shape`, three axes in any order, whose indices `affine` maps to RAS+ mm.

    An oblique volume goes to the nearest orientation; nothing is interpolated, and nothing copied.
    """
    turn = nib.orientations.io_orientation(affine)
    to, direction = turn[:, 0].astype(int), turn[:, 1]
    right_first = np.empty(3, dtype=int)
    right_first[to] = shape
    canonical = np.empty(tuple(right_first[::-1]), dtype)
    stored = canonical.transpose(2, 1, 0).transpose(to)
    stored = stored[tuple(slice(None, None, -1) if way < 0 else slice(None) for way in direction)]
    turned = (affine @ nib.orientations.inv_ornt_aff(turn, shape))[:, [2, 1, 0, 3]]
    # Lengths of the matrix columns, since a header's own spacing may contradict its matrix.
    spacing_mm = tuple(float(length) for length in nib.affines.voxel_sizes(turned))
    return Canvas(stored, canonical, spacing_mm, turned)
