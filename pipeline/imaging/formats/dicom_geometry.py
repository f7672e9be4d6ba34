"""What DICOM headers say of the place of slices: one of a file, or the frames of an enhanced multi-frame object."""

from __future__ import annotations

import math
from typing import Any

from pydicom import config
from pydicom.dataset import Dataset

from pipeline.imaging.volumes.series import Slice

# Elements that a slice is made of, under their names in single-frame and in enhanced objects.
SLICE_ELEMENTS = tuple(
    "ImagePositionPatient ImageOrientationPatient PixelSpacing Rows Columns SpacingBetweenSlices SliceThickness "
    "ImageType FrameType TemporalPositionIdentifier TemporalPositionIndex AcquisitionNumber FrameAcquisitionNumber "
    "EchoNumbers EchoTime EffectiveEchoTime DiffusionBValue DiffusionGradientOrientation TriggerTime "
    "NominalCardiacTriggerDelayTime FrameReferenceTime AcquisitionTime AcquisitionDateTime "
    "FrameAcquisitionDateTime".split()
)
# What else differs from frame to frame and is needed to display it.
VALUE_ELEMENTS = tuple("RescaleSlope RescaleIntercept WindowCenter WindowWidth VOILUTFunction".split())
# Functional group macros that have these elements (PS3.3 C.7.6.16.2, C.8.13.5, C.8.15.3, C.8.22.5).
MACROS = tuple(
    "PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence FrameContentSequence "
    "PixelValueTransformationSequence FrameVOILUTSequence CardiacSynchronizationSequence MREchoSequence "
    "MRDiffusionSequence CTImageFrameTypeSequence MRImageFrameTypeSequence PETFrameTypeSequence".split()
)
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# All that a file must be read for, so that nothing else of its header need be parsed.
GEOMETRY_ELEMENTS = (*SLICE_ELEMENTS, *VALUE_ELEMENTS, "NumberOfFrames", *FUNCTIONAL_GROUPS)


def slice_of(dataset: Dataset, source_id: str, content: str, frame: int = 0) -> Slice:
    """Return what a header says of one slice. Values that are empty or cannot be read are left out; nothing raises."""
    config.settings.reading_validation_mode = config.IGNORE  # warnings would show header text
    image_type = _texts(dataset, "FrameType") or _texts(dataset, "ImageType")
    acquired = ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime")
    return Slice(
        source_id=source_id,
        content=content,
        frame=frame,
        position_mm=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        spacing_mm=_numbers(dataset, "PixelSpacing", 2),
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        thickness_mm=_length(dataset, "SpacingBetweenSlices") or _length(dataset, "SliceThickness"),
        localiser="LOCALIZER" in image_type,
        temporal_position=_integer(dataset, "TemporalPositionIdentifier", "TemporalPositionIndex"),
        acquisition_number=_integer(dataset, "AcquisitionNumber", "FrameAcquisitionNumber"),
        echo=_number(dataset, "EchoTime", "EffectiveEchoTime", "EchoNumbers"),
        image_type=image_type,
        diffusion=_diffusion(dataset),
        frame_time_ms=_number(dataset, "TriggerTime", "NominalCardiacTriggerDelayTime", "FrameReferenceTime"),
        acquisition_time=next((text for name in acquired for text in _texts(dataset, name)), ""),
    )


def frame_headers(dataset: Dataset) -> list[Dataset] | None:
    """Return for each frame a header as a single-frame object would have it, or None when there are no frame headers.

    It has the elements of SLICE_ELEMENTS and VALUE_ELEMENTS: from the data set itself, then from the functional groups
    that all frames share, then from the frame's own (PS3.3 C.7.6.16.1), the later ones going before the earlier.
    """
    config.settings.reading_validation_mode = config.IGNORE
    frames = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if not frames or len(frames) != _integer(dataset, "NumberOfFrames"):
        return None
    shared = Dataset()
    _copy_elements(dataset, shared)
    for item in _items(dataset, "SharedFunctionalGroupsSequence")[:1]:
        _copy_groups(item, shared)
    headers = []
    for item in frames:
        header = Dataset()
        _copy_elements(shared, header)
        _copy_groups(item, header)
        headers.append(header)
    return headers


def _copy_groups(groups: Dataset, header: Dataset) -> None:
    for macro in MACROS:
        for item in _items(groups, macro)[:1]:
            _copy_elements(item, header)
            for nested in _items(item, "DiffusionGradientDirectionSequence")[:1]:
                _copy_elements(nested, header)


def _copy_elements(source: Dataset, target: Dataset) -> None:
    for keyword in (*SLICE_ELEMENTS, *VALUE_ELEMENTS):
        if _value(source, keyword) is not None:
            target.add(source[keyword])


def _diffusion(dataset: Dataset) -> tuple[float, ...]:
    weighting = _number(dataset, "DiffusionBValue")
    direction = _numbers(dataset, "DiffusionGradientOrientation", 3)
    return (() if weighting is None else (weighting,)) + (direction or ())


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return a value, or None when it is absent, empty or cannot be parsed.

    pydicom parses a value when it is first asked for, and a damaged one can raise anything from there.
    """
    try:
        value = dataset.get(keyword)
        return None if value is None or (hasattr(value, "__len__") and not len(value)) else value
    except Exception:
        return None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = _value(dataset, keyword)
    try:
        return [item for item in value or () if isinstance(item, Dataset)]
    except Exception:  # as above
        return []


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return `count` finite numbers, or None."""
    value = _value(dataset, keyword)
    values = value if not isinstance(value, str | bytes) and hasattr(value, "__iter__") else [value]
    try:
        numbers = tuple(float(part) for part in values)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(dataset: Dataset, *keywords: str) -> float | None:
    """Return the first of the elements that holds one finite number."""
    return next((found[0] for keyword in keywords if (found := _numbers(dataset, keyword, 1))), None)


def _integer(dataset: Dataset, *keywords: str) -> int | None:
    number = _number(dataset, *keywords)
    return None if number is None else int(number)


def _length(dataset: Dataset, keyword: str) -> float | None:
    """Return a length in mm; SpacingBetweenSlices is negative in some nuclear medicine headers."""
    return abs(_number(dataset, keyword) or 0.0) or None


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = _value(dataset, keyword)
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return tuple(str(part).strip().upper() for part in values if part is not None)
