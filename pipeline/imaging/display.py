"""The display chain: from stored values to what a reader would see, in one order, whatever is installed.

padding masked → modality transformation → value-of-interest transformation → polarity, once (DICOM PS3.4 N.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from pipeline.imaging.quarantine import Refused

# Above this many different stored values a table of all of them is no gain.
LARGEST_TABLE = 1 << 16
STEEPEST_SLOPE = 1e12
# Air is -1000 HU; numbers below the lowest that 12 bits hold are no measurement.
LOWEST_CT_NUMBER = -1024
OUTSIDE_SHARE = 0.02
# A window under which fewer of the pixels than this lie between the darkest and the brightest hides the picture.
SMALLEST_SHARE_BETWEEN = 0.01
# Below this share of the display range, all that a window shows is one grey to a reader.
ONE_GREY = 1 / 256
SAMPLED_PIXELS = 1 << 16


@dataclass(frozen=True)
class Display:
    """Display values (float32), the mask of pixels that are not padding or None, whether polarity was fixed, flags."""

    values: np.ndarray
    valid: np.ndarray | None
    inverted: bool
    flags: tuple[str, ...]


def display(stored: np.ndarray, dataset: Dataset, windowed: bool = True) -> Display:
    """Return what a reader would see of `stored` values, of any shape.

    The first window or VOI table of the header is used, unless it hides a picture that varies; none without `windowed`:
    slices of one volume can have different ones. Inverted images are mirrored within the nominal range, so that an
    image and its inverted copy give equal values. Padding gets the darkest valid value.

    Raises Refused when the rescaling would destroy the values.
    """
    flags: list[str] = []
    valid = _valid(stored, dataset)
    if valid is not None and not valid.any():
        valid, flags = None, ["padding_ignored"]
    _check_rescale(dataset)
    bits = int(dataset.BitsStored) if stored.dtype.kind in "iu" else 0
    first, last = stored.min(), stored.max()
    nominal = (float(first), float(last)) if bits == 0 else _nominal(bits, dataset)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"

    def chain(values: np.ndarray) -> np.ndarray:
        shown, low, high = _transform(values, *nominal, dataset, flags, windowed)
        shown = (low + high - shown if inverted else shown).astype(np.float32)
        if not np.isfinite(shown).all():
            raise Refused("bad_values", "display values are not finite")
        return shown

    if stored.dtype.kind == "f" or int(last) - int(first) >= LARGEST_TABLE:
        values = chain(stored)
    else:
        values = _look_up(stored, int(first), int(last), chain)
    if windowed and _has_window(dataset) and "window_ignored" not in flags:
        seen = (values, stored) if valid is None else (values[valid], stored[valid])
        if _hides(*seen, _span_of_sigmoid(nominal, dataset)):
            plain = display(stored, dataset, windowed=False)
            return replace(plain, flags=("window_ignored", *plain.flags))
    if dataset.get("Modality") == "CT" and not inverted and not (windowed and "WindowWidth" in dataset):
        valid = _without_outside(values, valid, flags)
    if valid is not None:
        values[~valid] = values[valid].min()
    return Display(values, valid, inverted, tuple(flags))


def _without_outside(values: np.ndarray, valid: np.ndarray | None, flags: list[str]) -> np.ndarray | None:
    """Return the mask without the one value, below any CT number, by which makers fill what was not scanned."""
    lowest = values.min() if valid is None else values[valid].min()
    outside = values == lowest
    if not lowest < LOWEST_CT_NUMBER or outside.mean() < OUTSIDE_SHARE or outside.all():
        return valid
    flags.append("outside_masked")
    return ~outside if valid is None else valid & ~outside


def _has_window(dataset: Dataset) -> bool:
    return "VOILUTSequence" in dataset or "WindowWidth" in dataset


def _hides(shown: np.ndarray, stored: np.ndarray, span: float) -> bool:
    """Say whether pixels that vary as stored are constant, two-valued, or all but so, as shown.

    `span` is the display range of a window that never quite reaches its ends, 0 for all others.
    """
    shown, stored = shown.reshape(-1), stored.reshape(-1)
    if _share_between(shown[:: max(1, shown.size // SAMPLED_PIXELS)]) >= SMALLEST_SHARE_BETWEEN and not span:
        return False  # as nearly always, found without a look at all pixels
    if float(shown.max()) - float(shown.min()) <= span * ONE_GREY:
        return bool(stored.min() < stored.max())
    return _share_between(shown) < min(SMALLEST_SHARE_BETWEEN, _share_between(stored))


def _span_of_sigmoid(nominal: tuple[float, float], dataset: Dataset) -> float:
    if "VOILUTSequence" in dataset or dataset.get("VOILUTFunction") != "SIGMOID":
        return 0.0
    return float(np.ptp(apply_modality_lut(np.array(nominal), dataset)))


def _share_between(values: np.ndarray) -> float:
    """Return the share of values that are neither the lowest nor the highest."""
    return float(np.count_nonzero((values > values.min()) & (values < values.max()))) / values.size


def _nominal(bits: int, dataset: Dataset) -> tuple[float, float]:
    """Return the lowest and highest stored value that the header allows."""
    if dataset.PixelRepresentation:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _look_up(stored: np.ndarray, first: int, last: int, chain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Transform every value between `first` and `last` once instead of every pixel: the chain sees single values."""
    if first > 0 and last < LARGEST_TABLE:
        first = 0  # so that stored values are places in the table as they are
    every = np.arange(first, last + 1)
    table = chain(every)
    if np.array_equal(table, every):
        return stored.astype(np.float32)
    if first == 0 and stored.dtype.kind == "u":
        return table[stored]
    return table[np.subtract(stored, first, dtype=np.int32, casting="unsafe")]


