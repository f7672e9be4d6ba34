"""Masks as pictures: PNG and TIFF, whose values are kept as they are; of a palette, its numbers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as pillow

from pipeline.imaging.formats.raster import EXIF_ORIENTATION, MAGIC, TURNS, turned_grid
from pipeline.imaging.grid import Grid
from pipeline.imaging.image import Policy
from pipeline.imaging.masks.placement import check_size
from pipeline.imaging.quarantine import Refused

FORMATS = ("PNG", "TIFF")


def is_picture(data: bytes) -> bool:
    """Say whether the bytes start like a picture."""
    return data.startswith(MAGIC)


def read_picture_mask(data: bytes, grid: Grid, policy: Policy) -> np.ndarray:
    """Return the values of a mask (H, W) as they lie on the pixels of a picture.

    The mask is on the grid of the file, and turned as the picture's orientation tag says. One with an orientation tag
    of its own is turned by that.

    Raises Refused.
    """
    pillow.MAX_IMAGE_PIXELS = None  # our own limit comes before anything is decoded
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height * 4 > policy.max_pixel_bytes:
                raise Refused("too_large", f"{picture.height} x {picture.width} pixels")
            if getattr(picture, "n_frames", 1) > 1:
                raise Refused("mask_format", "more than one picture")
            turn, values = picture.getexif().get(EXIF_ORIENTATION, 1), np.asarray(picture)
    except Refused:
        raise
    except pillow.UnidentifiedImageError:
        raise Refused("mask_format", "a picture that may have lost values, not PNG or TIFF") from None
    except Exception as error:
        raise Refused("mask_format", type(error).__name__) from None
    values = _plane(values)
    if turn in TURNS:
        own = turned_grid(turn, tuple(values.shape[axis] for axis in TURNS[turn][0]))
        check_size(own.shape, grid.shape)
        return own.from_stored(values)
    check_size(values.shape, grid.stored)
    return grid.from_stored(values)


def _plane(values: np.ndarray) -> np.ndarray:
    """Return the one plane of values (H, W) or (H, W, C). Raises Refused for colours and transparency."""
    if values.ndim == 3:
        if values.shape[2] in (2, 4):
            if (values[..., -1] != np.iinfo(values.dtype).max).any():
                raise Refused("mask_values", "transparent pixels")
            values = values[..., :-1]
        if (values != values[..., :1]).any():
            raise Refused("mask_values", "colours")
        values = values[..., 0]
    return values.astype(np.uint8) if values.dtype == bool else values
