"""Augmentation of whole batches on the device, each image's by its own (seed, epoch, image) counter.

The transforms are those of MONAI's RandSpatialCrop + Resize, RandRotate, RandFlip, RandScaleIntensity and
RandShiftIntensity, the spatial ones composed into a single resampling so that an image is interpolated once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.randomness import AUGMENTATION, uniform

_DRAWS = 8  # share, offset per axis (3), angle, flip, contrast, brightness


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed; each amount is drawn uniformly.

    `crop_min`: smallest share of the area (volume) kept; the crop keeps the image's proportions and is scaled back.
    `rotate_degrees`: largest rotation either way, in the plane of the last two axes.
    `intensity`: largest relative change of contrast, and largest shift of brightness as a share of the range.
    `flip_horizontal`: mirror the last axis in half of the cases.
    """

    crop_min: float = 1.0
    rotate_degrees: float = 0.0
    intensity: float = 0.0
    flip_horizontal: bool = False

    def __call__(self, pixels: Tensor, seed: int, epoch: int, images: np.ndarray) -> Tensor:
        """Return the augmented batch; `pixels` (B, C, ...) in [0, 1], `images` (B,) are the images' own numbers.

        What an image becomes depends on nothing but itself and (seed, epoch, its number). Pixels from outside the
        image are black.
        """
        draws = uniform(seed, epoch, images, AUGMENTATION, _DRAWS)
        moved = resample(pixels, torch.from_numpy(self.matrices(draws, pixels.shape[2:])).to(pixels))
        return self._intensity(moved, draws)

    def matrices(self, draws: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Return (B, axes, axes + 1) affine maps from output to input places, both scaled to [-1, 1] per axis.

        Axes are in array order, slowest first; the last column is the shift.
        """
        axes = len(size)
        side = (1 - draws[:, 0] * (1 - self.crop_min)) ** (1 / axes)
        angle = np.radians(self.rotate_degrees) * (2 * draws[:, 4] - 1)
        mirrored = np.where(self.flip_horizontal & (draws[:, 5] < 0.5), -1.0, 1.0)
        maps = np.zeros((len(draws), axes, axes + 1))
        maps[:, range(axes), range(axes)] = side[:, None]
        height, width = size[-2:]
        # A rotation in pixels, written in places scaled per axis: unequal sides shear it otherwise.
        maps[:, -2, -3] = side * np.cos(angle)
        maps[:, -2, -2] = side * np.sin(angle) * width / height * mirrored
        maps[:, -1, -3] = -side * np.sin(angle) * height / width
        maps[:, -1, -2] = side * np.cos(angle) * mirrored
        maps[:, :, -1] = (1 - side)[:, None] * (2 * draws[:, 1 : 1 + axes] - 1)
        return maps

    def _intensity(self, pixels: Tensor, draws: np.ndarray) -> Tensor:
        shape = (-1,) + (1,) * (pixels.ndim - 1)
        contrast, brightness = (
            torch.from_numpy(self.intensity * (2 * draws[:, column] - 1)).to(pixels).view(shape) for column in (6, 7)
        )
        return ((pixels - 0.5) * (1 + contrast) + 0.5 + brightness).clamp(0, 1)


def resample(pixels: Tensor, maps: Tensor) -> Tensor:
    """Resample (B, C, ...) linearly at the places that `maps` (B, axes, axes + 1) send each output place to."""
    size = pixels.shape[2:]
    axes = len(size)
    # Elementwise sums, not a matrix product, whose rounding may depend on how many images are in the batch.
    lines = [_centres(side, pixels).view((-1,) + (1,) * (axes - 1 - axis)) for axis, side in enumerate(size)]
    places = []
    for row in range(axes):
        coefficients = [maps[:, row, column].view((-1,) + (1,) * axes) for column in range(axes + 1)]
        place = coefficients[-1].expand(-1, *size)
        for coefficient, line in zip(coefficients, lines, strict=False):
            place = place + coefficient * line
        places.append(place)
    # grid_sample wants the fastest axis first.
    grid = torch.stack(places[::-1], dim=-1)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _centres(side: int, like: Tensor) -> Tensor:
    return (2 * torch.arange(side, dtype=torch.float64) + 1).div(side).sub(1).to(like)
