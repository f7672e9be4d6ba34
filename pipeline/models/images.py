"""Preprocessed images as memory-mapped arrays, read by row."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.store.tables.io import read_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.split import FURTHER_LABELS


class ImagesError(ValueError):
    """An array does not hold what its index says."""


CACHE_SHARE = 0.5  # of a GPU's free memory, at most, for images


@dataclass
class Stopwatch:
    """Adds up the time spent inside its `running` blocks."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class Images:
    """Images of one or several splits: a table with a row per image, and the arrays that hold their pixels.

    `index` has the columns of tables.INDEX; arrays are unsigned integers (N, C, H, W) or (N, C, D, H, W). `further`
    has a row per image and a column per further label, by its id: 0, 1, or NaN where missing. `waited` counts the time
    spent on fetching pixels. `cache` holds the bytes of all images on a GPU, see `cached`.
    """

    index: pd.DataFrame
    arrays: dict[str, np.ndarray]
    further: pd.DataFrame = field(default_factory=pd.DataFrame)
    waited: Stopwatch = field(default_factory=Stopwatch, compare=False)
    cache: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and size of an image: (C, H, W) or (C, D, H, W)."""
        return next(iter(self.arrays.values())).shape[1:]

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels as float64; NaN where missing."""
        return np.asarray(self.index["label"].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan))

    @cached_property
    def targets(self) -> np.ndarray:
        """The main label and the further ones, (N, L) float64; NaN where missing."""
        return np.column_stack([self.labels, *(self.further[name] for name in self.further)])

    def where(self, chosen: np.ndarray) -> Images:
        """Return the images for which the boolean array `chosen` is true."""
        return self.at(np.flatnonzero(chosen))

    def at(self, rows: np.ndarray) -> Images:
        """Return the images at `rows`, in this order; a row may be named several times."""
        further = self.further.iloc[rows].reset_index(drop=True) if len(self.further) else self.further
        return Images(self.index.iloc[rows].reset_index(drop=True), self.arrays, further)

    def labelled(self) -> Images:
        """Return the images that have a label."""
        return self.where(~np.isnan(self.labels))

    def pixels(self, rows: Sequence[int] | np.ndarray, device: torch.device) -> torch.Tensor:
        """Return the images at `rows` as float32 in [0, 1], (B, C, ...), on `device`."""
        with self.waited.running():
            if self.cache is None or self.cache.device != device:
                raw = on_device(self.raw(rows), device)
            else:
                raw = self.cache[on_device(torch.as_tensor(rows), device)].view(self._dtype)
            return raw.float() / self.full_scale

    def raw(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` with their stored integers, (B, C, ...)."""
        shards, places = self._places
        found = np.stack([self.arrays[shards[row]][places[row]] for row in rows])
        return torch.from_numpy(found)

    def cached(self, device: torch.device) -> Images:
        """Return these images held on the GPU when they take at most half of its free memory, as they are otherwise.

        A GPU is many times faster than reading from files; a CPU has them in its memory anyway.
        """
        size = len(self) * np.prod(self.shape) * self._dtype.itemsize
        if device.type == "cpu" or size > CACHE_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, cache=self.all_bytes(device))

    def all_bytes(self, device: torch.device) -> torch.Tensor:
        """Return all images as the bytes of their stored integers, (N, C, ..., W x bytes per integer), on `device`.

        As bytes, since few operations take unsigned integers of 16 bits.
        """
        *outer, width = self.shape
        found = torch.empty((len(self), *outer, width * self._dtype.itemsize), dtype=torch.uint8, device=device)
        for rows in self.chunks(256):
            found[rows[0] : rows[-1] + 1] = self.raw(rows).view(torch.uint8)
        return found

    @property
    def _dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, next(iter(self.arrays.values())).dtype)).dtype

    @property
    def full_scale(self) -> float:
        """The stored integer that stands for 1.0."""
        return float(np.iinfo(next(iter(self.arrays.values())).dtype).max)

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Yield the rows in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and spread of each channel on pixels in [0, 1]; exact, whatever the chunks."""
        axes = (0, *range(2, 1 + len(self.shape)))
        count, total, squares = 0, np.zeros(self.shape[0], np.uint64), np.zeros(self.shape[0], np.uint64)
        for rows in self.chunks(64):
            raw = self.raw(rows).numpy().astype(np.uint64)
            count += raw.size // self.shape[0]
            total += raw.sum(axis=axes)
            squares += (raw * raw).sum(axis=axes)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return tuple((mean / self.full_scale).tolist()), tuple((std / self.full_scale).tolist())

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.index["shard"]), np.asarray(self.index["row"])


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `tensor` on `device` without waiting for the work that a GPU still has to do."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def read_images(indexes: Sequence[Path], arrays: Sequence[Path], further_labels: Sequence[Path] = ()) -> Images:
    """Open the images of one or several splits, ordered by image_id; their further labels are ordered by id.

    Raises ImagesError, naming every array that is missing, too short, of another shape or not of integers.
    """
    index = pd.concat([read_table(path, INDEX) for path in indexes], ignore_index=True)
    index = index.sort_values("image_id", kind="stable", ignore_index=True)
    opened = {path.name: np.load(path, mmap_mode="r", allow_pickle=False) for path in arrays}
    if index.empty:
        raise ImagesError("there are no images; check the split and the quarantine table")
    problems = []
    for shard, rows in index.groupby("shard")["row"]:
        if shard not in opened:
            problems.append(f"{shard} is missing")
        elif len(opened[shard]) <= rows.max():
            problems.append(f"{shard} has {len(opened[shard])} rows; its index names row {rows.max()}")
    kinds = {(array.dtype, array.shape[1:]) for array in opened.values()}
    if len(kinds) != 1:
        problems.append(f"arrays differ in type or size: {sorted(map(str, kinds))}")
    elif not np.issubdtype(next(iter(kinds))[0], np.unsignedinteger):
        problems.append(f"arrays hold {next(iter(kinds))[0]} instead of unsigned integers")
    if problems:
        raise ImagesError("preprocessed images cannot be read: " + "; ".join(problems))
    return Images(index, opened, _further(further_labels, index["image_id"]))


def _further(paths: Sequence[Path], image_ids: pd.Series) -> pd.DataFrame:
    if not paths:
        return pd.DataFrame()
    table = pd.concat([read_table(path, FURTHER_LABELS) for path in paths], ignore_index=True)
    by_label = table.astype({"label": "Float64"}).pivot(index="image_id", columns="label_id", values="label")
    return by_label.reindex(image_ids).astype(np.float64).reset_index(drop=True)
