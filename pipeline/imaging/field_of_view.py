"""The round field of view of a fundus photograph, found by its dark surround."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import binary_fill_holes, binary_opening, label

SEARCHED_SIDE = 256  # the longer side of what is searched; finer, noise of the sensor would count
# Of the way from the surround to the middle of the disc: dim rims belong to the disc, stray light does not.
EDGE = 0.1
DARKEST, MIDDLE = 1.0, 50.0  # percentiles
LEAST_CONTRAST = 0.05  # of the range of the picture; less is no disc on black
FEWEST_DARK_CORNERS = 3  # one may hold a notch, a date or an arrow
CORNER = 0.03  # side of a corner, share of the shorter side
SMALLEST_DISC = 0.1  # share of the picture
# Area of the disc over that of a circle as wide, cut off above and below (or left and right) where the picture ends.
ROUND = (0.93, 1.05)

Box = tuple[int, int, int, int]


def field_of_view(channels: np.ndarray) -> Box | None:
    """Return top, bottom, left and right (ends excluded) of the disc in channels (C, H, W), or None without a disc.

    A disc is one bright piece, round but for what the picture's edges cut off, in a picture with dark corners.
    """
    brightest = channels.max(axis=0)
    step = max(1, math.ceil(max(brightest.shape) / SEARCHED_SIDE))
    seen = brightest[::step, ::step]
    rows, columns = seen.shape
    centre = seen[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    dark, bright = float(np.percentile(seen, DARKEST)), float(np.percentile(centre, MIDDLE))
    if not bright - dark > LEAST_CONTRAST * float(seen.max() - seen.min()):
        return None
    bright_enough = seen > dark + EDGE * (bright - dark)
    pieces, _ = label(binary_opening(bright_enough, np.ones((3, 3))))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    if sizes.max(initial=0) < SMALLEST_DISC * seen.size:
        return None
    disc = binary_fill_holes(pieces == sizes.argmax())
    if _dark_corners(bright_enough) < FEWEST_DARK_CORNERS:
        return None
    down, across = np.flatnonzero(disc.any(axis=1)), np.flatnonzero(disc.any(axis=0))
    height, width = len(range(down[0], down[-1] + 1)), len(range(across[0], across[-1] + 1))
    if not ROUND[0] <= np.count_nonzero(disc) / _cut_circle(height, width) <= ROUND[1]:
        return None
    # A step more on each side: the edge lies somewhere between two places that were looked at.
    ends = ((down[0], down[-1], brightest.shape[0]), (across[0], across[-1], brightest.shape[1]))
    (top, bottom), (left, right) = (
        (max(0, int(first) * step - (step - 1)), min(side, int(last) * step + step)) for first, last, side in ends
    )
    return top, bottom, left, right


def _dark_corners(bright: np.ndarray) -> int:
    side = max(1, round(CORNER * min(bright.shape)))
    ends = (slice(None, side), slice(-side, None))
    return sum(not bright[rows, columns].mean() > 0.5 for rows in ends for columns in ends)


def _cut_circle(height: int, width: int) -> float:
    """Return the area of a circle of the longer of two sides, cut off symmetrically at the shorter."""
    radius, half = max(height, width) / 2, min(height, width) / 2
    return 2 * (half * math.sqrt(radius**2 - half**2) + radius**2 * math.asin(half / radius))
