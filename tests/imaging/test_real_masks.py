"""Masks of other people's making on the images they are about: orders, formats and directions as they come."""

import os
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from imaging.files import POLICY
from PIL import Image as pillow

from pipeline.imaging.image import Image, Policy
from pipeline.imaging.masks.reading import read_mask
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image
from pipeline.imaging.transforms import Rendering, render
from pipeline.imaging.volumes.assemble import read_series

REAL = Path(os.environ.get("MAESCREEN_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
CT = REAL / "ct_with_segmentation"
LARGE = Policy(max_file_bytes=1 << 30, max_pixel_bytes=1 << 30, min_side=8, accept_colour=True)
pytestmark = pytest.mark.skipif(not CT.is_dir(), reason="the real images are not here")


def volume(paths: list[Path]) -> tuple[Image, list[bytes]]:
    files = [path.read_bytes() for path in paths]
    (found,), refused = read_series(((str(n), data) for n, data in enumerate(files)), LARGE)
    assert not refused
    return found.image, files


@pytest.fixture(scope="module")
def slices() -> tuple[Image, list[bytes]]:
    return volume([CT / "dcmqi" / f"{name}.dcm" for name in ("02", "01", "03")])


@pytest.fixture(scope="module")
def chest() -> tuple[Image, list[bytes]]:
    return volume(sorted((CT / "totalseg" / "example_ct_dicom").glob("CT.*")))


def test_a_segmentation_whose_frames_are_in_reverse_order(slices):
    image, files = slices
    path = CT / "dcmqi" / "liver.dcm"
    mask = read_mask(path.read_bytes(), image, files, Structures(("liver",), (1,)), LARGE)
    theirs = hd.seg.segread(path).get_volume(combine_segments=True)
    assert theirs.affine[2, 0] < 0 < image.affine[2, 0]  # theirs falls, ours rises
    # Theirs has columns rise to the left and rows to the back.
    assert np.array_equal(mask, theirs.array[::-1, ::-1, ::-1])
    assert 0 < image.pixels[mask == 1].mean() < 200  # CT numbers of a liver, whatever was given to drink


def test_segments_that_overlap_are_refused_unless_they_are_one_structure(slices):
    image, files = slices
    data = (CT / "dcmqi" / "partial_overlaps.dcm").read_bytes()
    with pytest.raises(Refused) as refused:
        read_mask(data, image, files, Structures(tuple("abcde"), (1, 2, 3, 4, 5)), LARGE)
    assert refused.value.refusal.reason == "mask_values"
    assert refused.value.refusal.detail == "segments of different structures overlap at 3134 pixels"
    union = hd.seg.Segmentation.from_dataset(hd.seg.segread(CT / "dcmqi" / "partial_overlaps.dcm")).get_volume()
    mask = read_mask(data, image, files, Structures(("any",)), LARGE)
    assert mask.sum() == union.array.any(axis=-1).sum()


def test_a_label_map_in_nifti_on_a_series_in_dicom(chest):
    image, files = chest
    path = CT / "totalseg" / "example_seg_dicom.nii.gz"
    values = np.asarray(nib.load(path).dataobj)
    named = {5: "liver", 20: "colon", 69: "humerus"}
    mask = read_mask(path.read_bytes(), image, files, Structures(tuple(named.values()), tuple(named), False), LARGE)
    assert mask.shape == image.pixels.shape == (20, 512, 512)
    for index, value in enumerate(named, start=1):
        assert (mask == index).sum() == (values == value).sum() > 0
    # Bone is brighter than soft tissue, and gas darker, only where the two lie on each other.
    liver, colon, bone = (float(np.median(image.pixels[mask == index])) for index in (1, 2, 3))
    assert colon < 0 < liver < bone
    with pytest.raises(Refused) as refused:
        read_mask(path.read_bytes(), image, files, Structures(("liver",), (5,)), LARGE)
    assert refused.value.refusal.detail.startswith("30 not named: 1, 6, 7, 8, 20 ...")


def test_a_mask_of_other_slices_is_refused(slices, chest):
    with pytest.raises(Refused) as refused:
        read_mask((CT / "dcmqi" / "liver.dcm").read_bytes(), *chest, Structures(("liver",), (1,)), LARGE)
    assert refused.value.refusal.reason == "mask_reference"
    nifti = (CT / "totalseg" / "example_seg_dicom.nii.gz").read_bytes()
    with pytest.raises(Refused) as refused:
        read_mask(nifti, *slices, Structures(("any",)), LARGE)
    assert refused.value.refusal.reason in ("mask_size", "mask_position")
    assert "512" in refused.value.refusal.detail


def test_hippocampus():
    for path in sorted((REAL / "hippocampus_nifti" / "images").iterdir())[:8]:
        image = read_image(path.read_bytes(), LARGE)
        mask = read_mask(
            (REAL / "hippocampus_nifti" / "masks" / path.name).read_bytes(),
            image,
            [],
            Structures(("front", "back"), (1, 2)),
            LARGE,
        )
        array = render(image, Rendering((40, 64, 48), (1.0, 1.0, 1.0), 0.5, 99.5))
        shown = array.of_image(mask, 255)
        assert [(shown == n).sum() for n in (1, 2)] == [(mask == n).sum() for n in (1, 2)]
        assert np.array_equal(array.to_image(shown), mask)
        front, back = (np.argwhere(mask == n).mean(axis=0) for n in (1, 2))
        assert front[1] > back[1]  # indices rise to the front


def test_vessels():
    path = REAL / "fundus_vessels" / "images" / "Image_03L.jpg"
    image = read_image(path.read_bytes(), LARGE)
    file = REAL / "fundus_vessels" / "masks" / "Image_03L.png"
    mask = read_mask(file.read_bytes(), image, [], Structures(("vessel",)), POLICY)
    assert np.array_equal(mask, np.asarray(pillow.open(file).convert("L")) > 0)
    inside = image.pixels > 30
    assert image.pixels[inside & (mask == 1)].mean() < image.pixels[inside & (mask == 0)].mean()  # vessels are dark
