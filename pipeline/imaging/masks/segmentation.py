"""Masks as DICOM SEG objects (PS3.3 A.51): frames in any order, of one or several segments, placed by geometry."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from pipeline.imaging.formats.dicom import is_dicom, read_header
from pipeline.imaging.grid import Grid
from pipeline.imaging.image import Image, Policy
from pipeline.imaging.masks.placement import LARGEST_TURN, TOLERANCE_VOXELS, check_size, size_text
from pipeline.imaging.masks.structures import BACKGROUND, Structures
from pipeline.imaging.quarantine import Refused

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Frame:
    """The segment of a frame, what it refers to, and where it lies: first pixel, one row down, one column on (RAS mm).

    A frame of a label map has no segment: its values are numbers of segments. `place` is None where none is stated.
    """

    segment: int | None
    references: frozenset[str]
    place: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def read_segmentation(
    data: bytes, image: Image, contents: Sequence[bytes], structures: Structures, policy: Policy
) -> np.ndarray:
    """Return the index of the structure at each pixel of an image, uint8; slices without a frame are background.

    Frames of a volume are placed by position and orientation, those of a picture by what they refer to.

    Raises Refused when the object is about other images, another frame of reference or another grid, is fractional, or
    when segments of different structures overlap.
    """
    dataset = _parse(data, policy)
    try:
        frames = list(_frames(dataset))
        referred = frozenset().union(*(frame.references for frame in frames)) or _referenced_instances(dataset)
        own = [read_header(one, policy, ("SOPInstanceUID", "FrameOfReferenceUID")) for one in contents if is_dicom(one)]
        _check_references(dataset, referred, own)
        planes = np.asarray(dataset.pixel_array).reshape(len(frames), int(dataset.Rows), int(dataset.Columns))
    except Refused:
        raise
    except Exception as error:
        raise Refused("mask_format", type(error).__name__) from None
    indices = [_indices(plane, frame, structures) for plane, frame in zip(planes, frames, strict=True)]
    if len(image.file_grid.shape) == 3:
        return _on_volume(indices, frames, image.file_grid)
    return _on_picture(indices, frames, image)


def _parse(data: bytes, policy: Policy) -> Dataset:
    read_header(data, policy, ("SOPClassUID",))  # refuses what inflates without limit, and what is a program, too
    try:
        dataset = dcmread(io.BytesIO(data))
        kind = str(dataset.SOPClassUID)
        pixels = (
            int(dataset.get("NumberOfFrames") or 1) * int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
        )
    except Exception as error:
        raise Refused("mask_format", type(error).__name__) from None
    if kind == RTStructureSetStorage:
        raise Refused("mask_contours")
    if kind not in (SegmentationStorage, LABELMAP_STORAGE) or not pixels:
        raise Refused("mask_format", "a DICOM object that is no segmentation")
    if dataset.get("SegmentationType") == "FRACTIONAL":
        raise Refused("mask_values", "fractional")
    if pixels > policy.max_pixel_bytes:
        raise Refused("too_large", f"{pixels} pixels")
    return dataset


def _frames(dataset: Dataset) -> Iterator[_Frame]:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    labelled = dataset.get("SegmentationType") == "LABELMAP"
    for group in dataset.PerFrameFunctionalGroupsSequence:
        both = (group, shared)
        segment = None
        if not labelled:
            segment = int(_item(both, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        references = frozenset(
            str(source.ReferencedSOPInstanceUID)
            for derivation in _items(both, "DerivationImageSequence")
            for source in derivation.get("SourceImageSequence") or ()
        )
        yield _Frame(segment, references, _place(both))


def _place(groups: Sequence[Dataset]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if not _items(groups, "PlanePositionSequence"):
        return None
    position = np.array(_item(groups, "PlanePositionSequence").ImagePositionPatient, float)
    direction = np.array(_item(groups, "PlaneOrientationSequence").ImageOrientationPatient, float)
    between_rows, between_columns = map(float, _item(groups, "PixelMeasuresSequence").PixelSpacing)
    return (
        LPS_TO_RAS * position,
        LPS_TO_RAS * direction[3:] * between_rows,
        LPS_TO_RAS * direction[:3] * between_columns,
    )


def _items(groups: Sequence[Dataset], keyword: str) -> list[Dataset]:
    return next(([*found] for group in groups if (found := group.get(keyword))), [])


def _item(groups: Sequence[Dataset], keyword: str) -> Dataset:
    return _items(groups, keyword)[0]


def _referenced_instances(dataset: Dataset) -> frozenset[str]:
    return frozenset(
        str(one.ReferencedSOPInstanceUID)
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for one in series.get("ReferencedInstanceSequence") or ()
    )


def _check_references(dataset: Dataset, referred: frozenset[str], own: Sequence[Dataset]) -> None:
    """Raise Refused when a segmentation is about none of the instances of an image, or lies elsewhere."""
    names = {str(one.get("SOPInstanceUID") or "") for one in own} - {""}
    problems = []
    if names and referred and not names & referred:
        problems.append(f"refers to {len(referred)} instances, none of them one of the image's {len(names)}")
    where, theirs = dataset.get("FrameOfReferenceUID"), {one.get("FrameOfReferenceUID") for one in own} - {None}
    if where and theirs and where not in theirs:
        problems.append("another frame of reference")
    if problems:
        raise Refused("mask_reference", ", ".join(problems))


def _indices(plane: np.ndarray, frame: _Frame, structures: Structures) -> np.ndarray:
    if frame.segment is None:
        return structures.indices(plane)
    return structures.indices(np.where(plane > 0, frame.segment, BACKGROUND))


def _on_volume(indices: Sequence[np.ndarray], frames: Sequence[_Frame], grid: Grid) -> np.ndarray:
    if grid.affine is None:
        raise Refused("mask_position", "the image does not say where it lies")
    found, inverse = np.zeros(grid.shape, np.uint8), np.linalg.inv(grid.affine)
    beyond = overlapping = 0
    for plane, frame in zip(indices, frames, strict=True):
        if frame.place is None:
            raise Refused("mask_position", "a frame does not say where it lies")
        slice_axis, number, turned = _in_volume(plane, frame.place, inverse, grid)
        if not 0 <= number < grid.shape[slice_axis]:
            beyond += bool(plane.any())
            continue
        overlapping += _add(np.moveaxis(found, slice_axis, 0)[number], turned)
    _check_overlap(overlapping)
    if beyond:
        raise Refused("mask_position", f"{beyond} of {len(frames)} frames lie beyond the image")
    return found


def _in_volume(
    plane: np.ndarray, place: tuple[np.ndarray, np.ndarray, np.ndarray], inverse: np.ndarray, grid: Grid
) -> tuple[int, int, np.ndarray]:
    """Return the axis of the volume that a frame lies across, its number along it, and its values turned to lie there.

    Raises Refused when it does not lie on voxels of the volume.
    """
    origin = inverse[:3] @ [*place[0], 1.0]
    steps = np.stack([inverse[:3, :3] @ step for step in place[1:]])  # one row down, one column on, in voxels
    whole = np.round(steps)
    if np.abs(steps - whole).max() > LARGEST_TURN or not (np.abs(whole).sum(axis=1) == 1).all():
        raise Refused("mask_position", "frames of other directions or spacing")
    axes = np.abs(whole).argmax(axis=1)
    if axes[0] == axes[1]:
        raise Refused("mask_position", "frames of impossible directions")
    sides = tuple(grid.shape[axis] for axis in axes)
    if plane.shape != sides:
        raise Refused("mask_size", f"frames of {size_text(plane.shape)} instead of {size_text(sides)}")
    (slice_axis,) = {0, 1, 2} - {*axes.tolist()}
    backwards = whole[[0, 1], axes] < 0
    expected = np.zeros(3)
    expected[axes] = np.where(backwards, np.array(sides) - 1, 0)
    expected[slice_axis] = np.round(origin[slice_axis])
    corners = [(row, column) for row in (0, sides[0] - 1) for column in (0, sides[1] - 1)]
    off = max(np.abs(origin - expected + corner @ (steps - whole)).max() for corner in corners)
    if off > TOLERANCE_VOXELS:
        raise Refused("mask_position", f"a frame {off:.2f} voxels off")
    turned = plane[tuple(slice(None, None, -1 if one else None) for one in backwards)]
    return slice_axis, int(expected[slice_axis]), turned if axes[0] < axes[1] else turned.T


def _on_picture(indices: Sequence[np.ndarray], frames: Sequence[_Frame], image: Image) -> np.ndarray:
    grid = image.file_grid
    found, overlapping = np.zeros(grid.stored, np.uint8), 0
    for plane, frame in zip(indices, frames, strict=True):
        if image.about.identity.sop_instance_uid in frame.references:
            check_size(plane.shape, grid.stored)
            overlapping += _add(found, plane)
    _check_overlap(overlapping)
    return grid.from_stored(found)


def _add(into: np.ndarray, plane: np.ndarray) -> int:
    """Write the structures of one frame into a slice; return at how many pixels another one was there."""
    overlapping = int(((plane != BACKGROUND) & (into != BACKGROUND) & (into != plane)).sum())
    np.copyto(into, plane, where=plane != BACKGROUND)
    return overlapping


def _check_overlap(pixels: int) -> None:
    if pixels:
        raise Refused("mask_values", f"segments of different structures overlap at {pixels} pixels")
