"""The charts of the report. Each returns SVG bytes; each can be read in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.drawing import BLUE, CM_PER_INCH, GREY, ORANGE, svg
from pipeline.store.results.interval import Interval
from pipeline.store.results.operating_point import OperatingPoint

ROW_CM = 0.55
LEGEND_LETTERS = 24  # of all names together, beside each other below a figure of half a page
SPIKE = 0.1  # of the height of a calibration curve, for the spikes of either kind of patient


@svg(8, 7.4)
def roc(figure: Figure, curve: pd.DataFrame, point: OperatingPoint | None) -> None:
    """ROC curve (x false-positive rate, y recall), with the operating point and both its intervals as a cross."""
    axes = _unit_square(figure, "Referred, free of the condition", "Found, with the condition")
    _roc(axes, curve, point)
    if point is not None:
        axes.legend(loc="lower right")


@svg(16, 6)
def roc_panels(
    figure: Figure, curves: Sequence[pd.DataFrame], points: Sequence[OperatingPoint | None], titles: Sequence[str]
) -> None:
    """The ROC curve of each run in a panel of its own, three in a row, with the operating point where there is one."""
    rows = -(-len(curves) // 3)
    figure.set_size_inches(16 / CM_PER_INCH, 5.6 * rows / CM_PER_INCH)
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for axes in panels[len(curves) :]:
        axes.axis("off")
    for axes, curve, point, title in zip(panels, curves, points, titles, strict=False):
        _square(axes, "Referred, free of the condition", "Found, with the condition")
        _roc(axes, curve, point)
        axes.set_title(title, loc="left")


@svg(8, 7.4)
def precision_recall(figure: Figure, curve: pd.DataFrame, prevalence: float, point: OperatingPoint | None) -> None:
    """Precision-recall curve (x recall, y precision) with the prevalence, which a useless model would reach."""
    axes = _unit_square(figure, "Found, with the condition", "With the condition, of those referred")
    axes.axhline(prevalence, color=GREY, linestyle=":", linewidth=1, label="share with the condition")
    ordered = curve if len(curve) < 2 or curve["x"].iloc[0] <= curve["x"].iloc[-1] else curve.iloc[::-1]
    # Between two recalls the precision is that of the higher one: a straight line would flatter.
    axes.plot(ordered["x"], ordered["y"], color=BLUE, drawstyle="steps-pre")
    if point is not None:
        _cross(axes, _limits(point.recall), _limits(point.ppv))
    axes.legend(loc="lower left")


@svg(8, 7.4)
def score_histogram(figure: Figure, score: np.ndarray, label: np.ndarray, threshold: float | None) -> None:
    """Patient scores (n,) of each class in a panel of its own, so that neither hides the other; label is 0 or 1."""
    edges = np.histogram_bin_edges(score, bins=40)
    panels = figure.subplots(2, 1, sharex=True)
    looks = ((0, "without_condition", "white", GREY, "////"), (1, "with_condition", BLUE, BLUE, ""))
    for axes, (of_class, name, face, edge, hatch) in zip(panels, looks, strict=True):
        own = score[label == of_class]
        _, _, bars = axes.hist(own, edges, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0.6)
        for bar in bars:
            bar.set_gid(name)
        axes.set_ylabel("Patients")
        axes.set_title(f"{name.replace('_', ' ')} (n = {len(own):,})", loc="left")
        axes.margins(y=0.18)
        axes.set_ylim(bottom=0)
        if threshold is not None:
            axes.axvline(threshold, color=ORANGE, linestyle="--")
    if threshold is not None:
        panels[0].annotate(
            "refer →", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", va="top", color=ORANGE,
        )  # fmt: skip
    panels[1].set_xlabel("Patient's score (log-odds); higher is worse")


@svg(16, 7.4)
def reliability(figure: Figure, before: pd.DataFrame, after: pd.DataFrame) -> None:
    """Observed share with the condition against predicted probability, in bins, before and after calibration."""
    for axes, curve, title in zip(
        figure.subplots(1, 2), (before, after), ("before calibration", "after calibration"), strict=True
    ):
        _square(axes, "Predicted probability", "Observed share with the condition")
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.errorbar(curve["x"], curve["y"], _bars(curve["y"], curve["y_low"], curve["y_high"]),
                      fmt="o", markersize=4, color=BLUE, capsize=2, linewidth=1)  # fmt: skip
        axes.set_title(title, loc="left")


@svg(16, 7.4)
def calibration_curves(figure: Figure, curves: Mapping[str, pd.DataFrame]) -> None:
    """Smooth observed share against predicted probability, with its band, a panel each; below, who was predicted what.

    `curves` maps titles to the columns of the calibration curve. Spikes hang from the top for patients with the
    condition and stand on the bottom for the others.
    """
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, curve) in zip(panels, curves.items(), strict=True):
        axes.set(xlim=(0, 1), ylim=(-SPIKE, 1 + SPIKE), xlabel="Predicted probability",
                 ylabel="Observed share with the condition")  # fmt: skip
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.fill_between(curve["predicted"], curve["low"], curve["high"], color=BLUE, alpha=0.15, linewidth=0)
        for limit in ("low", "high"):
            axes.plot(curve["predicted"], curve[limit], color=BLUE, linestyle="--", linewidth=0.7)
        axes.plot(curve["predicted"], curve["observed"], color=BLUE)
        for name, base, towards in (("without", -SPIKE, 1), ("with_condition", 1 + SPIKE, -1)):
            heights = towards * 0.9 * SPIKE * curve[name] / max(curve[name].max(), 1)
            axes.vlines(curve["predicted"], base, base + heights, color="black", linewidth=0.9)
        axes.set_title(title, loc="left")


@svg(16, 7)
def decision(figure: Figure, curves: Mapping[str, pd.DataFrame], most: float) -> None:
    """Net benefit against threshold probability: of the model with its interval, and of what else one could do.

    Probabilities above `most` are not shown. `curves` maps labels to points, the model first; it alone has a band.
    Lines differ by dashes, not colour alone.
    """
    axes = figure.subplots()
    looks = ((BLUE, "-"), (GREY, "--"), (ORANGE, "-."))
    for at, ((label, curve), (colour, line)) in enumerate(zip(curves.items(), looks, strict=False)):
        if at == 0:
            axes.fill_between(curve["x"], curve["y_low"], curve["y_high"], color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(curve["x"], curve["y"], line, color=colour, label=label)
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1, label="refer no one")
    top = max([0.01, *(float(curve["y"].max()) for curve in curves.values())])
    # Below 0 it only matters that a curve is there.
    axes.set(xlim=(0, most), ylim=(-0.5 * top, 1.1 * top))
    axes.set_xlabel("Probability of the condition from which on one would refer")
    axes.set_ylabel("Net benefit per person")
    figure.legend(loc="outside lower center", ncols=2)


@svg(16, 6)
def forest(figure: Figure, groups: pd.DataFrame, panels: Mapping[str, str], overall: Mapping[str, float]) -> None:
    """One row per group, one panel per measure: value and interval; the dotted line is the value of all patients.

    groups: `name` and, per key of `panels`, `<key>`, `<key>_low`, `<key>_high`; `panels` maps keys to axis titles.
    """
    figure.set_size_inches(16 / CM_PER_INCH, (ROW_CM * len(groups) + 1.8) / CM_PER_INCH)
    at = np.arange(len(groups))[::-1]
    for axes, (measure, title) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        axes.axvline(overall[measure], color=GREY, linestyle=":", linewidth=1)
        _dots(axes, at, *(groups[f"{measure}{limit}"] for limit in ("", "_low", "_high")))
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(3 if len(panels) > 2 else 4, prune="both"))
        if title.endswith("%"):
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
        axes.set_yticks(at, groups["name"])
        axes.set_ylim(-0.7, len(groups) - 0.3)


@svg(16, 6)
def arms(figure: Figure, comparison: pd.DataFrame, names: Sequence[str]) -> None:
    """AUC of each arm with its interval; ticks mark the lowest and highest single training seed."""
    figure.set_size_inches(16 / CM_PER_INCH, (0.8 * len(names) + 1.8) / CM_PER_INCH)
    axes = figure.subplots()
    at = np.arange(len(names))[::-1]
    _dots(axes, at, comparison["auc"], comparison["auc_low"], comparison["auc_high"])
    for limit in ("auc_seed_min", "auc_seed_max"):
        axes.scatter(comparison[limit], at - 0.2, marker="|", s=30, color=GREY)
    axes.hlines(at - 0.2, comparison["auc_seed_min"], comparison["auc_seed_max"], color=GREY, linewidth=0.8)
    axes.set_yticks(at, names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.set_xlabel("AUC on the test patients")


@svg(16, 8)
def label_curve(figure: Figure, curves: Mapping[str, pd.DataFrame]) -> None:
    """AUC against labelled patients, logarithmic: a line per arm, told apart by dashes and markers.

    `curves` maps labels to rows with `labelled_patients`, `auc`, `auc_low` and `auc_high`. The first two, whose
    comparison is the question, have their interval as a band; more bands would hide each other.
    """
    axes = figure.subplots()
    looks = ((BLUE, "o-", BLUE), (ORANGE, "s--", ORANGE), (GREY, "^:", "white"), (GREY, "D-.", "white"))
    for at, ((label, curve), (colour, look, face)) in enumerate(zip(curves.items(), cycle(looks), strict=False)):
        counts = curve["labelled_patients"]
        if at < 2:
            axes.fill_between(counts, curve["auc_low"], curve["auc_high"], facecolor=colour, alpha=0.15, linewidth=0)
            for limit in ("auc_low", "auc_high"):
                axes.plot(counts, curve[limit], look[1:], color=colour, linewidth=0.5)
        axes.plot(counts, curve["auc"], look, color=colour, label=label, markersize=5, markerfacecolor=face)
    counts = sorted({int(n) for curve in curves.values() for n in curve["labelled_patients"]})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("Labelled training patients")
    axes.set_ylabel("AUC on the test patients")
    figure.legend(loc="outside lower center", ncols=2)


@svg(8, 8)
def froc(figure: Figure, curves: Mapping[str, pd.DataFrame], rates: Sequence[float]) -> None:
    """Share of lesions found against false marks per image, logarithmic: a line per structure, told apart by dashes.

    `curves` maps labels to rows with `false_marks_per_image`, `sensitivity`, `low` and `high`; `rates`, the ends of the
    axis and its ticks, carry the intervals as bars, set a little apart.
    """
    axes = figure.subplots()
    looks = ((BLUE, "-", "o", BLUE), (ORANGE, "--", "s", ORANGE), (GREY, ":", "^", "white"), (GREY, "-.", "D", "white"))
    keys = []
    for at, ((label, curve), (colour, line, marker, face)) in enumerate(
        zip(curves.items(), cycle(looks), strict=False)
    ):
        x = curve["false_marks_per_image"]
        shown, own = curve[(x >= rates[0]) & (x <= rates[-1])], curve[x.isin(rates)]
        look = {"color": colour, "markersize": 4.5, "markerfacecolor": face}
        # Between two rates the share is that of the lower one: a straight line would flatter.
        axes.plot(shown["false_marks_per_image"], shown["sensitivity"], line, color=colour, drawstyle="steps-post")
        bars = _bars(own["sensitivity"], own["low"], own["high"])
        apart = own["false_marks_per_image"] * 1.03**at
        axes.errorbar(apart, own["sensitivity"], bars, fmt=marker, capsize=2.5, linewidth=1, **look)
        keys += axes.plot([], [], f"{marker}{line}", label=label, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(rates), [str(Fraction(rate)) for rate in rates])
    axes.minorticks_off()
    axes.set(ylim=(-0.03, 1.03), xlabel="False marks per image, at most", ylabel="Lesions found")
    beside = sum(map(len, curves)) <= LEGEND_LETTERS
    figure.legend(handles=keys, loc="outside lower center", ncols=3 if beside else 1)


@svg(8, 5.9)
def pretraining_loss(figure: Figure, history: Sequence[Mapping[str, Any]]) -> None:
    """Loss of the masked autoencoder per epoch, on its training images and on images held out."""
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    looks = (("train_loss", "training images", "-"), ("held_out_loss", "held-out images", "--"))
    for (name, label, line), colour in zip(looks, (BLUE, ORANGE), strict=True):
        values = [np.nan if row.get(name) is None else row[name] for row in history]
        axes.plot(epochs, values, line, color=colour, label=label, marker="." if len(epochs) < 15 else "")
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Error on hidden patches")
    axes.legend()


def _roc(axes: Axes, curve: pd.DataFrame, point: OperatingPoint | None) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(curve["x"], curve["y"], color=BLUE)
    if point is not None:
        value, low, high = _limits(point.specificity)
        _cross(axes, (1 - value, 1 - high, 1 - low), _limits(point.recall))


def _limits(i: Interval) -> tuple[float, float, float]:
    return i.value, i.low, i.high


def _unit_square(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    _square(axes, x, y)
    return axes


def _square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=x, ylabel=y)


def _cross(axes: Axes, x: tuple[float, float, float], y: tuple[float, float, float]) -> None:
    """Draw a point (value, low, high) per axis with both intervals; an undefined value draws nothing."""
    x_, y_ = np.array(x), np.array(y)
    if np.isnan(x_[0]) or np.isnan(y_[0]):
        return
    axes.errorbar(x_[:1], y_[:1], _bars(y_[:1], y_[1:2], y_[2:]), _bars(x_[:1], x_[1:2], x_[2:]), fmt="D",
                  markersize=4.5, color=ORANGE, capsize=2.5, linewidth=1.2, zorder=5,
                  label="operating point, with intervals")  # fmt: skip


def _dots(axes: Axes, at: np.ndarray, value: pd.Series, low: pd.Series, high: pd.Series) -> None:
    axes.errorbar(
        value, at, xerr=_bars(value, low, high), fmt="s", markersize=4, color=BLUE, capsize=2.5, linewidth=1.2
    )


def _bars(value: Any, low: Any, high: Any) -> np.ndarray:
    """Return lengths (2, n) of error bars; a missing limit has length 0, since matplotlib refuses NaN and negatives."""
    value, low, high = (np.asarray(v, dtype=float) for v in (value, low, high))
    return np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0, None))
