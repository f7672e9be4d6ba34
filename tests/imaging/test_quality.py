"""Quality flags on images made to have exactly one fault."""

import numpy as np
import pytest
from imaging.files import gradient

from pipeline.imaging.archive.quality import Limits, assess
from pipeline.imaging.image import About, Image

GOOD = np.random.default_rng(1).permutation(gradient().ravel()).reshape(40, 48).astype(np.float32)


def flags(pixels: np.ndarray, **fields) -> list[str]:
    return [*assess(Image(pixels.astype(np.float32), About("raster", 8), **fields), Limits()).flags]


def edge(side: str) -> np.ndarray:
    pixels = GOOD.copy()
    {"top": pixels[:4], "bottom": pixels[-4:], "left": pixels[:, :5], "right": pixels[:, -5:]}[side][:] = 5
    return pixels


def test_a_good_image_has_none():
    assert flags(GOOD) == []


def test_blank_is_said_alone():
    assert flags(np.full((40, 48), 7)) == ["blank"]


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_a_constant_strip_at_an_edge(side):
    assert flags(edge(side)) == ["constant_border"]


@pytest.mark.parametrize("extreme", [np.min, np.max])
def test_clipped(extreme):
    pixels = GOOD.copy()
    pixels[10:24, 10:46] = extreme(GOOD)
    assert flags(pixels) == ["clipped"]


def test_few_grey_levels_and_extreme_aspect():
    assert flags(GOOD // 200) == ["few_grey_levels"]
    assert flags(GOOD[:, :9]) == ["extreme_aspect"]


def test_padding_does_not_count_as_clipped():
    pixels, valid = GOOD.copy(), np.ones(GOOD.shape, bool)
    pixels[12:30, 10:46], valid[12:30, 10:46] = GOOD.min(), False
    assert flags(pixels, valid=valid) == []
    assert flags(pixels) == ["clipped"]


def test_what_reading_noticed_is_kept():
    assert flags(GOOD, flags=("spacing_unknown",)) == ["spacing_unknown"]
