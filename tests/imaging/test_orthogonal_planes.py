"""A volume as a picture: which plane is where, and which way is up."""

import numpy as np
import pytest

from pipeline.imaging.volumes.orthogonal_planes import three_planes

D, H, W = 6, 8, 10  # superior, anterior, right


@pytest.mark.parametrize(
    ("place", "row", "column"),
    [
        # Coronal above left: superior at the top, the patient's right on the left.
        ((D - 1, H // 2 - 1, W - 1), 1, 1),
        ((0, H // 2 - 1, 0), D, W),
        # Sagittal above right: superior at the top, anterior on the left.
        ((D - 1, H - 1, W // 2 - 1), 1, W + 3),
        ((0, 0, W // 2 - 1), D, W + H + 2),
        # Axial below left: anterior at the top, the patient's right on the left.
        ((D // 2 - 1, H - 1, W - 1), D + 3, 1),
        ((D // 2 - 1, 0, 0), D + H + 2, W),
    ],
)
def test_a_corner_of_each_plane_is_where_a_radiologist_expects_it(place, row, column):
    volume = np.zeros((D, H, W), np.uint8)
    volume[place] = 255
    picture = three_planes(volume)
    assert picture.shape == (D + H + 4, W + H + 4)
    assert picture.dtype == np.uint8
    assert [tuple(where) for where in np.argwhere(picture)] == [(row, column)]


def test_planes_go_through_the_centre_that_is_given():
    volume = np.zeros((D, H, W), np.uint8)
    volume[4, 1, 7] = 255
    picture = three_planes(volume, (4, 1, 7))
    # Its place in each plane: coronal, sagittal, axial.
    expected = [(D - 4, W - 7), (D - 4, W + 2 + H - 1), (D + 2 + H - 1, W - 7)]
    assert [tuple(where) for where in np.argwhere(picture)] == expected
    assert not three_planes(volume).any()


def test_the_middle_is_in_all_three_planes_and_the_rest_is_the_lowest_value():
    volume = np.full((D, H, W), -1000.0)
    volume[D // 2 - 1, H // 2 - 1, W // 2 - 1] = 50
    picture = three_planes(volume)
    assert np.count_nonzero(picture == 50) == 3
    assert np.count_nonzero(picture == -1000) == picture.size - 3
