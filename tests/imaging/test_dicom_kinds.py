"""Kinds of DICOM files that look like pictures and are none, and pictures that are written in unusual ways."""

import io
from dataclasses import replace

import numpy as np
import pytest
from imaging.files import POLICY, gradient, make_dataset, make_dicom, to_bytes
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.imaging.image import Image, Part
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import load_image, read_image
from pipeline.imaging.volumes.assemble import read_series
from pipeline.stages.preprocess import NO_LIMITS

MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
MG_PROCESSING, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
REPORT, PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.11.1"
PLACED = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "SliceThickness": 2}


def reason(data, policy=POLICY) -> str:
    try:
        read_image(data, policy)
    except Refused as refused:
        return refused.refusal.reason
    return ""


@pytest.mark.parametrize("code", ["MOSAIC", "MONTAGE"])
def test_many_slices_tiled_in_one_picture_are_no_slice(code):
    assert (
        reason(make_dicom(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", code], Modality="MR", SOPClassUID=MR))
        == "mosaic"
    )


def test_a_mosaic_is_known_by_the_makers_mark_too():
    dataset = make_dataset(gradient(), Modality="MR", SOPClassUID=MR)
    dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    dataset.add_new(0x0019100A, "US", 36)
    assert reason(to_bytes(dataset)) == "mosaic"


@pytest.mark.parametrize("kind", ["P", "PHASE MAP", "R", "I", "REAL", "IMAGINARY"])
def test_phase_and_its_like_are_refused_unless_named(kind):
    file = make_dicom(ImageType=["ORIGINAL", "PRIMARY", kind, "ND"])
    assert reason(file) == "image_type"
    assert reason(file, replace(POLICY, image_types=(kind,))) == ""
    magnitude = make_dicom(ImageType=["ORIGINAL", "PRIMARY", "M", "ND"])
    assert reason(magnitude) == ""
    assert reason(magnitude, replace(POLICY, image_types=("P",))) == "image_type"
    assert reason(make_dicom(ImageType=["ORIGINAL", "PRIMARY"]), replace(POLICY, image_types=("M",))) == ""
    assert reason(make_dicom(ComplexImageComponent="PHASE")) == "image_type"


@pytest.mark.parametrize(
    "elements", [{"PresentationIntentType": "FOR PROCESSING"}, {"SOPClassUID": MG_PROCESSING, "Modality": "MG"}]
)
def test_raw_values_for_processing_are_refused_by_default(elements):
    assert reason(make_dicom(**elements)) == "for_processing"
    assert reason(make_dicom(**elements), replace(POLICY, accept_for_processing=True)) == ""
    assert reason(make_dicom(PresentationIntentType="FOR PRESENTATION")) == ""


@pytest.mark.parametrize(
    "elements",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        {"ImageType": ["A", "B", "M"]},
    ],
)
def test_what_ingest_accepted_preprocess_reads(elements):
    file = make_dicom(**elements)
    accepted = replace(POLICY, accept_for_processing=True, image_types=("P", "M"))
    seen = read_image(file, accepted)
    assert np.array_equal(load_image([file], 2, seen.pixel_hash(), NO_LIMITS).pixels, seen.pixels)


@pytest.mark.parametrize("sop_class", [REPORT, PRESENTATION_STATE])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_report_that_carries_rows_is_no_damaged_image(sop_class, pixels):
    dataset = make_dataset(gradient(), SOPClassUID=sop_class, Modality="SR")
    if not pixels:
        del dataset.PixelData
    assert reason(to_bytes(dataset)) == "not_an_image"


def test_values_in_the_upper_bits_are_shifted_down():
    shifted = make_dataset((gradient() << 4).astype(np.uint16))
    shifted.HighBit = 15
    as_usual = read_image(make_dicom(), POLICY)
    assert np.array_equal(read_image(to_bytes(shifted), POLICY).pixels, as_usual.pixels)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_a_file_without_preamble_is_read_and_says_so(syntax, meta):
    little = syntax.is_little_endian
    dataset = make_dataset(gradient() if little else gradient().byteswap(), TransferSyntaxUID=syntax)
    whole = io.BytesIO()
    dcmwrite(whole, dataset, enforce_file_format=True)
    bare = whole.getvalue()[132:]
    if not meta:
        bare = bare[bare.index(b"\x08\x00\x16\x00" if little else b"\x00\x08\x00\x16") :]
    image = read_image(bare, POLICY)
    assert np.array_equal(image.pixels, read_image(make_dicom(), POLICY).pixels)
    assert isinstance(image, Image)
    assert "no_preamble" in image.flags
    assert np.array_equal(image.pixels, read_image(make_dicom(), POLICY).pixels)


@pytest.mark.parametrize(
    "data", [b"\x08\x00\x16\x00" + bytes(200), b"\x02\x00" + b"text " * 50, b"\x08\x00UI\x04\x001.2\0"]
)
def test_what_only_begins_like_a_data_set_is_unknown(data):
    assert reason(data) == "unknown_format"


def test_pixels_that_are_not_square_are_made_square_where_nothing_else_tells():
    image = read_image(make_dicom(gradient(40, 48), PixelAspectRatio=[2, 1]), POLICY)
    assert image.pixels.shape == (80, 48)
    assert "aspect_corrected" in image.flags
    spaced = read_image(make_dicom(gradient(40, 48), PixelAspectRatio=[2, 1], PixelSpacing=[1, 1]), POLICY)
    assert spaced.pixels.shape == (40, 48)
    assert read_image(make_dicom(gradient(40, 48), PixelAspectRatio=[1, 1]), POLICY).pixels.shape == (40, 48)
    assert reason(make_dicom(gradient(40, 48), PixelAspectRatio=[1, 1_000_000])) == "too_large"


def test_enhanced_objects_of_one_frame_each_are_the_slices_of_a_volume():
    files = []
    for z in range(6):
        group = Dataset()
        for macro, elements in (
            ("PlanePositionSequence", {"ImagePositionPatient": [0, 0, 2 * z]}),
            ("PlaneOrientationSequence", {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
            ("PixelMeasuresSequence", {"PixelSpacing": [1, 1], "SliceThickness": 2}),
            ("PixelValueTransformationSequence", {"RescaleSlope": 2, "RescaleIntercept": -100, "RescaleType": "US"}),
        ):
            item = Dataset()
            for keyword, value in elements.items():
                setattr(item, keyword, value)
            setattr(group, macro, [item])
        uids = {"SOPInstanceUID": f"2.25.{z + 1}", "SeriesInstanceUID": "2.25.99"}
        groups = {"NumberOfFrames": 1, "PerFrameFunctionalGroupsSequence": [group]}
        files.append(make_dicom(SOPClassUID=ENHANCED_MR, Modality="MR", **uids, **groups))
    parts = [read_image(file, POLICY) for file in files]
    assert {part.series for part in parts if isinstance(part, Part)} == {"2.25.99"}
    (volume,), refused = read_series([(str(z), file) for z, file in enumerate(files)], POLICY)
    assert refused == []
    assert volume.image.pixels.shape[0] == 6
    assert volume.image.pixels.min() == -100
    assert volume.image.pixels.max() == pytest.approx(2 * 4095 - 100)


def test_what_fills_a_ct_outside_of_its_circle_is_padding():
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    body = np.where(x**2 + y**2 < 1, 300 * x, 0).astype(np.int16)
    filled = np.where(x**2 + y**2 < 1, body, -3024).astype(np.int16)
    files = [
        make_dicom(filled, SOPClassUID=CT, Modality="CT", BitsStored=16, SOPInstanceUID=f"2.25.{z + 1}",
                   SeriesInstanceUID="2.25.9", ImagePositionPatient=[0, 0, 2 * z], **PLACED)
        for z in range(4)
    ]  # fmt: skip
    (volume,), _ = read_series([(str(z), file) for z, file in enumerate(files)], POLICY)
    assert volume.image.pixels.min() >= -300
    assert "outside_masked" in volume.image.flags
    assert volume.image.valid is not None
