"""The networks of one arm, one per seed: what turns the array of an image into logits, for `score` and for predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.models.finished import Network
from pipeline.models.reading import read_model

Model = Callable[[Tensor], np.ndarray]
RECORD, WEIGHTS = "model.json", "model.safetensors"
FULL_SCALE = 255


@dataclass(frozen=True)
class Ensemble:
    """The finished models of one arm by seed; each takes pixels (B, C, ...) in [0, 1] and gives logits (B, L) float64.

    An image's logits do not depend on the images beside it in a batch, in any bit, on one machine with one device.
    """

    models: Mapping[int, Model]

    @classmethod
    def load(cls, files: Mapping[int, tuple[Path, Path]], device: torch.device, *, flips: bool = False) -> Ensemble:
        """Return the models of each seed, given the paths of its record and weights.

        With `flips`, a logit is the mean over the image and its mirror image, left to right. Raises WeightsError when
        weights are not those that their record names by SHA-256, or do not fit.
        """
        models = {seed: read_model(record, weights, device).logits for seed, (record, weights) in files.items()}
        return cls({seed: _over_flips(model) if flips else model for seed, model in models.items()})

    def logits(self, array: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Return the mean logits over the seeds, (N, L) float64, of images (N, C, ...) uint8 as `to_array` gives them.

        The column of the main label comes first.
        """
        each = [self._of(model, array, batch_size) for _, model in sorted(self.models.items())]
        labels = [np.stack([one[:, at] for one in each], axis=1).mean(axis=1) for at in range(each[0].shape[1])]
        return np.stack(labels, axis=1)

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


def _over_flips(model: Model) -> Model:
    return lambda pixels: (model(pixels) + model(pixels.flip(-1))) / 2
