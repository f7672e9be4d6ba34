"""A finished model read back: what turns pixels into logits, and the networks behind it, which can be looked into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

# How an outline of where a network looked came about; what a reader is told of it depends on this.
Outline = Literal["attention", "queries", "activation"]
# A matrix product rounds the last rows of a batch otherwise, and the head has one column: with whole blocks of so many
# rows, an image's logit does not depend, in any bit, on which images stand beside it. A test compares.
ROWS_PER_BLOCK = 16

# Logits (B, L) float64, and what a network's `depths` are for the same pixels.
Look = tuple[np.ndarray, list[Tensor]]


class Network(nn.Module, ABC):
    """A network with a linear `head` with one output per label, that shows where it looked and what it found.

    Called with pixels (B, C, ...) in [0, 1], and factors of the residual branches or None, it returns logits (B, L).
    """

    head: nn.Linear
    outline: Outline
    channels: int
    # Residual branches, two to a block, that may be dropped at random while it is trained.
    depth: int = 0

    @abstractmethod
    def shares(self, pixels: Tensor) -> np.ndarray:
        """Return where the network looked, (B, *grid) float64 on a grid over the image, each image adding to 1."""

    @abstractmethod
    def depths(self, pixels: Tensor) -> list[Tensor]:
        """Return what it found after each block or stage, first to last, each (B, D) float64 of pixels (B, C, ...)."""


@dataclass(frozen=True)
class Maps:
    """What a model that segments says of pixels.

    `log_probabilities` takes one window (1, C, *window) in [0, 1] and gives (K, *window) float32: background, then the
    `structures`, whose names are kept by number from 1. `window` is what it takes at once, None for an image of any
    size; windows of a larger image overlap by the share `overlap`. Marks are where a structure's probability is above
    `mark_threshold`, at most `marks_per_image` of them.
    """

    log_probabilities: Callable[[Tensor], Tensor]
    structures: Mapping[int, str]
    window: tuple[int, ...] | None
    overlap: float
    mark_threshold: float
    marks_per_image: int


@dataclass(frozen=True)
class Weighted:
    """Logits as a sum: those of each of the `networks` times its `weights` (networks, L), plus the `offset` (L,)."""

    networks: tuple[Network, ...]
    weights: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Finished:
    """A finished model: `logits` takes pixels (B, C, ...) in [0, 1] and gives (B, L) float64, the main label's first.

    `networks` are those behind it, in evaluation mode; none for an arm that has none. `maps` has one that segments.
    `look`, of an arm with networks, gives the same logits to the last bit, and the first network's `depths`, for one
    pass through it. `weighted` is one that is more than the mean of its `networks`; it has no networks where
    something else is part of the logits.
    """

    logits: Callable[[Tensor], np.ndarray]
    networks: tuple[Network, ...] = ()
    maps: Maps | None = None
    look: Callable[[Tensor], Look] | None = None
    weighted: Weighted | None = None


def weighted_mean(models: Sequence[Finished]) -> Weighted | None:
    """Return the mean of models as a sum over all their networks; None where one is made of something else."""
    sums = [one.weighted or _even(one.networks) for one in models]
    if not all(one.networks for one in sums):
        return None
    weights = np.concatenate([one.weights for one in sums]) / len(sums)
    return Weighted(
        tuple(network for one in sums for network in one.networks),
        weights,
        np.mean([one.offset for one in sums], axis=0),
    )


def _even(networks: tuple[Network, ...]) -> Weighted:
    labels = networks[0].head.out_features if networks else 0
    return Weighted(networks, np.full((len(networks), labels), 1 / max(len(networks), 1)), np.zeros(labels))


def whole_blocks(features: np.ndarray) -> np.ndarray:
    """Return features (N, D) with rows of zeros behind them, up to a whole number of blocks."""
    return np.concatenate([features, np.zeros((-len(features) % ROWS_PER_BLOCK, features.shape[1]))])


def whole_tensor_blocks(features: Tensor) -> Tensor:
    """Return the same of a tensor (N, D)."""
    return torch.cat([features, features.new_zeros(-len(features) % ROWS_PER_BLOCK, features.shape[1])])


def further_labels(content: dict[str, Any]) -> list[str]:
    """Return the further labels of a model.json; one made before there were any does not name them."""
    return content.get("further_labels", [])
