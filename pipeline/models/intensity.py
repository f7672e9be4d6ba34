"""Blur, noise and holes: what MONAI's GaussianSmooth, RandGaussianNoise and RandCoarseDropout do, on batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_TAIL_SIGMAS = 4.0


def blur(pixels: Tensor, sigmas: np.ndarray) -> Tensor:
    """Return (B, C, ...) after Gaussian blur; `sigmas` (B, axes) in pixels, above 0. Outside the image is black.

    The kernel integrates the Gaussian over each pixel and ends at four sigmas, as in MONAI. Along each axis it is
    one product with a banded matrix, several times as fast as a convolution.
    """
    batch, *outer = pixels.shape
    for axis, side in enumerate(outer[1:], start=1):
        bands = _bands(sigmas[:, axis - 1], side, pixels)
        if axis == len(outer) - 1:
            pixels = pixels.reshape(batch, -1, side) @ bands
        else:
            # No axis is moved: that would copy all pixels.
            before = math.prod(outer[:axis])
            lines = pixels.reshape(batch * before, side, -1)
            pixels = bands[:, None].expand(-1, before, -1, -1).reshape(batch * before, side, side) @ lines
    return pixels.reshape(batch, *outer)


def _bands(sigmas: np.ndarray, side: int, like: Tensor) -> Tensor:
    """Return (B, side, side) symmetric matrices; entry (i, j) is the weight of pixel i in the blurred pixel j."""
    distances = torch.arange(side, dtype=torch.float64)
    scale = torch.from_numpy(1 / (np.sqrt(2) * sigmas))[:, None]
    weights = (torch.erf(scale * (distances + 0.5)) - torch.erf(scale * (distances - 0.5))) / 2
    tails = np.floor(np.maximum(_TAIL_SIGMAS * sigmas, 0.5) + 0.5)
    weights = (weights * (distances <= torch.from_numpy(tails)[:, None])).to(like)
    both_ways = torch.cat([weights.flip(1)[:, :-1], weights], dim=1)
    return both_ways.unfold(1, side, 1).flip(1)


def add_noise(pixels: Tensor, rows: Sequence[int], stds: Sequence[float], seeds: Sequence[int]) -> None:
    """Add Gaussian noise to some rows of (B, C, ...) in place: a function of each one's seed, shape and device."""
    generator = torch.Generator(pixels.device)
    for row, std, seed in zip(rows, stds, seeds, strict=True):
        noise = torch.empty_like(pixels[row])
        pixels[row] += noise.normal_(0, std, generator=generator.manual_seed(seed))


def cut_out(pixels: Tensor, rows: Sequence[int], starts: np.ndarray, sides: np.ndarray) -> None:
    """Blacken a box in some rows of (B, C, ...) in place; `starts` and `sides` (rows, axes) in pixels."""
    for row, start, side in zip(rows, starts, sides, strict=True):
        pixels[(row, slice(None), *map(slice, start, start + side))] = 0
