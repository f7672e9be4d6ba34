"""From the slices of a DICOM series to volumes, by geometry alone.

Where a slice lies says its header's position and orientation (PS3.3 C.7.6.2.1). InstanceNumber is never looked at: it
may be shuffled, repeated or missing in good series.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.imaging.image import LARGEST_SPACING_MM
from pipeline.imaging.quarantine import Refusal, Refused

# A gap between neighbours may differ from the mean by the larger of these two.
GAP_TOLERANCE_MM = 0.02
GAP_TOLERANCE = 0.01
LARGEST_TILT_DEGREES = 0.5
# Direction cosines are rounded in some headers; 0.01 lets two decimals pass.
UNIT_TOLERANCE = 0.01
# Slices of one series agree within these: a thousandth of a row of 512 pixels is half a pixel.
ORIENTATION_TOLERANCE = 1e-3
PIXEL_SPACING_TOLERANCE = 1e-3
FARTHEST_POSITION_MM = 1e5
ASSUMED_SPACING_MM = 1.0
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What may tell slices at one position apart, in the order in which it is tried; first alone, then two together.
DISCRIMINATORS = (
    "temporal_position",
    "acquisition_number",
    "echo",
    "image_type",
    "diffusion",
    "frame_time_ms",
    "acquisition_time",
)


@dataclass(frozen=True, slots=True)
class Slice:
    """What the header of one slice says of its place. Lengths are mm in the patient system (LPS, PS3.3 C.7.6.2.1).

    None, or nothing, stands for a value that the header does not have or that cannot be read.
    """

    source_id: str
    """Which file the slice is in."""
    content: str
    """A hash of the slice: at one position, equal content is the same slice."""
    position_mm: tuple[float, ...] | None
    """Centre of the first pixel."""
    orientation: tuple[float, ...] | None
    """Six direction cosines: along a row, along a column."""
    spacing_mm: tuple[float, ...] | None
    """Between rows, between columns."""
    rows: int
    columns: int
    frame: int = 0
    """Index of the frame in a file of several."""
    thickness_mm: float | None = None
    """SpacingBetweenSlices, or else SliceThickness. Used for single slices only."""
    localiser: bool = False
    temporal_position: int | None = field(default=None, repr=False)
    acquisition_number: int | None = field(default=None, repr=False)
    echo: float | None = field(default=None, repr=False)
    """Echo time, or else the number of the echo."""
    image_type: tuple[str, ...] = field(default=(), repr=False)
    diffusion: tuple[float, ...] = field(default=(), repr=False)
    """b-value, then gradient direction."""
    frame_time_ms: float | None = field(default=None, repr=False)
    """Since a trigger or reference."""
    acquisition_time: str = field(default="", repr=False)


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one volume, in order along the slice normal, and where they lie.

    `affine` is the (4, 4) matrix from voxel index (slice, row, column) to RAS+ mm; `spacing_mm` has the same order.
    """

    slices: tuple[Slice, ...]
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    flags: tuple[str, ...] = ()


def assemble(slices: Iterable[Slice]) -> tuple[list[Stack], list[tuple[Slice, Refusal]]]:
    """Sort all slices of one series into volumes.

    Every slice ends in exactly one stack or is refused with a reason. The result does not depend on the input's order.
    Several stacks come of series that repeat the same positions, such as time points or echoes.
    """
    refused: list[tuple[Slice, Refusal]] = []
    usable = []
    for one in sorted(slices, key=_file_order):
        refusal = _unusable(one)
        if refusal is None:
            usable.append(one)
        else:
            refused.append((one, refusal))
    alike, odd = _split_by_majority(usable)
    different, copies = _split_copies(alike)
    refused += odd + copies
    stacks = []
    try:
        volumes = _tell_apart(different)
    except Refused as error:
        volumes = []
        refused += [(one, error.refusal) for one in different]
    for volume in volumes:
        try:
            stacks.append(_stack(volume))
        except Refused as error:
            refused += [(one, error.refusal) for one in volume]
    return stacks, sorted(refused, key=lambda pair: _file_order(pair[0]))


def _file_order(one: Slice) -> tuple[str, int]:
    return one.source_id, one.frame


