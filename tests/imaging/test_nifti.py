"""Volumes in: one orientation, spacing in mm, damage refused."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from imaging.files import POLICY

from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image

SHAPE = (6, 7, 8)
ACCEPTING = replace(POLICY, accept_unclear_orientation=True)
REAL = Path(os.environ.get("MAESCREEN_REAL_DATA", Path(__file__).parents[2] / "../shared/data")) / "hippocampus_nifti"


def field(affine: np.ndarray, shape=SHAPE) -> np.ndarray:
    """Return, per voxel, a value that is a known function of where it lies in the patient, in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    return (x + 100 * y + 10_000 * z).astype(np.float32)


def volume(affine: np.ndarray, kind=nib.Nifti1Image, data: np.ndarray | None = None, unit: str = "mm") -> bytes:
    image = kind(field(affine) if data is None else data, affine)
    image.header.set_xyzt_units(unit)
    return image.to_bytes()


def reason(data: bytes, policy=POLICY) -> str:
    with pytest.raises(Refused) as refused:
        read_image(data, policy)
    return refused.value.refusal.reason


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA", "ILP"])
def test_whatever_the_stored_orientation_indices_rise_to_superior_anterior_right(kind, axes):
    orientation = nib.orientations.axcodes2ornt(tuple(axes))
    affine = nib.orientations.inv_ornt_aff(orientation, SHAPE) @ np.diag([1, 1, 1, 1])
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ affine
    image = read_image(volume(affine, kind), POLICY)
    assert image.spacing_mm == pytest.approx((3.0, 2.0, 1.0))
    assert np.allclose(np.diff(image.pixels, axis=0), 30_000, atol=0.1)
    assert np.allclose(np.diff(image.pixels, axis=1), 200, atol=0.1)
    assert np.allclose(np.diff(image.pixels, axis=2), 1, atol=0.1)


def forms(sform: list[float], qform: list[float] | None) -> nib.Nifti1Image:
    image = nib.Nifti1Image(field(np.eye(4)), np.eye(4))
    image.set_sform(np.diag([*sform, 1]), code=1)
    image.set_qform(np.diag([*(qform or [1, 1, 1]), 1]), code=1 if qform else 0)
    return image


def test_a_size_of_voxels_that_is_stated_twice_and_differently():
    for qform in ([0.49, 0.49, 3], [-0.488, 0.488, 3]):  # rounded; mirrored, which is for the orientation to say
        flags = read_image(forms([0.488, 0.488, 3], qform).to_bytes(), ACCEPTING).flags
        assert "spacing_contradicts" not in flags
    apart = forms([1, 1, 1], [1, 1, 1.5]).to_bytes()
    assert reason(apart) == "unclear_orientation"
    image = read_image(apart, ACCEPTING)
    assert image.spacing_mm == (1, 1, 1)
    assert "spacing_contradicts" in image.flags


def test_sizes_beside_an_sform_alone():
    image = forms([1, 1, 2], None)
    assert read_image(image.to_bytes(), POLICY).spacing_mm == (2, 1, 1)  # ones, as writers leave them
    image.header["pixdim"][1:4] = [1, 1, 5]
    assert reason(image.to_bytes()) == "unclear_orientation"


def test_a_rotation_that_is_none_beside_a_good_matrix():
    raw = bytearray(forms([1, 1, 1], [1, 1, 1]).to_bytes())
    raw[256:268] = np.ones(3, "<f4").tobytes()
    assert reason(bytes(raw)) == "damaged_header"


def test_two_volumes_in_one_file():
    one = volume(np.eye(4))
    assert reason(one + one) == "multi_frame"
    assert reason(gzip.compress(one) + gzip.compress(one)) == "multi_frame"


def test_units_of_length_become_mm():
    assert read_image(volume(np.diag([0.001, 0.001, 0.002, 1]), unit="meter"), POLICY).spacing_mm == pytest.approx(
        (2.0, 1.0, 1.0)
    )
    assert read_image(volume(np.diag([1000, 1000, 3000, 1]), unit="micron"), POLICY).spacing_mm == pytest.approx(
        (3.0, 1.0, 1.0)
    )
    assert read_image(volume(np.eye(4), unit="unknown"), POLICY).flags == ("units_assumed",)


