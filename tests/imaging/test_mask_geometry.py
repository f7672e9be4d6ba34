"""Mask → array → mask, voxel for voxel, however a volume lies, written as NIfTI and as SEG and read by others."""

import io
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from delivery.dicom_files import errors_of
from imaging.files import POLICY, make_dicom
from imaging.phantom import Case, write_case
from imaging.phantom import Grid as Stack
from PIL import Image as pillow
from PIL import ImageOps

from pipeline.delivery.dicom.objects import finished
from pipeline.delivery.dicom.segmentation import segmentation
from pipeline.delivery.dicom.source import read_source
from pipeline.imaging.archive.sources import find_sources
from pipeline.imaging.formats.nifti import read_nifti
from pipeline.imaging.formats.raster import TURNS, read_raster
from pipeline.imaging.image import Image
from pipeline.imaging.masks.reading import read_mask
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.masks.writing import source_header, write_mask_nifti, write_mask_png
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image
from pipeline.imaging.transforms import Rendering, render
from pipeline.imaging.volumes.assemble import read_series

SHAPE = (5, 7, 6)
STRUCTURES = Structures(("head", "body", "tail"), (1, 2, 3))
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MODEL = SimpleNamespace(content={"title": "Größe ≥ 1 cm"}, sha256="ab" * 32)
PREDICTIONS = SimpleNamespace(model=MODEL, settings_sha256="cd" * 32)


def turn(degrees: float, axis: int) -> np.ndarray:
    angle = np.radians(degrees)
    found = np.eye(3)
    one, other = [n for n in range(3) if n != axis]
    found[[one, other], [one, other]] = np.cos(angle)
    found[one, other], found[other, one] = -np.sin(angle), np.sin(angle)
    return found


def directions() -> dict[str, np.ndarray]:
    """Return 23 matrices whose columns are the directions (RAS) in which the three indices of a file rise."""
    found = {}
    for signs in itertools.product((1, -1), repeat=3):
        found["flips " + "".join("+-"[s < 0] for s in signs)] = np.diag(signs).astype(float)
    for number, order in enumerate(list(itertools.permutations(range(3)))[1:]):
        signs = np.array([1, -1, 1, -1, 1])[np.arange(number, number + 3) % 5]
        found[f"order {order}"] = np.eye(3)[:, order] * signs
    for degrees, axis in itertools.product((12, -30, 40), range(3)):
        found[f"oblique {degrees} about {axis}"] = turn(degrees, axis) @ np.eye(3)[:, [2, 0, 1]] * [1, -1, 1]
    found["twice oblique"] = turn(20, 0) @ turn(-25, 2)
    return found


CASES = directions()
AXIAL = Stack(shape=SHAPE)


