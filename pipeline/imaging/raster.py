"""PNG, JPEG, TIFF and PGM pictures through Pillow, grey values kept exactly."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as pillow
from PIL import ImageOps

from pipeline.imaging.colour import grey_of
from pipeline.imaging.image import BYTES_PER_PIXEL, About, Image, Policy
from pipeline.imaging.verdicts import Refused

FORMATS = ("PNG", "JPEG", "TIFF", "PPM")
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"P2", b"P5")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
BITS = {"1": 1, "L": 8, "LA": 8, "P": 8, "RGB": 8, "RGBA": 8, "I": 32, "F": 32} | dict.fromkeys(SIXTEEN_BIT, 16)
EXIF_ORIENTATION, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 274, 262, 0


def is_raster(data: bytes) -> bool:
    """Say whether the bytes start like a supported picture."""
    return data.startswith(MAGIC)


def read_raster(data: bytes, policy: Policy) -> Image:
    """Read a grey picture. A colour picture with equal channels and no transparency is a grey one.

    PGM values below the full range of 8 or 16 bits are scaled up by Pillow, which keeps their order.

    Raises Refused.
    """
    # Our own limit, checked below before anything is decoded, replaces Pillow's.
    pillow.MAX_IMAGE_PIXELS = None
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _read(picture, policy)
    except Refused:
        raise
    except MemoryError:
        raise Refused("too_large", "no memory to decode") from None
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None


def _read(picture: pillow.Image, policy: Policy) -> Image:
    if picture.width * picture.height * BYTES_PER_PIXEL > policy.max_pixel_bytes:
        raise Refused("too_large", f"{picture.height} x {picture.width} pixels")
    if getattr(picture, "n_frames", 1) > 1:
        raise Refused("multi_frame", "more than one picture")
    mode, bits = picture.mode, BITS.get(picture.mode, 0)
    if not bits:
        raise Refused("colour", f"mode {mode}")
    turned = picture.getexif().get(EXIF_ORIENTATION, 1) != 1
    # Pillow inverts 1- and 8-bit TIFFs of this kind itself, 16-bit ones not.
    tags = getattr(picture, "tag_v2", {})
    inverted = mode in SIXTEEN_BIT and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    pixels, flags = _grey(ImageOps.exif_transpose(picture) if turned else picture, policy)
    if inverted:
        pixels = np.float32(2**16 - 1) - pixels
    if not np.isfinite(pixels).all():
        raise Refused("bad_values", "pixels are not finite")
    return Image(
        pixels=pixels,
        about=About(format="raster", bits_stored=bits),
        polarity_fixed=inverted,
        flags=("spacing_unknown", *flags, *(("rotated",) if turned else ())),
    )


def _grey(picture: pillow.Image, policy: Policy) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return float32 values of shape (H, W), and flags."""
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode in ("L", "I", "F", *SIXTEEN_BIT):
        return np.asarray(picture).astype(np.float32), ()
    values = np.asarray(picture.convert("RGBA"))
    if (values[..., 3] != 255).any():
        raise Refused("colour", "transparent pixels")
    return grey_of(values[..., :3], f"mode {picture.mode}", policy)
