"""Volumes out of real files: the known value at every voxel, or every file refused with its reason."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from imaging.files import POLICY, make_dataset, to_bytes
from imaging.phantom import AXIAL, CASES, CT, Case, write_case
from pydicom import dcmread
from pydicom.data import get_testdata_file

from pipeline.imaging.image import Image, Part
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import load_image, read_image
from pipeline.imaging.volumes.assemble import read_series

TINY = replace(POLICY, min_side=1)
NAMED = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def series_in(folder: Path) -> list[list[tuple[str, bytes]]]:
    """Return the files of each series, the one with most files first, as the ingest stage groups them."""
    groups = defaultdict(list)
    for path in sorted(folder.iterdir()):
        part = read_image(path.read_bytes(), TINY)
        assert isinstance(part, Part)
        groups[part.series].append((path.name, path.read_bytes()))
    return sorted(groups.values(), key=len, reverse=True)


def read_case(case: Case, folder: Path) -> tuple[list, list]:
    write_case(case, folder)
    found = [read_series(files, TINY) for files in series_in(folder)]
    return [volume for volumes, _ in found for volume in volumes], [one for _, refused in found for one in refused]


@NAMED
def test_every_voxel_has_the_known_value_and_every_file_one_verdict(case, tmp_path):
    volumes, refused = read_case(case, tmp_path)
    assert len(volumes) == len(case.volumes)
    for volume, expected in zip(volumes, case.volumes, strict=True):
        pixels, spacing_mm = expected.canonical()
        padding = np.isnan(pixels)
        assert volume.image.spacing_mm == pytest.approx(spacing_mm, rel=0.01)
        assert np.abs(volume.image.pixels - pixels)[~padding].max() < case.tolerance
        assert np.array_equal(padding, np.zeros_like(padding) if volume.image.valid is None else ~volume.image.valid)
        assert {*volume.image.flags} - {"slices_refused"} == {*expected.flags}
    if case.enhanced:
        assert {refusal.reason for _, refusal in refused} == {*case.refused}
    else:
        assert Counter(refusal.reason for _, refusal in refused) == case.refused
    placed = {name for volume in volumes for name in volume.source_ids}
    names = {path.name for path in tmp_path.iterdir()}
    assert placed | {name for name, _ in refused} == names
    assert not placed & {name for name, _ in refused}


@NAMED
def test_what_ingest_found_is_found_again_in_the_same_files(case, tmp_path):
    contents = {}
    for volume in read_case(case, tmp_path)[0]:
        contents = [(tmp_path / name).read_bytes() for name in volume.source_ids]
        again = load_image(contents, 3, volume.image.pixel_hash(), TINY)
        assert np.array_equal(again.pixels, volume.image.pixels)
        assert again.spacing_mm == volume.image.spacing_mm
        with pytest.raises(Refused, match="damaged_pixels"):
            load_image(contents, 3, "0" * 32, TINY)


def test_a_damaged_slice_in_the_middle_costs_the_volume_and_at_the_end_flags_it(tmp_path):
    write_case(CASES[0], tmp_path)
    paths = sorted(tmp_path.iterdir(), key=lambda path: dcmread(path).ImagePositionPatient[2])
    for place, reasons in ((3, {"damaged_pixels": 1, "missing_slices": 7}), (7, {"damaged_pixels": 1})):
        files = [(path.name, path.read_bytes()) for path in paths]
        files[place] = (files[place][0], files[place][1][:-50])
        volumes, refused = read_series(files, TINY)
        assert Counter(refusal.reason for _, refusal in refused) == reasons
        assert [("slices_refused" in volume.image.flags) for volume in volumes] == [True] * (place == 7)


def test_different_slices_under_one_uid_are_refused(tmp_path):
    write_case(CASES[0], tmp_path)
    files = []
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        dataset = dcmread(path)
        if number < 2:
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
        files.append((path.name, to_bytes(dataset)))
    _, refused = read_series(files, TINY)
    assert Counter(refusal.reason for _, refusal in refused)["uid_conflict"] == 2


def test_a_series_beyond_the_limit_is_refused_as_a_whole(tmp_path):
    write_case(CASES[0], tmp_path)
    slice_bytes = 4 * AXIAL.shape[1] * AXIAL.shape[2]
    with pytest.raises(Refused, match="too_large"):
        read_series(series_in(tmp_path)[0], replace(TINY, max_pixel_bytes=7 * slice_bytes))


def test_windows_of_slices_are_not_applied():
    """A slice shown alone is shown through its window, but windows can differ from slice to slice."""
    pixels = np.arange(64, dtype=np.int16).reshape(8, 8) * 10
    place = {
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "SliceThickness": 2,
    }
    dataset = make_dataset(
        pixels, SOPClassUID=CT, Modality="CT", SeriesInstanceUID="2.25.5", WindowCenter=40, WindowWidth=80, **place
    )
    data = to_bytes(dataset)
    volumes, _ = read_series([("a", data)], TINY)
    assert set(volumes[0].image.pixels.ravel()) == set(pixels.ravel())
    alone = read_image(data, replace(TINY, assemble_slices=False))
    assert isinstance(alone, Image)
    assert len(np.unique(alone.pixels)) < len(np.unique(pixels))  # what lies outside the window is cut off


def test_a_real_enhanced_ct():
    """Its values, -1024 to 172 Hounsfield units, are those that ITK reads."""
    data = Path(str(get_testdata_file("eCT_Supplemental.dcm", download=False))).read_bytes()
    part = read_image(data, TINY)
    assert isinstance(part, Part)
    volumes, refused = read_series([("a", data)], TINY)
    assert refused == []
    image = volumes[0].image
    assert image.pixels.shape == (2, 512, 512)
    assert (image.pixels.min(), image.pixels.max()) == (-1024, 172)
