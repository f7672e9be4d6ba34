"""The networks of one arm, one per seed: what turns the array of an image into logits, for `score` and for predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.inference.segmentation import Segmented, segment
from pipeline.models.finished import Finished, Look, Maps, Network, Weighted, weighted_mean
from pipeline.models.reading import read_model

RECORD, WEIGHTS = "model.json", "model.safetensors"
FULL_SCALE = 255


@dataclass(frozen=True)
class Ensemble:
    """The finished models of one arm by seed; each takes pixels (B, C, ...) in [0, 1] and gives logits (B, L) float64.

    An image's logits do not depend on the images beside it in a batch, in any bit, on one machine with one device.
    """

    members: Mapping[int, Finished]

    @classmethod
    def load(cls, files: Mapping[int, tuple[Path, Path]], device: torch.device, *, flips: bool = False) -> Ensemble:
        """Return the models of each seed, given the paths of its record and weights.

        With `flips`, a logit is the mean over the image and its mirror image, left to right. Raises WeightsError when
        weights are not those that their record names by SHA-256, or do not fit.
        """
        members = {seed: read_model(*files[seed], device) for seed in sorted(files)}
        return cls({seed: _over_flips(one) for seed, one in members.items()} if flips else members)

    def logits(self, array: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Return the mean logits over the seeds, (N, L) float64, of images (N, C, ...) uint8 as `to_array` gives them.

        The column of the main label comes first.
        """
        return _mean([_of(one.logits, array, batch_size) for one in self.members.values()])

    def look(self, array: np.ndarray, batch_size: int = 64) -> Look:
        """Return the same logits, to the last bit, and the `depths` of the first of `networks`, of the image as it is.

        Each network is run as often as for logits alone. Arms without a network have no depths.
        """
        first, *others = self.members.values()
        if first.look is None:
            return self.logits(array, batch_size), []
        looks = [first.look(to_pixels(batch)) for batch in _batches(array, batch_size)]
        depths = [torch.cat(depth) for depth in zip(*(depths for _, depths in looks), strict=True)]
        own = np.concatenate([logits for logits, _ in looks]).astype(np.float64)
        return _mean([own, *(_of(one.logits, array, batch_size) for one in others)]), depths

    @property
    def networks(self) -> list[Network]:
        """The networks behind it, which can be looked into; none for an arm that has none."""
        return [network for one in self.members.values() for network in one.networks]

    @property
    def weighted(self) -> Weighted | None:
        """The same logits as a sum over networks, of the image as it is; None where something else is part of them."""
        return weighted_mean(list(self.members.values()))

    @property
    def maps(self) -> list[Maps]:
        """What its models say of pixels, when they were trained to segment; otherwise there are none."""
        return [one.maps for one in self.members.values() if one.maps is not None]

    @property
    def structures(self) -> Mapping[int, str]:
        """The structures that it segments, by their number in masks; none unless it was trained to."""
        return self.maps[0].structures if self.maps else {}

    def segment(self, array: np.ndarray, masks: np.ndarray | None = None) -> Segmented:
        """Return masks and marks of images (N, C, ...) uint8 as `to_array` gives them; see `segmentation.segment`.

        `masks` (N, ...) uint8 is filled where given: a memory map for large volumes. Raises ValueError when the arm was
        not trained to segment, or an image is smaller than the windows it looks at.
        """
        if not self.maps:
            raise ValueError("this model was not trained to segment")
        return segment(self.maps, array, masks)


def to_pixels(array: np.ndarray) -> Tensor:
    """Return images (N, C, ...) uint8 as float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(array)).float() / FULL_SCALE


def member_files(folder: Path) -> dict[int, tuple[Path, Path]]:
    """Return the record and weights of each seed in a folder that holds `seed<k>/`."""
    seeds = sorted(int(path.name.removeprefix("seed")) for path in folder.glob("seed*"))
    return {seed: (folder / f"seed{seed}" / RECORD, folder / f"seed{seed}" / WEIGHTS) for seed in seeds}


def _batches(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[at : at + size] for at in range(0, len(array), size))


def _of(logits: Callable[[Tensor], np.ndarray], array: np.ndarray, batch_size: int) -> np.ndarray:
    return np.concatenate([logits(to_pixels(batch)) for batch in _batches(array, batch_size)]).astype(np.float64)


def _mean(each: list[np.ndarray]) -> np.ndarray:
    """Return the mean logits (N, L) of those of each model, label by label."""
    labels = [np.stack([one[:, at] for one in each], axis=1).mean(axis=1) for at in range(each[0].shape[1])]
    return np.stack(labels, axis=1)


def _over_flips(one: Finished) -> Finished:
    """Return a model whose logits and maps are means over an image and its mirror image."""

    def logits(pixels: Tensor) -> np.ndarray:
        return (one.logits(pixels) + one.logits(pixels.flip(-1))) / 2

    def look(watch: Callable[[Tensor], Look], pixels: Tensor) -> Look:
        found, depths = watch(pixels)
        return (found + one.logits(pixels.flip(-1))) / 2, depths

    maps = None if one.maps is None else _maps_over_flips(one.maps)
    return replace(one, logits=logits, look=one.look and partial(look, one.look), maps=maps)


def _maps_over_flips(maps: Maps) -> Maps:
    """Return maps that are the mean of the log probabilities of an image and of its mirror image, turned back."""
    plain = maps.log_probabilities
    return replace(maps, log_probabilities=lambda window: (plain(window) + plain(window.flip(-1)).flip(-1)) / 2)
