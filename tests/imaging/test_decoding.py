"""Compressed pixels come out as they went in, by the decoders that are installed with the package."""

import imagecodecs
import numpy as np
import pytest
from imaging.files import gradient, make_dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.imaging.formats.decoding import PLUGINS, can_decode, check_size, decode
from pipeline.imaging.quarantine import Refused

GREY = np.random.default_rng(3).integers(0, 4096, (64, 48)).astype(np.uint16)


def compressed(frame: bytes, syntax: str, pixels: np.ndarray = GREY, **elements):
    dataset = make_dataset(pixels, TransferSyntaxUID=syntax, **elements)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def test_every_decoder_is_installed():
    assert all(can_decode(syntax) for syntax in PLUGINS)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
def test_jpeg_lossless(bits, syntax):
    pixels = (GREY.astype(int) * (2**bits - 1) // 4095).astype(np.uint8 if bits == 8 else np.uint16)
    dataset = compressed(imagecodecs.ljpeg_encode(pixels, bitspersample=bits), syntax, pixels, BitsStored=bits)
    assert np.array_equal(decode(dataset), pixels)


def test_a_signed_jpeg_lossless_image_gets_its_signs_back():
    signed = GREY.astype(np.int16) - 2048
    stored = (signed.astype(np.int32) & 0xFFF).astype(np.uint16)
    dataset = compressed(
        imagecodecs.ljpeg_encode(stored, bitspersample=12),
        JPEGLosslessSV1,
        signed,
        BitsStored=12,
        PixelRepresentation=1,
    )
    assert np.array_equal(decode(dataset), signed)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEGLSLossless, lambda p: imagecodecs.jpegls_encode(p)),
        (JPEG2000Lossless, lambda p: imagecodecs.jpeg2k_encode(p, level=0, reversible=True, codecformat="j2k")),
        (HTJ2KLossless, lambda p: imagecodecs.htj2k_encode(p, reversible=True)),
    ],
)
def test_other_lossless_syntaxes(syntax, encode):
    try:
        frame = encode(GREY)
    except imagecodecs.DelayedImportError:
        pytest.skip("this build cannot write it")
    dataset = compressed(frame, syntax, BitsStored=16)
    assert np.array_equal(decode(dataset), GREY)


def test_jpeg_extended_is_close():
    smooth = gradient(64, 48)
    frame = imagecodecs.jpeg_encode(smooth, level=98, bitspersample=12)
    assert np.abs(decode(compressed(frame, JPEGExtended12Bit, smooth)).astype(int) - smooth).max() <= 16


@pytest.mark.parametrize(
    ("photometric", "stored", "subsampling"),
    [("RGB", "RGB", "444"), ("YBR_FULL", "YCBCR", "444"), ("YBR_FULL_422", "YCBCR", "422")],
)
def test_jpeg_extended_in_colour_is_close(photometric, stored, subsampling):
    colour = np.stack([gradient(64, 48), gradient(64, 48)[::-1], gradient(64, 48)[:, ::-1] // 2], -1)
    frame = imagecodecs.jpeg8_encode(
        colour, level=98, colorspace="RGB", outcolorspace=stored, subsampling=subsampling, bitspersample=12
    )
    says = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    found = decode(compressed(frame, JPEGExtended12Bit, colour[..., 0], BitsStored=12, HighBit=11, **says))
    assert found.shape == colour.shape
    assert np.abs(found.astype(int) - colour).max() <= 64  # of 4,096, at edges where colour is halved


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_rle_of_every_width(dtype):
    pixels = np.random.default_rng(1).integers(0, 200, (33, 41)).astype(dtype)
    dataset = make_dataset(pixels, BitsStored=8 * pixels.itemsize)
    dataset.compress(RLELossless)
    assert np.array_equal(decode(dataset), pixels)


def test_rle_in_colour():
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    dataset = make_dataset(pixels[..., 0], PixelData=pixels.tobytes(), **colour)
    dataset.compress(RLELossless)
    assert np.array_equal(decode(dataset), pixels)


@pytest.mark.parametrize("rows", [32, 128])
def test_rle_of_another_size_than_the_header_says_is_damaged(rows):
    dataset = make_dataset(GREY)
    dataset.compress(RLELossless)
    dataset.Rows = rows
    with pytest.raises(Refused, match="damaged_pixels"):
        decode(dataset)


def test_a_palette_becomes_colour():
    dataset = make_dataset(np.arange(16, dtype=np.uint8).reshape(4, 4), PhotometricInterpretation="PALETTE COLOR")
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        dataset[f"{colour}PaletteColorLookupTableDescriptor"] = _element(dataset, colour, [16, 0, 16])
        table = (np.arange(16) * factor * 1000).astype("<u2").tobytes()
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table)
    assert decode(dataset)[1, 1].tolist() == [5000, 10000, 15000]


def _element(dataset, colour: str, values: list[int]):
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataelem import DataElement

    return DataElement(tag_for_keyword(f"{colour}PaletteColorLookupTableDescriptor"), "US", values)


def test_sizes_are_limited_as_what_they_become():
    dataset = make_dataset(np.zeros((100, 100), np.uint8))
    check_size(dataset, 40_000)
    with pytest.raises(Refused, match="too_large"):
        check_size(dataset, 39_999)
