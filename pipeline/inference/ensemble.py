"""The networks of one arm, one per seed: what turns the array of an image into logits, for `score` and for predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.inference.segmentation import Segmented, segment
from pipeline.models.finished import Maps, Network
from pipeline.models.reading import read_model

Model = Callable[[Tensor], np.ndarray]
RECORD, WEIGHTS = "model.json", "model.safetensors"
FULL_SCALE = 255


@dataclass(frozen=True)
class Ensemble:
    """The finished models of one arm by seed; each takes pixels (B, C, ...) in [0, 1] and gives logits (B, L) float64.

    `maps` is what they say of pixels, by seed, when they were trained to segment; otherwise there are none.
    An image's logits do not depend on the images beside it in a batch, in any bit, on one machine with one device.
    """

    models: Mapping[int, Model]
    maps: Mapping[int, Maps] = field(default_factory=dict)

    @classmethod
    def load(cls, files: Mapping[int, tuple[Path, Path]], device: torch.device, *, flips: bool = False) -> Ensemble:
        """Return the models of each seed, given the paths of its record and weights.

        With `flips`, a logit is the mean over the image and its mirror image, left to right. Raises WeightsError when
        weights are not those that their record names by SHA-256, or do not fit.
        """
        finished = {seed: read_model(record, weights, device) for seed, (record, weights) in files.items()}
        models = {seed: _over_flips(one.logits) if flips else one.logits for seed, one in finished.items()}
        maps = {seed: one.maps for seed, one in finished.items() if one.maps is not None}
        return cls(models, {seed: _maps_over_flips(one) if flips else one for seed, one in maps.items()})

    def logits(self, array: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Return the mean logits over the seeds, (N, L) float64, of images (N, C, ...) uint8 as `to_array` gives them.

        The column of the main label comes first.
        """
        each = [self._of(model, array, batch_size) for _, model in sorted(self.models.items())]
        labels = [np.stack([one[:, at] for one in each], axis=1).mean(axis=1) for at in range(each[0].shape[1])]
        return np.stack(labels, axis=1)

    @property
    def structures(self) -> Mapping[int, str]:
        """The structures that it segments, by their number in masks; none unless it was trained to."""
        return next(iter(self.maps.values())).structures if self.maps else {}

    def segment(self, array: np.ndarray, masks: np.ndarray | None = None) -> Segmented:
        """Return masks and marks of images (N, C, ...) uint8 as `to_array` gives them; see `segmentation.segment`.

        `masks` (N, ...) uint8 is filled where given: a memory map for large volumes. Raises ValueError when the arm was
        not trained to segment, or an image is smaller than the windows it looks at.
        """
        if not self.maps:
            raise ValueError("this model was not trained to segment")
        return segment([one for _, one in sorted(self.maps.items())], array, masks)

    @staticmethod
    def _of(model: Model, array: np.ndarray, batch_size: int) -> np.ndarray:
        batches = (array[at : at + batch_size] for at in range(0, len(array), batch_size))
        return np.concatenate([model(to_pixels(batch)) for batch in batches]).astype(np.float64)


def to_pixels(array: np.ndarray) -> Tensor:
    """Return images (N, C, ...) uint8 as float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(array)).float() / FULL_SCALE


def member_files(folder: Path) -> dict[int, tuple[Path, Path]]:
    """Return the record and weights of each seed in a folder that holds `seed<k>/`."""
    seeds = sorted(int(path.name.removeprefix("seed")) for path in folder.glob("seed*"))
    return {seed: (folder / f"seed{seed}" / RECORD, folder / f"seed{seed}" / WEIGHTS) for seed in seeds}


def load_networks(files: Mapping[int, tuple[Path, Path]], device: torch.device) -> list[Network]:
    """Return the networks behind an ensemble, to see where they looked; none for an arm that has no network."""
    return [
        one for _, (record, weights) in sorted(files.items()) for one in read_model(record, weights, device).networks
    ]


def _maps_over_flips(maps: Maps) -> Maps:
    """Return maps that are the mean of the log probabilities of an image and of its mirror image, turned back."""
    plain = maps.log_probabilities
    return replace(maps, log_probabilities=lambda window: (plain(window) + plain(window.flip(-1)).flip(-1)) / 2)


def _over_flips(model: Model) -> Model:
    return lambda pixels: (model(pixels) + model(pixels.flip(-1))) / 2
