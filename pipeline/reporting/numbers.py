"""How numbers are written, in one place. Nothing here rounds a number that is computed with again."""

from __future__ import annotations

import math
from dataclasses import replace

from pipeline.store.results.interval import Interval

NOT_ESTIMABLE = "not estimable"


def missing(x: float | None) -> bool:
    """Return whether `x` is undefined: JSON null, NaN or pandas' missing value."""
    return x is None or x != x or not math.isfinite(x)


def count(n: float | None) -> str:
    """Return a count with thousands separated: `5,216`."""
    return NOT_ESTIMABLE if n is None or missing(n) else f"{round(n):,}"


def number(x: float | None, digits: int = 3) -> str:
    """Return `x` with a fixed number of decimals and a true minus sign: `−0.120`."""
    if x is None or missing(x):
        return NOT_ESTIMABLE
    text = f"{x:,.{digits}f}"
    # A rounded nothing has no sign.
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def probability(p: float | None) -> str:
    """Return a patient's probability: three decimals, and never 0 or 1, which no patient's is."""
    if p is None or missing(p):
        return NOT_ESTIMABLE
    return "< 0.001" if p < 0.0005 else "> 0.999" if p >= 0.9995 else number(p)


def percent(x: float | None, digits: int = 1) -> str:
    """Return a share as a percentage: `95.3 %`."""
    return NOT_ESTIMABLE if x is None or missing(x) else f"{number(100 * x, digits)} %"


def plain_percent(x: float) -> str:
    """Return a chosen share, such as a target or a prevalence, without needless decimals: `5 %`, `0.5 %`."""
    return f"{100 * x:.6g} %"


def share(k: int, n: int) -> str:
    """Return a part with its whole: `12 of 340 (3.5 %)`."""
    return f"{count(k)} of {count(n)}" + (f" ({percent(k / n)})" if n else "")


def limits(low: float | None, high: float | None, *, as_percent: bool = False, digits: int | None = None) -> str:
    """Return the limits of an interval: `0.921–0.976`, `92.1–97.6 %`, `at least 3.1`, or that there are none."""
    scale, unit, usual = (100, " %", 1) if as_percent else (1, "", 3)
    digits = usual if digits is None else digits
    shown = [None if x is None or missing(x) else number(scale * x, digits) for x in (low, high)]
    if None not in shown:
        # A dash between signed numbers would read as another sign.
        joint = " to " if any(s is not None and s.startswith("−") for s in shown) else "–"
        return joint.join(str(s) for s in shown) + unit
    if shown[0] is not None:
        return f"at least {shown[0]}{unit}"
    if shown[1] is not None:
        return f"at most {shown[1]}{unit}"
    return NOT_ESTIMABLE


def interval(i: Interval, *, as_percent: bool = False, why: str = "too few patients of one kind") -> str:
    """Return a value with its interval and the number behind it: `0.953 (95 % interval 0.921–0.976, n = 312)`.

    `why` says why a value or its limits cannot be given, should they be missing.
    """
    value, low, high = i.value, i.low, i.high
    if missing(value) and missing(low) and missing(high):
        return f"{NOT_ESTIMABLE} ({why}; n = {count(i.n)})"
    shown = percent(value) if as_percent else number(value)
    level = plain_percent(i.level)
    if missing(low) and missing(high):
        return f"{shown} ({level} interval {NOT_ESTIMABLE}: {why}; n = {count(i.n)})"
    return f"{shown} ({level} interval {limits(low, high, as_percent=as_percent)}, n = {count(i.n)})"


def short_interval(
    value: float | None, low: float | None, high: float | None, *, digits: int = 3, scale: int = 1
) -> str:
    """Return a value and limits for a table that gives unit, level and n elsewhere: `0.953 (0.921–0.976)`.

    `scale` 100 turns shares into percentages without the sign.
    """
    if missing(value) and missing(low) and missing(high):
        return NOT_ESTIMABLE
    value, low, high = (None if x is None or missing(x) else scale * x for x in (value, low, high))
    return f"{number(value, digits)} ({limits(low, high, digits=digits)})"


def short(i: Interval, scale: int = 1, digits: int | None = None) -> str:
    """Return an interval as `short_interval`, with three digits, or one of percentages, where they are not given."""
    usual = 1 if scale == 100 else 3
    return short_interval(i.value, i.low, i.high, digits=usual if digits is None else digits, scale=scale)


def scaled(i: Interval, by: float) -> Interval:
    """Return a share as a number of so many people."""
    return replace(i, value=by * i.value, low=by * i.low, high=by * i.high)


def people(x: float | None) -> str:
    """Return a number of people as one says it: `348`, `fewer than 1`."""
    if x is None or missing(x):
        return NOT_ESTIMABLE
    return "fewer than 1" if 0 < x < 0.5 else count(x)


def people_interval(i: Interval, per: int) -> str:
    """Return a number of people among `per` with its limits, in whole people: `348 (320–377)`.

    The limits are widened to whole people, so that rounding never narrows them, and stay between 0 and `per`.
    """
    if missing(i.low) or missing(i.high):
        return f"{people(i.value)} (interval {NOT_ESTIMABLE})"
    low, high = max(0, math.floor(i.low)), min(per, math.ceil(i.high))
    return f"{people(i.value)} ({count(low)}–{count(high)})"


def p_value(p: float | None) -> str:
    """Return a p value: three decimals, or `below 0.001`."""
    if p is None or missing(p):
        return NOT_ESTIMABLE
    return "below 0.001" if p < 0.001 else number(p)