def mask_of(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return a mask whose mirror images and turns all differ, with a structure in every slice of every axis."""
    return np.random.default_rng(5).integers(0, 4, shape).astype(np.uint8)


def matrix(name: str, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = CASES[name] * spacing_mm
    affine[:3, 3] = 11.0, -23.0, 37.5
    return affine


def there_and_back(image: Image, mask: np.ndarray, how: Rendering) -> np.ndarray:
    """Return a mask on the grid of the file once it went to the array of the image and back."""
    array = render(image, how)
    return image.file_grid.to_stored(array.to_image(array.of_image(image.file_grid.from_stored(mask), 255)))


def renderings(image: Image) -> list[Rendering]:
    """As it is; in a larger box; twice and 1.3 times as fine, boxes large enough."""
    whole, spacing = image.pixels.shape, np.array(image.spacing_mm)
    finer = [(tuple(int(side * by) + 5 for side in whole), tuple((spacing / by).tolist())) for by in (2, 1.3)]
    return [
        Rendering(size, spacing_mm, 0.5, 99.5)
        for size, spacing_mm in [(whole, tuple(spacing)), (tuple(s + 4 for s in whole), tuple(spacing)), *finer]
    ]


def test_there_are_23():
    assert len(CASES) == 23


@pytest.mark.parametrize("name", CASES)
def test_nifti_and_back(name, tmp_path):
    affine, mask = matrix(name, (1.0, 1.5, 2.25)), mask_of()
    source = nib.Nifti1Image(np.random.default_rng(1).normal(size=SHAPE).astype(np.float32), affine)
    source.set_qform(affine, 1)
    source.header.set_xyzt_units("mm")
    source.header["descrip"] = b"Name of a patient"
    image = read_nifti(source.to_bytes(), POLICY)
    assert np.allclose(image.file_grid.stored_affine, affine, atol=1e-5)
    for how in renderings(image):
        assert np.array_equal(there_and_back(image, mask, how), mask)
    path = tmp_path / "mask.nii.gz"
    write_mask_nifti(path, mask, image.file_grid, source.to_bytes())
    written = nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), mask)
    assert np.array_equal(written.affine, nib.Nifti1Image.from_bytes(source.to_bytes()).affine)
    assert not written.header["descrip"].tobytes().strip(b"\0")
    assert np.array_equal(
        read_mask(path.read_bytes(), image, [], STRUCTURES, POLICY), image.file_grid.from_stored(mask)
    )
    other = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(other).T, mask)
    point = (4, 2, 3)
    assert np.allclose(other.TransformIndexToPhysicalPoint(point), (LPS @ affine @ [*point, 1])[:3], atol=1e-4)


def stack_of(name: str) -> Stack:
    """Return slices whose rows and columns rise as the last two indices of a case do."""
    columns = np.diag([-1, -1, 1]) @ CASES[name]
    return Stack(
        origin_mm=(11.0, -23.0, 37.5),
        along_column=tuple(columns[:, 1].tolist()),
        along_row=tuple(columns[:, 2].tolist()),
        spacing_mm=(2.5, 1.25, 0.75),
        shape=SHAPE,
    )


def series(folder: Path, name: str, **elements) -> tuple[Image, list[bytes]]:
    planes = stack_of(name).planes(elements={"FrameOfReferenceUID": "2.25.77", **elements})
    write_case(Case(name, planes), folder)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    (volume,), refused = read_series(((str(n), data) for n, data in enumerate(files)), POLICY)
    assert not refused
    return volume.image, files


def segmented(folder: Path, mask: np.ndarray, files: list[bytes]) -> bytes:
    source = read_source(find_sources([folder]), (), (), POLICY)
    return finished(segmentation(mask, STRUCTURES.names, files, POLICY, source, MODEL), "seg", source, PREDICTIONS)


def frames_by_hand(content: bytes) -> dict[tuple[float, ...], np.ndarray]:
    """Return the label map of each slice by its position: bits unpacked, as PS3.5 8.1.1 has them."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    size = dataset.Rows * dataset.Columns
    found: dict[tuple[float, ...], np.ndarray] = {}
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        plane = bits[number * size : (number + 1) * size].reshape(dataset.Rows, dataset.Columns)
        found.setdefault(position, np.zeros(plane.shape, np.uint8))[plane > 0] = segment
    return found


@pytest.mark.parametrize("name", CASES)
def test_dicom_and_back(name, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    image, files = series(folder, name)
    mask, grid = mask_of(), image.file_grid
    for how in renderings(image):
        assert np.array_equal(there_and_back(image, mask, how), mask)
    content = segmented(folder, mask, files)
    assert segmented(folder, mask, files[::-1]) == content
    assert np.array_equal(read_mask(content, image, files, STRUCTURES, POLICY), grid.from_stored(mask))
    affine = stack_of(name).affine_lps()
    assert np.allclose(grid.stored_affine, LPS @ affine, atol=1e-4)
    by_hand = frames_by_hand(content)
    for number in range(SHAPE[0]):
        position = (affine @ [number, 0, 0, 1])[:3]
        nearest = min(by_hand, key=lambda one: np.linalg.norm(np.array(one) - position))
        assert np.allclose(nearest, position, atol=1e-4)
        assert np.array_equal(by_hand[nearest], mask[number])
    volume = hd.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(content))).get_volume(combine_segments=True)
    theirs, ours = (
        nib.as_closest_canonical(nib.Nifti1Image(values.astype(np.uint8), LPS @ matrix))
        for values, matrix in ((volume.array, volume.affine), (mask, affine))
    )
    assert np.array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    assert np.allclose(theirs.affine, ours.affine, atol=1e-4)
    path = tmp_path / "mask.nii"
    write_mask_nifti(path, mask, grid)
    assert np.array_equal(read_mask(path.read_bytes(), image, files, STRUCTURES, POLICY), grid.from_stored(mask))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), mask)


