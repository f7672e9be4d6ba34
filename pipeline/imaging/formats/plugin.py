"""Decoders that pydicom lacks or has in slow or GPL form: lossless and 12-bit JPEG, and RLE, through imagecodecs.

Baseline JPEG is here for colour that says itself how it is stored.
"""

from __future__ import annotations

from itertools import pairwise

import imagecodecs
import numpy as np
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, RLELossless

from pipeline.imaging.formats.codestream import RGB, YBR, read_codestream

NAME = "imagecodecs"
LOSSLESS = (JPEGLossless, JPEGLosslessSV1)
# pydicom asks a plug-in's module for these two names.
DECODER_DEPENDENCIES = dict.fromkeys((*LOSSLESS, JPEGExtended12Bit, RLELossless, JPEGBaseline8Bit), ("numpy", NAME))
RLE_HEADER_BYTES, MOST_SEGMENTS = 64, 15
SPACES = {RGB: "RGB", YBR: "YCBCR"}  # as libjpeg calls them


def is_available(uid: str) -> bool:
    """Say whether this module decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_jpeg(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Return the samples of one frame, colour by pixel: lossless as stored, lossy as RGB.

    Of lossy colour, the code stream says how it is stored, and where it does not, the header.
    """
    if runner.samples_per_pixel == 1:
        values = imagecodecs.jpeg_decode(frame)
    elif runner.transfer_syntax in LOSSLESS:
        values = imagecodecs.jpegsof3_decode(frame)  # slower, but leaves the colour space alone
    else:
        stream = read_codestream(frame)
        stated = RGB if runner.photometric_interpretation == PhotometricInterpretation.RGB else YBR
        stored = stream.colour or stated if stream else stated
        values = imagecodecs.jpeg8_decode(frame, colorspace=SPACES[stored], outcolorspace="RGB")
        runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    return bytearray(values.tobytes())


def decode_rle(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Return the samples of one frame, colour by plane (PS3.5 annex G).

    Raises ValueError when the segments do not hold exactly one byte of every sample.
    """
    header = np.frombuffer(frame[:RLE_HEADER_BYTES], "<u4")
    sample_bytes = runner.bits_allocated // 8
    segments, pixels = runner.samples_per_pixel * sample_bytes, runner.rows * runner.columns
    if len(header) != MOST_SEGMENTS + 1 or header[0] != segments or segments > MOST_SEGMENTS:
        raise ValueError("number of RLE segments")
    bounds = [*header[1 : segments + 1].tolist(), len(frame)]
    if bounds[0] < RLE_HEADER_BYTES or sorted(bounds) != bounds:
        raise ValueError("RLE offsets")
    values = np.empty((runner.samples_per_pixel, pixels, sample_bytes), np.uint8)
    for number, (start, end) in enumerate(pairwise(bounds)):
        segment = imagecodecs.packbits_decode(frame[start:end])
        # Segments are padded to even length, and a padding byte can decode to one more.
        if not pixels <= len(segment) <= pixels + 1:
            raise ValueError("length of an RLE segment")
        sample, byte = divmod(number, sample_bytes)
        values[sample, :, sample_bytes - 1 - byte] = np.frombuffer(segment, np.uint8, pixels)
    runner.set_option("planar_configuration", 1)
    return bytearray(values.tobytes())
