"""Colour through the imaging library: three channels in their order, one range for all, grey as it was."""

from dataclasses import replace

import numpy as np
import pytest
from imaging.files import POLICY

from pipeline.imaging.colour import planes_of
from pipeline.imaging.image import About, Image
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.transforms import Rendering, render

IN_COLOUR = replace(POLICY, keep_colour=True)
HOW = Rendering((32, 32), None, 0.0, 100.0, channels="colour")
GREY = replace(HOW, channels="grey")
ABOUT = About("drawn", 8)


def tinted(rows: int = 40, columns: int = 40) -> np.ndarray:
    """Return uint8 (rows, columns, 3) whose channels differ everywhere: red rises down, green across, blue is 200."""
    down, across = np.mgrid[:rows, :columns]
    return np.stack([10 + down, 60 + across, np.full_like(down, 200)], axis=-1).astype(np.uint8)


def image_of(colour: np.ndarray) -> Image:
    planes = planes_of(colour, "drawn", IN_COLOUR)
    return Image(planes.pixels, ABOUT, colour=planes.colour)


def test_colour_is_kept_reduced_or_refused_as_the_policy_says():
    kept = planes_of(tinted(), "drawn", IN_COLOUR)
    assert kept.colour is not None
    assert np.array_equal(kept.colour, np.moveaxis(tinted(), -1, 0))
    reduced = planes_of(tinted(), "drawn", replace(POLICY, accept_colour=True))
    assert (reduced.colour, reduced.flags) == (None, ("colour_reduced",))
    assert np.array_equal(kept.pixels, reduced.pixels)
    with pytest.raises(Refused):
        planes_of(tinted(), "drawn", POLICY)


def test_equal_channels_are_grey_in_every_task():
    equal = np.repeat(tinted()[..., :1], 3, axis=-1)
    assert planes_of(equal, "drawn", IN_COLOUR).colour is None


def test_an_array_has_red_green_and_blue_in_this_order():
    red, green, blue = render(image_of(tinted(32, 32)), replace(HOW, window=(0.0, 255.0))).pixels
    assert np.array_equal(np.stack([red, green, blue], axis=-1), tinted(32, 32))


def test_one_range_for_all_channels_keeps_the_hue():
    array = render(image_of(tinted()), HOW).pixels
    assert array[2].min() == 255, "the brightest channel reaches the end of the range"
    assert array[0].min() <= 1
    assert array[1].min() > 50, "each channel stretched by itself would begin at 0"


def test_grey_in_a_colour_task_is_repeated():
    image = Image(tinted()[..., 0].astype(np.float32), ABOUT)
    array = render(image, HOW)
    assert array.pixels.shape == (3, 32, 32)
    assert all(np.array_equal(plane, render(image, GREY).pixels[0]) for plane in array.pixels)
    assert array.padding == render(image, GREY).padding


def test_colour_in_a_grey_rendering_is_its_luminance():
    image = image_of(tinted())
    assert np.array_equal(render(image, GREY).pixels, render(replace(image, colour=None), GREY).pixels)


def test_pictures_of_equal_luminance_are_different_pictures():
    image = image_of(tinted())
    swapped = replace(image, colour=image.channels[::-1].copy())
    assert len({image.pixel_hash(), swapped.pixel_hash(), replace(image, colour=None).pixel_hash()}) == 3


def test_models_and_artifacts_of_before_are_grey():
    before = {name: value for name, value in GREY.to_json().items() if name != "channels"}
    assert Rendering.from_json(before) == GREY
    assert Rendering.from_json(HOW.to_json()) == HOW
