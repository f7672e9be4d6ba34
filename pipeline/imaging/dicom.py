"""DICOM files: an allow-list of header elements in, one checked image out."""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from pipeline.imaging import vocabulary
from pipeline.imaging.codestream import is_complete, read_codestream
from pipeline.imaging.display import display
from pipeline.imaging.image import Identity, Image, Policy
from pipeline.imaging.verdicts import Refused

PREFIX_OFFSET = 128
EXECUTABLE_PREAMBLES = (b"MZ", b"\x7fELF", b"#!", b"%PDF", b"PK", b"\xca\xfe\xba\xbe", b"<")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Objects with pixel data that are no pictures: segmentations, dose, parametric and tractography maps.
NOT_IMAGES = ("SegmentationStorage", "RTDoseStorage", "ParametricMapStorage", "SurfaceSegmentationStorage")
ELEMENTS = tuple(
    "SOPClassUID SOPInstanceUID StudyInstanceUID Modality StudyDate AcquisitionDate PatientID PatientBirthDate "
    "PatientSex PatientAge InstitutionName Manufacturer ViewPosition Laterality ImageLaterality BodyPartExamined "
    "BurnedInAnnotation SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelSpacing ImagerPixelSpacing "
    "EstimatedRadiographicMagnificationFactor PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence "
    "RescaleSlope RescaleIntercept VOILUTSequence WindowCenter WindowWidth VOILUTFunction PresentationLUTShape "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData "
    "PixelData FloatPixelData DoubleFloatPixelData".split()
)
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
LARGEST_SPACING_MM = 100.0


def is_dicom(data: bytes) -> bool:
    """Say whether the bytes start like a DICOM file (PS3.10 7.1)."""
    return data[PREFIX_OFFSET : PREFIX_OFFSET + 4] == b"DICM"


def read_dicom(data: bytes, policy: Policy) -> Image:
    """Read the one grey image of a DICOM file.

    Only the elements of ELEMENTS are parsed; nothing else of the header can reach an output. A colour image whose
    channels are equal is a grey one.

    Raises Refused.
    """
    config.settings.reading_validation_mode = config.IGNORE
    if data.startswith(EXECUTABLE_PREAMBLES):
        raise Refused("suspicious_preamble")
    _check_inflated_size(data, policy)
    try:
        dataset = dcmread(io.BytesIO(data), specific_tags=[*ELEMENTS])
        _check_kind(dataset, policy)
        _check_size(dataset, policy)
    except Refused:
        raise
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None
    stored = _decode(dataset)
    try:
        return _image(stored, dataset)
    except Refused:
        raise
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None


def _check_inflated_size(data: bytes, policy: Policy) -> None:
    """Inflate a deflated data set piece by piece, since pydicom would do it at once and without limit."""
    length = int.from_bytes(data[140:144], "little") if data[132:136] == b"\x02\x00\x00\x00" else 0
    if DeflatedExplicitVRLittleEndian.encode() not in data[PREFIX_OFFSET : 144 + length]:
        return
    inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[144 + length :]
    try:
        while rest:
            size += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
            if size > policy.max_file_bytes:
                raise Refused("too_large", "deflated data set")
    except zlib.error:
        raise Refused("damaged_header", "deflated data set") from None


def _check_kind(dataset: Dataset, policy: Policy) -> None:
    sop_class = UID(str(dataset.get("SOPClassUID", "")))
    keyword = sop_class.keyword if sop_class in sop_class and sop_class.keyword else "unknown class"
    if not any(element in dataset for element in PIXEL_ELEMENTS) or keyword in NOT_IMAGES:
        raise Refused("not_an_image", keyword)
    if sop_class.startswith(SECONDARY_CAPTURE) and not policy.accept_secondary_capture:
        raise Refused("secondary_capture")
    if _text(dataset, "BurnedInAnnotation").upper() == "YES" and not policy.accept_burned_in:
        raise Refused("burned_in_text")
    modality = vocabulary.modality(_text(dataset, "Modality"))
    if policy.modalities and modality not in policy.modalities:
        raise Refused("modality", modality or "none stated")
    if (_integer(dataset, "NumberOfFrames") or 1) > 1:
        raise Refused("multi_frame", f"{_integer(dataset, 'NumberOfFrames')} frames")
    if modality in vocabulary.SINGLE_SLICE_MODALITIES:
        raise Refused("volume_slice", modality)


