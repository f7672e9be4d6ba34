"""One grey image as a NumPy array file (.npy): a row of a MedMNIST archive, or somebody's own array."""

from __future__ import annotations

import io
import math
from typing import IO

import numpy as np
from numpy.lib import format as npy

from pipeline.imaging.colour import grey_of
from pipeline.imaging.image import BYTES_PER_PIXEL, About, Image, Policy
from pipeline.imaging.verdicts import Refused

COLOUR_CHANNELS = 3


def is_array(data: bytes) -> bool:
    """Say whether the bytes start like an array file."""
    return data.startswith(npy.MAGIC_PREFIX)


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and type that the header of an array file states.

    Raises ValueError when it has none that can be read.
    """
    reader = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(stream)
    return shape, dtype


def read_array(data: bytes, policy: Policy) -> Image:
    """Read an array of shape (H, W), or of (H, W, 3) as colour, or of (D, H, W) as a volume without orientation.

    Raises Refused.
    """
    try:
        shape, dtype = array_header(io.BytesIO(data))
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise Refused("bad_geometry", f"{len(shape)} axes")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refused("bad_values", "not real numbers of at most 64 bits")
    if math.prod(shape) * max(BYTES_PER_PIXEL, dtype.itemsize) > policy.max_pixel_bytes:
        raise Refused("too_large", "x".join(map(str, shape)) + " values")
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    if not np.isfinite(values).all():
        raise Refused("bad_values", "values are not finite")
    if values.ndim == 3 and values.shape[2] == COLOUR_CHANNELS:
        pixels, flags = grey_of(values, "array of 3 channels", policy)
    else:
        pixels, flags = np.ascontiguousarray(values, dtype=np.float32), ()
    return Image(pixels, About("array", bits_stored=dtype.itemsize * 8), flags=("spacing_unknown", *flags))
