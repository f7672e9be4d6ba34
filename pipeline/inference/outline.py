"""Where the networks of an arm looked in an image, and the image as people see it with that outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.models.attention import half_of, most_attended, on_pixels
from pipeline.models.finished import Network

if TYPE_CHECKING:
    from pipeline.inference.result import Picture

MARKED = "mask"  # the kind of an outline round what a model marked


def attention(networks: Sequence[Network], pixels: Tensor) -> np.ndarray | None:
    """Return where networks of one kind looked in one image, (*grid), the mean over them; None without any.

    `pixels` (1, C, ...) are in [0, 1]. One image at a time: attention grows with the square of the patches.
    """
    return np.mean([network.shares(pixels)[0] for network in networks], axis=0) if networks else None


def kind_of(networks: Sequence[Network]) -> str:
    """Return how it is known where networks looked; `attention` where there are none, and nothing is outlined."""
    return networks[0].outline if networks else "attention"


def pictured(picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what `shown` returns, of a picture; of a model that segments, what it marked is outlined, if anything."""
    if picture.mask is None:
        return shown(picture.array, picture.shares)
    array, marked = picture.array, picture.mask > 0
    if not marked.any():
        return shown(array, None)
    image = np.moveaxis(array, 0, -1) if len(array) > 1 else array[0]
    if marked.ndim == 2:
        return image, marked
    centre = [int(np.median(axis)) for axis in np.nonzero(marked)]
    return three_planes(image, centre), three_planes(marked, centre)


def outlined_share(picture: Picture) -> float | None:
    """Return the share of an image that is outlined; None where nothing is."""
    if picture.mask is not None:
        return float((picture.mask > 0).mean()) if picture.mask.any() else None
    return None if picture.shares is None else float(half_of(picture.shares).mean())


def shown(array: np.ndarray, shares: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the picture of an array (C, H, W) or (C, D, H, W), as (h, w) or (h, w, 3), and the outlined area in it.

    A volume is shown by three planes, through the patch with most attention where that is known, else the middle; of
    its channels, by those of the first.
    """
    volume = array.ndim == 4
    picture = np.moveaxis(array, 0, -1) if len(array) > 1 and not volume else array[0]
    if shares is None:
        return (three_planes(picture) if volume else picture), None
    size = array.shape[1:]
    outlined = on_pixels(half_of(shares), size)
    if not volume:
        return picture, outlined
    centre = most_attended(shares, size)
    return three_planes(picture, centre), three_planes(outlined, centre)
