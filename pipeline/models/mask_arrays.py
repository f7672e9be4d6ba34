"""Masks beside the preprocessed images, as memory-mapped arrays, read by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.models.images import Images, ImagesError
from pipeline.store.tables.io import read_table
from pipeline.store.tables.masks import MASK_GRID, NOT_ANNOTATED, mask_name


@dataclass(frozen=True)
class MaskArrays:
    """The masks of some images, in their order.

    `arrays` hold the index of the structure that each pixel shows, uint8 (N, H, W) or (N, D, H, W), by the name of the
    array file of the image: 0 for background, 255 where nobody said. `grid` has the columns of tables.MASK_GRID.
    """

    index: pd.DataFrame
    arrays: dict[str, np.ndarray]
    grid: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __len__(self) -> int:
        return len(self.index)

    def at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the masks of the images at `rows`, (B, H, W) or (B, D, H, W)."""
        places = [(self.index["shard"].iat[int(row)], self.index["row"].iat[int(row)]) for row in rows]
        return np.stack([self.arrays[shard][place] for shard, place in places])

    @cached_property
    def annotated(self) -> np.ndarray:
        """Which images have a mask, (N,) bool."""
        found = (self.at([row])[0] for row in range(len(self)))
        return np.array([bool((mask != NOT_ANNOTATED).any()) for mask in found], dtype=bool)

    @cached_property
    def spacing_mm(self) -> np.ndarray:
        """The spacing of each image's array, slowest axis first, (N, 2) or (N, 3) mm; NaN where unknown."""
        axes = next(iter(self.arrays.values())).ndim - 1
        columns = [column.name for column in MASK_GRID.columns[1:]][-axes:]
        return self.grid.set_index("image_id").loc[self.index["image_id"], columns].to_numpy(float)


def read_masks(images: Images, arrays: Sequence[Path], grid: Path | None = None) -> MaskArrays:
    """Open the masks of `images`; `arrays` are the files `masks-*`, `grid` is `mask_grid.parquet`.

    Raises ImagesError, naming every file that is missing or of another shape than its images.
    """
    opened = {path.name: np.load(path, mmap_mode="r", allow_pickle=False) for path in arrays}
    problems, found = [], {}
    for shard in images.index["shard"].unique():
        mask, pixels = opened.get(mask_name(shard)), images.arrays[shard]
        if mask is None:
            problems.append(f"{mask_name(shard)} is missing")
        elif mask.dtype != np.uint8 or mask.shape != (len(pixels), *pixels.shape[2:]):
            problems.append(f"{mask_name(shard)} is {mask.dtype} {mask.shape}, its images are {pixels.shape}")
        else:
            found[str(shard)] = mask
    if problems:
        raise ImagesError("masks cannot be read: " + "; ".join(problems))
    return MaskArrays(images.index, found, pd.DataFrame() if grid is None else read_table(grid, MASK_GRID))
