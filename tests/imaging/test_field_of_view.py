"""The disc of a fundus photograph: found where there is one, whole or cut off, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imaging.files import gradient

from pipeline.imaging.field_of_view import field_of_view
from pipeline.imaging.image import About, Image
from pipeline.imaging.transforms import Rendering, render

HOW = Rendering((64, 64), None, 0.0, 100.0, channels="colour", crop="field_of_view")


def photograph(rows: int, columns: int, centre: tuple[float, float], radius: float, dark: float = 6.0) -> np.ndarray:
    """Return (3, rows, columns): an orange disc that darkens towards its rim, vessels in it, noise in the surround."""
    generator = np.random.default_rng(0)
    down, across = np.mgrid[:rows, :columns]
    distance = np.hypot(down - centre[0], across - centre[1]) / radius
    shine = np.where(distance <= 1, 1 - 0.5 * distance**2, 0)
    shine *= np.where(np.sin(across / 9 + down / 17) > 0.95, 0.6, 1)
    ground = generator.uniform(0, dark, (rows, columns))
    return np.stack([ground + shine * level for level in (210, 110, 40)]).astype(np.float32)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    radius=st.floats(70, 140),
    down=st.floats(-12, 12),
    across=st.floats(-12, 12),
    columns=st.integers(300, 420),
)
def test_a_disc_is_found_whole_or_cut_off_by_the_picture(radius, down, across, columns):
    rows, centre = 240, (120 + down * (radius < 100), columns / 2 + across)
    box = field_of_view(photograph(rows, columns, centre, radius))
    assert box is not None
    wanted = (centre[0] - radius, centre[0] + radius, centre[1] - radius, centre[1] + radius)
    wanted = np.clip(wanted, 0, [rows, rows, columns, columns])
    assert np.abs(np.array(box) - wanted).max() <= 2 * -(-columns // 256) + 1


@pytest.mark.parametrize("scale", [1, 4, 10])
def test_its_place_does_not_depend_on_the_number_of_pixels(scale):
    picture = photograph(120, 160, (58, 83), 50).repeat(scale, axis=1).repeat(scale, axis=2)
    box = field_of_view(picture)
    assert box is not None
    assert np.abs(np.array(box) / scale - [8, 109, 33, 134]).max() <= 2


def test_a_mark_in_one_corner_is_no_disc_and_hides_none():
    picture = photograph(200, 260, (100, 130), 90)
    alone = field_of_view(picture)
    picture[:, 4:20, 4:40] = 255
    assert field_of_view(picture) == alone


@pytest.mark.parametrize(
    "picture",
    [
        np.full((3, 100, 100), 7.0, np.float32),
        gradient(200, 240).astype(np.float32)[None],
        photograph(200, 260, (100, 130), 400),  # the edge of the disc lies outside
        np.pad(np.full((3, 100, 140), 90.0, np.float32), ((0, 0), (40, 40), (60, 60))),  # a rectangle on black
        photograph(200, 260, (100, 130), 20),  # a spot
        np.random.default_rng(1).uniform(0, 255, (3, 200, 200)).astype(np.float32),
    ],
)
def test_nothing_else_is_taken_for_a_disc(picture):
    assert field_of_view(picture) is None


def test_an_array_holds_the_disc_and_leads_back_to_the_image():
    picture = photograph(240, 400, (120, 200), 100)
    image = Image(picture.mean(axis=0), About("drawn", 8), colour=picture)
    array = render(image, HOW)
    assert (array.cropped, array.pixels.shape) == (True, (3, 64, 64))
    assert (array.pixels[0] > 60).any(axis=0).all(), "from edge to edge"
    back = array.to_image(array.pixels[0].astype(float))
    assert back.shape == (240, 400)
    assert not back[:, :90].any()
    inside = np.hypot(*np.mgrid[-120:120, -200:200]) < 90
    assert np.corrcoef(back[inside], picture[0][inside])[0, 1] > 0.9


def test_without_a_disc_the_whole_image_is_taken():
    pixels = gradient(80, 100).astype(np.float32)
    image = Image(pixels, About("drawn", 8))
    array = render(image, HOW)
    whole = render(image, Rendering((64, 64), None, 0.0, 100.0, channels="colour"))
    assert (array.cropped, array.box) == (False, (0, 80, 0, 100))
    assert np.array_equal(array.pixels, whole.pixels)
    assert np.array_equal(array.matrix, whole.matrix)