def _unusable(one: Slice) -> Refusal | None:
    """Say why a slice can be in no volume at all, naming everything that is wrong with it."""
    if one.localiser:
        return Refusal("localiser")
    problems = []
    if one.position_mm is None or not _all_within(one.position_mm, 3, -FARTHEST_POSITION_MM, FARTHEST_POSITION_MM):
        problems.append("position")
    if one.orientation is None or not _is_orthonormal(one.orientation):
        problems.append("orientation")
    if one.spacing_mm is None or not _all_within(one.spacing_mm, 2, 0.0, LARGEST_SPACING_MM):
        problems.append("pixel spacing")
    if one.rows < 1 or one.columns < 1:
        problems.append("size")
    return Refusal("bad_geometry", f"missing or impossible: {', '.join(problems)}") if problems else None


def _all_within(values: Sequence[float], count: int, low: float, high: float) -> bool:
    return len(values) == count and all(low < value < high for value in values)


def _is_orthonormal(orientation: Sequence[float]) -> bool:
    if not _all_within(orientation, 6, -2.0, 2.0):
        return False
    row, column = np.array(orientation).reshape(2, 3)
    errors = [np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column]
    return bool(np.max(np.abs(errors)) <= UNIT_TOLERANCE)


def _split_by_majority(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Slice, Refusal]]]:
    """Return the slices that look the same way as more than half of the series, and the others, refused.

    Where such a majority exists, the median of every single property lies within it.
    """
    if not slices:
        return [], []
    deviates = {
        "orientation": _deviates(np.array([_axes(one)[1:].ravel() for one in slices]), ORIENTATION_TOLERANCE),
        "size": _deviates(np.array([(one.rows, one.columns) for one in slices]), 0.0),
        "pixel spacing": _deviates(np.log([_pixel_spacing(one) for one in slices]), PIXEL_SPACING_TOLERANCE),
    }
    odd = np.any([*deviates.values()], axis=0)
    if 2 * odd.sum() >= len(slices):
        names = ", ".join(name for name, where in deviates.items() if where.any())
        return [], [(one, Refusal("mixed_orientation", f"no majority: {names}")) for one in slices]
    refused = []
    for index in np.flatnonzero(odd):
        names = ", ".join(name for name, where in deviates.items() if where[index])
        refused.append((slices[index], Refusal("mixed_orientation", f"differs: {names}")))
    return [one for one, is_odd in zip(slices, odd, strict=True) if not is_odd], refused


def _deviates(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Say for each row of (N, k) values whether any of them is farther than `tolerance` from the column's median."""
    return np.any(np.abs(values - np.median(values, axis=0)) > tolerance, axis=1)


def _split_copies(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Slice, Refusal]]]:
    """Return the slices without repeated ones, of which the first is kept, and the repeated ones, refused.

    Two blank slices of different time points are no copies, though their pixels are equal.
    """
    seen: set[Hashable] = set()
    different, copies = [], []
    for one, place in zip(slices, _places(slices), strict=True):
        key = (place, one.content, _marks(one, DISCRIMINATORS))
        if key in seen:
            copies.append((one, Refusal("duplicate")))
        else:
            seen.add(key)
            different.append(one)
    return different, copies


def _places(slices: list[Slice]) -> list[int]:
    """Number the positions along the slice normal from 0; slices closer than GAP_TOLERANCE_MM share one."""
    if not slices:
        return []
    positions = _positions(slices)
    heights = (positions - positions[0]) @ _axes(slices[0])[0]
    order = np.argsort(heights, kind="stable")
    places = np.zeros(len(slices), dtype=int)
    places[order[1:]] = np.cumsum(np.diff(heights[order]) > GAP_TOLERANCE_MM)
    return places.tolist()


def _tell_apart(slices: list[Slice]) -> list[list[Slice]]:
    """Return groups of slices that have one slice at each position of the series, in the order of what differs.

    That every group covers all positions keeps a value such as the time, which may change from slice to slice, from
    cutting a series to pieces.

    Raises Refused when there are several slices at a position and nothing gives such groups.
    """
    places = _places(slices)
    every_place = sorted(set(places))
    if len(places) == len(every_place):
        return [slices] if slices else []
    choices = [*itertools.combinations(DISCRIMINATORS, 1), *itertools.combinations(DISCRIMINATORS, 2)]
    for names in choices:
        groups: dict[tuple, list[tuple[int, Slice]]] = defaultdict(list)
        for place, one in zip(places, slices, strict=True):
            groups[_marks(one, names)].append((place, one))
        if all(sorted(place for place, _ in group) == every_place for group in groups.values()):
            return [[one for _, one in groups[key]] for key in sorted(groups)]
    repeated = sum(places.count(place) > 1 for place in every_place)
    raise Refused("duplicate_slices", f"{repeated} of {len(every_place)} positions have more than one slice")


