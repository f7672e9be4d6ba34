"""Series to volumes: the value is right at every voxel, or every slice is refused for the right reason."""

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from imaging.phantom import ANISOTROPIC, AXIAL, CASES, INTERCEPT, Case, value, write_case
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from pipeline.imaging.formats.dicom_geometry import GEOMETRY_ELEMENTS, frame_headers, frames_of, slice_of
from pipeline.imaging.volumes.orientation import canvas
from pipeline.imaging.volumes.series import Slice, Stack, assemble
from pipeline.store.files import sha256_bytes

NAMED = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def read(case: Case, folder: Path) -> tuple[list[list[Slice]], dict[tuple[str, int], np.ndarray]]:
    """Write a case; return the slices of each series and the rescaled pixels of each slice, NaN where padding is."""
    write_case(case, folder)
    series, pixels = defaultdict(list), {}
    for path in sorted(folder.iterdir()):
        dataset = dcmread(path)
        content = sha256_bytes(dataset.PixelData)
        slices = frames_of(dataset, path.name, content) or [slice_of(dataset, path.name, content)]
        stored = dataset.pixel_array.reshape(len(slices), dataset.Rows, dataset.Columns)
        for one, frame, header in zip(slices, stored, frame_headers(dataset) or [dataset], strict=True):
            values = frame * float(header.RescaleSlope) + float(header.RescaleIntercept)
            values[frame == dataset.get("PixelPaddingValue", -1)] = np.nan
            pixels[one.source_id, one.frame] = values
        series[dataset.SeriesInstanceUID].extend(slices)
    return [series[uid] for uid in sorted(series, key=lambda uid: -len(series[uid]))], pixels


def assemble_all(series: list[list[Slice]]) -> tuple[list[Stack], list]:
    stacks, refused = zip(*map(assemble, series), strict=True)
    return [*itertools.chain(*stacks)], [*itertools.chain(*refused)]


def voxels_of(stack: Stack, pixels: dict) -> np.ndarray:
    return np.stack([pixels[one.source_id, one.frame] for one in stack.slices])


