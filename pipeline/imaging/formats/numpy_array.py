"""One image as a NumPy array file (.npy): a row of a MedMNIST archive, or somebody's own array."""

from __future__ import annotations

import io
import math
from typing import IO

import numpy as np
from numpy.lib import format as npy

from pipeline.imaging.colour import Planes, planes_of
from pipeline.imaging.image import BYTES_PER_PIXEL, About, Image, Policy
from pipeline.imaging.quarantine import Refused

COLOUR_CHANNELS, COLOUR_AND_OPACITY = 3, 4


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

    Axes of length 1 at either end count for nothing, as of one channel: (1, H, W) and (H, W, 1) are pictures, too. Of
    (H, W, 4), the last channel is opacity and must have one value.

    Raises Refused.
    """
    try:
        shape, dtype = array_header(io.BytesIO(data))
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None
    sides = _without_single(shape)
    if len(sides) not in (2, 3) or min(shape) < 1:
        raise Refused("bad_geometry", f"{len(shape)} axes")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise Refused("bad_values", "not real numbers of at most 64 bits")
    if math.prod(shape) * max(BYTES_PER_PIXEL, dtype.itemsize) > policy.max_pixel_bytes:
        raise Refused("too_large", "x".join(map(str, shape)) + " values")
    stream = io.BytesIO(data)
    try:
        values = np.load(stream, allow_pickle=False)
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    if is_array(data[stream.tell() :]):
        raise Refused("multi_frame", "more than one array")
    with np.errstate(over="ignore"):
        planes = _planes(values.reshape(sides), policy)
    if not np.isfinite(planes.pixels).all():  # also of values beyond what 32 bits hold
        raise Refused("bad_values", "values are not finite")
    about = About("array", bits_stored=dtype.itemsize * 8)
    return Image(planes.pixels, about, flags=("spacing_unknown", *planes.flags), colour=planes.colour)


def _without_single(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without axes of length 1 at its ends, but for two axes that are left."""
    while len(shape) > 2 and 1 in (shape[0], shape[-1]):
        shape = shape[1:] if shape[0] == 1 else shape[:-1]
    return shape


def _planes(values: np.ndarray, policy: Policy) -> Planes:
    """Return the planes of a picture, or of a volume, whose `pixels` are (D, H, W)."""
    channels = values.shape[2] if values.ndim == 3 else 1
    if channels == COLOUR_AND_OPACITY:
        if (values[..., -1] != values[0, 0, -1]).any():
            raise Refused("colour", "transparent pixels")
        values = values[..., :-1]
    if channels in (COLOUR_CHANNELS, COLOUR_AND_OPACITY):
        return planes_of(values, f"array of {channels} channels", policy)
    return Planes(np.ascontiguousarray(values, dtype=np.float32))
