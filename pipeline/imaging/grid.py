"""Where the pixels of an image lie: on the grid of its file, and in the patient. What goes back goes this way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Grid:
    """How `Image.pixels` lie on the grid of the file that they come from, and in the patient.

    `shape` is that of `pixels`: (H, W) or (D, H, W). Axis n of `pixels` is axis `axes[n]` of the file, reversed where
    `reversed_axes[n]`. `stored` is the shape in the file: (rows, columns) of a picture, before its orientation tag is
    followed; (i, j, k) of a NIfTI; (slices, rows, columns) of a DICOM series, its slices in order along their normal.
    It differs from `shape` in more than the order only for pictures whose pixels were made square.

    `affine`, (4, 4), leads from an index of `pixels`, slowest axis first, to RAS+ mm; None where the file does not say.
    """

    shape: tuple[int, ...]
    stored: tuple[int, ...]
    axes: tuple[int, ...]
    reversed_axes: tuple[bool, ...]
    affine: np.ndarray | None = field(default=None, compare=False)

    @classmethod
    def plain(cls, shape: Sequence[int], stored: Sequence[int] | None = None) -> Grid:
        """Return the grid of pixels that lie as they are stored."""
        return cls(tuple(shape), tuple(stored or shape), tuple(range(len(shape))), (False,) * len(shape))

    def from_stored(self, values: np.ndarray) -> np.ndarray:
        """Return values on the grid of the file, of shape `stored`, as they lie on `pixels`."""
        if values.shape != self.stored:
            raise ValueError(f"values of shape {values.shape} on a grid of {self.stored}")
        return nearest(values.transpose(self.axes)[self._backwards], self.shape)

    def to_stored(self, values: np.ndarray) -> np.ndarray:
        """Return values that lie on `pixels` on the grid of the file: exact, unless pixels were made square."""
        if values.shape != self.shape:
            raise ValueError(f"values of shape {values.shape} on pixels of {self.shape}")
        turned = nearest(values, tuple(self.stored[axis] for axis in self.axes))
        return turned[self._backwards].transpose(np.argsort(self.axes))

    @property
    def stored_affine(self) -> np.ndarray | None:
        """The matrix (4, 4) from an index on the grid of the file to RAS+ mm; None where the file does not say."""
        if self.affine is None:
            return None
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for n, (axis, backwards) in enumerate(zip(self.axes, self.reversed_axes, strict=True)):
            turn[n, axis] = -1 if backwards else 1
            turn[n, 3] = self.shape[n] - 1 if backwards else 0
        return self.affine @ turn

    @property
    def _backwards(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if one else None) for one in self.reversed_axes)


def closest_turn(shape: Sequence[int], affine: np.ndarray) -> Grid:
    """Return the grid of a volume of `shape`, three axes in any order, once turned to superior, anterior, right.

    `affine` maps its indices to RAS+ mm. An oblique volume goes to the nearest orientation.
    """
    turn = nib.orientations.io_orientation(affine)
    # Axes of the file by the patient's axis to which each is nearest: right, anterior, superior.
    axes = [int(axis) for axis in np.argsort(turn[:, 0])][::-1]
    backwards = tuple(bool(turn[axis, 1] < 0) for axis in axes)
    turned = (affine @ nib.orientations.inv_ornt_aff(turn, shape))[:, [2, 1, 0, 3]]
    return Grid(tuple(shape[axis] for axis in axes), tuple(shape), tuple(axes), backwards, turned)


def nearest(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return values resampled to a shape, the nearest for each place; themselves where that is theirs."""
    if values.shape == shape:
        return values
    places = [((np.arange(to) + 0.5) * of / to).astype(int) for of, to in zip(values.shape, shape, strict=True)]
    return values[np.ix_(*places)]
