"""Where the networks of an arm looked in an image, and the image as people see it with that outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.models.attention import half_of, most_attended, on_pixels
from pipeline.models.finished import Network


def attention(networks: Sequence[Network], pixels: Tensor) -> np.ndarray | None:
    """Return the attention by patch in one image, (*grid), the mean over the networks; None without any.

    `pixels` (1, C, ...) are in [0, 1]. One image at a time: attention grows with the square of the patches.
    """
    return np.mean([network.shares(pixels)[0] for network in networks], axis=0) if networks else None


def shown(image: np.ndarray, shares: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the picture of an image (H, W) or (D, H, W), as (h, w), and the outlined area in it.

    A volume is shown by three planes, through the patch with most attention where that is known, else the middle.
    """
    if shares is None:
        return (image if image.ndim == 2 else three_planes(image)), None
    patch = tuple(side // patches for side, patches in zip(image.shape, shares.shape, strict=True))
    outlined = on_pixels(half_of(shares), patch)
    if image.ndim == 2:
        return image, outlined
    centre = most_attended(shares, patch)
    return three_planes(image, centre), three_planes(outlined, centre)