def test_frames_of_one_file_in_an_order_of_their_own(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    planes = AXIAL.planes(elements={})
    write_case(Case("frames", [planes[n] for n in (3, 0, 2, 4, 1)], enhanced=True), folder)
    (path,) = folder.iterdir()
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = "2.25.77"
    dataset.save_as(path)
    content, mask = path.read_bytes(), mask_of()
    (volume,), _ = read_series([("0", content)], POLICY)
    made = segmented(folder, mask, [content])
    assert np.array_equal(read_mask(made, volume.image, [content], STRUCTURES, POLICY), mask[:, ::-1, ::-1])
    (tmp_path / "made").write_bytes(made)
    assert errors_of(tmp_path / "made") == []


def test_a_gantry_tilt_is_refused(tmp_path):
    leaning = [replace(p, position_mm=(0.0, 1.5 * n, 2.5 * n)) for n, p in enumerate(AXIAL.planes())]
    write_case(Case("tilt", leaning), tmp_path)
    files = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    volumes, refused = read_series(((str(n), data) for n, data in enumerate(files)), POLICY)
    assert not volumes
    assert {refusal.reason for _, refusal in refused} == {"gantry_tilt"}


def test_objects_are_valid_and_follow_from_what_they_say(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    _, files = series(folder, "oblique 12 about 0")
    contents = {name: segmented(folder, mask, files) for name, mask in (("some", mask_of()), ("none", mask_of() * 0))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert errors_of(tmp_path / name) == []
    some, none = (pydicom.dcmread(io.BytesIO(content)) for content in contents.values())
    assert some.SOPInstanceUID != none.SOPInstanceUID
    assert some.SeriesInstanceUID == none.SeriesInstanceUID
    assert [one.SegmentLabel for one in some.SegmentSequence] == ["head", "body", "tail"]
    assert "RESEARCH USE ONLY" in some.SeriesDescription
    assert not none.pixel_array.any()


def test_a_projection_and_back(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    content = make_dicom(np.random.default_rng(1).integers(0, 4095, (40, 48)).astype(np.uint16), **UIDS)
    (folder / "a.dcm").write_bytes(content)
    image, mask = read_image(content, POLICY), mask_of((40, 48))
    made = segmented(folder, mask, [content])
    assert np.array_equal(read_mask(made, image, [content], STRUCTURES, POLICY), mask)
    (tmp_path / "made").write_bytes(made)
    assert errors_of(tmp_path / "made") == []
    other = make_dicom(np.zeros((40, 48), np.uint16), **UIDS | {"SOPInstanceUID": "2.25.9"})
    with pytest.raises(Refused) as refused:
        read_mask(made, image, [other], STRUCTURES, POLICY)
    assert refused.value.refusal.reason == "mask_reference"


UIDS = {"StudyInstanceUID": "2.25.5", "SeriesInstanceUID": "2.25.6", "SOPInstanceUID": "2.25.7"}


@pytest.mark.parametrize("tag", [1, *TURNS])
def test_pictures_with_an_orientation_tag(tag, tmp_path):
    exif, mask = pillow.Exif(), mask_of((40, 48))
    exif[274] = tag

    def tagged(values: np.ndarray) -> io.BytesIO:
        stream = io.BytesIO()
        pillow.fromarray(values).save(stream, "PNG", exif=exif)
        return stream

    image = read_raster(tagged(np.random.default_rng(1).integers(0, 255, (40, 48)).astype(np.uint8)).getvalue(), POLICY)
    assert image.file_grid.stored == (40, 48)
    write_mask_png(tmp_path / "mask.png", mask, image.file_grid)
    found = read_mask((tmp_path / "mask.png").read_bytes(), image, [], STRUCTURES, POLICY)
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(pillow.open(tagged(mask)))))
    assert np.array_equal(read_mask(tagged(mask).getvalue(), image, [], STRUCTURES, POLICY), found)
    how = Rendering(tuple(2 * side + 3 for side in image.pixels.shape), None, 0.5, 99.5)
    assert np.array_equal(there_and_back(image, mask, how), mask)


def saved(picture: pillow.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_values_of_pictures_are_taken_as_they_are():
    image, mask = read_raster(saved(pillow.fromarray(mask_of((40, 48)) * 80)), POLICY), mask_of((40, 48))
    palette = pillow.fromarray(mask, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    named = Structures(("head", "body", "tail"), (1, 2, 300))
    wide = np.where(mask == 3, np.uint16(300), mask)
    for data, structures in (
        (saved(palette), STRUCTURES),
        (saved(pillow.fromarray(np.stack([mask] * 3, -1))), STRUCTURES),
        (saved(pillow.fromarray(wide)), named),
        (saved(pillow.fromarray(wide.astype(np.float32)), "TIFF"), named),
        (saved(pillow.fromarray(mask), "TIFF", compression="tiff_lzw"), STRUCTURES),
    ):
        assert np.array_equal(read_mask(data, image, [], structures, POLICY), mask)
    bilevel = read_mask(saved(pillow.fromarray(mask == 2)), image, [], Structures(("any",)), POLICY)
    assert np.array_equal(bilevel, mask == 2)
    colours = mask[..., None] * np.array([1, 2, 3], np.uint8)
    for data, reason in (
        (saved(pillow.fromarray(mask), "JPEG"), "mask_format"),
        (saved(pillow.fromarray(colours)), "mask_values"),
        (saved(pillow.fromarray(mask).rotate(90, expand=True)), "mask_size"),
    ):
        with pytest.raises(Refused) as refused:
            read_mask(data, image, [], STRUCTURES, POLICY)
        assert refused.value.refusal.reason == reason


def moved(affine: np.ndarray, **by: float) -> np.ndarray:
    return affine + np.array([[0, 0, 0, by.get("x", 0)], [0, by.get("shear", 0), 0, 0], [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda m, a: (m, moved(a, x=0.2)), "mask_position", "0.20 voxels off"),
        (lambda m, a: (m[:-1], a), "mask_size", "size 6 x 7 x 4 instead of 6 x 7 x 5, centre 0.5 mm apart"),
        (lambda m, a: (m, a @ np.diag([2, 1, 1, 1])), "mask_position", "spacing"),
        (
            lambda m, a: (m, a @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            "mask_position",
            "",
        ),
        (lambda m, a: (m * 2, a), "mask_values", "2 not named: 4, 6"),
        (lambda m, a: (m + np.float32(0.5), a), "mask_values", "no whole numbers"),
        (lambda m, a: (m.reshape(5, 7, 3, 2), a), "mask_size", "5 x 7 x 3 x 2"),
    ],
    ids=["moved", "cut", "coarser", "sheared as by a gantry tilt", "other values", "shares", "four axes"],
)
def test_what_does_not_fit_is_refused(change, reason, said):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    image = read_nifti(nifti(np.arange(210, dtype=np.int16).reshape(SHAPE), affine), POLICY)
    values, other = change(mask_of(), affine)
    with pytest.raises(Refused) as refused:
        read_mask(nifti(values, other), image, [], STRUCTURES, POLICY)
    assert refused.value.refusal.reason == reason
    assert said in refused.value.refusal.detail


def nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def test_contours_and_other_objects_are_refused_with_a_hint():
    image = read_nifti(nifti(np.arange(210, dtype=np.int16).reshape(SHAPE), np.eye(4)), POLICY)
    contours = make_dicom(np.zeros((8, 8), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT")
    for data, reason in ((contours, "mask_contours"), (make_dicom(np.zeros((8, 8), np.uint8)), "mask_format")):
        with pytest.raises(Refused) as refused:
            read_mask(data, image, [], STRUCTURES, POLICY)
        assert refused.value.refusal.reason == reason


def test_of_several_files_the_mask_is_written_as_the_one_it_lies_on():
    voxels = np.arange(210, dtype=np.int16).reshape(SHAPE)
    first, other = nifti(voxels, np.eye(4)), nifti(voxels, np.diag([2.0, 1, 1, 1]))
    grid = read_nifti(first, POLICY).file_grid
    assert source_header([other, first], grid) == source_header([first], grid) == first
