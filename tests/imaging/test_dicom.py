"""DICOM in: every dialect gives an image or a reason, and no header text comes along."""

import importlib.util
import io
import warnings
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from imaging.files import POLICY, gradient, make_dataset, make_dicom, make_jpeg_dicom, to_bytes
from PIL import Image as pillow
from pydicom import dcmread
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless

from pipeline.imaging.formats.decoding import decode
from pipeline.imaging.formats.dicom import PIXEL_ELEMENTS, read_dicom
from pipeline.imaging.image import Part
from pipeline.imaging.quarantine import REASONS, Refused
from pipeline.imaging.read import read_image

OPEN_POLICY = replace(POLICY, accept_burned_in=True, accept_secondary_capture=True, min_side=1)


def bundled(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def reason(data: bytes, policy=POLICY) -> str:
    with pytest.raises(Refused) as refused:
        read_image(data, policy)
    return refused.value.refusal.reason


def test_every_file_of_pydicom_gives_an_image_or_a_reason():
    verdicts = Counter()
    for path in (Path(name) for name in get_testdata_files()):
        if not path.is_file():
            continue
        try:
            found = read_image(path.read_bytes(), OPEN_POLICY)
            assert isinstance(found, Part) or np.isfinite(found.pixels).all()
            verdicts["part" if isinstance(found, Part) else "accepted"] += 1
        except Refused as refused:
            verdicts[refused.refusal.reason] += 1
    assert verdicts["accepted"] >= 8
    assert verdicts["part"] >= 30
    assert verdicts["not_an_image"] >= 50
    assert set(verdicts) <= {*REASONS, "accepted", "part"}


def pixel_files() -> list[Path]:
    """Return every different file with pixel data that pydicom brings, and its larger collection when installed."""
    names = {Path(name) for name in get_testdata_files()}
    collection = importlib.util.find_spec("data_store")
    if collection is not None and collection.origin is not None:
        names |= {path for path in Path(collection.origin).parent.rglob("*") if path.suffix not in (".py", ".pyc")}
    different = {path.read_bytes(): path for path in sorted(names) if path.is_file()}
    return [path for path in different.values() if _has_pixels(path)]


def _has_pixels(path: Path) -> bool:
    try:
        dataset = dcmread(path, force=True)
        return any(element in dataset for element in PIXEL_ELEMENTS)
    except Exception:
        return False


def test_nearly_all_pixels_of_the_collections_are_decoded():
    """As many as 240 of 253: the rest are cut off, or state no transfer syntax or no bits."""
    files = pixel_files()
    refused = Counter()
    for path in files:
        try:
            dataset = dcmread(path, force=True)
            if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
                raise Refused("unsupported_encoding")
            assert decode(dataset).size
        except Refused as error:
            refused[error.refusal.reason] += 1
    assert len(files) >= 90
    assert len(files) - sum(refused.values()) >= 240 / 253 * len(files), refused


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reportsi.dcm", "not_an_image"),
        ("rtplan.dcm", "not_an_image"),
        ("DICOMDIR", "not_an_image"),
        ("SC_rgb_rle_2frame.dcm", "multi_frame"),
        ("SC_rgb_small_odd.dcm", "colour"),
        ("ExplVR_LitEndNoMeta.dcm", "not_an_image"),
    ],
)
def test_what_is_no_grey_picture_has_its_reason(name, expected):
    assert reason(bundled(name), OPEN_POLICY) == expected


def test_the_nuclear_medicine_jpeg_2000_equals_the_decoder_and_its_window():
    image = read_image(bundled("JPEG2000.dcm"), OPEN_POLICY)
    dataset = dcmread(str(get_testdata_file("JPEG2000.dcm", download=False)))
    stored = pixel_array(dataset)
    assert image.pixels.shape == stored.shape
    assert image.about.modality == "NM"
    order = np.argsort(stored, axis=None, kind="stable")
    assert (np.diff(image.pixels.ravel()[order]) >= 0).all()


def test_a_12_bit_image_comes_out_unchanged():
    pixels = gradient()
    image = read_dicom(make_dicom(pixels), POLICY)
    assert image.pixels.dtype == np.float32
    assert np.array_equal(image.pixels, pixels)
    assert image.about.bits_stored == 12


def test_transfer_syntaxes_of_the_same_pixels_give_the_same_hash():
    plain = make_dataset(gradient())
    reference = read_dicom(to_bytes(plain), POLICY).pixel_hash()
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"):
        plain.file_meta.TransferSyntaxUID = syntax
        assert read_dicom(to_bytes(plain), POLICY).pixel_hash() == reference
    compressed = make_dataset(gradient())
    compressed.compress(RLELossless)
    assert read_dicom(to_bytes(compressed), POLICY).pixel_hash() == reference


@pytest.fixture
def jpeg() -> bytes:
    stream = io.BytesIO()
    pillow.fromarray((gradient() // 16).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def test_a_jpeg_in_dicom_is_decoded_as_pillow_does(jpeg):
    image = read_dicom(make_jpeg_dicom(jpeg, 40, 48), POLICY)
    assert np.array_equal(image.pixels, np.asarray(pillow.open(io.BytesIO(jpeg))))


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.98])
def test_a_truncated_jpeg_is_damaged(jpeg, kept):
    assert reason(make_jpeg_dicom(jpeg[: int(len(jpeg) * kept)], 40, 48)) == "damaged_pixels"


