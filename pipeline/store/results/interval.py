"""A number with its confidence limits, as it is computed and as it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.store.results.record import Number, Record


@dataclass(frozen=True)
class Interval(Record):
    """A value with its confidence limits; NaN stands for undefined. `n` is the number of units behind it."""

    value: Number
    low: Number
    high: Number
    level: float
    method: str
    n: int
