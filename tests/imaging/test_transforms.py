"""One definition of the array a model sees: proportions, padding, window, averages."""

import numpy as np
import pytest
from imaging.files import gradient

from pipeline.imaging.image import About, Image
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.transforms import Rendering, render, window_of


def test_a_window_in_hounsfield_units_means_the_same_in_every_image():
    window = Rendering((16, 16), None, 0.5, 99.5, window=(-1000.0, 400.0))
    for top in (300, 3000):
        pixels = np.full((16, 16), -300.0)
        pixels[0, 0], pixels[0, 1] = top, -2000
        shown = render(image(pixels), window).pixels[0]
        assert shown[5, 5] == round(700 / 1400 * 255)
        assert shown[0, 0] == (255 if top > 400 else round(1300 / 1400 * 255))
        assert shown[0, 1] == 0


def test_percentiles_of_a_large_image_come_from_a_regular_part_of_it():
    pixels = np.random.default_rng(0).normal(1000, 100, (1100, 1300)).astype(np.float32)
    low, high = window_of(image(pixels), rendering(64, 64, low=1, high=99))
    assert np.allclose([low, high], np.percentile(pixels, [1, 99]), atol=2)


def rendering(*size: int, spacing: tuple[float, ...] | None = None, low: float = 0, high: float = 100) -> Rendering:
    return Rendering(size, spacing, low, high)


def image(pixels: np.ndarray, **fields) -> Image:
    return Image(np.asarray(pixels, np.float32), About("raster", 8), **fields)


def test_the_full_range_at_the_same_size_is_a_linear_map():
    pixels = gradient(32, 32)
    expected = np.round(pixels.astype(float) * 255 / 4095).astype(np.uint8)
    rendered = render(image(pixels), rendering(32, 32))
    assert rendered.pixels.dtype == np.uint8
    assert rendered.pixels.shape == (1, 32, 32)
    assert np.abs(rendered.pixels[0].astype(int) - expected).max() <= 1
    assert rendered.padding == (0, 0, 0, 0)


@pytest.mark.parametrize("shape", [(100, 50), (50, 100), (33, 97), (224, 223), (16, 64)])
def test_proportions_are_kept_and_padding_is_recorded(shape):
    pixels = np.full(shape, 200.0)
    pixels[0, 0] = 0
    rendered = render(image(pixels), rendering(48, 64))
    top, bottom, left, right = rendered.padding
    inner = (48 - top - bottom, 64 - left - right)
    assert inner[0] / inner[1] == pytest.approx(shape[0] / shape[1], rel=0.04)
    assert max(inner[0] / 48, inner[1] / 64) == 1
    assert abs(top - bottom) <= 1
    assert abs(left - right) <= 1
    filled = rendered.pixels[0] > 0
    assert filled[top : 48 - bottom, left : 64 - right].mean() > 0.99
    assert filled.sum() <= inner[0] * inner[1]


def test_proportions_are_those_in_the_patient_where_spacing_is_known():
    rendered = render(image(np.ones((40, 40)), spacing_mm=(2.0, 1.0)), rendering(64, 64))
    assert rendered.padding == (0, 0, 16, 16)


def test_shrinking_averages_areas():
    pixels = np.random.default_rng(2).uniform(0, 255, (64, 96))
    pixels[0, :2] = 0, 255
    expected = pixels.reshape(16, 4, 24, 4).mean((1, 3))
    shown = render(image(pixels), rendering(16, 24)).pixels[0]
    assert np.abs(shown - expected).max() <= 0.51


def test_the_window_lies_between_percentiles_of_the_valid_pixels():
    pixels = np.arange(1024, dtype=float).reshape(32, 32)
    valid = np.ones((32, 32), bool)
    valid[:16] = False
    pixels[:16] = -30_000
    shown = render(image(pixels, valid=valid), rendering(32, 32, low=10, high=90)).pixels[0]
    low, high = np.percentile(np.arange(512, 1024), (10, 90))
    expected = np.clip((pixels - low) / (high - low), 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.51
    assert shown[:16].max() == 0


def test_the_window_does_not_depend_on_scale_or_offset():
    pixels = np.random.default_rng(4).gamma(2, 100, (40, 40))
    how = rendering(32, 32, low=0.5, high=99.5)
    first, second = render(image(pixels), how), render(image(pixels * 7000 - 1e4), how)
    assert np.abs(first.pixels.astype(int) - second.pixels).max() <= 1


def test_a_constant_image_is_black_and_a_nearly_constant_one_is_not():
    assert render(image(np.full((20, 20), 9.0)), rendering(16, 16)).pixels.max() == 0
    pixels = np.zeros((64, 64))
    pixels[:2, :2] = 1
    assert render(image(pixels), rendering(64, 64, low=1, high=99)).pixels.max() == 255


def test_with_a_spacing_structures_keep_their_size_and_what_lies_beyond_is_cut_and_said():
    pixels = np.zeros((30, 40, 50))
    pixels[10:20, 15:25, 20:30] = 100
    volume = image(pixels, spacing_mm=(2.0, 1.0, 1.0))
    rendered = render(volume, rendering(32, 64, 32, spacing=(1.0, 1.0, 1.0)))
    assert rendered.pixels.shape == (1, 32, 64, 32)
    assert rendered.padding == (-14, -14, 12, 12, -9, -9)
    bright = rendered.pixels[0] > 127
    assert [np.ptp(np.nonzero(bright)[axis]) + 1 for axis in range(3)] == [20, 10, 10]


def test_volumes_keep_their_proportions_too():
    rendered = render(image(np.random.default_rng(0).random((30, 60, 45)), spacing_mm=(1, 1, 1)), rendering(32, 32, 32))
    assert rendered.padding == (8, 8, 0, 0, 4, 4)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(Refused):
        render(image(np.ones((20, 20))), rendering(16, 16, 16))
    with pytest.raises(Refused):
        render(image(np.ones((20, 20))), rendering(16, 16, spacing=(1.0, 1.0)))


def test_the_same_image_gives_the_same_bytes():
    pixels = np.random.default_rng(9).normal(size=(301, 199))
    first, second = (render(image(pixels), rendering(64, 64, low=0.5, high=99.5)).pixels.tobytes() for _ in range(2))
    assert first == second