def test_a_jpeg_of_another_size_than_the_header_says_is_not_decoded(jpeg):
    assert reason(make_jpeg_dicom(jpeg, 400, 480)) == "damaged_pixels"


def test_a_second_file_behind_the_first_is_not_passed_over():
    one = make_dicom(gradient())
    assert reason(one + one, POLICY) == "multi_frame"
    assert read_dicom(one + b"DICM and no more", POLICY).pixels.shape == (40, 48)


def test_a_backslash_in_an_identifier_is_a_part_of_it():
    assert read_dicom(make_dicom(PatientID="A\\B"), POLICY).about.identity.patient == "A\\B"


def test_native_pixels_cut_short_are_damaged():
    assert reason(make_dicom(PixelData=gradient().tobytes()[:-100])) == "damaged_pixels"


def test_equal_colour_channels_are_grey_and_different_ones_are_not():
    grey = (gradient() // 16).astype(np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    equal = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(read_dicom(make_dicom(grey, PixelData=equal.tobytes(), **colour), POLICY).pixels, grey)
    tinted = equal.copy()
    tinted[3, 5, 1] += 1
    assert reason(make_dicom(grey, PixelData=tinted.tobytes(), **colour)) == "colour"


def test_policy_decides_on_secondary_captures_burned_in_text_and_modalities():
    capture = make_dicom(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    burned = make_dicom(BurnedInAnnotation="YES")
    assert reason(capture) == "secondary_capture"
    assert reason(burned) == "burned_in_text"
    assert read_dicom(capture, OPEN_POLICY).about.format == "dicom"
    assert read_dicom(burned, OPEN_POLICY).about.format == "dicom"
    assert reason(make_dicom(Modality="MG"), replace(POLICY, modalities=("DX", "CR"))) == "modality"


def test_limits_on_size():
    assert reason(make_dicom(), replace(POLICY, max_pixel_bytes=1000)) == "too_large"
    assert reason(make_dicom(), replace(POLICY, min_side=41)) == "too_small"


def test_a_deflated_bomb_is_refused_before_it_unfolds():
    data = make_dicom(TransferSyntaxUID="1.2.840.10008.1.2.1.99")
    start = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(wbits=-15)
    bomb = data[:start] + deflater.compress(bytes(200_000_000)) + deflater.flush()
    assert len(bomb) < 300_000
    assert reason(bomb) == "too_large"


@pytest.mark.parametrize("preamble", [b"MZ", b"\x7fELF", b"#!/bin/sh\n", b"%PDF-1.4"])
def test_a_file_that_is_also_a_program_or_document_is_refused(preamble):
    assert reason(preamble + make_dicom()[len(preamble) :]) == "suspicious_preamble"


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"Rows": None}, "damaged_header"),
        ({"SamplesPerPixel": 3}, "damaged_header"),
        ({"SamplesPerPixel": None}, "damaged_header"),
        ({"PixelRepresentation": None}, "damaged_header"),
        ({"PhotometricInterpretation": "Musterfrau^Erika"}, "unsupported_encoding"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "bad_values"),
        ({"PixelData": None, "BitsAllocated": None}, "damaged_pixels"),
        ({"PixelData": None, "Rows": None}, "not_an_image"),
    ],
)
def test_headers_that_contradict_themselves(elements, expected):
    dataset = make_dataset(gradient())
    for keyword, value in elements.items():
        delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
    assert reason(to_bytes(dataset)) == expected


def test_only_listed_values_come_out_of_a_header():
    image = read_dicom(
        make_dicom(
            PatientSex="Erika",
            PatientAge="097Y",
            ViewPosition="Erika",
            BodyPartExamined="Erika's chest",
            Manufacturer="Erika Imaging",
            Modality="ERIKA",
            Laterality="ERIKA",
            PatientName="Musterfrau^Erika",
            ImageComments="Erika",
            PixelSpacing=[0.2, 0.1],
        ),
        POLICY,
    )
    about = image.about
    assert (about.sex, about.view, about.laterality) == ("", "", "")
    assert (about.body_part, about.manufacturer, about.modality) == ("OTHER", "OTHER", "OTHER")
    assert about.age_years == 90
    assert image.spacing_mm == (0.2, 0.1)
    assert "erika" not in repr(image).lower()


def test_spacing_at_the_detector_is_divided_by_the_magnification():
    data = make_dicom(ImagerPixelSpacing=[0.3, 0.3], EstimatedRadiographicMagnificationFactor=1.5)
    assert read_dicom(data, POLICY).spacing_mm == pytest.approx((0.2, 0.2))
    assert "spacing_unknown" in read_dicom(make_dicom(), POLICY).flags


def test_refusals_and_warnings_quote_nothing_of_a_damaged_header():
    """Every byte of a header is damaged in turn; whatever fails, the name inside is not repeated."""
    data = make_dicom(PatientName="Musterfrau^Erika", PatientID="Musterfrau", Manufacturer="Musterfrau")
    generator = np.random.default_rng(3)
    refusals: list[Refused] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # as in a worker
        for _ in range(300):
            mutant = bytearray(data)
            for at in generator.integers(132, 700, 3):
                mutant[at] = generator.integers(256)
            try:
                read_image(bytes(mutant), POLICY)
            except Refused as error:
                refusals.append(error)
    assert len(refusals) > 50
    assert not any("Muster" in repr(error.refusal) or error.__cause__ for error in refusals)
    assert not caught
