"""Changes of colour as torchvision and kornia define them, on batches of RGB images in [0, 1], each by its own amount.

Saturation and hue are torchvision's adjust_saturation and adjust_hue, a shift of each channel is kornia's shift_rgb.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601, rounded as both libraries do


def saturated(pixels: Tensor, factors: Tensor) -> Tensor:
    """Return (B, 3, H, W) blended with its grey version: factor 0 is grey, 1 the image itself; `factors` (B,)."""
    weights = pixels.new_tensor(GREY_WEIGHTS)[:, None, None]
    grey = (pixels * weights).sum(dim=1, keepdim=True)
    share = factors.to(pixels).view(-1, 1, 1, 1)
    return (share * pixels + (1 - share) * grey).clamp(0, 1)


def turned(pixels: Tensor, turns: Tensor) -> Tensor:
    """Return (B, 3, H, W) with hues moved by `turns` (B,), shares of the colour circle; value and saturation stay."""
    hue, saturation, value = _hsv(pixels)
    return _rgb((hue + turns.to(pixels).view(-1, 1, 1)) % 1, saturation, value)


def shifted(pixels: Tensor, shifts: Tensor) -> Tensor:
    """Return (B, 3, H, W) with `shifts` (B, 3) added to the channels, within [0, 1]."""
    return (pixels + shifts.to(pixels)[:, :, None, None]).clamp(0, 1)


def _hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in [0, 1), saturation and value, each (B, H, W); grey has hue and saturation 0 (Smith 1978)."""
    red, green, blue = pixels.unbind(dim=1)
    value, largest = pixels.max(dim=1)  # the first of equals: red before green before blue
    spread = value - pixels.amin(dim=1)
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    sixths = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    hue = sixths.gather(1, largest[:, None])[:, 0] / 6 % 1
    coloured = spread > 0
    saturation = torch.where(coloured, spread / torch.where(coloured, value, torch.ones_like(value)), spread)
    return torch.where(coloured, hue, torch.zeros_like(hue)), saturation, value


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB (B, 3, H, W): the inverse of `_hsv`."""
    sixths = hue * 6
    channels = []
    for start in (5, 3, 1):
        place = (start + sixths) % 6
        share = torch.minimum(place, 4 - place).clamp(0, 1)
        channels.append(value * (1 - saturation * share))
    return torch.stack(channels, dim=1)
