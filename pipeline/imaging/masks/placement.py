"""Does a mask lie on the pixels of an image? By size and by matrix: names prove nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.affines import voxel_sizes

from pipeline.imaging.grid import Grid
from pipeline.imaging.quarantine import Refused

# Corners may lie apart by this share of a voxel: headers are rounded, while a resampled mask is off by half a voxel.
TOLERANCE_VOXELS = 0.1
# And directions by so much per voxel, before corners are compared.
LARGEST_TURN = 0.05


def size_text(shape: Sequence[int]) -> str:
    """Return a size as people write it."""
    return " x ".join(map(str, shape))


def check_size(shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise Refused when a picture's mask has another size than the picture as stored."""
    if tuple(shape) != tuple(expected):
        raise Refused("mask_size", f"{size_text(shape)} instead of {size_text(expected)}")


def placed(values: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the voxels of a mask as they lie on the pixels of an image, axes turned and mirrored but not resampled.

    `affine` leads from index to RAS+ mm; so does that of `grid`. The order of axes, and which way they run, are free.

    Raises Refused, naming every difference, when the two are not the same voxels.
    """
    if grid.affine is None:
        raise Refused("mask_position", "the image does not say where it lies")
    between = np.linalg.inv(grid.affine) @ affine
    steps = np.round(between[:3, :3])
    turned = np.abs(between[:3, :3] - steps).max() > LARGEST_TURN or not _is_turn(steps)
    if turned:
        raise Refused("mask_position", _differences(values.shape, affine, grid.shape, grid.affine))
    axes = np.abs(steps).argmax(axis=1)
    backwards = steps[range(3), axes] < 0
    sides = tuple(values.shape[axis] for axis in axes)
    if sides != grid.shape:
        raise Refused("mask_size", _differences(sides, affine[:, [*axes, 3]], grid.shape, grid.affine))
    expected = np.zeros((3, 4))
    expected[range(3), axes] = np.where(backwards, -1, 1)
    expected[:, 3] = np.where(backwards, np.array(sides) - 1, 0)
    corners = np.stack(np.meshgrid(*((0, side - 1) for side in values.shape), indexing="ij"), -1).reshape(-1, 3)
    off = np.abs((between[:3] - expected) @ np.c_[corners, np.ones(len(corners))].T)
    if off.max() > TOLERANCE_VOXELS:
        raise Refused("mask_position", f"{off.max():.2f} voxels off")
    return values.transpose(axes)[tuple(slice(None, None, -1 if one else None) for one in backwards)]


def _is_turn(steps: np.ndarray) -> bool:
    """Say whether a matrix of whole numbers only exchanges and mirrors axes."""
    return bool((np.abs(steps).sum(axis=0) == 1).all() and (np.abs(steps).sum(axis=1) == 1).all())


def _differences(shape: Sequence[int], affine: np.ndarray, expected: Sequence[int], its_affine: np.ndarray) -> str:
    """Return all that differs from the image's size and matrix; sizes and spacings whatever the order of axes."""
    found = []
    if sorted(shape) != sorted(expected):
        found.append(f"size {size_text(shape)} instead of {size_text(expected)}")
    own, its = np.sort(voxel_sizes(affine)), np.sort(voxel_sizes(its_affine))
    if np.abs(own / its - 1).max() > 0.01:
        found.append(f"spacing {_lengths(own)} instead of {_lengths(its)} mm")
    middles = [m[:3] @ [*((np.array(s) - 1) / 2), 1] for m, s in ((affine, shape), (its_affine, expected))]
    if (apart := float(np.linalg.norm(middles[0] - middles[1]))) > TOLERANCE_VOXELS * float(its.min()):
        found.append(f"centre {apart:.1f} mm apart")
    return ", ".join(found) or "other directions"


def _lengths(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
