"""The planner's figure: what patients with the condition buy, in people not referred and in chances of confirmation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.reporting.drawing import BLUE, GREY, ORANGE, svg

LOOKS = ((BLUE, "o-"), (ORANGE, "s--"), (GREY, "^:"), ("black", "D-."))
Line = Sequence[tuple[int, float]]


@svg(16, 9)
def power(figure: Figure, referral: Mapping[str, Line], ideal: Mapping[str, float], chance: Mapping[str, Line]) -> None:
    """Left: people referred per 1,000 by calibration patients; right: chance of confirmation by patients in each set.

    `referral` and `chance` map labels to points (patients with the condition, value); `ideal` has, for labels of
    `referral`, what somebody refers who knows the threshold, drawn thin. Lines differ by dashes and markers.
    """
    left, right = figure.subplots(1, 2)
    _lines(left, referral)
    for value in ideal.values():
        left.axhline(value, color=GREY, linewidth=0.6)
    left.set(xlabel="Calibration patients with the condition", ylabel="Referred per 1,000", ylim=(0, None))
    _lines(right, chance)
    right.set(xlabel="Patients with the condition in each set", ylabel="Confirmed, of 100 kept promises", ylim=(0, 100))
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), handlelength=3.2)


def _lines(axes: Axes, lines: Mapping[str, Line]) -> None:
    sizes: set[int] = set()
    for (label, points), (colour, look) in zip(lines.items(), cycle(LOOKS), strict=False):
        x, y = [n for n, _ in points], [value for _, value in points]
        axes.plot(x, y, look, color=colour, label=label, markersize=4, markevery=max(1, len(x) // 6))
        sizes.update(x)
    axes.set_xscale("log")
    ticks = [n for n in (50, 100, 200, 500, 1000, 2000, 5000, 10000) if min(sizes) <= n <= max(sizes)]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