def _check_size(dataset: Dataset, policy: Policy) -> None:
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    samples, bits = _integer(dataset, "SamplesPerPixel") or 1, _integer(dataset, "BitsAllocated")
    photometric = _text(dataset, "PhotometricInterpretation")
    if rows < 1 or columns < 1 or bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise Refused("damaged_header", "rows, columns, samples or bits missing or impossible")
    if photometric not in GREY + COLOUR:
        raise Refused("unsupported_encoding", "photometric interpretation")
    if (photometric in GREY or photometric == "PALETTE COLOR") != (samples == 1):
        raise Refused("damaged_header", "samples per pixel contradict the photometric interpretation")
    size = rows * columns * samples * max(1, bits // 8)
    if size > policy.max_pixel_bytes:
        raise Refused("too_large", f"{rows} x {columns} pixels of {samples} x {bits} bits")


def _decode(dataset: Dataset) -> np.ndarray:
    """Return stored values of shape (H, W), or colour of shape (H, W, 3)."""
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Refused("unsupported_encoding", "transfer syntax missing or unknown") from None
    plugin = _check_frame(dataset, syntax)
    if not decoder.is_available or (plugin and plugin not in decoder.available_plugins):
        raise Refused("unsupported_encoding", f'{syntax.name}; pip install "maescreen[codecs]"')
    try:
        stored = pixel_array(dataset, decoding_plugin=plugin)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
    except MemoryError:
        raise Refused("too_large", "no memory to decode") from None
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    if stored.shape[:2] != (dataset.Rows, dataset.Columns):
        raise Refused("damaged_pixels", "size differs from the header")
    return stored


def _check_frame(dataset: Dataset, syntax: UID) -> str:
    """Compare a compressed frame with the header; return the decoder to use, or nothing for pydicom's first choice.

    The choice depends on the file only, so that what else is installed changes no pixel.
    """
    if syntax == RLELossless:
        return "pydicom"
    if syntax not in JPEGTransferSyntaxes + JPEGLSTransferSyntaxes + JPEG2000TransferSyntaxes:
        return ""
    try:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    if not is_complete(frame):
        raise Refused("damaged_pixels", "no end marker")
    stream = read_codestream(frame)
    if stream is None:
        raise Refused("damaged_pixels", "code stream without frame header")
    if (stream.rows, stream.columns) != (dataset.Rows, dataset.Columns):
        raise Refused("damaged_pixels", "code stream and header differ in size")
    if syntax == JPEGBaseline8Bit:
        return "pillow"
    if syntax in JPEG2000TransferSyntaxes:
        # Pillow shifts signed code streams by half the range when the header says unsigned.
        return "pylibjpeg" if stream.signed and not dataset.PixelRepresentation else "pillow"
    return ""


def _image(stored: np.ndarray, dataset: Dataset) -> Image:
    if stored.ndim == 3:
        if not (stored == stored[..., :1]).all():
            raise Refused("colour", _text(dataset, "PhotometricInterpretation"))
        pixels, valid, inverted, flags = stored[..., 0].astype(np.float32), None, False, ()
    else:
        pixels, valid, inverted, flags = display(stored, dataset)
    spacing = _spacing(dataset)
    studied = vocabulary.day(_text(dataset, "StudyDate") or _text(dataset, "AcquisitionDate"))
    born = vocabulary.day(_text(dataset, "PatientBirthDate"))
    return Image(
        pixels=pixels,
        valid=valid,
        format="dicom",
        bits_stored=_integer(dataset, "BitsStored") or _integer(dataset, "BitsAllocated"),
        identity=Identity(
            patient=_text(dataset, "PatientID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            sop_instance_uid=_text(dataset, "SOPInstanceUID"),
            institution=_text(dataset, "InstitutionName"),
            study_date=studied,
        ),
        spacing_mm=spacing,
        modality=vocabulary.modality(_text(dataset, "Modality")),
        view=vocabulary.view(_text(dataset, "ViewPosition")),
        laterality=vocabulary.laterality(_text(dataset, "ImageLaterality") or _text(dataset, "Laterality")),
        body_part=vocabulary.body_part(_text(dataset, "BodyPartExamined")),
        manufacturer=vocabulary.manufacturer(_text(dataset, "Manufacturer")),
        photometric=_text(dataset, "PhotometricInterpretation"),
        polarity_fixed=inverted,
        sex=vocabulary.sex(_text(dataset, "PatientSex")),
        age_years=vocabulary.age_years(_text(dataset, "PatientAge"), born, studied),
        flags=flags if spacing else (*flags, "spacing_unknown"),
    )


def _spacing(dataset: Dataset) -> tuple[float, ...] | None:
    """Return row and column spacing in mm: calibrated, else at the detector over the magnification, else None."""
    spacing = _numbers(dataset, "PixelSpacing")
    if spacing is None:
        spacing = _numbers(dataset, "ImagerPixelSpacing")
        magnification = _numbers(dataset, "EstimatedRadiographicMagnificationFactor") or (1.0,)
        if spacing is not None and magnification[0] > 0:
            spacing = tuple(value / magnification[0] for value in spacing)
    if spacing is None or len(spacing) != 2 or not all(0 < value < LARGEST_SPACING_MM for value in spacing):
        return None
    return spacing


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    value = dataset.get(keyword)
    if value in (None, ""):
        return None
    try:
        numbers = tuple(float(part) for part in (value if hasattr(value, "__len__") else [value]))
    except (TypeError, ValueError):
        return None
    return numbers if numbers and all(math.isfinite(number) for number in numbers) else None


def _integer(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    return int(value) if value not in (None, "") else 0


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().strip("\0")
