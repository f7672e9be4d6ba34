"""What is odd about an image that can be read. Flags inform; which exclude, a policy says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.imaging.image import Image, as_json, from_json

FEWEST_GREY_LEVELS = 32
SAMPLED_PIXELS = 1 << 16
BORDER_SHARE = 0.1
# A mask, also after lossy compression or scaling: nearly all pixels lie within an eighth of the range of its ends,
# fewer between them than at either, and at each end one value prevails, which in a picture only a clipped end has.
MASK_END = 1 / 8
MASK_SHARE = 0.95
SMALLEST_END_SHARE = 0.0005
SINGLE_VALUE_SHARE = 0.5
# The flags for what the card does not expect; they need no pixels.
UNEXPECTED = ("unexpected_modality", "unexpected_view", "unexpected_body_part")


@dataclass(frozen=True)
class Limits:
    """Where an image counts as odd. The closed lists come from the dataset's card; empty accepts anything."""

    max_aspect: float = 4.0
    max_clipped: float = 0.25
    min_spacing_mm: float = 0.01
    max_spacing_mm: float = 10.0
    modalities: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], expected: Mapping[str, Any]) -> Limits:
        """Return the limits that the settings of `ingest` and the card's `expected` name."""
        return cls(
            max_aspect=settings["max_aspect"],
            max_clipped=settings["max_clipped"],
            min_spacing_mm=settings["min_spacing_mm"],
            max_spacing_mm=settings["max_spacing_mm"],
            modalities=tuple(expected["modalities"]),
            views=tuple(expected["views"]),
            body_parts=tuple(expected["body_parts"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a model's JSON."""
        return as_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Limits:
        """Return the limits kept in a model's JSON."""
        return cls(**from_json(content))


@dataclass(frozen=True)
class Quality:
    """Lowest and highest valid value, larger share of pixels at one of them, flags from quarantine.FLAGS, sorted."""

    lowest: float
    highest: float
    clipped_share: float
    flags: tuple[str, ...]


def assess(image: Image, limits: Limits) -> Quality:
    """Measure an image, of several channels the first, and name all that is odd about any of them."""
    pixels = image.pixels if image.valid is None else image.pixels[image.valid]
    lowest, highest = float(pixels.min()), float(pixels.max())
    clipped = max(np.count_nonzero(pixels == extreme) for extreme in (lowest, highest)) / pixels.size
    if lowest == highest:
        return Quality(lowest, highest, 1.0, tuple(sorted({*image.flags, "blank"})))
    checks = {
        "two_valued": is_two_valued(pixels),
        "few_grey_levels": has_few_grey_levels(pixels),
        "clipped": clipped > limits.max_clipped,
        "extreme_aspect": _aspect(image) > limits.max_aspect,
        "constant_border": image.pixels.ndim == 2 and has_constant_border(image.pixels),
        "spacing_implausible": not _plausible(image.spacing_mm, limits),
    }
    about = image.about
    others = [flag for part in image.parts()[1:] for flag in assess(part, limits).flags]
    found = {flag for flag, is_odd in checks.items() if is_odd}
    found |= unexpected(about.modality, about.view, about.body_part, limits)
    return Quality(lowest, highest, clipped, tuple(sorted(found | {*image.flags, *others})))


def is_two_valued(pixels: np.ndarray) -> bool:
    """Say whether pixels, not all equal, have two values alone, but for what compression or scaling adds to a mask."""
    flat = pixels.reshape(-1)
    return _is_two_valued(_sample(flat)) and _is_two_valued(flat)


def _is_two_valued(values: np.ndarray) -> bool:
    lowest, highest = float(values.min()), float(values.max())
    end = (highest - lowest) * MASK_END
    low, high = values[values <= lowest + end], values[values >= highest - end]
    between = max(0, values.size - low.size - high.size)
    if not between and (low == lowest).all() and (high == highest).all():
        return True
    fewest = max(between, SMALLEST_END_SHARE * values.size)
    if between > (1 - MASK_SHARE) * values.size or min(low.size, high.size) < fewest:
        return False
    return all(_commonest(part) >= SINGLE_VALUE_SHARE * part.size for part in (low, high))


def _commonest(values: np.ndarray) -> int:
    """Return how often the value occurs that occurs most."""
    return int(np.unique(values, return_counts=True)[1].max())


def _sample(flat: np.ndarray) -> np.ndarray:
    return flat[:: max(1, flat.size // SAMPLED_PIXELS)]


def has_few_grey_levels(pixels: np.ndarray) -> bool:
    """Say whether pixels have fewer than FEWEST_GREY_LEVELS different values."""
    flat = pixels.reshape(-1)
    # A sample with enough values settles it, as it nearly always does, without sorting all of them.
    return np.unique(_sample(flat)).size < FEWEST_GREY_LEVELS and np.unique(flat).size < FEWEST_GREY_LEVELS


def has_constant_border(pixels: np.ndarray) -> bool:
    """Say whether a strip along an edge of (H, W) pixels, a tenth of the side wide, has a single value."""
    for view in (pixels, pixels[::-1], pixels.T, pixels.T[::-1]):
        strip = view[: max(1, round(view.shape[0] * BORDER_SHARE))]
        if strip.min() == strip.max():
            return True
    return False


def _aspect(image: Image) -> float:
    rows, columns = image.pixels.shape[-2:]
    return max(rows, columns) / min(rows, columns)


def _plausible(spacing_mm: tuple[float, ...] | None, limits: Limits) -> bool:
    return spacing_mm is None or all(limits.min_spacing_mm <= side <= limits.max_spacing_mm for side in spacing_mm)


def unexpected(modality: str, view: str, body_part: str, limits: Limits) -> set[str]:
    """Return the flags of UNEXPECTED for what a header states; what it does not state is not held against the image."""
    facts = zip(
        UNEXPECTED, (modality, view, body_part), (limits.modalities, limits.views, limits.body_parts), strict=True
    )
    return {flag for flag, value, expected in facts if expected and value and value not in expected}


def reassessed(flags: Iterable[str], modality: str, view: str, body_part: str, limits: Limits) -> tuple[str, ...]:
    """Return the flags of an image as `assess` would give them if nothing but the closed lists of `limits` changed."""
    found = set(flags)
    if "blank" not in found:
        found = found - {*UNEXPECTED} | unexpected(modality, view, body_part, limits)
    return tuple(sorted(found))