def turned(degrees: float) -> np.ndarray:
    """Return the position matrix of a volume that lies turned about its long axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def lying(sform_code: int, qform_code: int, degrees: float = 0) -> bytes:
    """Return a volume whose sform is that of `field`, and whose qform is turned against it."""
    image = nib.Nifti1Image(field(np.eye(4)), np.eye(4))
    image.header.set_xyzt_units("mm")
    image.set_qform(turned(degrees), 1)
    image.set_sform(np.eye(4), 1)
    raw = bytearray(image.to_bytes())
    raw[252:256] = np.array([qform_code, sform_code], "<i2").tobytes()
    return bytes(raw)


@pytest.mark.parametrize(
    ("data", "flag"),
    [
        (lying(0, 0), "orientation_assumed"),
        (lying(1, 1, 50), "orientation_contradicts"),
        (lying(1, 1, 180), "orientation_contradicts"),
    ],
    ids=["neither form is valid", "50 degrees apart", "180 degrees apart"],
)
def test_a_volume_that_does_not_say_how_it_lies_is_refused_or_taken_with_a_flag(data, flag):
    assert reason(data) == "unclear_orientation"
    image = read_image(data, replace(POLICY, accept_unclear_orientation=True))
    assert image.flags == (flag,)
    if flag == "orientation_contradicts":  # the sform counts
        assert np.array_equal(image.pixels, read_image(volume(np.eye(4)), POLICY).pixels)


@pytest.mark.parametrize("data", [lying(1, 1, 40), lying(1, 0, 180), lying(0, 1, 0)], ids=["40 degrees", "s", "q"])
def test_one_valid_form_or_two_that_nearly_agree_are_clear(data):
    assert read_image(data, POLICY).flags == ()


def test_the_qform_counts_where_the_sform_is_not_valid():
    found = read_image(lying(0, 1, 180), POLICY).pixels
    assert np.array_equal(found, read_image(volume(np.eye(4)), POLICY).pixels[:, ::-1, ::-1])


def test_scale_slope_and_integer_types():
    image = nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4))
    image.header.set_slope_inter(2, 5)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([2, 5], "<f4").tobytes()  # nibabel resets the slope when it writes
    raw[352:] = np.arange(64, dtype="<i2").tobytes()
    pixels = read_image(bytes(raw), POLICY).pixels
    assert sorted(pixels.ravel()) == [2 * v + 5 for v in range(64)]


def test_compressed_and_plain_are_the_same_image():
    plain = volume(np.eye(4))
    assert read_image(gzip.compress(plain), POLICY).pixel_hash() == read_image(plain, POLICY).pixel_hash()


def test_one_flipped_voxel_bit_in_a_compressed_file_is_found():
    """nibabel alone reads such a file without a word."""
    packed = bytearray(gzip.compress(volume(np.eye(4)), compresslevel=0))
    packed[-40] ^= 1
    assert reason(bytes(packed)) == "damaged_pixels"


def test_a_gzip_bomb_stops_at_the_limit():
    assert reason(gzip.compress(bytes(60_000_000)), POLICY) == "too_large"


def test_cut_short():
    assert reason(volume(np.eye(4))[:-50]) == "damaged_pixels"


def test_declared_size_beyond_the_limit_is_not_read():
    assert reason(volume(np.eye(4)), replace(POLICY, max_pixel_bytes=500)) == "too_large"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_voxels_and_positions_must_be_finite(broken):
    data = field(np.eye(4))
    data[1, 2, 3] = broken
    assert reason(volume(np.eye(4), data=data)) == "bad_values"


def test_a_flat_position_matrix_is_refused():
    image = nib.Nifti1Image(field(np.eye(4)), np.eye(4))
    image.set_sform(np.diag([1, 1, 0, 1]), code=1)
    assert reason(image.to_bytes()) == "bad_geometry"


def test_four_dimensions_are_refused_unless_the_last_is_one():
    data = field(np.eye(4))
    assert reason(volume(np.eye(4), data=np.stack([data, data], -1))) == "bad_geometry"
    assert read_image(volume(np.eye(4), data=data[..., None]), POLICY).pixels.shape == (8, 7, 6)


def test_complex_and_colour_volumes_are_refused():
    assert reason(volume(np.eye(4), data=np.ones(SHAPE, np.complex64))) == "bad_values"
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert reason(volume(np.eye(4), data=rgb)) == "colour"


@pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")
def test_real_volumes_equal_nibabels_canonical_data():
    for path in sorted((REAL / "images").iterdir())[:10]:
        expected = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
        image = read_image(path.read_bytes(), POLICY)
        assert np.array_equal(image.pixels.transpose(2, 1, 0), expected)
        assert image.spacing_mm == (1.0, 1.0, 1.0)
