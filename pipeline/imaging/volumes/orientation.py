"""One orientation for every volume: axes superior, anterior, right, slowest first (RAS+ with the axes reversed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from pipeline.imaging.grid import Grid, closest_turn


@dataclass(frozen=True)
class Canvas:
    """A volume to be filled, seen in two ways that share memory.

    `stored` takes voxels in the order in which a file has them; `canonical`, C-contiguous, has indices that rise
    towards the patient's superior, anterior and right side. `spacing_mm` and `grid`, with the matrix from index to
    RAS+ mm, are those of `canonical`.
    """

    stored: np.ndarray
    canonical: np.ndarray
    spacing_mm: tuple[float, ...]
    grid: Grid


def canvas(shape: Sequence[int], affine: np.ndarray, dtype: type = np.float32) -> Canvas:
    """Return an empty volume for voxels of `shape`, three axes in any order, whose indices `affine` maps to RAS+ mm.

    An oblique volume goes to the nearest orientation; nothing is interpolated, and nothing copied.
    """
    grid = closest_turn(shape, affine)
    canonical = np.empty(grid.shape, dtype)
    # Lengths of the matrix columns, since a header's own spacing may contradict its matrix.
    spacing_mm = tuple(float(length) for length in nib.affines.voxel_sizes(grid.affine))
    return Canvas(grid.to_stored(canonical), canonical, spacing_mm, grid)
