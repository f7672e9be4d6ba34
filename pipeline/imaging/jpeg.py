"""JPEG Lossless and 12-bit JPEG Extended for pydicom, by imagecodecs (libjpeg-turbo)."""

from __future__ import annotations

import imagecodecs
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

LOSSLESS = (JPEGLossless, JPEGLosslessSV1)
# pydicom asks a plug-in's module for these two names.
DECODER_DEPENDENCIES = dict.fromkeys((*LOSSLESS, JPEGExtended12Bit), ("numpy", "imagecodecs"))


def is_available(uid: str) -> bool:
    """Say whether this module decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Return the samples of one frame, colour by pixel.

    Raises ValueError for lossy colour, whose colour space the decoder would change.
    """
    if runner.samples_per_pixel == 1:
        values = imagecodecs.jpeg_decode(frame)
    elif runner.transfer_syntax in LOSSLESS:
        values = imagecodecs.jpegsof3_decode(frame)  # slower, but leaves the colour space alone
    else:
        raise ValueError("12-bit JPEG in colour")
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    return bytearray(values.tobytes())
