"""DICOM files: an allow-list of header elements in, one checked image out."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pillow
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pipeline.imaging import vocabulary
from pipeline.imaging.channels import of_description
from pipeline.imaging.colour import Planes, planes_of, to_srgb
from pipeline.imaging.display import Display, display
from pipeline.imaging.formats.decoding import COLOUR, GREY, check_size, contradicts, decode, frame_count, integer
from pipeline.imaging.formats.dicom_geometry import GEOMETRY_ELEMENTS
from pipeline.imaging.grid import Grid
from pipeline.imaging.image import BYTES_PER_PIXEL, LARGEST_SPACING_MM, About, Identity, Image, Part, Policy
from pipeline.imaging.quarantine import Refused

PREFIX_OFFSET = 128
BEGINS = b"DICM\x02\x00\x00\x00UL\x04\x00"
FILE_META_GROUP, TRANSFER_SYNTAX_TAG = b"\x02\x00", b"\x02\x00\x10\x00"
LONG_VRS = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR", b"OV", b"SV", b"UV")
EXECUTABLE_PREAMBLES = (b"MZ", b"\x7fELF", b"#!", b"%PDF", b"PK", b"\xca\xfe\xba\xbe", b"<")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Objects with pixel data that are no pictures: segmentations, dose, parametric and tractography maps.
NOT_IMAGES = ("SegmentationStorage", "RTDoseStorage", "ParametricMapStorage", "SurfaceSegmentationStorage")
IMAGE_ELEMENTS = tuple(
    "PresentationIntentType ComplexImageComponent PixelAspectRatio "
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType StudyDate AcquisitionDate "
    "PatientID PatientBirthDate PatientSex PatientAge InstitutionName Manufacturer ViewPosition Laterality "
    "ImageLaterality BodyPartExamined "
    "BurnedInAnnotation SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelSpacing ImagerPixelSpacing "
    "EstimatedRadiographicMagnificationFactor PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence "
    "RescaleSlope RescaleIntercept VOILUTSequence WindowCenter WindowWidth VOILUTFunction PresentationLUTShape "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData "
    "ICCProfile PixelData FloatPixelData DoubleFloatPixelData".split()
)
ELEMENTS = tuple(dict.fromkeys((*IMAGE_ELEMENTS, *GEOMETRY_ELEMENTS)))
# Siemens writes the number of slices of a mosaic here; nothing else is known by a private element.
MOSAIC_TAG = Tag(0x0019100A)
MOSAIC_CODES = ("MOSAIC", "MONTAGE")
PHASE_CODES = ("P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "VELOCITY", "VELOCITY MAP")
# Read in a task of several channels alone. The description is free text: a channel's name is all that becomes of it.
CHANNEL_TAGS = (Tag("SeriesDescription"), Tag("FrameOfReferenceUID"))
TAG_OF = {element: Tag(element) for element in ELEMENTS}
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(data: bytes) -> bool:
    """Say whether the bytes start like a DICOM file (PS3.10 7.1), or like a data set without its preamble."""
    return data[PREFIX_OFFSET : PREFIX_OFFSET + 4] == b"DICM" or is_bare(data)


def is_bare(data: bytes) -> bool:
    """Say whether the bytes start with elements of group 2 or 8 that parse, as written before there were preambles."""
    if (
        data[:2] not in (FILE_META_GROUP, b"\x08\x00", b"\x00\x08")
        or data[PREFIX_OFFSET : PREFIX_OFFSET + 4] == b"DICM"
    ):
        return False
    try:
        head = dcmread(io.BytesIO(data), force=True, stop_before_pixels=True, specific_tags=["SOPClassUID", "Modality"])
        return UID(str(head.get("SOPClassUID", ""))).is_valid and bool(head.get("Modality"))
    except Exception:
        return False


def study_of(data: bytes) -> tuple[str, str]:
    """Return the patient's identifier and the Study Instance UID of a DICOM file; empty texts where there are none."""
    try:
        wanted = ["PatientID", "StudyInstanceUID"]
        header = dcmread(io.BytesIO(data), force=True, stop_before_pixels=True, specific_tags=wanted)
        return _text(header, "PatientID"), _text(header, "StudyInstanceUID")
    except Exception:
        return "", ""


