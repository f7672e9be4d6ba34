"""DICOM series of which the value at every point of the patient is known, good ones and bad ones.

`CASES` is a table: what is written, which volumes must come of it, and which slices must be refused for which reason.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from imaging.files import make_dataset, to_bytes
from pydicom.dataset import Dataset

CT, ENHANCED_CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4"
INTERCEPT = -20_000
PADDING = -32_768
Vector = tuple[float, float, float]


def value(points_mm: np.ndarray) -> np.ndarray:
    """Return the value at points (..., 3) of the patient system, LPS in mm: curved, and of other slope on each axis."""
    x, y, z = np.moveaxis(points_mm, -1, 0)
    return 20 * x + 30 * y + 50 * z + 0.2 * x * y - 0.1 * y * z


@dataclass(frozen=True)
class Plane:
    """One slice to be written: where it lies, what is added to the value, and header elements that differ."""

    position_mm: Vector
    along_row: Vector
    along_column: Vector
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    number: int
    series: int = 1
    add: float = 0.0
    padded_columns: int = 0
    slope: float = 1.0
    intercept: float = INTERCEPT
    dtype: type = np.uint16
    elements: dict[str, Any] = field(default_factory=dict)

    def stored(self) -> np.ndarray:
        """Return the stored values, (rows, columns); the first `padded_columns` are padding."""
        rows, columns = np.meshgrid(*map(np.arange, self.shape), indexing="ij")
        down, right = np.array(self.along_column) * self.spacing_mm[0], np.array(self.along_row) * self.spacing_mm[1]
        values = value(np.array(self.position_mm) + rows[..., None] * down + columns[..., None] * right)
        stored = np.round((values + self.add - self.intercept) / self.slope)
        stored[:, : self.padded_columns] = PADDING
        return stored.astype(self.dtype)


@dataclass(frozen=True)
class Grid:
    """A regular stack of slices, shape (slices, rows, columns), first voxel at `origin_mm`."""

    origin_mm: Vector = (-12.0, 7.0, -31.0)
    along_row: Vector = (1.0, 0.0, 0.0)
    along_column: Vector = (0.0, 1.0, 0.0)
    spacing_mm: tuple[float, float, float] = (2.5, 0.9, 0.7)
    shape: tuple[int, int, int] = (8, 12, 10)

    def affine_lps(self) -> np.ndarray:
        affine = np.eye(4)
        normal = np.cross(self.along_row, self.along_column)
        affine[:3, :3] = np.column_stack([normal, self.along_column, self.along_row]) * self.spacing_mm
        affine[:3, 3] = self.origin_mm
        return affine

    def planes(self, first_number: int = 1, **properties: Any) -> list[Plane]:
        step = self.affine_lps()[:3, 0]
        return [
            Plane(
                position_mm=tuple((np.array(self.origin_mm) + index * step).tolist()),
                along_row=self.along_row,
                along_column=self.along_column,
                spacing_mm=self.spacing_mm[1:],
                shape=self.shape[1:],
                number=first_number + index,
                **properties,
            )
            for index in range(self.shape[0])
        ]


@dataclass(frozen=True)
class Volume:
    """A volume that must come out."""

    grid: Grid
    add: float = 0.0
    padded_columns: int = 0
    flags: tuple[str, ...] = ()

    def canonical(self) -> tuple[np.ndarray, tuple[float, ...]]:
        """Return pixels (superior, anterior, right; NaN where padding is) and their spacing in mm, by nibabel."""
        affine = self.grid.affine_lps()
        index = np.stack(np.meshgrid(*map(np.arange, self.grid.shape), indexing="ij"), axis=-1)
        pixels = value(index @ affine[:3, :3].T + affine[:3, 3]) + self.add
        pixels[..., : self.padded_columns] = np.nan
        image = nib.as_closest_canonical(nib.Nifti1Image(pixels, np.diag([-1, -1, 1, 1]) @ affine))
        spacing = nib.affines.voxel_sizes(image.affine)[::-1]
        return np.asarray(image.dataobj).transpose(2, 1, 0), tuple(spacing.tolist())


@dataclass(frozen=True)
class Case:
    """Slices to be written, the volumes that must come of them, and how many are refused for each reason.

    `tolerance` bounds the difference from the known value: half a stored step, and more where slices are off the grid.
    """

    name: str
    planes: list[Plane]
    volumes: tuple[Volume, ...] = ()
    refused: dict[str, int] = field(default_factory=dict)
    tolerance: float = 0.51
    enhanced: bool = False


def write_case(case: Case, folder: Path) -> None:
    """Write a case as files whose names say nothing of their order; one patient per case."""
    if case.enhanced:
        (folder / "enhanced.dcm").write_bytes(to_bytes(_enhanced(case)))
        return
    names = [f"{index:03d}.dcm" for index in range(len(case.planes))]
    random.Random(case.name).shuffle(names)
    for name, plane in zip(names, case.planes, strict=True):
        (folder / name).write_bytes(to_bytes(_single(case, plane)))


def _uid(case: Case, kind: str, number: int = 0) -> str:
    digest = hashlib.sha256(f"{case.name} {kind} {number}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:12], 'big')}"


def _common(case: Case, kind: str, number: int, series: int) -> dict[str, Any]:
    return {
        "SOPInstanceUID": _uid(case, kind, number),
        "StudyInstanceUID": _uid(case, "study"),
        "SeriesInstanceUID": _uid(case, "series", series),
        "PatientID": f"phantom {case.name}",
        "BitsStored": 16,
    }


def _single(case: Case, plane: Plane) -> Dataset:
    standard = {
        "SOPClassUID": CT,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "InstanceNumber": plane.number,
        "ImagePositionPatient": _decimals(plane.position_mm),
        "ImageOrientationPatient": _decimals([*plane.along_row, *plane.along_column]),
        "PixelSpacing": _decimals(plane.spacing_mm),
        "SliceThickness": 2.5,
        "RescaleSlope": plane.slope,
        "RescaleIntercept": plane.intercept,
    }
    common = _common(case, "slice", plane.number, plane.series)
    return make_dataset(plane.stored(), **(common | standard | plane.elements))


def _enhanced(case: Case) -> Dataset:
    """Return an enhanced CT object with a frame for each plane (PS3.3 A.38.1)."""
    first = case.planes[0]
    pixels = np.stack([plane.stored() for plane in case.planes])
    return make_dataset(
        pixels[0],
        **_common(case, "enhanced", 0, first.series),
        SOPClassUID=ENHANCED_CT,
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        NumberOfFrames=len(case.planes),
        PixelData=pixels.tobytes(),
        SharedFunctionalGroupsSequence=[
            _item(
                PlaneOrientationSequence=[
                    _item(ImageOrientationPatient=_decimals([*first.along_row, *first.along_column]))
                ],
                PixelMeasuresSequence=[_item(PixelSpacing=_decimals(first.spacing_mm), SliceThickness=2.5)],
                CTImageFrameTypeSequence=[_item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            _item(
                PlanePositionSequence=[_item(ImagePositionPatient=_decimals(plane.position_mm))],
                FrameContentSequence=[_item(**plane.elements)],
                PixelValueTransformationSequence=[
                    _item(RescaleSlope=plane.slope, RescaleIntercept=plane.intercept, RescaleType="HU")
                ],
            )
            for plane in case.planes
        ],
    )


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, element in elements.items():
        setattr(item, keyword, element)
    return item


def _decimals(values: Sequence[float]) -> list[str]:
    """Return decimal strings of at most 16 characters (PS3.5 6.2)."""
    return [f"{number:.9f}"[:16] for number in values]


# ---------------------------------------------------------------- the table


def _turned(degrees: float) -> tuple[Vector, Vector]:
    """Return row and column directions of a slice turned about two axes."""
    angle = math.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    about_z = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    turn = about_z @ about_x
    return tuple(turn[:, 0].tolist()), tuple(turn[:, 1].tolist())


def _moved(plane: Plane, **by: float) -> Plane:
    x, y, z = plane.position_mm
    return replace(plane, position_mm=(x + by.get("x", 0), y + by.get("y", 0), z + by.get("z", 0)))


def _with(planes: list[Plane], **elements: Any) -> list[Plane]:
    return [replace(plane, elements=plane.elements | elements) for plane in planes]


def _numbered(numbers: Sequence[int | None]) -> list[Plane]:
    return [
        replace(plane, elements={"InstanceNumber": number})
        for plane, number in zip(AXIAL.planes(), numbers, strict=True)
    ]


AXIAL = Grid()
LONGER = replace(AXIAL, shape=(10, 12, 10))
SHORTER = replace(AXIAL, shape=(6, 12, 10))
ONE = replace(AXIAL, shape=(1, 12, 10))
OBLIQUE = Grid(along_row=_turned(25)[0], along_column=_turned(25)[1])
SAGITTAL = Grid(along_row=(0.0, 1.0, 0.0), along_column=(0.0, 0.0, -1.0))
CORONAL = Grid(along_row=(1.0, 0.0, 0.0), along_column=(0.0, 0.0, -1.0))
FEET_FIRST = Grid(along_row=(-1.0, 0.0, 0.0), along_column=(0.0, 1.0, 0.0))
ANISOTROPIC = replace(AXIAL, spacing_mm=(2.5, 0.5, 1.1))
OTHER_PLACE = replace(SHORTER, origin_mm=(3.0, -20.0, 11.0))
WIDE = replace(AXIAL, spacing_mm=(2.5, 1.1, 0.8))
MR_SLICE = {"SOPClassUID": MR, "Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}

TILTED = [_moved(plane, y=index * 2.5 * math.tan(math.radians(20))) for index, plane in enumerate(AXIAL.planes())]
JITTER_MM = (0.0, 0.01, -0.01, 0.012, 0.0, -0.008, 0.01, 0.0)
GROWING_MM = (0.0, 0.0, 0.0, 0.3, 0.6, 1.2, 2.0, 3.0)
OVERVIEW = replace(CORONAL.planes()[0], number=99)
AGAIN = AXIAL.planes(first_number=101, add=4000)

CASES = (
    Case("plain axial", AXIAL.planes(), (Volume(AXIAL),)),
    Case("oblique", OBLIQUE.planes(), (Volume(OBLIQUE),)),
    Case("sagittal", SAGITTAL.planes(), (Volume(SAGITTAL),)),
    Case("coronal", CORONAL.planes(), (Volume(CORONAL),)),
    Case("rows run to the right", FEET_FIRST.planes(), (Volume(FEET_FIRST),)),
    Case("descending", [replace(p, number=9 - p.number) for p in AXIAL.planes()][::-1], (Volume(AXIAL),)),
    Case("reversed InstanceNumber", _numbered([8, 7, 6, 5, 4, 3, 2, 1]), (Volume(AXIAL),)),
    Case("shuffled InstanceNumber", _numbered([3, 8, 1, 6, 2, 7, 5, 4]), (Volume(AXIAL),)),
    Case("missing InstanceNumber", _numbered([1, 2, None, 4, 5, None, 7, 8]), (Volume(AXIAL),)),
    Case("equal InstanceNumber", _numbered([1] * 8), (Volume(AXIAL),)),
    Case(
        "rescale per slice",
        [replace(p, slope=1 + 0.1 * p.number, intercept=INTERCEPT + 100 * p.number) for p in AXIAL.planes()],
        (Volume(AXIAL),),
        tolerance=0.91,
    ),
    Case("single slice", ONE.planes(), (Volume(ONE),)),
    Case(
        "single slice without thickness",
        _with(ONE.planes(), SliceThickness=None),
        (Volume(replace(ONE, spacing_mm=(1.0, 0.9, 0.7)), flags=("spacing_assumed",)),),
    ),
    Case("slice missing", [p for p in AXIAL.planes() if p.number != 4], refused={"missing_slices": 7}),
    Case("several missing", [p for p in LONGER.planes() if p.number not in (3, 4, 8)], refused={"missing_slices": 7}),
    Case("duplicate file", [*AXIAL.planes(), AXIAL.planes()[3]], (Volume(AXIAL),), {"duplicate": 1}),
    Case("duplicate position", [*AXIAL.planes(), AGAIN[3]], refused={"duplicate_slices": 9}),
    Case("gantry tilt", TILTED, refused={"gantry_tilt": 8}),
    Case(
        "two series in one folder",
        [*AXIAL.planes(), *OTHER_PLACE.planes(first_number=51, series=2)],
        (Volume(AXIAL), Volume(OTHER_PLACE)),
    ),
    Case(
        "variable spacing",
        [_moved(plane, z=more) for plane, more in zip(AXIAL.planes(), GROWING_MM, strict=True)],
        refused={"uneven_spacing": 8},
    ),
    Case(
        "localiser",
        [*AXIAL.planes(), *_with([OVERVIEW], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])],
        (Volume(AXIAL),),
        {"localiser": 1},
    ),
    Case("localiser that does not say so", [*AXIAL.planes(), OVERVIEW], (Volume(AXIAL),), {"mixed_orientation": 1}),
    Case(
        "two time points",
        _with(AXIAL.planes(), **MR_SLICE, TemporalPositionIdentifier=1)
        + _with(AGAIN, **MR_SLICE, TemporalPositionIdentifier=2),
        (Volume(AXIAL), Volume(AXIAL, add=4000)),
    ),
    Case(
        "two echoes",
        _with(AXIAL.planes(), **MR_SLICE, EchoTime=4.6) + _with(AGAIN, **MR_SLICE, EchoTime=30.2),
        (Volume(AXIAL), Volume(AXIAL, add=4000)),
    ),
    Case(
        "one time point lacks a slice",
        _with(AXIAL.planes(), **MR_SLICE, TemporalPositionIdentifier=1)
        + _with(AGAIN[:4] + AGAIN[5:], **MR_SLICE, TemporalPositionIdentifier=2),
        refused={"duplicate_slices": 15},
    ),
    Case(
        "mixed pixel spacing",
        SHORTER.planes() + WIDE.planes()[6:],
        (Volume(SHORTER),),
        {"mixed_orientation": 2},
    ),
    Case("no majority", AXIAL.planes()[:4] + WIDE.planes()[4:], refused={"mixed_orientation": 8}),
    Case(
        "jitter within tolerance",
        [_moved(plane, z=more) for plane, more in zip(AXIAL.planes(), JITTER_MM, strict=True)],
        (Volume(AXIAL),),
        tolerance=0.51 + 60 * 0.012,
    ),
    Case(
        "signed, padded, anisotropic",
        [
            replace(p, elements={"PixelPaddingValue": PADDING})
            for p in ANISOTROPIC.planes(dtype=np.int16, intercept=0, padded_columns=2)
        ],
        (Volume(ANISOTROPIC, padded_columns=2),),
    ),
    Case(
        "no position",
        [*SHORTER.planes(), *_with(AXIAL.planes()[6:7], ImagePositionPatient=None)],
        (Volume(SHORTER),),
        {"bad_geometry": 1},
    ),
    Case(
        "enhanced multi-frame, rescale per frame",
        [replace(p, slope=1 + 0.1 * p.number) for p in OBLIQUE.planes()][::-1],
        (Volume(OBLIQUE),),
        tolerance=0.91,
        enhanced=True,
    ),
    Case(
        "enhanced multi-frame, two time points",
        [
            plane
            for pair in zip(
                _with(AXIAL.planes(), TemporalPositionIndex=1), _with(AGAIN, TemporalPositionIndex=2), strict=True
            )
            for plane in pair
        ],
        (Volume(AXIAL), Volume(AXIAL, add=4000)),
        enhanced=True,
    ),
    Case(
        "enhanced multi-frame, frames missing",
        [p for p in AXIAL.planes() if p.number != 4],
        refused={"missing_slices": 7},
        enhanced=True,
    ),
)