def value_through(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return what every voxel must hold, given the affine from its index to RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return value((index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1])


@NAMED
def test_every_voxel_holds_the_value_of_its_place(case, tmp_path):
    stacks, _ = assemble_all((data := read(case, tmp_path))[0])
    assert len(stacks) == len(case.volumes)
    for stack, volume in zip(stacks, case.volumes, strict=True):
        voxels = voxels_of(stack, data[1])
        valid = ~np.isnan(voxels)
        expected = value_through(stack.affine, voxels.shape) + volume.add
        assert np.abs(voxels - expected)[valid].max() < case.tolerance
        into = canvas(voxels.shape, stack.affine, np.float64)
        into.stored[...] = voxels
        turned, spacing_mm = into.canonical, into.spacing_mm
        assert turned.flags.c_contiguous
        expected = value_through(into.grid.affine, turned.shape) + volume.add
        assert np.abs(turned - expected)[~np.isnan(turned)].max() < case.tolerance
        pixels, expected_spacing_mm = volume.canonical()
        assert spacing_mm == pytest.approx(expected_spacing_mm, rel=0.01)
        assert np.array_equal(np.isnan(turned), np.isnan(pixels))
        assert np.nanmax(np.abs(turned - pixels)) < case.tolerance
        assert stack.flags == volume.flags


@NAMED
def test_every_slice_is_in_one_volume_or_refused_for_the_right_reason(case, tmp_path):
    series, _ = read(case, tmp_path)
    stacks, refused = assemble_all(series)
    assert Counter(refusal.reason for _, refusal in refused) == case.refused
    out = [one for stack in stacks for one in stack.slices] + [one for one, _ in refused]
    assert Counter(out) == Counter(itertools.chain(*series))


@NAMED
def test_the_order_of_the_input_changes_nothing(case, tmp_path):
    for slices in read(case, tmp_path)[0]:
        stacks, refused = assemble(slices)
        for seed in range(5):
            again_stacks, again_refused = assemble(random.Random(seed).sample(slices, len(slices)))
            assert [stack.slices for stack in again_stacks] == [stack.slices for stack in stacks]
            assert all(np.array_equal(a.affine, b.affine) for a, b in zip(stacks, again_stacks, strict=True))
            assert again_refused == refused


def test_the_table_has_a_value_field_that_would_show_a_mistake():
    """A mirrored, transposed or shifted volume, or one in other order, differs by more than any tolerance."""
    affine = np.diag([-1, -1, 1, 1]) @ AXIAL.affine_lps()
    right = value_through(affine, AXIAL.shape)
    wrong = [right[::-1], right[:, ::-1], right[:, :, ::-1], np.roll(right, 1, 0), right[[1, 0, *range(2, 8)]]]
    wrong += [np.roll(right, 1, 1), np.roll(right, 1, 2)]
    assert min(np.abs(right - other).max() for other in wrong) > 5 * max(case.tolerance for case in CASES)


# ---------------------------------------------------------------- slices without files


def plain(count: int = 6, **properties) -> list[Slice]:
    """Return an axial stack, 2 mm apart."""
    return [
        replace(
            Slice(
                source_id=f"{index:02d}",
                content=f"content {index}",
                position_mm=(0.0, 0.0, 2.0 * index),
                orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
                spacing_mm=(0.5, 0.5),
                rows=64,
                columns=64,
            ),
            **properties,
        )
        for index in range(count)
    ]


def repeated(slices: list[Slice], times: int, **values) -> list[Slice]:
    """Return copies of a stack with other content; each keyword gives one value per copy."""
    return [
        replace(
            one,
            source_id=f"{one.source_id} {copy}",
            content=f"{one.content} {copy}",
            **{k: v[copy] for k, v in values.items()},
        )
        for copy in range(times)
        for one in slices
    ]


def at(*heights_mm: float) -> list[Slice]:
    return [replace(one, position_mm=(0.0, 0.0, z)) for one, z in zip(plain(len(heights_mm)), heights_mm, strict=True)]


def verdicts(slices: list[Slice]) -> dict[tuple[str, str], int]:
    stacks, refused = assemble(slices)
    assert sum(len(stack.slices) for stack in stacks) + len(refused) == len(slices)
    return Counter((refusal.reason, refusal.detail) for _, refusal in refused)


def test_nothing_comes_of_nothing():
    assert assemble([]) == ([], [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"position_mm": None}, "position"),
        ({"position_mm": (0.0, float("nan"), 0.0)}, "position"),
        ({"position_mm": (0.0, 0.0)}, "position"),
        ({"position_mm": (0.0, 0.0, 1e30)}, "position"),
        ({"orientation": None}, "orientation"),
        ({"orientation": (1.0, 0.0, 0.0, 0.0, float("inf"), 0.0)}, "orientation"),
        ({"orientation": (0.0,) * 6}, "orientation"),
        ({"orientation": (1.0, 0.0, 0.0, 0.0, 2.0, 0.0)}, "orientation"),
        ({"orientation": (1.0, 0.0, 0.0, 0.6, 0.8, 0.0)}, "orientation"),
        ({"spacing_mm": None}, "pixel spacing"),
        ({"spacing_mm": (0.0, 0.5)}, "pixel spacing"),
        ({"spacing_mm": (0.5, -0.5)}, "pixel spacing"),
        ({"rows": 0}, "size"),
        ({"position_mm": None, "spacing_mm": None}, "position, pixel spacing"),
    ],
)
def test_a_slice_whose_place_is_not_known_is_refused_and_all_problems_named(change, problem):
    *rest, last = plain()
    expected = {("bad_geometry", f"missing or impossible: {problem}"): 1}
    assert verdicts([*rest, replace(last, **change)]) == expected


