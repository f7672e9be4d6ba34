"""The chart of monitor: weekly shares and the evidence that something is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.drawing import BLUE, CM_PER_INCH, GREY, ORANGE, PALE, svg

ROW_CM = 3.1
TICKS = 6
LARGEST = 26.0  # of a dot, in square points
MOST_EVIDENCE = 12.0  # tenfold steps that are drawn; more is off the scale


@svg(16, 15)
def weeks_of(figure: Figure, streams: Sequence[Mapping[str, Any]], name: Mapping[str, str]) -> None:
    """One row per stream, as monitor.json has them: weekly share of `ones` among `n`, and its evidence over time."""
    figure.set_size_inches(16 / CM_PER_INCH, ROW_CM * len(streams) / CM_PER_INCH)
    weeks = sorted({week for one in streams for week in one["weeks"]})
    place = {week: at for at, week in enumerate(weeks)}
    every = max(1, -(-len(weeks) // TICKS))
    rows = figure.subplots(len(streams), 2, sharex=True, squeeze=False)
    for (left, right), one in zip(rows, streams, strict=True):
        at = np.array([place[week] for week in one["weeks"]])
        _shares(left, at, one, name[one["kind"]] if one["kind"] != "recall" else "Missed")
        _evidence(right, at, one)
    for axes in rows[-1]:
        axes.set_xticks(range(0, len(weeks), every), weeks[::every], rotation=30, ha="right")
        axes.set_xlim(-0.7, len(weeks) - 0.3)


def _shares(axes: Axes, at: np.ndarray, one: Mapping[str, Any], title: str) -> None:
    ones, n = np.array(one["ones"]), np.array(one["n"])
    low, high = one["expected"]
    if low == high:
        axes.axhline(100 * low, color=GREY, linewidth=1.2)
    else:
        axes.axhspan(100 * low, 100 * high, color=PALE, linewidth=0)
    axes.scatter(at, 100 * ones / n, s=np.maximum(3, LARGEST * n / n.max()), color=BLUE, zorder=3)
    top = max(1.3 * 100 * high, 100 * float((ones / n).max()) * 1.1, 1.0)
    axes.set_ylim(-0.04 * top, min(top, 104))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("%")
    axes.set_title(title, loc="left")


def _evidence(axes: Axes, at: np.ndarray, one: Mapping[str, Any]) -> None:
    height, alarm = np.array(one["log10_evidence"]), np.log10(one["alarm_at"])
    shown = np.minimum(height, MOST_EVIDENCE)
    axes.axhline(alarm, color=ORANGE, linestyle="--")
    axes.plot(at, shown, color=BLUE, marker="." if len(at) < 3 else "")
    axes.set_ylim(min(-1.0, float(shown.min()) - 0.2), max(alarm + 0.7, float(shown.max()) + 0.4))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_yticks(ticks := [tick for tick in axes.get_yticks() if tick == round(tick)])
    axes.set_yticklabels([f"{10**tick:g}" if abs(tick) < 4 else f"1e{tick:g}" for tick in ticks])
    axes.set_title("Evidence, to 1", loc="left")
    if one["alarm_week"] is not None:
        first = one["weeks"].index(one["alarm_week"])
        axes.scatter(
            at[first], shown[first], marker="X", s=36, color=ORANGE, edgecolor="black", linewidth=0.5, zorder=4
        )
