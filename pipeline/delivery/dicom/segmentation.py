"""The structures that a model marked in an image as a Segmentation (PS3.3 A.51), on the slices that it came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from pipeline import __version__
from pipeline.delivery.dicom.equipment import MAKER
from pipeline.delivery.dicom.identifiers import derived_uid
from pipeline.delivery.dicom.source import NO_DATE, SourceStudy, copy_lossy
from pipeline.imaging.formats.dicom import read_header
from pipeline.imaging.formats.dicom_geometry import FUNCTIONAL_GROUPS, frame_headers
from pipeline.imaging.image import Policy
from pipeline.inference.model import Model

# What a segmentation takes over of the images; patient and study are copied later, byte for byte.
NAMED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "Rows", "Columns")
PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
FRAME = ("FrameOfReferenceUID", "PositionReferenceIndicator", "NumberOfFrames", *FUNCTIONAL_GROUPS)
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyTime")
LABEL_LENGTH = 64


def segmentation(
    mask: np.ndarray, names: Sequence[str], files: Sequence[bytes], policy: Policy, source: SourceStudy, model: Model
) -> Dataset:
    """Return the object but for its UIDs, patient, study and times.

    `mask` holds the index of the structure, from 1 on, by its place in `names`, on the grid of the files: (rows,
    columns) of a picture, or (slices, rows, columns), slices in order along their normal. `files` are those of the
    image, in any order. Slices without a structure have no frame, unless none has one.

    Raises ValueError when mask and files are not of one size.
    """
    headers = [_header(data, policy) for data in files]
    planes = mask if mask.ndim == 3 else mask[None]
    headers, planes = _in_order(headers, planes)
    count = int(headers[0].get("NumberOfFrames") or 1) if len(headers) == 1 else len(headers)
    if planes.shape != (count, headers[0].Rows, headers[0].Columns):
        raise ValueError(f"a mask of {planes.shape} on {count} slices of {headers[0].Rows} x {headers[0].Columns}")
    algorithm = AlgorithmIdentificationSequence(
        name=source.express(" ".join(model.content["title"].split()))[:LABEL_LENGTH],
        family=codes.DCM.ArtificialIntelligence,
        version=f"model {model.sha256[:56]}",
        source=MAKER,
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=source.express(name)[:LABEL_LENGTH],
            # What a card calls a structure is not coded; that it is tissue is true of all.
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]
    dataset = Segmentation(
        source_images=headers,
        pixel_array=np.ascontiguousarray(planes, np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=derived_uid("draft"),
        series_number=1,
        sop_instance_uid=derived_uid("draft"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=__version__,
        device_serial_number=model.sha256[:16],
        content_description="Research use only",
        omit_empty_frames=bool(planes.any()),
    )
    _derive_uids(dataset, headers, model)
    dataset["PixelData"].VR = "OB"
    if "FrameOfReferenceUID" not in dataset:  # of a projection, as much is asked as of the image (PS3.3 C.7.6.1)
        dataset.PatientOrientation = None
    copy_lossy(source, dataset)
    return dataset


def _header(data: bytes, policy: Policy) -> Dataset:
    found = read_header(data, policy, (*NAMED, *PLACED, *FRAME))
    header = Dataset()
    header.update({element.tag: element for element in found})
    header.file_meta = found.file_meta
    for keyword in PATIENT:
        setattr(header, keyword, None)
    header.StudyDate = NO_DATE
    return header


def _in_order(headers: list[Dataset], planes: np.ndarray) -> tuple[list[Dataset], np.ndarray]:
    """Return the headers, or else the planes, so that both have one order: that of files or frames along the normal."""
    if len(headers) > 1:
        at = [_along(header) for header in headers]
        return [headers[n] for n in np.argsort(at)], planes
    frames = frame_headers(headers[0]) if len(planes) > 1 else None
    if frames is None:
        return headers, planes
    back = np.argsort(np.argsort([_along(frame) for frame in frames]))
    return headers, planes[back]


def _along(header: Dataset) -> float:
    """Return where a slice lies along its normal, mm."""
    direction = np.array(header.ImageOrientationPatient, float)
    return float(np.cross(direction[:3], direction[3:]) @ np.array(header.ImagePositionPatient, float))


def _derive_uids(dataset: Dataset, headers: Sequence[Dataset], model: Model) -> None:
    """Let the UIDs that highdicom draws follow from what the object is about."""
    organised = derived_uid("dimensions", headers[0].SeriesInstanceUID, model.sha256)
    for item in dataset.DimensionOrganizationSequence:
        item.DimensionOrganizationUID = organised
    for item in dataset.DimensionIndexSequence:
        item.DimensionOrganizationUID = organised
    if "ContributingEquipmentSequence" in dataset:
        del dataset.ContributingEquipmentSequence