def _transform(
    stored: np.ndarray,
    nominal_first: float,
    nominal_last: float,
    dataset: Dataset,
    flags: list[str],
    windowed: bool,
) -> tuple[np.ndarray, float, float]:
    """Return transformed values and the range that the header gives them, lowest and highest."""
    ends = apply_modality_lut(np.array([nominal_first, nominal_last]), dataset)
    values = apply_modality_lut(stored, dataset)
    if "VOILUTSequence" in dataset and (values == np.round(values)).all():
        values = values.astype(np.int64)  # a table is looked up by whole numbers
    low, high = float(ends.min()), float(ends.max())
    if not windowed or not _has_window(dataset):
        return values, low, high
    if "VOILUTSequence" not in dataset and not _usable_window(dataset):
        flags.append("window_ignored")
        return values, low, high
    try:
        shown = apply_voi_lut(values, dataset)
    except Exception:  # a table or window that pydicom refuses, in whatever way; the full range is still right
        flags.append("window_ignored")
        return values, low, high
    if "VOILUTSequence" in dataset:
        low, high = 0.0, float((1 << _table_bits(dataset)) - 1)
    return shown, low, high


def _usable_window(dataset: Dataset) -> bool:
    """Say whether the first window has a centre and a width that its function allows (PS3.3 C.11.2.1)."""
    width, centre = _first(dataset, "WindowWidth"), _first(dataset, "WindowCenter")
    smallest = 1.0 if dataset.get("VOILUTFunction", "LINEAR") in ("LINEAR", "", None) else 1e-9
    return math.isfinite(width) and math.isfinite(centre) and width >= smallest


def _table_bits(dataset: Dataset) -> int:
    return min(16, int(dataset.VOILUTSequence[0].LUTDescriptor[2]))


def _first(dataset: Dataset, keyword: str) -> float:
    value = dataset.get(keyword)
    if value is not None and not isinstance(value, int | float | str):
        value = value[0] if len(value) else None
    return math.nan if value in (None, "") else float(value)


def _check_rescale(dataset: Dataset) -> None:
    """Give an empty slope or intercept, or one of them alone, its neutral value; refuse one that destroys the image."""
    if "ModalityLUTSequence" in dataset:
        return
    if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:  # pydicom passes over one without the other
        for keyword, neutral in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
            if dataset.get(keyword) in (None, ""):
                setattr(dataset, keyword, neutral)
    slope, intercept = _first(dataset, "RescaleSlope"), _first(dataset, "RescaleIntercept")
    if "RescaleSlope" in dataset and (slope == 0 or not abs(slope) <= STEEPEST_SLOPE):
        raise Refused("bad_values", "rescale slope is zero or not finite")
    if "RescaleIntercept" in dataset and not abs(intercept) <= STEEPEST_SLOPE:
        raise Refused("bad_values", "rescale intercept is not finite")


def _valid(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Return the mask of pixels that are not padding (PS3.3 C.7.5.1.1.2), or None when all are valid."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int) or stored.dtype.kind == "f":
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    last = last if isinstance(last, int) else first
    if dataset.PixelRepresentation:
        # Some writers give the value of a signed image as unsigned.
        span = 1 << int(dataset.BitsAllocated)
        first, last = (value - span if value >= span // 2 else value for value in (first, last))
    padding = (stored >= min(first, last)) & (stored <= max(first, last))
    return ~padding if padding.any() else None