def test_a_refused_slice_in_the_middle_leaves_a_gap_that_is_seen():
    slices = plain()
    slices[2] = replace(slices[2], position_mm=None)
    assert verdicts(slices) == {
        ("bad_geometry", "missing or impossible: position"): 1,
        ("missing_slices", "1 missing"): 5,
    }


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, "orientation"),
        ({"rows": 65}, "size"),
        ({"spacing_mm": (0.5, 0.51)}, "pixel spacing"),
        ({"columns": 32, "spacing_mm": (1.0, 1.0)}, "size, pixel spacing"),
    ],
)
def test_what_the_minority_differs_in_is_named(change, name):
    slices = plain(7)
    slices[5:] = [replace(one, **change) for one in slices[5:]]
    assert verdicts(slices) == {("mixed_orientation", f"differs: {name}"): 2}
    slices[3:] = [replace(one, **change) for one in slices[3:6]]
    assert verdicts(slices[:6]) == {("mixed_orientation", f"no majority: {name}"): 6}


def test_half_of_the_series_is_no_majority():
    sizes = (32, 32, 64, 64, 64, 64, 128, 128)
    slices = [replace(one, rows=rows) for one, rows in zip(plain(8), sizes, strict=True)]
    assert verdicts(slices) == {("mixed_orientation", "no majority: size"): 8}


def test_rounded_headers_are_no_mixture():
    slices = plain()
    slices[1] = replace(slices[1], orientation=(0.9999, 0.0004, 0.0, 0.0, 1.0, 0.0), spacing_mm=(0.5, 0.50001))
    assert not verdicts(slices)


@pytest.mark.parametrize(
    ("heights_mm", "expected"),
    [
        ((0, 2, 4, 8, 10), ("missing_slices", "1 missing")),
        ((0, 2, 6, 8, 14, 16), ("missing_slices", "3 missing")),
        ((0, 2, 4, 6, 8.1, 10), ("uneven_spacing", "gaps from 1.9 to 2.1 mm")),
        ((0, 2, 4, 7, 9, 11), ("uneven_spacing", "gaps from 2 to 3 mm")),
        ((0, 1, 3, 6), ("missing_slices", "3 missing")),
        ((0, 2, 4, 6, 8.0195, 10.0055, 11.9915), ("uneven_spacing", "gaps from 1.99 to 2.02 mm")),
    ],
)
def test_gaps_are_named(heights_mm, expected):
    assert verdicts(at(*heights_mm)) == {expected: len(heights_mm)}


def test_the_tolerance_is_a_hundredth_of_the_gap_or_two_hundredths_of_a_mm():
    assert not verdicts(at(0, 2, 4.0195, 6, 8))
    assert verdicts(at(0, 2, 4.021, 6, 8)) == {("uneven_spacing", "gaps from 1.98 to 2.02 mm"): 5}
    assert not verdicts(at(0, 0.5, 1.019, 1.5, 2))
    assert not verdicts(at(0, 10, 20.09, 30, 40))
    assert verdicts(at(0, 10, 20.11, 30, 40)) == {("uneven_spacing", "gaps from 9.89 to 10.1 mm"): 5}


def test_small_errors_that_add_up_to_half_a_slice_are_found():
    gaps = [1.981] * 150 + [2.019] * 150
    heights = np.concatenate([[0], np.cumsum(gaps)])
    assert verdicts(at(*heights)) == {("uneven_spacing", "a slice is more than half a voxel from its place"): 301}
    assert not verdicts(at(*heights[100:200]))


@pytest.mark.parametrize(("degrees", "refused"), [(0.4, False), (0.6, True), (20.0, True), (-5.0, True)])
def test_slices_stacked_at_an_angle(degrees, refused):
    shift = 2 * np.tan(np.radians(degrees))
    slices = [replace(one, position_mm=(0.0, i * shift, 2.0 * i)) for i, one in enumerate(plain())]
    if refused:
        assert verdicts(slices) == {("gantry_tilt", f"{abs(degrees):.1f} degrees"): 6}
        return
    (stack,), _ = assemble(slices)
    for index, one in enumerate(stack.slices):  # so small a tilt is kept, in the affine
        place = stack.affine @ [index, 0, 0, 1]
        assert place[:3] * [-1, -1, 1] == pytest.approx(one.position_mm)