def _marks(one: Slice, names: Sequence[str]) -> tuple:
    """Return a slice's values of these names in a form that can be sorted: None comes first."""
    values = [getattr(one, name) for name in names]
    return tuple(() if value is None else (value,) for value in values)


def _stack(slices: list[Slice]) -> Stack:
    """Return the volume of slices with one orientation and different positions.

    Raises Refused when they do not lie on a regular grid.
    """
    positions = _positions(slices)
    order = np.argsort((positions - positions[0]) @ _axes(slices[0])[0], kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    first = slices[0]
    normal, along_column, along_row = _axes(first)
    between_rows, between_columns = _pixel_spacing(first)
    flags = ()
    if len(slices) > 1:
        step = _step(positions, first)
    elif first.thickness_mm is not None and _all_within([first.thickness_mm], 1, 0.0, LARGEST_SPACING_MM):
        step = normal * first.thickness_mm
    else:
        step, flags = normal * ASSUMED_SPACING_MM, ("spacing_assumed",)
    affine = np.eye(4)
    affine[:3] = np.column_stack([step, along_column * between_rows, along_row * between_columns, positions[0]])
    spacing_mm = (float(np.linalg.norm(step)), float(between_rows), float(between_columns))
    return Stack(slices=tuple(slices), affine=LPS_TO_RAS @ affine, spacing_mm=spacing_mm, flags=flags)


def _step(positions: np.ndarray, first: Slice) -> np.ndarray:
    """Return the vector from one slice to the next, in mm, for (N, 3) positions in order along the normal.

    highdicom decides whether the positions are those of a volume; what follows its no only looks for the reason.

    Raises Refused when they are not.
    """
    from highdicom.spatial import get_volume_positions  # takes seconds to import

    normal, along_column, along_row = axes = _axes(first)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    gap = float(step @ normal)
    sideways = float(np.linalg.norm(step - gap * normal))
    tilt = math.degrees(math.atan2(sideways, gap))
    if tilt > LARGEST_TILT_DEGREES and sideways * (len(positions) - 1) > GAP_TOLERANCE_MM:
        raise Refused("gantry_tilt", f"{tilt:.1f} degrees")
    spacing, _ = get_volume_positions(positions.tolist(), axes[[2, 1]].ravel().tolist(), atol=_gap_tolerance(gap))
    if spacing is None:
        raise _why_not(np.diff((positions - positions[0]) @ normal))
    # Gaps that are each within tolerance can add up, and a single slice can be shifted sideways.
    between_rows, between_columns = _pixel_spacing(first)
    offsets = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    voxels = offsets @ np.column_stack([normal / gap, along_column / between_rows, along_row / between_columns])
    if np.abs(voxels).max() > 0.5:
        raise Refused("uneven_spacing", "a slice is more than half a voxel from its place")
    return step


def _why_not(gaps: np.ndarray) -> Refused:
    """Name what is wrong with a stack, given the (N - 1,) gaps between its slices in mm."""
    if (np.abs(gaps - gaps.mean()) <= _gap_tolerance(gaps.mean())).all():
        return Refused("uneven_spacing", "slices are shifted sideways")
    spacing = np.median(gaps[gaps < 1.5 * gaps.min()])
    multiples = np.round(gaps / spacing)
    if multiples.max() > 1 and (np.abs(gaps - multiples * spacing) <= multiples * _gap_tolerance(spacing)).all():
        return Refused("missing_slices", f"{int((multiples - 1).sum())} missing")
    return Refused("uneven_spacing", f"gaps from {gaps.min():.3g} to {gaps.max():.3g} mm")


def _gap_tolerance(gap: float) -> float:
    return max(GAP_TOLERANCE_MM, GAP_TOLERANCE * gap)


def _positions(slices: list[Slice]) -> np.ndarray:
    return np.array([one.position_mm for one in slices], dtype=float)


def _pixel_spacing(one: Slice) -> np.ndarray:
    return np.array(one.spacing_mm, dtype=float)


def _axes(one: Slice) -> np.ndarray:
    """Return unit vectors (3, 3): the slice normal, the way down a column, the way along a row (PS3.3 C.7.6.2.1.1)."""
    along_row, along_column = np.array(one.orientation, dtype=float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    return np.array([vector / np.linalg.norm(vector) for vector in (normal, along_column, along_row)])
