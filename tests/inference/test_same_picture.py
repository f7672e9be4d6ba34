"""One picture, whatever file it comes in, gets one score."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.imaging.files import make_dataset, to_bytes

TOP = 4095


@pytest.fixture(scope="module")
def film(hog) -> np.ndarray:
    """A radiograph of the demo as 12-bit grey values, uint16."""
    with zipfile.ZipFile(hog.studies) as archive:
        name = sorted(archive.namelist())[0]
        pixels = pydicom.dcmread(io.BytesIO(archive.read(name))).pixel_array
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    return np.round(grey.astype(np.float64) * TOP / 255).astype(np.uint16)


def dicom(pixels: np.ndarray, syntax=None, frame: bytes | None = None, **elements) -> bytes:
    dataset = make_dataset(pixels, BitsStored=12, StudyInstanceUID="2.25.7", **elements)
    if frame is not None:
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    return to_bytes(dataset)


def rle(pixels: np.ndarray) -> bytes:
    dataset = make_dataset(pixels, BitsStored=12, StudyInstanceUID="2.25.7")
    dataset.compress(RLELossless)
    return to_bytes(dataset)


def big_endian(pixels: np.ndarray) -> bytes:
    dataset = make_dataset(pixels, BitsStored=12, StudyInstanceUID="2.25.7", TransferSyntaxUID=ExplicitVRBigEndian)
    dataset.PixelData = pixels.astype(">u2").tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=False)
    return stream.getvalue()


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == ".npy":
        np.save(stream, pixels)
    else:
        Pillow.fromarray(pixels).save(stream, format={".png": "PNG", ".tif": "TIFF", ".pgm": "PPM"}[suffix])
    return stream.getvalue()


WRITERS = {
    "implicit.dcm": lambda p: dicom(p, ImplicitVRLittleEndian),
    "deflated.dcm": lambda p: dicom(p, DeflatedExplicitVRLittleEndian),
    "big_endian.dcm": big_endian,
    "jpeg_lossless.dcm": lambda p: dicom(p, JPEGLosslessSV1, imagecodecs.ljpeg_encode(p, bitspersample=12)),
    "jpeg_ls.dcm": lambda p: dicom(p, JPEGLSLossless, imagecodecs.jpegls_encode(p)),
    "jpeg_2000.dcm": lambda p: dicom(
        p, JPEG2000Lossless, imagecodecs.jpeg2k_encode(p, level=0, reversible=True, codecformat="j2k", bitspersample=12)
    ),
    "rle.dcm": rle,
    "monochrome1.dcm": lambda p: dicom((TOP - p).astype(np.uint16), PhotometricInterpretation="MONOCHROME1"),
    "rescaled.dcm": lambda p: dicom(p, RescaleSlope=2, RescaleIntercept=-100),
    "film.png": lambda p: encoded(p, ".png"),
    "film.tif": lambda p: encoded(p, ".tif"),
    "film.pgm": lambda p: encoded(p, ".pgm"),
    "film.npy": lambda p: encoded(p, ".npy"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_picture_in_another_file_gets_the_same_score(hog, film, tmp_path, name):
    model = hog.load()
    (tmp_path / "plain.dcm").write_bytes(dicom(film))
    (tmp_path / name).write_bytes(WRITERS[name](film))
    wanted, found = (model.read([tmp_path / one]) for one in ("plain.dcm", name))
    assert not found.refused
    arrays = [one.to_array(model.rendering) for one in (wanted, found)]
    logits = [model.ensemble.logits(array) for array in arrays]
    assert np.abs(logits[0] - logits[1]).max() < 1e-6
    if name != "rescaled.dcm":
        assert (arrays[0] == arrays[1]).all()


def test_a_window_of_the_header_is_part_of_the_picture_and_no_other_format_carries_it(hog, film, tmp_path):
    """What predict.md's docs say: files that cannot hold a window are scored without."""
    (tmp_path / "windowed.dcm").write_bytes(dicom(film, WindowCenter=1800, WindowWidth=2400))
    (tmp_path / "film.png").write_bytes(encoded(film, ".png"))
    model = hog.load()
    with_window, without = (model.read([tmp_path / n]).to_array(model.rendering) for n in ("windowed.dcm", "film.png"))
    assert (with_window != without).any()
    shown = np.clip(film.astype(np.float64), 600, 3000).round().astype(np.uint16)
    (tmp_path / "shown.png").write_bytes(encoded(shown, ".png"))
    again = model.read([tmp_path / "shown.png"]).to_array(model.rendering)
    assert np.abs(again.astype(int) - with_window.astype(int)).max() <= 1


def test_the_volume_of_a_series_and_of_a_nifti_file_are_one_array(tmp_path):
    from pipeline.imaging.image import Policy
    from pipeline.imaging.transforms import Rendering
    from pipeline.inference.study import read_study

    nib = pytest.importorskip("nibabel")
    policy = Policy(max_file_bytes=1 << 24, max_pixel_bytes=1 << 24, min_side=8)
    voxels = np.random.default_rng(2).integers(0, 900, (6, 20, 24)).astype(np.uint16)
    for z, plane in enumerate(voxels):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 3.0 * z]}
        uids = {"SOPInstanceUID": f"2.25.8{z}", "SeriesInstanceUID": "2.25.81", "StudyInstanceUID": "2.25.82"}
        slices = {"Modality": "MR", "PixelSpacing": [0.8, 0.7], "SliceThickness": 3}
        file = to_bytes(make_dataset(plane, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", **place, **uids, **slices))
        (tmp_path / f"{z}.dcm").write_bytes(file)
    # The same in NIfTI's coordinates: x and y rise to the right and the front instead of left and back.
    affine = np.diag([-0.7, -0.8, 3.0, 1.0])
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    nib.save(image, tmp_path / "volume.nii.gz")
    how = Rendering((8, 16, 16), None, 0.5, 99.5)
    series = read_study(sorted(tmp_path.glob("*.dcm")), policy)
    whole = read_study([tmp_path / "volume.nii.gz"], policy)
    assert len(series.images) == len(whole.images) == 1
    assert (series.to_array(how) == whole.to_array(how)).all()
    assert Path(series.images[0].files[0]).suffix == ".dcm"
