"""Linear resampling of batches under affine maps.

Sums are elementwise and never fused, not matrix products: their rounding may not depend on how many images a batch has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(pixels: Tensor, maps: Tensor) -> Tensor:
    """Resample (B, C, ...) linearly at the places that `maps` (B, axes, axes + 1) send each output place to.

    Places are scaled to [-1, 1] per axis and stand in array order, slowest first; the last column of `maps` is the
    shift. What lies outside the image is black.
    """
    return F.grid_sample(pixels, _grid(maps, pixels), mode="bilinear", padding_mode="zeros", align_corners=False)


def resample_planes(volumes: Tensor, maps: Tensor) -> Tensor:
    """Resample as `resample` does volumes (B, C, D, H, W) whose maps leave the first axis on its own.

    Planes are interpolated along the first axis and then all alike, so that each place in the plane is worked out once:
    about a third of the time.
    """
    depth = volumes.shape[2]
    centres = maps[:, 0, 0, None] * _centres(depth, volumes) + maps[:, 0, 3, None]
    places = ((centres + 1) * depth - 1) / 2
    lower = places.floor()
    planes = _share(volumes, places, lower) + _share(volumes, places, lower + 1)
    moved = resample(planes.flatten(1, 2), maps[:, 1:, 1:])
    return moved.view(planes.shape).transpose(1, 2).contiguous()


def _share(volumes: Tensor, places: Tensor, nearest: Tensor) -> Tensor:
    """Return the planes (B, D, C, H, W) numbered `nearest` (B, D), weighted by how near to `places` they are."""
    depth = volumes.shape[2]
    weights = (1 - (places - nearest).abs()) * ((nearest >= 0) & (nearest < depth))
    rows = torch.arange(len(volumes), device=volumes.device)[:, None]
    return volumes[rows, :, nearest.clamp(0, depth - 1).long()].mul_(weights[:, :, None, None, None])


def _grid(maps: Tensor, like: Tensor) -> Tensor:
    """Return (B, ..., axes) places in the order of grid_sample, fastest axis first, one plane in memory per axis."""
    size = like.shape[2:]
    axes = len(size)
    fastest_first = maps.flip(1)
    places = fastest_first[:, :, -1].view(-1, axes, *(1,) * axes)
    for column, side in enumerate(size):
        shape = [1] * axes
        shape[column] = side
        line = _centres(side, like).view(shape)
        places = places + fastest_first[:, :, column].view(-1, axes, *(1,) * axes) * line
    return places.movedim(1, -1)


def _centres(side: int, like: Tensor) -> Tensor:
    return (2 * torch.arange(side, dtype=torch.float64) + 1).div(side).sub(1).to(like)