@pytest.mark.parametrize("shift_mm", [1.0, 0.3])
def test_one_slice_shifted_sideways(shift_mm):
    """Far from the first slice, a shift is a small angle and still many pixels."""
    slices = plain(60)
    slices[50] = replace(slices[50], position_mm=(shift_mm, 0.0, 100.0))
    assert {reason for reason, _ in verdicts(slices)} == {"uneven_spacing"}


def test_copies_are_dropped_and_the_first_file_kept():
    slices = plain()
    copies = [replace(one, source_id=f"copy of {one.source_id}") for one in slices[:2]]
    stacks, refused = assemble([*copies, *slices])
    assert [(one.source_id, refusal.reason) for one, refusal in refused] == [
        ("copy of 00", "duplicate"),
        ("copy of 01", "duplicate"),
    ]
    assert [one.source_id for one in stacks[0].slices] == [one.source_id for one in slices]


def test_blank_slices_of_two_time_points_are_no_copies():
    slices = repeated(plain(), 2, temporal_position=(1, 2))
    slices = [replace(one, content="blank") if one.position_mm == (0.0, 0.0, 0.0) else one for one in slices]
    stacks, refused = assemble(slices)
    assert [len(stack.slices) for stack in stacks] == [6, 6]
    assert not refused


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temporal_position", (1, 2, 10)),
        ("acquisition_number", (3, 4, 5)),
        ("echo", (None, 4.6, 9.2)),
        ("image_type", (("ORIGINAL", "IN_PHASE"), ("ORIGINAL", "OUT_PHASE"), ("ORIGINAL", "WATER"))),
        ("diffusion", ((), (0.0,), (800.0, 1.0, 0.0, 0.0))),
        ("frame_time_ms", (0.0, 33.0, 100.0)),
        ("acquisition_time", ("", "101500", "101502.5")),
    ],
)
def test_what_tells_volumes_apart_also_orders_them(name, values):
    slices = repeated(plain(), 3, **{name: values})
    stacks, refused = assemble(slices[::-1])
    assert not refused
    assert [getattr(stack.slices[0], name) for stack in stacks] == list(values)
    for stack in stacks:
        assert len({getattr(one, name) for one in stack.slices}) == 1
        assert [one.position_mm for one in stack.slices] == [one.position_mm for one in plain()]


def test_two_values_together_tell_volumes_apart():
    kinds = [(echo, moment) for moment in (1, 2, 3) for echo in (4.6, 9.2)]
    echoes, moments = zip(*kinds, strict=True)
    stacks, refused = assemble(repeated(plain(), 6, echo=echoes, temporal_position=moments))
    assert not refused
    assert [(stack.slices[0].temporal_position, stack.slices[0].echo) for stack in stacks] == [
        (moment, echo) for echo, moment in kinds
    ]


def test_a_time_that_changes_from_slice_to_slice_cuts_no_series_to_pieces():
    slices = [replace(one, acquisition_time=f"{i // 2:06d}") for i, one in enumerate(plain(8))]
    again = replace(slices[3], source_id="again", content="other", acquisition_time="000009")
    assert verdicts([*slices, again]) == {("duplicate_slices", "1 of 8 positions have more than one slice"): 9}


def test_one_position_at_many_times_is_many_volumes_of_one_slice():
    stacks, refused = assemble(repeated(plain(1, thickness_mm=8.0), 5, frame_time_ms=(0.0, 40.0, 80.0, 120.0, 160.0)))
    assert not refused
    assert [stack.spacing_mm for stack in stacks] == [(8.0, 0.5, 0.5)] * 5


def test_each_time_point_with_a_gap_is_refused_for_the_gap():
    slices = repeated([one for one in plain() if one.source_id != "03"], 2, temporal_position=(1, 2))
    assert verdicts(slices) == {("missing_slices", "1 missing"): 10}


