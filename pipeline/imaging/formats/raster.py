"""PNG, JPEG, TIFF, PGM and PPM pictures, grey values kept exactly.

They are read through Pillow; where it would cut values to 8 bits or mistake their sign, through libpng and libtiff.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image as pillow
from PIL import ImageFile, ImageOps, UnidentifiedImageError

from pipeline.imaging.colour import Planes, on_black, planes_of, to_srgb
from pipeline.imaging.grid import Grid
from pipeline.imaging.image import BYTES_PER_PIXEL, About, Image, Policy
from pipeline.imaging.quarantine import Refused

FORMATS = ("PNG", "JPEG", "TIFF", "PPM")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
MAGIC = (PNG_MAGIC, JPEG_MAGIC, b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
BITS = {"1": 1, "L": 8, "LA": 8, "P": 8, "RGB": 8, "RGBA": 8, "I": 32, "F": 32} | dict.fromkeys(SIXTEEN_BIT, 16)
EXIF_ORIENTATION, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 274, 262, 0
TIFF_BITS, TIFF_PLANES, TIFF_EXTRA_SAMPLES, TIFF_SAMPLE_FORMAT = 258, 284, 338, 339
ASSOCIATED = 1
SEPARATE_PLANES, UNSIGNED, SIGNED = 2, 1, 2
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xff\xd9"
# Where in a PNG its bit depth stands (IHDR), and how it ends.
PNG_DEPTH = 24
PNG_END = b"IEND\xaeB`\x82"
# How a netpbm picture begins, of the kinds that are not read, too.
PNM_READ = re.compile(rb"P[256][\s#]")
PNM_BEGINS = re.compile(rb"\s*P[1-7fF]\s")
COLOUR_OR_ALPHA = ("LA", "RGB", "RGBA")
# From values as stored to a picture as it should be seen, by EXIF orientation (TIFF 6.0, tag 274): which axis of the
# file is which, and which are reversed then.
TURNS = {
    2: ((0, 1), (False, True)),
    3: ((0, 1), (True, True)),
    4: ((0, 1), (True, False)),
    5: ((1, 0), (False, False)),
    6: ((1, 0), (False, True)),
    7: ((1, 0), (True, True)),
    8: ((1, 0), (True, False)),
}


def is_raster(data: bytes) -> bool:
    """Say whether the bytes start like a supported picture."""
    return data.startswith(MAGIC) or PNM_READ.match(data) is not None


def read_raster(data: bytes, policy: Policy) -> Image:
    """Read a grey picture. A colour picture with equal channels and no transparency is a grey one.

    PGM values below the full range of 8 or 16 bits are scaled up by Pillow, which keeps their order.

    Raises Refused.
    """
    # Our own limit, checked below before anything is decoded, replaces Pillow's.
    pillow.MAX_IMAGE_PIXELS = None
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _read(picture, data, policy)
    except Refused:
        raise
    except MemoryError:
        raise Refused("too_large", "no memory to decode") from None
    except UnidentifiedImageError:
        if _describes_picture(data):
            raise Refused("unsupported_encoding", "a kind of TIFF that is not read, such as 64 bits") from None
        raise Refused("damaged_pixels", "UnidentifiedImageError") from None
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None


def _describes_picture(data: bytes) -> bool:
    """Say whether the first directory of a TIFF or BigTIFF is all there and names the sides of a picture."""
    order = "little" if data.startswith(b"II") else "big"
    big = data[2:4] in (b"+\0", b"\0+")
    counted, entry = (8, 20) if big else (2, 12)
    place = int.from_bytes(data[8:16] if big else data[4:8], order)
    start = place + counted
    entries = int.from_bytes(data[place:start], order)
    if not data.startswith((b"II", b"MM")) or start + entries * entry > len(data):
        return False
    tags = {int.from_bytes(data[at : at + 2], order) for at in range(start, start + entries * entry, entry)}
    return {TIFF_WIDTH, TIFF_HEIGHT} <= tags


def _read(picture: ImageFile.ImageFile, data: bytes, policy: Policy) -> Image:
    if picture.width * picture.height * BYTES_PER_PIXEL > policy.max_pixel_bytes:
        raise Refused("too_large", f"{picture.height} x {picture.width} pixels")
    if getattr(picture, "n_frames", 1) > 1 or _another_follows(picture, data):
        raise Refused("multi_frame", "more than one picture")
    mode, bits = picture.mode, BITS.get(picture.mode, 0)
    if not bits:
        raise Refused("colour", f"mode {mode}")
    # Pillow inverts 1- and 8-bit TIFFs of this kind itself, others not.
    tags = getattr(picture, "tag_v2", {})
    inverted = mode in (*SIXTEEN_BIT, "F") and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    turn = picture.getexif().get(EXIF_ORIENTATION, 1)
    values = _exact(picture, tags, data)
    if values is not None:
        bits, values = values.dtype.itemsize * 8, _turned(values, turn)
    else:
        values = _values(ImageOps.exif_transpose(picture) if turn in TURNS else picture)
    values, flags = _in_colour(values, picture, tags) if policy.keep_colour else (values, ())
    planes = _planes(values, mode, policy)
    white = np.float32(0 if mode == "F" else 2**16 - 1)  # real numbers have no highest one
    pixels = white - planes.pixels if inverted else planes.pixels
    if not np.isfinite(pixels).all():
        raise Refused("bad_values", "pixels are not finite")
    return Image(
        pixels=pixels,
        about=About(format="raster", bits_stored=bits),
        polarity_fixed=inverted,
        flags=("spacing_unknown", *planes.flags, *flags, *(("rotated",) if turn in TURNS else ())),
        colour=planes.colour,
        grid=turned_grid(turn, planes.pixels.shape) if turn in TURNS else None,
    )


def _another_follows(picture: ImageFile.ImageFile, data: bytes) -> bool:
    """Say whether another picture stands behind the first: netpbm files may hold several, of which Pillow sees one."""
    if picture.format == "PNG":
        return PNG_END + PNG_MAGIC in data
    if picture.format == "JPEG":
        return data.startswith(JPEG_MAGIC, _end_of_jpeg(data))
    if picture.format != "PPM":
        return False
    tile = picture.tile[0]
    if data.startswith(b"P2"):  # numbers as text, among which comments may stand
        return any(PNM_BEGINS.match(line) for line in data[tile.offset :].splitlines(keepends=True))
    highest = int(tile.args[1]) if isinstance(tile.args, tuple) else 255
    samples = picture.width * picture.height * len(picture.getbands())
    end = tile.offset + samples * (2 if picture.mode == "I" or highest > 255 else 1)
    return PNM_BEGINS.match(data, end) is not None


def _end_of_jpeg(data: bytes) -> int:
    """Return where a JPEG ends. Segments before the scan can hold small pictures, and so their end markers."""
    place = 2
    while data[place + 1 : place + 2] != START_OF_SCAN and place < len(data):
        place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4]))
    end = data.find(END_OF_IMAGE, place)
    return len(data) if end < 0 else end + len(END_OF_IMAGE)


def turned_grid(turn: int, shape: tuple[int, ...]) -> Grid:
    """Return the grid of a picture of `shape`, as it should be seen, whose EXIF orientation is `turn`."""
    axes, backwards = TURNS[turn]
    return Grid(shape, (shape[axes[0]], shape[axes[1]]), axes, backwards)


def _turned(values: np.ndarray, turn: int) -> np.ndarray:
    """Return values (H, W) or (H, W, C) as a picture should be seen."""
    if turn not in TURNS:
        return values
    axes, backwards = TURNS[turn]
    return values.transpose(*axes, *range(2, values.ndim))[
        tuple(slice(None, None, -1 if b else None) for b in backwards)
    ]


def _exact(picture: ImageFile.ImageFile, tags: Mapping[int, Any], data: bytes) -> np.ndarray | None:
    """Return the stored values (H, W) or (H, W, C) of a picture that Pillow would not read exactly; None of others."""
    if picture.format == "PNG" and picture.mode in COLOUR_OR_ALPHA and data[PNG_DEPTH] == 16:
        if "transparency" in picture.info:  # one colour that stands for transparent, which libpng passes over
            raise Refused("colour", "transparent pixels")
        return imagecodecs.png_decode(data)
    arguments = picture.tile[0].args if data.startswith(b"P6") else ()
    if isinstance(arguments, tuple) and len(arguments) > 1 and int(arguments[1]) > 255:
        shape = (picture.height, picture.width, 3)
        return np.frombuffer(data, ">u2", math.prod(shape), picture.tile[0].offset).reshape(shape).astype(np.uint16)
    if picture.format == "TIFF" and _is_cut(picture.mode, tags):
        values = imagecodecs.tiff_decode(data)
        planes = tags.get(TIFF_PLANES) == SEPARATE_PLANES and values.ndim == 3
        return np.moveaxis(values, 0, -1) if planes else values
    return None


def _is_cut(mode: str, tags: Mapping[int, Any]) -> bool:
    """Say whether Pillow cuts the values of a TIFF, or mistakes their sign."""
    bits, formats = tags.get(TIFF_BITS, (1,)), tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))
    return (
        (mode in COLOUR_OR_ALPHA and max(bits) > 8)
        or (mode == "I" and formats[0] == UNSIGNED and max(bits) > 16)
        or (mode == "L" and formats[0] == SIGNED)
    )


def _values(picture: pillow.Image) -> np.ndarray:
    """Return the values (H, W) of a grey picture, or (H, W, 4) of another."""
    if picture.mode == "1":
        picture = picture.convert("L")
    return np.asarray(picture if picture.mode in ("L", "I", "F", *SIXTEEN_BIT) else picture.convert("RGBA"))


def _in_colour(
    values: np.ndarray, picture: ImageFile.ImageFile, tags: Mapping[int, Any]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return values (H, W) or (H, W, 3) in sRGB and without opacity, and flags."""
    if values.ndim == 2:
        return values, ()
    converted: tuple[str, ...] = ()
    if values.shape[2] > 2:
        colours, converted = to_srgb(values[..., :3], picture.info.get("icc_profile"))
        values = np.concatenate([colours, values[..., 3:]], axis=-1)
    if values.shape[2] in (1, 3):
        return values, converted
    # Pillow has undone it where it decoded the picture itself.
    associated = tags.get(TIFF_EXTRA_SAMPLES, (0,))[0] == ASSOCIATED and max(tags.get(TIFF_BITS, (0,))) > 8
    seen, flags = on_black(values, associated)
    return seen, (*converted, *flags)


def _planes(values: np.ndarray, mode: str, policy: Policy) -> Planes:
    """Return the planes of values (H, W) or (H, W, C). Of two or four channels, the last is opacity."""
    if values.ndim == 2 or values.shape[2] == 1:
        return Planes(values.reshape(values.shape[:2]).astype(np.float32))
    if values.shape[2] in (2, 4):
        if (values[..., -1] != np.iinfo(values.dtype).max).any():
            raise Refused("colour", "transparent pixels")
        values = values[..., :-1]
    return planes_of(values, f"mode {mode}", policy)
