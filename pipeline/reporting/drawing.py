"""How every figure looks and is written: vector, the same bytes each time, readable without colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import matplotlib.style
from matplotlib.figure import Figure

P = ParamSpec("P")

BLUE, ORANGE, GREY, PALE = "#0b5394", "#b45f06", "#666666", "#d9d9d9"
CM_PER_INCH = 2.54

_STYLE = {
    "svg.hashsalt": "maescreen",
    # Text as outlines: the picture looks the same wherever it is shown, and needs no font.
    "svg.fonttype": "path",
    # A dollar sign in a group's name is a dollar sign.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.use": True,
}


def svg(width_cm: float, height_cm: float) -> Callable[[Callable[Concatenate[Figure, P], None]], Callable[P, bytes]]:
    """Turn a function that draws on a Figure into one that returns the picture as SVG bytes."""

    def decorate(draw: Callable[Concatenate[Figure, P], None]) -> Callable[P, bytes]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
            with matplotlib.style.context(["default", _STYLE]):
                figure = Figure(figsize=(width_cm / CM_PER_INCH, height_cm / CM_PER_INCH))
                draw(figure, *args, **kwargs)
                stream = io.BytesIO()
                figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
            return stream.getvalue()

        return drawn

    return decorate
