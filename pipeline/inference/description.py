"""An image as the vectors by which typicality.py judges it.

Shapes: B images, C channels, D entries of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.inference.typicality import DEPTHS, DETAIL, PICTURE
from pipeline.models.finished import Network

SIDE = {2: 16, 3: 8}  # largest number of cells per axis of the picture, by axes
BINS = 16
SCALES = 4  # of the detail: 1, 2, 4 and 8 pixels
LEAST_STEP = 1e-3  # share of the range; finer than 8 bits can show


def describe(network: Network | None, pixels: Tensor) -> dict[str, np.ndarray]:
    """Return the vectors of images (B, C, H, W) or (B, C, D, H, W) in [0, 1], each (B, D) float64.

    `quarter`, `half`, `three_quarters` and `full` are what the network found after that share of its blocks or stages
    (`Network.depths`), scaled to length 1; a network of fewer than four has fewer of them, and none (None) has none.
    `picture` and `detail` are there for all. The network is expected in evaluation mode. An image's vectors do not
    depend on the other images, but by rounding.
    """
    return describe_found([] if network is None else network.depths(pixels), pixels)


@torch.no_grad()
def describe_found(depths: Sequence[Tensor], pixels: Tensor) -> dict[str, np.ndarray]:
    """Return the same vectors where the `depths` of these images are known; none without a network."""
    exact = pixels.detach().cpu().double()
    detail = _detail(exact)
    # In a shallow network several shares end at one block, which then has the last of their names.
    names = {math.ceil(len(depths) * share / len(DEPTHS)): name for share, name in enumerate(DEPTHS, start=1)}
    tokens = {name: F.normalize(depths[block - 1], dim=1).cpu().numpy() for block, name in names.items() if depths}
    return {**tokens, PICTURE: np.hstack([_picture(exact), detail]), DETAIL: detail}


def _picture(pixels: Tensor) -> np.ndarray:
    """Return the means of a small grid, and the root of the share of pixels in each of 16 grey levels, per channel.

    Roots of shares spread about equally, however large the share (Hellinger).
    """
    axes = pixels.ndim - 2
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if axes == 2 else F.adaptive_avg_pool3d
    grid = pool(pixels, tuple(min(side, SIDE[axes]) for side in pixels.shape[2:]))
    levels = (pixels.flatten(2) * BINS).long().clamp(0, BINS - 1)
    shares = torch.stack([(levels == level).double().mean(dim=2) for level in range(BINS)], dim=2)
    return torch.cat([grid.flatten(1), shares.sqrt().flatten(1)], dim=1).numpy()


def _detail(pixels: Tensor) -> np.ndarray:
    """Return the logarithm of the mean step from pixel to pixel, per channel, axis and scale."""
    pool = F.avg_pool2d if pixels.ndim == 4 else F.avg_pool3d
    steps = []
    for scale in range(SCALES):
        if scale and min(pixels.shape[2:]) >= 4:
            pixels = pool(pixels, 2)
        steps += [pixels.diff(dim=axis).abs().flatten(2).mean(dim=2) for axis in range(2, pixels.ndim)]
    return torch.cat(steps, dim=1).add(LEAST_STEP).log().numpy()
