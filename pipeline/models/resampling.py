"""Linear resampling of batches under affine maps.

Sums are elementwise and never fused, not matrix products: their rounding may not depend on how many images a batch has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PLACES_AT_ONCE = 2**15  # of a volume: 128 KiB per axis


def resample(pixels: Tensor, maps: Tensor) -> Tensor:
    """Resample (B, C, ...) linearly at the places that `maps` (B, axes, axes + 1) send each output place to.

    Places are scaled to [-1, 1] per axis and stand in array order, slowest first; the last column of `maps` is the
    shift. What lies outside the image is black.
    """
    if pixels.ndim == 5 and pixels.device.type == "cpu":
        moved = torch.empty_like(pixels)
        for volume, own_map, result in zip(pixels, maps, moved, strict=True):
            _resample_volume(volume, own_map, result)
        return moved
    return _sample(pixels, _grid(maps, pixels))


def resample_planes(volumes: Tensor, maps: Tensor) -> Tensor:
    """Resample as `resample` does volumes (B, C, D, H, W) whose maps leave the first axis on its own.

    Planes are interpolated along the first axis and then all alike, so that each place in the plane is worked out once:
    about a third of the time.
    """
    depth = volumes.shape[2]
    centres = maps[:, 0, 0, None] * _centres(depth, volumes) + maps[:, 0, 3, None]
    places = _in_pixels(centres, depth)
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


def _resample_volume(volume: Tensor, own_map: Tensor, result: Tensor) -> None:
    """Resample one volume (C, D, H, W) into `result` as pictures, which torch does several times as fast as volumes.

    A few planes at a time, so that what is worked out for them stays in the processor's cache.
    """
    depth, height, width = volume.shape[1:]
    in_pixels = own_map * own_map.new_tensor([depth, height, 2])[:, None] / 2
    in_pixels[:2, 3] += own_map.new_tensor([depth - 1, height - 1]) / 2
    along_depth, along_height, along_width, shift = in_pixels.flip(0).unbind(1)
    in_plane = (shift[:, None] + along_height[:, None] * _centres(height, volume))[:, None, :, None]
    in_plane = in_plane + (along_width[:, None] * _centres(width, volume))[:, None, None, :]
    across_planes = (along_depth[:, None] * _centres(depth, volume))[:, :, None, None]
    # All slices above each other, a black row before each.
    tall = F.pad(volume, (0, 0, 1, 0)).flatten(1, 2)[None]
    planes = max(1, _PLACES_AT_ONCE // (height * width))
    for start in range(0, depth, planes):
        some = slice(start, start + planes)
        _sample_between_slices(tall, depth, across_planes[:, some] + in_plane, result[:, some])


def _sample_between_slices(tall: Tensor, depth: int, places: Tensor, result: Tensor) -> None:
    """Put values at places (3, D, H, W) into `result`: the weighted mean of samples in the two slices next to each.

    Places are columns, scaled to [-1, 1], then rows and slices, in pixels, and are overwritten. They are exact to about
    2^-24 of the strip of slices that lie around them.
    """
    _, rows, slices = places
    rows_each = tall.shape[2] // depth
    lower = slices.clamp_(-1, depth).floor()
    share = slices.sub_(lower)
    first, last = (int(found) for found in lower.aminmax())
    first = min(max(first, 0), depth - 1)
    strip = tall[:, :, first * rows_each : min(last + 2, depth) * rows_each]
    per_row = 2 / strip.shape[2]
    rows.clamp_(-1, rows_each - 1).add_(lower.sub_(first).mul_(rows_each)).mul_(per_row).add_(1.5 * per_row - 1)
    where = places[:2].flatten(1, 2).movedim(0, -1)[None]
    nearer = _sample(strip, where)[0].view(result.shape)
    rows.add_(rows_each * per_row)
    farther = _sample(strip, where)[0].view(result.shape)
    torch.add(nearer, farther.sub_(nearer).mul_(share), out=result)


def _sample(pixels: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(pixels, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def _in_pixels(places: Tensor, side: int) -> Tensor:
    return ((places + 1) * side - 1) / 2


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
