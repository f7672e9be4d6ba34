"""Channels: which is which, and where each voxel of one lies in another, against a second resampler."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from imaging.files import POLICY
from imaging.phantom import Case, Grid, Volume, write_case

from pipeline.imaging.channels import Channel, of_description, of_path
from pipeline.imaging.image import Policy
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.read import read_image
from pipeline.imaging.transforms import Rendering, render
from pipeline.inference.study import Study, read_study

DATA = Path(os.environ.get("MAESCREEN_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
BRAIN = DATA / "brain_mr_sequences" / "DICOM"
WORDS = (
    Channel("t1", description=("T1",), without=("T1 POST", "Gd")),
    Channel("flair", description=("FLAIR", "dark fluid"), without=("ROI",)),
)
JOINING = replace(POLICY, channels=WORDS)
ONE, OTHER = "2.25.111", "2.25.222"


@pytest.mark.parametrize(
    ("description", "channel"),
    [
        ("T1/SE/extrp", "t1"),
        ("ax_t1_3mm", "t1"),
        ("Ax T1 FS POST", None),  # both words of an entry that speaks against it
        ("T1-GD", None),
        ("sT1W", None),  # no whole word
        ("T2 Fluid, DARK", "flair"),  # all words of one entry, in any order
        ("FLAIR_ROI", None),
        ("", None),
    ],
)
def test_a_series_is_told_by_whole_words_whatever_their_case(description, channel):
    if channel is None:
        with pytest.raises(Refused) as refused:
            of_description(description, WORDS)
        assert refused.value.refusal == Refusal("no_channel")
    else:
        assert of_description(description, WORDS) == channel


def test_a_series_that_is_two_channels_is_refused_without_its_description():
    with pytest.raises(Refused) as refused:
        of_description("T1 FLAIR of Miller", WORDS)
    assert refused.value.refusal == Refusal("ambiguous_channel", "one series is t1 and flair")


def test_a_file_is_told_by_the_end_of_its_name():
    channels = (Channel("t1", suffix="_t1.nii.gz"), Channel("t1ce", suffix="_t1ce.nii.gz"))
    assert of_path("a/BraTS_001_T1CE.nii.gz", channels) == ("t1ce", "a/BraTS_001")
    assert of_path("a/BraTS_001_t1.nii.gz", channels) == ("t1", "a/BraTS_001")
    assert of_path("a/BraTS_001_seg.nii.gz", channels) == ("", "")


# ---------------------------------------------------------------- DICOM series


def planes(grid: Grid, description: str, series: int, frame: str | None = ONE, **elements) -> list:
    found = grid.planes(first_number=100 * series, series=series)
    said = {"SeriesDescription": description, "FrameOfReferenceUID": frame, **elements}
    return [replace(plane, elements=said) for plane in found]


def read(folder: Path, *series: list, policy: Policy = JOINING) -> Study:
    write_case(Case("channels", [plane for one in series for plane in one]), folder)
    return read_study([folder], policy)


FIRST = Grid(shape=(8, 20, 24))
# Finer in the plane, coarser and fewer across, from other corners, and a little turned.
FINER = Grid((-13.0, 6.0, -32.0), spacing_mm=(3.1, 0.5, 0.4), shape=(8, 40, 50))
ALONG_ROW, ALONG_COLUMN = (np.cos(0.05), np.sin(0.05), 0.0), (-np.sin(0.05), np.cos(0.05), 0.0)
TURNED = Grid((-14.0, 4.0, -33.0), ALONG_ROW, ALONG_COLUMN, (2.5, 0.7, 0.7), (9, 33, 31))


@pytest.mark.parametrize("other", [FINER, TURNED], ids=["finer", "turned"])
def test_every_voxel_of_a_series_on_another_grid_has_the_value_of_its_place(other, tmp_path):
    study = read(tmp_path, planes(FIRST, "T1", 1), planes(other, "T2 FLAIR", 2), planes(FIRST, "localizer", 3))
    (one,) = study.images
    assert one.image.joined is not None
    expected, spacing = Volume(FIRST).canonical()
    assert np.allclose(one.image.spacing_mm, spacing)
    assert np.abs(one.image.joined[0] - expected).max() <= 0.51
    inside = np.s_[1:-1, 1:-1, 1:-1]
    # Between voxels of a value that bends a little; off by one voxel it would be 14 at least.
    assert np.abs(one.image.joined[1] - expected)[inside].max() <= 0.8
    assert "channels_resampled" in one.flags
    assert {refusal.reason for _, refusal in study.refused} == {"no_channel"}
    assert len(study.refused) == FIRST.shape[0]


def test_series_on_one_grid_are_not_interpolated(tmp_path):
    (one,) = read(tmp_path, planes(FIRST, "T1", 1), planes(FIRST, "FLAIR", 2)).images
    assert "channels_resampled" not in one.flags
    assert (one.image.joined[0] == one.image.joined[1]).all()


NEAR = Grid((-12.0, 7.0, -31.0 + 2.5), shape=(8, 20, 24))


@pytest.mark.parametrize(
    ("series", "reason", "detail"),
    [
        ([(FIRST, "T1", ONE)], "missing_channel", "flair"),
        (
            [(FIRST, "T1", ONE), (FIRST, "t1 again", ONE), (FIRST, "FLAIR", ONE)],
            "ambiguous_channel", "2 volumes are channel t1",
        ),
        ([(FIRST, "T1", ONE), (FIRST, "FLAIR", OTHER)], "frame_of_reference", "2 frames of reference"),
        ([(FIRST, "T1", ONE), (NEAR, "FLAIR", ONE)], "fields_of_view_apart", "flair of t1: 88% of its volume"),
    ],
)  # fmt: skip
def test_a_study_that_makes_no_image_is_refused_by_name_every_file_of_it(series, reason, detail, tmp_path):
    written = [planes(grid, words, n, frame) for n, (grid, words, frame) in enumerate(series, 1)]
    study = read(tmp_path, *written)
    assert study.images == ()
    assert {refusal for _, refusal in study.refused} == {Refusal(reason, detail)}
    assert len(study.refused) == sum(map(len, written))


def test_settings_take_what_is_missing_as_zeros_and_what_covers_less(tmp_path):
    lenient = replace(JOINING, fill_channels=True, min_overlap=0.8)
    (tmp_path / "a").mkdir()
    (one,) = read(tmp_path / "a", planes(FIRST, "FLAIR", 1), policy=lenient).images
    assert one.image.absent == (0,)
    assert "zeros_for_channel" in one.flags
    window = (-5000.0, 5000.0)  # in which a value of 0 is grey
    array = render(one.image, Rendering((16, 16, 16), None, 0.5, 99.5, window, channel_names=("t1", "flair"))).pixels
    assert array.shape == (2, 16, 16, 16)
    assert (array[0] == 0).all()
    assert (array[1] > 0).any()
    (tmp_path / "b").mkdir()
    (two,) = read(tmp_path / "b", planes(FIRST, "T1", 1), planes(NEAR, "FLAIR", 2, None), policy=lenient).images
    assert np.isclose(two.image.joined[1, 0], two.image.joined[1].min()).all()  # the slice beyond it


def test_without_channels_series_stay_images_of_their_own(tmp_path):
    study = read(tmp_path, planes(FIRST, "T1", 1), planes(FINER, "FLAIR", 2), policy=POLICY)
    assert len(study.images) == 2
    assert all(one.image.joined is None for one in study.images)


# ---------------------------------------------------------------- one file


def four(values: np.ndarray) -> bytes:
    image = nib.Nifti1Image(values.astype(np.float32), np.diag([-2.0, 1.0, 1.5, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def test_the_fourth_axis_of_a_nifti_holds_channels_where_the_card_says_so():
    values = np.random.default_rng(0).uniform(0, 100, (9, 8, 10, 3))
    channels = (Channel("b", axis=2), Channel("a", axis=0))
    image = read_image(four(values), replace(POLICY, channels=channels))
    assert image.joined.shape == (2, 10, 8, 9)
    # Indices of the file rise to the left; ours to the right.
    assert np.allclose(image.joined[0], values[::-1, :, :, 2].transpose(2, 1, 0))
    assert np.allclose(image.joined[1], values[::-1, :, :, 0].transpose(2, 1, 0))
    corner = nib.affines.apply_affine(image.affine, [0, 0, 0])
    assert np.allclose(corner, [-16, 0, 0])
    for wrong, policy, reason in (
        (values, POLICY, "bad_geometry"),
        (values[..., :2], replace(POLICY, channels=channels), "missing_channel"),
        (values[..., 0], replace(POLICY, channels=channels), "missing_channel"),
    ):
        with pytest.raises(Refused) as refused:
            read_image(four(wrong), policy)
        assert refused.value.refusal.reason == reason


# ---------------------------------------------------------------- real series


@pytest.mark.skipif(not BRAIN.is_dir(), reason="real MR series are not here")
def test_real_sequences_become_one_image_where_simpleitk_puts_them():
    channels = (
        Channel("t1", description=("T1",)),
        Channel("t2", description=("sT2",)),
        Channel("flair", description=("FLAIR",), without=("ROI",)),
    )
    study = read_study([BRAIN], replace(POLICY, max_pixel_bytes=500_000_000, channels=channels))
    (one,) = study.images
    assert one.image.joined.shape == (3, 22, 512, 512)
    assert len(one.files) == 66
    assert {refusal.reason for _, refusal in study.refused} == {"no_channel"}
    assert np.allclose(one.image.spacing_mm[1:], 0.46875)
    volumes = {}
    for name in ("T1", "T2", "FLAIR"):
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(BRAIN / name)))
        volumes[name] = SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32)
    first = SimpleITK.DICOMOrient(volumes["T1"], "RAS")
    for number, name in enumerate(volumes):
        lowest = float(SimpleITK.GetArrayViewFromImage(volumes[name]).min())
        moved = SimpleITK.Resample(volumes[name], first, SimpleITK.Transform(), SimpleITK.sitkLinear, lowest)
        expected = SimpleITK.GetArrayFromImage(moved)
        off = np.abs(one.image.joined[number] - expected)
        assert (off <= 0.01 * np.ptp(expected)).mean() > 0.9999, name
        assert off.mean() < 1e-3 * np.ptp(expected), name