@pytest.mark.parametrize("thickness_mm", [None, 0.0, -3.0, float("nan"), 1e9])
def test_a_thickness_that_cannot_be_used_is_none(thickness_mm):
    (stack,), _ = assemble(plain(1, thickness_mm=thickness_mm))
    assert stack.flags == ("spacing_assumed",)
    assert stack.spacing_mm == (1.0, 0.5, 0.5)


def test_header_text_shows_in_no_printed_slice():
    assert "Musterfrau" not in repr(plain(1, image_type=("MUSTERFRAU", "Musterfrau")))


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("axes", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("signs", [*itertools.product((-1, 1), repeat=3)])
def test_from_every_orientation_to_the_canonical_one(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * [3.0, 2.0, 0.5]
    affine[:3, 3] = (5.0, -7.0, 11.0)
    voxels = value_through(affine, (4, 5, 6))
    into = canvas(voxels.shape, affine, np.float64)
    into.stored[...] = voxels
    assert np.allclose(into.canonical, value_through(into.grid.affine, into.canonical.shape))
    assert (np.diag(into.grid.affine[2::-1, :3]) > 0).all()  # superior, anterior, right
    assert into.spacing_mm == pytest.approx(np.abs(into.grid.affine[:3, :3]).max(axis=0).tolist())
    assert into.canonical.flags.c_contiguous
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    assert np.array_equal(into.canonical, np.asarray(image.dataobj).transpose(2, 1, 0))


# ---------------------------------------------------------------- headers


def test_a_header_gives_a_slice():
    dataset = Dataset()
    dataset.ImagePositionPatient = ["-1.5", "2", "3e1"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.PixelSpacing = ["0.9", "0.7"]
    dataset.Rows, dataset.Columns = 12, 10
    dataset.SpacingBetweenSlices, dataset.SliceThickness = "-3", "2.5"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.TemporalPositionIdentifier = 2
    dataset.AcquisitionNumber = 7
    dataset.EchoNumbers = 1
    dataset.EchoTime = "4.6"
    dataset.DiffusionBValue = 800.0
    dataset.DiffusionGradientOrientation = [0.0, 0.6, 0.8]
    dataset.TriggerTime = "33"
    dataset.AcquisitionTime = "101500.5"
    dataset.InstanceNumber = 5
    assert slice_of(dataset, "file", "hash") == Slice(
        source_id="file",
        content="hash",
        position_mm=(-1.5, 2.0, 30.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing_mm=(0.9, 0.7),
        rows=12,
        columns=10,
        thickness_mm=3.0,
        localiser=True,
        temporal_position=2,
        acquisition_number=7,
        echo=4.6,
        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
        diffusion=(800.0, 0.0, 0.6, 0.8),
        frame_time_ms=33.0,
        acquisition_time="101500.5",
    )
    assert "InstanceNumber" not in GEOMETRY_ELEMENTS


NOTHING = Slice("file", "hash", position_mm=None, orientation=None, spacing_mm=None, rows=0, columns=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "raw", [b"", b" ", b"\\\\", b"abc", b"1\\x\\3", b"nan\\inf\\-inf", b"\xff\xfe\x00", b"1\\2\\3\\4\\5"]
)
def test_empty_and_garbled_values_are_left_out(raw):
    assert slice_of(Dataset(), "file", "hash") == NOTHING
    dataset = dcmread(str(get_testdata_file("CT_small.dcm")), stop_before_pixels=True)
    damaged = [keyword for keyword in GEOMETRY_ELEMENTS if keyword in dataset]
    for keyword in damaged:
        element = dataset.get_item(keyword)
        dataset._dict[element.tag] = element._replace(value=raw, length=len(raw))
    found = slice_of(dataset, "file", "hash")
    assert (found.position_mm, found.orientation, found.spacing_mm) in (
        (None, None, None),
        ((1.0, 2.0, 3.0), None, None),
    )
    assert len(damaged) > 6
    assert frames_of(dataset, "file", "hash") is None


def test_single_frame_objects_and_lists_of_the_wrong_length_have_no_frames():
    assert frames_of(dcmread(str(get_testdata_file("CT_small.dcm"))), "file", "hash") is None
    assert frames_of(dcmread(str(get_testdata_file("emri_small.dcm"))), "file", "hash") is None
    dataset = dcmread(str(get_testdata_file("eCT_Supplemental.dcm", download=False)))
    dataset.NumberOfFrames = 3
    assert frames_of(dataset, "file", "hash") is None


def test_frames_of_a_real_enhanced_ct():
    dataset = dcmread(str(get_testdata_file("eCT_Supplemental.dcm", download=False)))
    frames = frames_of(dataset, "file", "hash")
    headers = frame_headers(dataset)
    assert frames is not None
    assert headers is not None
    assert [(one.frame, one.content, one.rows, one.columns) for one in frames] == [
        (0, "hash/0", 512, 512),
        (1, "hash/1", 512, 512),
    ]
    groups = dataset.PerFrameFunctionalGroupsSequence
    assert [one.position_mm for one in frames] == [
        tuple(map(float, item.PlanePositionSequence[0].ImagePositionPatient)) for item in groups
    ]
    (stack,), refused = assemble(frames)
    assert not refused
    pixels = [
        frame * float(header.RescaleSlope) + float(header.RescaleIntercept)
        for frame, header in zip(dataset.pixel_array, headers, strict=True)
    ]
    assert (np.min(pixels), np.max(pixels)) == (-1024, 172)  # as ITK reads it
    assert stack.spacing_mm[1:] == pytest.approx(
        tuple(map(float, dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing))
    )


@pytest.mark.parametrize("name", ["eCT_Supplemental.dcm", "CT_small.dcm", "MR_small.dcm"])
def test_the_listed_elements_are_all_that_need_be_read(name):
    path = str(get_testdata_file(name, download=False))
    whole, part = dcmread(path), dcmread(path, specific_tags=[*GEOMETRY_ELEMENTS])
    assert slice_of(part, "file", "hash") == slice_of(whole, "file", "hash")
    assert frames_of(part, "file", "hash") == frames_of(whole, "file", "hash")


def test_a_frames_own_value_goes_before_the_shared_one():
    shared, own, dataset = Dataset(), Dataset(), Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [1, 1]
    own.PixelMeasuresSequence = [Dataset()]
    own.PixelMeasuresSequence[0].PixelSpacing = [2, 2]
    own.MRDiffusionSequence = [Dataset()]
    own.MRDiffusionSequence[0].DiffusionBValue = 800.0
    own.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = [Dataset()]
    own.MRDiffusionSequence[0].DiffusionGradientDirectionSequence[0].DiffusionGradientOrientation = [1.0, 0.0, 0.0]
    dataset.NumberOfFrames = 2
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [Dataset(), own]
    first, second = frames_of(dataset, "file", "hash") or ()
    assert (first.spacing_mm, second.spacing_mm) == ((1.0, 1.0), (2.0, 2.0))
    assert (first.diffusion, second.diffusion) == ((), (800.0, 1.0, 0.0, 0.0))


def test_per_frame_rescale_is_in_the_frame_headers(tmp_path):
    case = case_named("enhanced multi-frame, rescale per frame")
    write_case(case, tmp_path)
    headers = frame_headers(dcmread(tmp_path / "enhanced.dcm")) or []
    assert [float(header.RescaleSlope) for header in headers] == pytest.approx([plane.slope for plane in case.planes])
    assert {float(header.RescaleIntercept) for header in headers} == {INTERCEPT}


def test_spacing_between_rows_comes_first(tmp_path):
    series, _ = read(case_named("signed, padded, anisotropic"), tmp_path)
    (stack,), _ = assemble(series[0])
    assert stack.spacing_mm == pytest.approx(ANISOTROPIC.spacing_mm)