def read_dicom(data: bytes, policy: Policy) -> Image | Part:
    """Read the one image of a DICOM file. A colour image whose channels are equal is a grey one.

    What belongs to a volume comes back as a Part, its pixels not decoded: frames whose places the header states, and,
    when the policy assembles slices, slices of CT, MR and PET. Only the elements of ELEMENTS are parsed; nothing else
    of the header can reach an output.

    Raises Refused.
    """
    dataset = parse(data, policy)
    try:
        _refuse_second_file(dataset, data)
        about = about_image(dataset)
        check(dataset, about, policy)
        series = _series(dataset, about, policy)
        if series and policy.joins and not policy.joins_files:
            return _channel_part(dataset, about, series, policy)
        if series:
            return Part(about, series)
        return _image(decode(dataset), dataset, about, policy)
    except Refused:
        raise
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None


def _refuse_second_file(dataset: Dataset, data: bytes) -> None:  # one inside the header lies before the pixels
    pixels = next((dataset.get_item(TAG_OF[name]) for name in PIXEL_ELEMENTS if TAG_OF[name] in dataset), None)
    if pixels is not None and data.find(BEGINS, getattr(pixels, "value_tell", 0) + 1) > PREFIX_OFFSET:
        raise Refused("multi_frame", "more than one DICOM file in one")


def _channel_part(dataset: Dataset, about: About, series: str, policy: Policy) -> Part:
    """Return a part of a study with several channels. Raises Refused for a series that is none of them."""
    channel = of_description(_free_text(dataset, "SeriesDescription"), policy.channels)
    study = about.identity.study_uid
    return Part(about, f"channels\0{study}" if study else series, channel, series)


def _free_text(dataset: Dataset, keyword: str) -> str:
    """Return an element that is read for channels alone; nothing where it is missing."""
    return str(dataset.get(keyword, "") or "").strip() if Tag(keyword) in dataset else ""


def parse(data: bytes, policy: Policy) -> Dataset:
    """Return the elements of ELEMENTS.

    Raises Refused when the header cannot be read or the file is a program, document or archive as well.
    """
    more = CHANNEL_TAGS if policy.joins else ()
    dataset = _elements(data, policy, [*TAG_OF.values(), MOSAIC_TAG, *more])
    if "TransferSyntaxUID" not in dataset.file_meta and is_bare(data):
        implicit, little = dataset.original_encoding
        little_endian = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = little_endian if little else ExplicitVRBigEndian
    return dataset


def read_header(data: bytes, policy: Policy, keywords: Sequence[str]) -> Dataset:
    """Return these elements of a file, for what goes back to where the file came from: identity stays in them.

    Raises Refused as `parse` does.
    """
    return _elements(data, policy, [Tag(keyword) for keyword in keywords])


def header_of_file(path: Path, keywords: Sequence[str]) -> Dataset:
    """Return these elements of a file, without reading what lies behind them into memory. Raises ValueError."""
    try:
        return dcmread(path, specific_tags=[Tag(keyword) for keyword in keywords], stop_before_pixels=True)
    except Exception as error:
        raise ValueError(f"no header that can be read: {type(error).__name__}") from None


def _elements(data: bytes, policy: Policy, tags: Sequence[BaseTag]) -> FileDataset:
    config.settings.reading_validation_mode = config.IGNORE
    if data.startswith(EXECUTABLE_PREAMBLES):
        raise Refused("suspicious_preamble")
    _check_inflated_size(data, policy)
    try:
        return dcmread(io.BytesIO(data), specific_tags=list(tags), force=is_bare(data))
    except MemoryError:
        raise Refused("too_large", "no memory to read") from None
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None


def _check_inflated_size(data: bytes, policy: Policy) -> None:
    """Inflate a deflated data set piece by piece, since pydicom would do it at once and without limit."""
    syntax, end = _file_meta(data)
    if syntax != DeflatedExplicitVRLittleEndian:
        return
    inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[end:]
    try:
        while rest:
            size += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
            if size > policy.max_file_bytes:
                raise Refused("too_large", "deflated data set")
    except zlib.error:
        raise Refused("damaged_header", "deflated data set") from None


def _file_meta(data: bytes) -> tuple[str, int]:
    """Return the transfer syntax, and where the data set begins: after the elements of group 2 (PS3.10 7.1).

    Their group length would say so too, but it can be wrong.
    """
    position, syntax = PREFIX_OFFSET + 4, ""
    while data[position : position + 2] == FILE_META_GROUP:
        tag, vr = data[position : position + 4], data[position + 4 : position + 6]
        header = 12 if vr in LONG_VRS else 8
        length = int.from_bytes(data[position + (8 if header == 12 else 6) : position + header], "little")
        if tag == TRANSFER_SYNTAX_TAG:
            syntax = data[position + header : position + header + length].decode("ascii", "replace").strip(" \0")
        position += header + length
    return syntax, position


