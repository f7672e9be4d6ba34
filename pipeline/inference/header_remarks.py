"""What the header of a study says that those of the training images did not: closed lists and bands, never its text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.imaging import vocabulary

# A value that fewer of the training images had is named, too.
FEW = 0.01
SPACINGS_MM = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
AGES_YEARS = (1, 5, 18, 40, 65)
AGE_BANDS = ("under 1 year", "1 to 4 years", "5 to 17 years", "18 to 39 years", "40 to 64 years", "65 years or more")
SPACING_BANDS = (
    f"below {SPACINGS_MM[0]} mm",
    *(f"{low} to {high} mm" for low, high in pairwise(SPACINGS_MM)),
    f"{SPACINGS_MM[-1]} mm or more",
)
UNLISTED = "one that is not in the list"

Counts = Mapping[str, Mapping[str, int]]


def header_values(seen: Mapping[str, Any]) -> dict[str, str]:
    """Return what a header states, each as a value of a closed list; what it does not state is left out.

    `seen` may hold `modality`, `view`, `body_part` (text), `spacing_mm` (two or three numbers, any order) and
    `age_years`; anything else in it is left alone. Keys of the result, and of the counts that `header_remarks` takes:
    `modality`, `view`, `body_part`, `pixel_spacing`, `slice_spacing`, `age`.
    """
    values = {name: listed(str(seen.get(name) or "")) for name, listed in _LISTS.items()}
    spacing = [float(one) for one in _numbers(seen.get("spacing_mm"))]
    if spacing:
        values["pixel_spacing"] = spacing_band(min(spacing))
    if len(spacing) == 3:
        values["slice_spacing"] = spacing_band(max(spacing))
    if seen.get("age_years") is not None and seen["age_years"] >= 0:  # not NaN
        values["age"] = age_band(seen["age_years"])
    return {name: value for name, value in values.items() if value}


def header_remarks(seen: Mapping[str, Any], training: Counts) -> list[str]:
    """Name what a header states and no training image, or less than 1 in 100, had; see `header_values`.

    `training` holds, by the same keys, how many training images had each value. What either side does not state is no
    difference.
    """
    remarks = []
    for name, value in header_values(seen).items():
        counts = {known: int(n) for known, n in training.get(name, {}).items() if known in _ALLOWED[name] and n > 0}
        total, same = sum(counts.values()), counts.get(value, 0)
        if total and same < FEW * total:
            shown = UNLISTED if value == vocabulary.OTHER else value
            there = f"none of {total:,}" if not same else f"only {same:,} of {total:,}"
            most = sorted(counts, key=lambda known: (-counts[known], known))[:3]
            usual = ", ".join(f"{counts[known]:,} {'others' if known == vocabulary.OTHER else known}" for known in most)
            remarks.append(f"{_TITLES[name]}: {shown}; {there} training images had it (most frequent: {usual})")
    return remarks


def spacing_band(spacing_mm: float) -> str:
    """Return the band of a spacing in mm; each is twice as wide as the one before."""
    return SPACING_BANDS[bisect_right(SPACINGS_MM, spacing_mm)]


def age_band(years: float) -> str:
    """Return the band of an age in years."""
    return AGE_BANDS[bisect_right(AGES_YEARS, years)]


def _numbers(values: Any) -> Sequence[float]:
    return [] if values is None else [value for value in values if value is not None and value > 0]


_LISTS: Mapping[str, Callable[[str], str]] = {
    "modality": vocabulary.modality,
    "view": vocabulary.view,
    "body_part": vocabulary.body_part,
}
_ALLOWED: Mapping[str, frozenset[str]] = {
    "modality": vocabulary.MODALITIES | {vocabulary.OTHER},
    "view": vocabulary.VIEWS,
    "body_part": vocabulary.BODY_PARTS | {vocabulary.OTHER},
    "pixel_spacing": frozenset(SPACING_BANDS),
    "slice_spacing": frozenset(SPACING_BANDS),
    "age": frozenset(AGE_BANDS),
}
_TITLES = {
    "modality": "modality",
    "view": "view",
    "body_part": "body part",
    "pixel_spacing": "pixel spacing",
    "slice_spacing": "slice spacing",
    "age": "age",
}
