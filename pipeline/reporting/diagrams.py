"""Pictures that are not charts: a thousand people, the flow of studies, example images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.reporting.drawing import BLUE, CM_PER_INCH, GREY, ORANGE, svg
from pipeline.store.wording import counted

PER_ROW = 50
TEXT, NARROW = 9, 7.5  # points; NARROW where five parts stand side by side


def whole(parts: Sequence[float], total: int) -> list[int]:
    """Round `parts` to whole numbers that add up to `total`: largest remainders are rounded up first."""
    floors = [int(part) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: floors[i] - parts[i])
    for i in by_remainder[: total - sum(floors)]:
        floors[i] += 1
    return floors


@svg(16, 5.8)
def icons(figure: Figure, found: float, missed: float, false_alarms: float, per: int) -> None:
    """One mark per person of `per` screened: found, missed, referred although free of the condition, left alone."""
    counts = whole([found, missed, false_alarms, per - found - missed - false_alarms], per)
    looks = (
        ("found", "s", BLUE, BLUE, 17),
        ("missed", "X", "black", "black", 26),
        ("referred, free of the condition", "o", "none", ORANGE, 13),
        ("not referred, free of the condition", ".", GREY, GREY, 3),
    )
    axes = figure.subplots()
    first = 0
    for count, (label, marker, face, edge, size) in zip(counts, looks, strict=True):
        at = np.arange(first, first + count)
        axes.scatter(at % PER_ROW, -(at // PER_ROW), size, marker=marker, facecolor=face, edgecolor=edge,
                     linewidth=0.8, label=f"{count:,} {label}")  # fmt: skip
        first += count
    axes.set(xlim=(-0.8, PER_ROW - 0.2), ylim=(-(per - 1) // PER_ROW - 0.7, 0.7))
    axes.axis("off")
    figure.legend(loc="outside lower center", ncols=2, handletextpad=0.2, columnspacing=1.2)


@svg(16, 8)
def flow(
    figure: Figure,
    received: int,
    accepted: Sequence[str],
    quarantined: Mapping[str, int],
    splits: Sequence[Sequence[str]],
) -> None:
    """What came in, what was set aside and why, and how patients were divided.

    `accepted` and each of `splits` are the lines of a box; `quarantined` counts files by reason in words.
    """
    aside = [f"set aside {sum(quarantined.values()):,}"] + [f"{n:,} {reason}" for reason, n in quarantined.items()]
    line, pad = 0.42, 0.3
    aside_height = line * len(aside) + pad
    accepted_height = line * len(accepted) + pad
    split_height = line * max(len(lines) for lines in splits) + pad
    height = 0.2 + max(1.2, aside_height) + 0.5 + accepted_height + 0.8 + split_height + 0.2
    figure.set_size_inches(16 / CM_PER_INCH, height / CM_PER_INCH)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 16), ylim=(0, height))
    axes.axis("off")

    top = height - 0.2
    middle = top - max(1.2, aside_height) / 2
    _box(axes, 4, middle, 5, 2 * line + pad, [f"received {counted(received, 'file')}"])
    _box(axes, 11.6, middle, 8, aside_height, aside)
    _arrow(axes, (6.5, middle), (7.6, middle))
    lower = top - max(1.2, aside_height) - 0.5 - accepted_height / 2
    _box(axes, 4, lower, 7, accepted_height, accepted)
    _arrow(axes, (4, middle - line - pad / 2), (4, lower + accepted_height / 2))
    width = 15.6 / len(splits)
    bottom = 0.2 + split_height / 2
    for at, lines in enumerate(splits):
        centre = 0.2 + width * (at + 0.5)
        _box(axes, centre, bottom, width - 0.2, split_height, lines, TEXT if len(splits) < 5 else NARROW)
        _arrow(axes, (4, lower - accepted_height / 2), (centre, bottom + split_height / 2))


@svg(16, 5)
def gallery(
    figure: Figure, images: Sequence[np.ndarray], outlined: Sequence[np.ndarray | None], titles: Sequence[str]
) -> None:
    """Images, grey (h, w) or in colour (h, w, 3), values 0–255, four in a row, untouched.

    Where `outlined` (h, w) is given, the same image follows beside it with an outline around what is true in it.
    """
    panels: list[tuple[np.ndarray, np.ndarray | None, str]] = []
    for image, area, title in zip(images, outlined, titles, strict=True):
        panels.append((image, None, title))
        if area is not None:
            panels.append((image, area, "the same, with outline"))
    rows = -(-len(panels) // 4)
    figure.set_size_inches(16 / CM_PER_INCH, 4.4 * rows / CM_PER_INCH)
    places = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for axes, (image, area, title) in zip(places, panels, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axes.set_title(title, fontsize=TEXT)
        if area is not None:
            _outline(axes, area)


@svg(8, 8)
def masks(
    figure: Figure,
    images: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    titles: Sequence[str],
) -> None:
    """Images as in `gallery`, a row each: untouched, and with two outlines, reference whole and prediction dashed."""
    figure.set_size_inches(8 / CM_PER_INCH, 4 * len(images) / CM_PER_INCH)
    places = figure.subplots(len(images), 2, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for at, (image, reference, predicted, title) in enumerate(
        zip(images, references, predictions, titles, strict=True)
    ):
        for axes, words in zip(places[2 * at : 2 * at + 2], (title, "with outlines"), strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none")
            axes.set_title(words, fontsize=TEXT)
        _outline(places[2 * at + 1], reference)
        _outline(places[2 * at + 1], predicted, "dashed")


def _outline(axes: Axes, area: np.ndarray, line: str = "solid") -> None:
    """Draw the border of an area (h, w), closed at the image's edges: white on black, to be seen on any grey."""
    height, width = area.shape
    framed = np.pad(area.astype(float), 1)
    x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
    # Of nothing there is no border, which matplotlib would comment on.
    for colour, thickness in (("black", 2.4), ("white", 1.0)) if area.any() else ():
        axes.contour(x, y, framed, levels=[0.5], colors=colour, linewidths=thickness, linestyles=line)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _box(axes: Axes, x: float, y: float, width: float, height: float, lines: Sequence[str], size: float = TEXT) -> None:
    axes.add_patch(
        Rectangle((x - width / 2, y - height / 2), width, height, facecolor="white", edgecolor=BLUE, zorder=2)
    )
    axes.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=size, linespacing=1.3, zorder=3)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.9}, zorder=1)