def check(dataset: Dataset, about: About, policy: Policy) -> None:
    """Raise Refused when the header is not of an image, or of one that the policy does not accept."""
    sop_class = UID(_text(dataset, "SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    keyword = sop_class.keyword or "unknown class"
    if sop_class.keyword and "ImageStorage" not in keyword:
        raise Refused("not_an_image", keyword)
    if not any(TAG_OF[element] in dataset for element in PIXEL_ELEMENTS) or keyword in NOT_IMAGES:
        # pydicom returns what it has, or nothing, when a file ends inside an element.
        if TAG_OF["SOPClassUID"] not in dataset and "ImageStorage" in keyword:
            raise Refused("damaged_header", "cut off")
        if TAG_OF["Rows"] in dataset and keyword not in NOT_IMAGES:
            raise Refused("damaged_pixels", "cut off")
        raise Refused("not_an_image", keyword)
    # With the dot: visible light images, fundus photographs among them, begin with the same digits and 7 once more.
    if f"{sop_class}.".startswith(f"{SECONDARY_CAPTURE}.") and not policy.accept_secondary_capture:
        raise Refused("secondary_capture")
    if _text(dataset, "BurnedInAnnotation").upper() == "YES" and not policy.accept_burned_in:
        raise Refused("burned_in_text")
    kinds = _texts(dataset, "ImageType")
    if kinds[:1] == ["DERIVED"] and not policy.accept_derived:
        raise Refused("derived")
    if {*kinds} & {*MOSAIC_CODES} or MOSAIC_TAG in dataset:
        raise Refused("mosaic")
    _check_kind(dataset, kinds, policy)
    intent = _text(dataset, "PresentationIntentType").upper()
    if (intent == "FOR PROCESSING" or "ForProcessing" in keyword) and not policy.accept_for_processing:
        raise Refused("for_processing")
    if policy.modalities and about.modality not in policy.modalities:
        raise Refused("modality", about.modality or "none stated")
    check_size(dataset, policy.max_pixel_bytes)


def _check_kind(dataset: Dataset, kinds: list[str], policy: Policy) -> None:
    """Raise Refused for a kind of image that the policy does not accept, as the third value of ImageType names it."""
    if policy.accept_any_kind:
        return
    kind = kinds[2] if len(kinds) > 2 else ""
    component = _text(dataset, "ComplexImageComponent").upper()
    if policy.image_types:
        if kind and kind not in policy.image_types:
            raise Refused("image_type", kind if kind in PHASE_CODES else "another kind")
    elif kind in PHASE_CODES or component in PHASE_CODES:
        raise Refused("image_type", kind if kind in PHASE_CODES else component)


def _series(dataset: Dataset, about: About, policy: Policy) -> str:
    """Return what the parts of one volume have in common; nothing for an image of its own.

    Raises Refused for several frames without places.
    """
    frames, series = frame_count(dataset), about.identity.series_uid
    groups = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if frames > 1:
        if groups != frames:
            raise Refused("multi_frame", f"{frames} frames")
        return f"{series}\0{about.identity.sop_instance_uid}"
    if groups == 1 and policy.assemble_slices and _frame_is_placed(dataset):
        return series  # an enhanced object of one frame: others of its series are the other slices
    return series if policy.assemble_slices and about.modality in vocabulary.SINGLE_SLICE_MODALITIES else ""


def _frame_is_placed(dataset: Dataset) -> bool:
    return "PlanePositionSequence" in dataset.PerFrameFunctionalGroupsSequence[0]


def about_image(dataset: Dataset) -> About:
    """Return what the header says, each value from a closed list."""
    studied = vocabulary.day(_text(dataset, "StudyDate") or _text(dataset, "AcquisitionDate"))
    born = vocabulary.day(_text(dataset, "PatientBirthDate"))
    return About(
        format="dicom",
        bits_stored=integer(dataset, "BitsStored") or integer(dataset, "BitsAllocated"),
        identity=Identity(
            patient=_text(dataset, "PatientID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            series_uid=_text(dataset, "SeriesInstanceUID"),
            sop_instance_uid=_text(dataset, "SOPInstanceUID"),
            institution=_text(dataset, "InstitutionName"),
            frame_uid=_free_text(dataset, "FrameOfReferenceUID"),
            study_date=studied,
        ),
        modality=vocabulary.modality(_text(dataset, "Modality")),
        view=vocabulary.view(_text(dataset, "ViewPosition")),
        laterality=vocabulary.laterality(_text(dataset, "ImageLaterality") or _text(dataset, "Laterality")),
        body_part=vocabulary.body_part(_text(dataset, "BodyPartExamined")),
        manufacturer=vocabulary.manufacturer(_text(dataset, "Manufacturer")),
        photometric=_listed_photometric(dataset),
        sex=vocabulary.sex(_text(dataset, "PatientSex")),
        age_years=vocabulary.age_years(_text(dataset, "PatientAge"), born, studied),
    )


def _listed_photometric(dataset: Dataset) -> str:
    value = _text(dataset, "PhotometricInterpretation")
    return value if value in GREY + COLOUR else ""


def _image(stored: np.ndarray, dataset: Dataset, about: About, policy: Policy) -> Image:
    spacing_mm, flags = pixel_spacing(dataset)
    if stored.ndim == 3:
        converted: tuple[str, ...] = ()
        if policy.keep_colour and "ICCProfile" in dataset:
            stored, converted = to_srgb(stored, bytes(dataset.ICCProfile))
        planes = planes_of(stored, about.photometric, policy)
        shown = Display(planes.pixels, None, False, (*planes.flags, *converted))
    else:
        shown = display(stored, dataset)
        planes = Planes(shown.values)
    values, valid, colour, grid = shown.values, shown.valid, planes.colour, None
    ratio = _numbers(dataset, "PixelAspectRatio")
    if spacing_mm is None and ratio is not None and len(ratio) == 2 and min(ratio) > 0 and ratio[0] != ratio[1]:
        if values.size * max(ratio) / min(ratio) * BYTES_PER_PIXEL > policy.max_pixel_bytes:
            raise Refused("too_large", "pixels made square as PixelAspectRatio says")
        values, valid = _squared(values, *ratio), None if valid is None else _squared(valid, *ratio)
        colour = None if colour is None else np.stack([_squared(plane, *ratio) for plane in colour])
        flags, grid = (*flags, "aspect_corrected"), Grid.plain(values.shape, shown.values.shape)
    if isinstance(dataset, FileDataset) and dataset.preamble is None:
        flags = (*flags, "no_preamble")
    if colour is not None and contradicts(dataset):
        flags = (*flags, "photometric_contradicts")
    return Image(
        pixels=values,
        about=about,
        valid=valid,
        spacing_mm=spacing_mm,
        polarity_fixed=shown.inverted,
        flags=(*shown.flags, *flags),
        colour=colour,
        grid=grid,
    )


def _squared(picture: np.ndarray, vertical: float, horizontal: float) -> np.ndarray:
    """Return (H, W) values or mask with square pixels, the coarser axis resampled to the finer (PS3.3 C.7.6.3.1.7)."""
    rows, columns = picture.shape
    finest = min(vertical, horizontal)
    size = round(columns * horizontal / finest), round(rows * vertical / finest)
    if picture.dtype == bool:
        return np.asarray(pillow.fromarray(picture.astype(np.uint8)).resize(size, pillow.Resampling.NEAREST)) > 0
    return np.asarray(pillow.fromarray(picture).resize(size, pillow.Resampling.BILINEAR))


def pixel_spacing(dataset: Dataset) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Return row and column spacing in mm, calibrated, else at the detector over the magnification, and flags."""
    spacing_mm, flags = _numbers(dataset, "PixelSpacing"), ()
    if spacing_mm is None:
        spacing_mm, flags = _numbers(dataset, "ImagerPixelSpacing"), ("spacing_at_detector",)
        magnification = _numbers(dataset, "EstimatedRadiographicMagnificationFactor")
        if spacing_mm is not None and magnification is not None and magnification[0] > 0:
            spacing_mm, flags = tuple(value / magnification[0] for value in spacing_mm), ()
    if spacing_mm is None or len(spacing_mm) != 2 or not all(0 < value < LARGEST_SPACING_MM for value in spacing_mm):
        return None, ("spacing_unknown",)
    return spacing_mm, flags


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return the value of one of ELEMENTS; None when it is absent, which pydicom takes its time to find out by name."""
    return dataset.get(keyword) if TAG_OF[keyword] in dataset else None


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    value = _value(dataset, keyword)
    if value in (None, ""):
        return None
    try:
        numbers = tuple(float(part) for part in (value if hasattr(value, "__len__") else [value]))
    except (TypeError, ValueError):
        return None
    return numbers if numbers and all(math.isfinite(number) for number in numbers) else None


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)  # one value, as it was written
    return "" if value is None else text.strip().strip("\0")


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return the values of an element in capitals."""
    value = _value(dataset, keyword)
    values = [] if value is None else [value] if isinstance(value, str) else list(value)
    return [str(one).strip().upper() for one in values]
