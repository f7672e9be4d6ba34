"""The display chain, against pydicom's own functions and against twins that must look the same."""

import numpy as np
import pytest
from imaging.files import gradient, make_dataset
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from pipeline.imaging.display import display
from pipeline.imaging.quarantine import Refused

FULL = 4095


def show(stored: np.ndarray, **elements) -> np.ndarray:
    return display(stored, make_dataset(stored, **elements)).values


def lut(values: list[int], first: int, bits: int) -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [len(values), first, bits]
    table.LUTData = values
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    return table


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": 2000, "WindowWidth": 1000},
        {"WindowCenter": 2000.5, "WindowWidth": 1001, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 1500, "WindowWidth": 600, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [900, 3000], "WindowWidth": [400, 50]},
        {"VOILUTSequence": [lut(list(range(0, 1024, 4)), 0, 10)]},
    ],
)
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -1000}])
def test_equals_pydicoms_functions_applied_to_every_pixel(window, rescale):
    stored = gradient()
    dataset = make_dataset(stored, **window, **rescale)
    expected = apply_voi_lut(apply_modality_lut(stored, dataset).astype(int), dataset)
    shown = display(stored, dataset)
    assert np.allclose(shown.values, expected, atol=1e-3)
    assert (shown.valid, shown.inverted, shown.flags) == (None, False, ())
    rescaled = display(stored, dataset, windowed=False)
    assert np.allclose(rescaled.values, apply_modality_lut(stored, dataset))


def test_a_modality_table_is_applied():
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8)
    dataset = make_dataset(stored, ModalityLUTSequence=[lut([v * v for v in range(64)], 0, 16)])
    assert np.array_equal(display(stored, dataset).values, stored.astype(float) ** 2)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 1000}])
def test_an_inverted_twin_looks_the_same(window):
    """MONOCHROME1 with complementary values; for the window too, whose centre 2048 is its own mirror image."""
    stored = gradient()
    twin = (FULL - stored).astype(np.uint16)
    for inverse in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        shown = display(twin, make_dataset(twin, **inverse, **window))
        assert shown.inverted
        assert np.allclose(shown.values, show(stored, **window), atol=1e-2)


def test_a_signed_twin_with_an_intercept_looks_the_same():
    stored = gradient()
    signed = (stored.astype(np.int32) - 2048).astype(np.int16)
    window = {"WindowCenter": 1700, "WindowWidth": 900}
    shown = show(signed, RescaleSlope=1, RescaleIntercept=2048, **window)
    assert np.allclose(shown, show(stored, **window), atol=1e-3)


def test_a_wide_range_goes_without_a_table_and_gives_the_same():
    stored = np.linspace(0, 2**20 - 1, 400).round().astype(np.uint32).reshape(20, 20)
    values = show(stored, BitsStored=20, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(values, (2**20 - 1 - stored).astype(np.float32))


def test_padding_is_masked_and_dark_whatever_the_polarity():
    stored = gradient()
    stored[:4] = 4000
    for polarity in ("MONOCHROME1", "MONOCHROME2"):
        dataset = make_dataset(stored, PixelPaddingValue=4000, PhotometricInterpretation=polarity)
        shown = display(stored, dataset)
        assert shown.valid is not None
        assert not shown.valid[:4].any()
        assert (shown.values[:4] == shown.values[shown.valid].min()).all()


def test_a_padding_range_and_a_signed_padding_value_written_as_unsigned():
    stored = np.arange(-2000, -2000 + 64 * 30, 30, dtype=np.int16).reshape(8, 8)
    dataset = make_dataset(stored, BitsStored=16)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    dataset.add_new("PixelPaddingRangeLimit", "US", 65536 - 1900)
    valid = display(stored, dataset).valid
    assert valid is not None
    assert np.array_equal(valid, (stored > -1900) | (stored < -2000))


def test_an_image_of_nothing_but_padding_ignores_it():
    stored = np.full((8, 8), 7, np.uint16)
    shown = display(stored, make_dataset(stored, PixelPaddingValue=7))
    assert shown.valid is None
    assert shown.flags == ("padding_ignored",)
    assert (shown.values == 7).all()


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 2000, "WindowWidth": 0},
        {"WindowCenter": 2000, "WindowWidth": -5, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 2000, "WindowWidth": 500, "VOILUTFunction": "CUBIC"},
        {"WindowWidth": 500},
    ],
)
def test_an_unusable_window_is_ignored_and_said(window):
    stored = gradient()
    shown = display(stored, make_dataset(stored, **window))
    assert np.array_equal(shown.values, stored)
    assert shown.flags == ("window_ignored",)


@pytest.mark.parametrize("slope", [0, 1e13])
def test_a_rescaling_that_destroys_the_image_is_refused(slope):
    with pytest.raises(Refused):
        show(gradient(), RescaleSlope=slope, RescaleIntercept=0)


@pytest.mark.parametrize(("rescale", "first"), [({"RescaleIntercept": -1024}, -1024), ({"RescaleSlope": 2}, 0)])
def test_a_slope_or_an_intercept_alone_counts(rescale, first):
    """pydicom passes over one without the other."""
    shown = display(gradient(), make_dataset(gradient(), **rescale)).values
    assert shown.min() == first
    assert np.ptp(shown) == 4095 * rescale.get("RescaleSlope", 1)


def test_an_empty_slope_means_one():
    stored = gradient()
    dataset = make_dataset(stored)
    dataset.RescaleSlope, dataset.RescaleIntercept = None, 100
    assert np.array_equal(display(stored, dataset).values, stored + 100.0)
