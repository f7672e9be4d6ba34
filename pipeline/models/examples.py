"""What a fine-tuning step sees: which images an epoch draws, augmented and mixed, with their targets.

A drawn image has a number: its row, plus the number of training images for each time that it was drawn before in the
same epoch. Copies of an image so differ in augmentation, and all that becomes of one depends on nothing but (seed,
epoch, number): not on its batch, nor on the process that prepares it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from pipeline.models.augmentation import Augmentation
from pipeline.models.images import Images, on_device
from pipeline.models.randomness import MIXUP, derived_seed, order, uniform

Sampling = Literal["natural", "balanced"]


@dataclass(frozen=True)
class Examples:
    """The training images of one seed, augmented; `mixup` is the parameter of the Beta distribution, 0 for none."""

    images: Images
    augment: Augmentation
    mixup: float
    seed: int
    device: torch.device

    def prepared(self, numbers: np.ndarray, drawn: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Return pixels (B, C, ...) and targets (B,) in [0, 1] of the images `numbers` (B,) of those `drawn`."""
        pixels, targets = self._augmented(numbers, epoch)
        if not self.mixup:
            return pixels, targets
        partners, shares = mixing(numbers, drawn, self.mixup, self.seed, epoch)
        others, their_targets = self._augmented(partners, epoch)
        share = on_device(torch.from_numpy(shares), self.device).to(pixels)
        along = share.view(-1, *[1] * (pixels.ndim - 1))
        return others + along * (pixels - others), their_targets + share * (targets - their_targets)

    def _augmented(self, numbers: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        rows = numbers % len(self.images)
        pixels = self.augment(self.images.pixels(rows, self.device), self.seed, epoch, numbers)
        return pixels, on_device(torch.from_numpy(self.images.labels[rows]), self.device).to(pixels)


def draw(labels: np.ndarray, sampling: Sampling, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of the images that an epoch draws, a pure function of the arguments.

    `natural`: every image once. `balanced`: as many of either class, together as many as there are images (one less
    for an odd number); a class is gone through as a whole before any of its images is drawn again.
    """
    if sampling == "natural":
        return np.arange(len(labels))
    per_class = np.arange(len(labels) // 2)
    drawn = []
    for value in (0, 1):
        rows = np.flatnonzero(labels == value)
        shuffled = rows[order(len(rows), derived_seed(seed, "class", value), epoch)]
        drawn.append(shuffled[per_class % len(rows)] + per_class // len(rows) * len(labels))
    return np.concatenate(drawn)


def mixing(
    numbers: np.ndarray, drawn: np.ndarray, alpha: float, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image its partner (B,) among those `drawn` and its own share (B,) in the mixture.

    Mixup (Zhang et al. 2018): shares follow Beta(alpha, alpha). The larger part is the image's own, which gives the
    same mixtures, since pairs are symmetric, and leaves no image out of its epoch. A partner comes from the whole
    epoch and not from the batch, so that dividing a batch among processes changes nothing.
    """
    draws = uniform(seed, epoch, numbers, MIXUP, 2)
    share = betaincinv(alpha, alpha, draws[:, 0])
    return drawn[(draws[:, 1] * len(drawn)).astype(np.int64)], np.maximum(share, 1 - share)
