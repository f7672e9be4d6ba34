"""Discs of known place and size planted in radiographs, and a detector of discs that is sometimes wrong.

The radiographs are real ones where they are at hand, else noise that looks like them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

DATA = Path(os.environ.get("MAESCREEN_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
SIDE = 64


@dataclass(frozen=True)
class Planted:
    """Images of one patient each: masks (N, H, W) uint8, where discs are; maps (N, H, W) of a probability."""

    images: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    discs: list[list[tuple[int, int, int]]]

    @property
    def scores(self) -> np.ndarray:
        """The score of each image: that of its most suspicious place."""
        return self.maps.max(axis=(1, 2))

    def predicted(self, above: float) -> np.ndarray:
        """Return the masks of what reaches a probability."""
        return (self.maps >= above).astype(np.uint8)

    def marks(self, above: float, arm: str = "mae") -> pd.DataFrame:
        """Return a row per connected piece of the predicted masks, with the highest probability in it and its place."""
        rows = []
        for at, shown in enumerate(self.maps):
            pieces, count = ndimage.label(shown >= above, np.ones((3, 3)))
            for piece in range(1, count + 1):
                inside = np.where(pieces == piece, shown, -1)
                y, x = np.unravel_index(inside.argmax(), inside.shape)
                rows.append((arm, f"i{at:04d}", 1, piece, float(inside.max()), 0, y, x, int((pieces == piece).sum())))
        columns = ["arm", "image_id", "structure", "mark", "score", "z", "y", "x", "voxels"]
        return pd.DataFrame(rows, columns=columns)


def radiographs(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return (count, SIDE, SIDE) grey values from 0 to 1."""
    files = sorted((DATA / "chest_xray_pneumonia" / "images" / "normal").glob("*.jpeg"))
    if files:
        some = generator.choice(len(files), count, replace=False)
        return np.stack([np.asarray(Image.open(files[at]).convert("L").resize((SIDE, SIDE))) / 255 for at in some])
    noise = ndimage.gaussian_filter(generator.normal(size=(count, SIDE, SIDE)), (0, 5, 5))
    return 0.4 + 2 * noise + 0.03 * generator.normal(size=noise.shape)


def planted(positive: int, negative: int, seed: int) -> Planted:
    """Plant one to three discs that do not touch into each of the first `positive` images, none into the others."""
    generator = np.random.default_rng(seed)
    images = radiographs(positive + negative, generator)
    masks, discs = np.zeros(images.shape, np.uint8), []
    y, x = np.mgrid[:SIDE, :SIDE]
    for at in range(len(images)):
        own: list[tuple[int, int, int]] = []
        wanted = int(generator.integers(1, 4)) if at < positive else 0
        while len(own) < wanted:
            radius = int(generator.integers(2, 5))
            cy, cx = (int(c) for c in generator.integers(8, SIDE - 8, 2))
            if all(np.hypot(cy - a, cx - b) > radius + r + 3 for a, b, r in own):
                own.append((cy, cx, radius))
                disc = np.hypot(y - cy, x - cx) <= radius
                masks[at][disc] = 1
                images[at][disc] += generator.uniform(0.05, 0.35)
        discs.append(own)
    response = ndimage.gaussian_filter(images, (0, 2, 2)) - ndimage.gaussian_filter(images, (0, 6, 6))
    return Planted(images, masks, 1 / (1 + np.exp(-60 * (response - 0.06))), discs)
