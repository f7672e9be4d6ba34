"""How well a predicted mask agrees with a reference mask, and means of it over patients.

Metrics are chosen and used as Metrics Reloaded asks (Maier-Hein, Reinke et al., Nature Methods 21 (2024) 195-212): an
overlap, a distance between boundaries at a tolerance, the size; per patient, never pooled over pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area

from pipeline.statistics.intervals import Interval, bootstrap, undefined
from pipeline.store.tables.masks import NOT_ANNOTATED

Case = Literal["found", "missed", "invented", "both_empty"]
CASES: tuple[Case, ...] = ("found", "missed", "invented", "both_empty")
# Intervals need patients who differ: of one patient there is no interval.
LEAST_PATIENTS = 2


@dataclass(frozen=True)
class Agreement:
    """One structure in one image. Sizes are in voxels; Dice and NSD are NaN where both masks are empty.

    `nsd` is NaN as well where spacing is unknown, whatever the model did: there are no millimetres.
    """

    case: Case
    dice: float
    nsd: float
    reference: int
    predicted: int


def agreement(
    reference: np.ndarray,
    predicted: np.ndarray,
    structure: int,
    spacing_mm: Sequence[float] | None,
    tolerance_mm: float,
) -> Agreement:
    """Compare the masks of one image, both (H, W) or (D, H, W) with 0 background, 1… structures, 255 not annotated.

    A structure is `found` when some predicted pixel lies in it, `missed` when none does, even if the model saw it
    elsewhere: Dice, 2 |A ∩ B| / (|A| + |B|) (Ecology 26 (1945) 297-302), and NSD are then 0. One that the reference
    lacks is `invented` (0 as well) or `both_empty`. Pixels that the reference leaves unannotated are background in
    both: beyond them nothing is known, as beyond the border of the image. `spacing_mm` has the distance of voxels along
    each axis, None when it is unknown.

    Raises ValueError when the shapes differ.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"a predicted mask {predicted.shape} does not fit its reference {reference.shape}")
    there, seen = reference == structure, (predicted == structure) & (reference != NOT_ANNOTATED)
    size, found_size = int(there.sum()), int(seen.sum())
    common = int((there & seen).sum())
    if not size and not found_size:
        return Agreement("both_empty", math.nan, math.nan, 0, 0)
    if not common:
        nsd = math.nan if spacing_mm is None else 0.0
        return Agreement("missed" if size else "invented", 0.0, nsd, size, found_size)
    nsd = math.nan if spacing_mm is None else surface_dice(there, seen, spacing_mm, tolerance_mm)
    return Agreement("found", 2 * common / (size + found_size), nsd, size, found_size)


def surface_dice(
    reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Return the normalised surface distance of two masks of booleans: the share of both surfaces that agree.

    As defined, under the name of surface Dice, by Nikolov et al., J Med Internet Res 23 (2021) e26151: a surface
    consists of elements between neighbouring voxels, of the area that marching cubes give (of the length that marching
    squares give); an element agrees when one of the other surface lies within `tolerance_mm`. The border of the image
    closes a mask. NaN if both masks are empty, 0 if one is.
    """
    if not (reference.any() and predicted.any()):
        return 0.0 if reference.any() or predicted.any() else math.nan
    window = ndimage.find_objects((reference | predicted).astype(np.uint8))[0]
    first, second = (_elements(mask[window], tuple(spacing_mm)) for mask in (reference, predicted))
    near = [
        np.where(_distance(other, spacing_mm) <= tolerance_mm, own, 0).sum()
        for own, other in ((first, second), (second, first))
    ]
    return float(sum(near) / (first.sum() + second.sum()))


def _distance(elements: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return how far every place is from the nearest surface element, in mm."""
    return np.asarray(ndimage.distance_transform_edt(elements == 0, sampling=spacing_mm))


def _elements(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Return the size of the surface element at each corner of the voxels of a mask, 0 where there is none."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros(tuple(side + 1 for side in mask.shape), np.uint8)
    # Which of the voxels round a corner belong to the mask, as a number of that many bits.
    for bit, place in enumerate(product((0, 1), repeat=mask.ndim)):
        code |= padded[tuple(slice(at, at + side) for at, side in zip(place, code.shape, strict=True))] << bit
    return _sizes(spacing_mm)[code]


@lru_cache
def _sizes(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Return the area in mm² (length in mm) of the surface between the corners of a cube, by which of them are in."""
    axes = len(spacing_mm)
    return np.array([_size(code, spacing_mm) for code in range(2**2**axes)])


def _size(code: int, spacing_mm: tuple[float, ...]) -> float:
    corners = 2 ** len(spacing_mm)
    # A surface has the same area seen from its other side, which an ambiguous cube would not give.
    code = code if code.bit_count() <= corners // 2 else 2**corners - 1 - code
    if code == 0:
        return 0.0
    inside = (code >> np.arange(corners) & 1).reshape((2,) * len(spacing_mm)).astype(float)
    if len(spacing_mm) == 3:
        vertices, faces, *_ = marching_cubes(inside, 0.5, spacing=spacing_mm, method="lorensen")
        return float(mesh_surface_area(vertices, faces))
    if code.bit_count() == 2 and inside[0].sum() != 1:
        return spacing_mm[1]
    if code.bit_count() == 2 and inside[:, 0].sum() != 1:
        return spacing_mm[0]
    return code.bit_count() * math.hypot(*spacing_mm) / 2


def size_of_voxel(spacing_mm: Sequence[float]) -> float:
    """Return what one voxel holds: in ml of a volume, in cm² of an image."""
    return math.prod(spacing_mm) / (1000 if len(spacing_mm) == 3 else 100)


def patient_means(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the mean of each column over a patient's rows, by `patient_id`; values that are NaN are left out.

    A patient all of whose rows are NaN stays NaN.
    """
    return rows.groupby("patient_id", sort=True)[list(columns)].mean()


def mean_interval(values: np.ndarray, level: float, seed: int, resamples: int = 2000) -> Interval:
    """Return the mean over patients of (n,) finite values, with its percentile interval from patients drawn anew.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. One patient has no limits, none no mean.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < LEAST_PATIENTS:
        nothing = undefined(level, "patient_bootstrap", len(values))
        return nothing if not len(values) else Interval(float(values[0]), math.nan, math.nan, level, nothing.method, 1)

    def mean(_y: np.ndarray, s: np.ndarray) -> float:
        return float(s.mean())

    everyone = np.zeros(len(values))
    return bootstrap(mean, everyone, values, resamples=resamples, seed=seed, stratify=False, level=level)
