"""The display chain: from stored values to what a reader would see, in one order, whatever is installed.

padding masked → modality transformation → value-of-interest transformation → polarity, once (DICOM PS3.4 N.2).
"""

from __future__ import annotations

import math

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from pipeline.imaging.verdicts import Refused

# Above this many different stored values a table of all of them is no gain.
LARGEST_TABLE = 1 << 16
STEEPEST_SLOPE = 1e12


def display(stored: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None, bool, tuple[str, ...]]:
    """Return display values (float32, shape of `stored`), the mask of valid pixels or None, polarity fixed, flags.

    The first window or VOI table of the header is used. Inverted images are mirrored within the nominal range, so
    that an image and its inverted copy give equal values. Padding gets the darkest valid value.

    Raises Refused when the rescaling would destroy the values.
    """
    flags: list[str] = []
    valid = _valid(stored, dataset)
    if valid is not None and not valid.any():
        valid, flags = None, ["padding_ignored"]
    _check_rescale(dataset)
    if stored.dtype.kind == "f":
        values, low, high = _transform(stored, stored.min(), stored.max(), dataset, flags)
    else:
        values, low, high = _transform_by_table(stored, dataset, flags)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    if inverted:
        values = low + high - values
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise Refused("bad_values", "display values are not finite")
    if valid is not None:
        values[~valid] = values[valid].min()
    return values, valid, inverted, tuple(flags)


def _transform_by_table(stored: np.ndarray, dataset: Dataset, flags: list[str]) -> tuple[np.ndarray, float, float]:
    """Transform every possible value once instead of every pixel: the chain looks at one value at a time."""
    first, last = int(stored.min()), int(stored.max())
    bits = int(dataset.BitsStored)
    nominal = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dataset.PixelRepresentation else (0, (1 << bits) - 1)
    if last - first >= LARGEST_TABLE:
        return _transform(stored, *nominal, dataset, flags)
    table, low, high = _transform(np.arange(first, last + 1), *nominal, dataset, flags)
    return table[stored.astype(np.int64) - first], low, high


def _transform(
    stored: np.ndarray, nominal_first: float, nominal_last: float, dataset: Dataset, flags: list[str]
) -> tuple[np.ndarray, float, float]:
    """Return transformed values and the range that the header gives them, lowest and highest."""
    ends = apply_modality_lut(np.array([nominal_first, nominal_last]), dataset)
    values = apply_modality_lut(stored, dataset)
    if "VOILUTSequence" in dataset and (values == np.round(values)).all():
        values = values.astype(np.int64)  # a table is looked up by whole numbers
    low, high = float(ends.min()), float(ends.max())
    if "VOILUTSequence" not in dataset and "WindowWidth" not in dataset:
        return values, low, high
    if "VOILUTSequence" not in dataset and not _usable_window(dataset):
        flags.append("window_ignored")
        return values, low, high
    try:
        windowed = apply_voi_lut(values, dataset)
    except Exception:  # a table or window that pydicom refuses, in whatever way; the full range is still right
        flags.append("window_ignored")
        return values, low, high
    if "VOILUTSequence" in dataset:
        low, high = 0.0, float((1 << _table_bits(dataset)) - 1)
    return windowed, low, high


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
    """Give an empty slope or intercept its neutral value; refuse one that destroys the image."""
    if "ModalityLUTSequence" in dataset:
        return
    for keyword, neutral in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        if keyword in dataset and dataset.get(keyword) in (None, ""):
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
