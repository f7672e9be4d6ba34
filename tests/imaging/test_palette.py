"""Segmented palettes are expanded as pydicom does, and never to more entries than the header says."""

import struct

import numpy as np
import pytest
from imaging.files import make_dataset
from pydicom.pixels import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from pipeline.imaging.formats.decoding import decode
from pipeline.imaging.palette import expand
from pipeline.imaging.quarantine import Refused

# Three entries, a ramp of 100 down, 52 of one value, then the first two segments again.
WORDS = [0, 3, 0, 500, 60_000, 1, 100, 7, 1, 52, 7]


def words(*values: int, order: str = "<", size: str = "H") -> bytes:
    return struct.pack(f"{order}{len(values)}{size}", *values)


def coloured(bits: int, entries: int, *tables: bytes, syntax: str = ExplicitVRLittleEndian):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    elements = {"PhotometricInterpretation": "PALETTE COLOR", "TransferSyntaxUID": syntax}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [entries, 0, bits]
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = table
    return make_dataset(indices, **elements), indices


@pytest.mark.parametrize(
    ("bits", "order", "syntax"),
    [(16, "<", ExplicitVRLittleEndian), (8, "<", ExplicitVRLittleEndian), (16, ">", ExplicitVRBigEndian)],
)
def test_discrete_and_linear_segments_give_what_pydicom_gives(bits, order, syntax):
    size, scale = ("H", 1) if bits == 16 else ("B", 256)
    tables = [
        words(0, 2, first // scale, 9, 1, 200, last // scale, 1, 54, last // scale, order=order, size=size)
        for first, last in ((0, 65_535), (65_535, 0), (30_000, 31_000))
    ]
    dataset, indices = coloured(bits, 256, *tables, syntax=syntax)
    expected = apply_color_lut(indices, dataset)
    assert np.array_equal(decode(dataset), expected)


@pytest.mark.parametrize("offset", [0, 5, 10])
def test_a_copied_segment_may_be_named_in_bytes_or_in_values(offset):
    copied = 1 if offset else 2
    first, ramp = [0, 500, 60_000], np.rint(np.linspace(60_000, 7, 101)[1:]).astype(int).tolist()
    again = {0: first + ramp, 5: [7] * 100, 10: [7] * 100}[offset]
    found = expand(words(*WORDS, 2, copied, offset, 0), 16, 155 + len(again))
    assert found.tolist() == [*first, *ramp, *[7] * 52, *again]


def test_a_copied_segment_of_bytes_is_as_pydicom_has_it():
    from pydicom.pixels.processing import _expand_segmented_lut

    table = (0, 2, 10, 20, 1, 5, 120, 2, 2, 0, 0, 0, 0)
    assert expand(bytes(table), 8, 14).tolist() == _expand_segmented_lut(table, "<13B")


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(words(0, 3, 1, 2, 3), id="too few entries"),
        pytest.param(words(0, 1, 7, 1, 60_000, 7), id="too many entries"),
        pytest.param(words(1, 256, 7), id="begins with a ramp"),
        pytest.param(words(0, 1, 7, 2, 60_000, 0, 0, 1, 255, 7), id="copies itself"),
        pytest.param(words(0, 1, 7, 2, 1, 3, 0), id="copies a copy"),
        pytest.param(words(0, 0, 0, 1, 256, 7), id="nothing"),
        pytest.param(words(5, 256, 7), id="unknown kind"),
        pytest.param(words(0, 256, 7), id="cut off"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_damaged_palette_is_refused(table):
    dataset, _ = coloured(16, 256, table, table, table)
    with pytest.raises(Refused, match="damaged_pixels"):
        decode(dataset)
