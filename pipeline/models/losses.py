"""What fine-tuning minimises: cross-entropy of logits with labels, plain, weighted by class, or focal.

Shapes: B images, L labels; each label is a question of its own, answered yes or no (one against the rest).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LossKind = Literal["bce", "weighted", "focal"]


@dataclass(frozen=True)
class Objective:
    """Binary cross-entropy with weights of the negative and the positive class, focusing and label smoothing.

    `weights` are (2, L), or None where classes count as they come. `gamma` above 0 weakens what is already told apart:
    the focal loss (Lin et al. 2017) without its class weight. `smoothing` moves targets 0 and 1 towards 1/2 by its half
    (Szegedy et al. 2016). No weights, gamma 0 and smoothing 0 are the plain cross-entropy.
    """

    weights: Tensor | None = None
    gamma: float = 0.0
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images of each one's mean over labels, for logits and targets (B, L).

        Targets are in [0, 1], those in between mixtures; one that is NaN adds nothing, and has no gradient. The mean is
        over all L labels, missing ones included: a label that is there counts the same in every image.
        """
        known = (~targets.isnan()).to(logits)
        targets = targets.nan_to_num()
        if self.weights is None and not self.gamma and not self.smoothing:
            return F.binary_cross_entropy_with_logits(logits, targets, known)
        log_negative, log_positive = F.logsigmoid(-logits), F.logsigmoid(logits)
        # (1 - p)^gamma through its logarithm, whose gradient stays finite where p is 0 or 1 in float32.
        positive = (self.gamma * log_negative).exp() * log_positive
        negative = (self.gamma * log_positive).exp() * log_negative
        other = self.smoothing / 2
        # Smoothed within each class, so that a class keeps its weight.
        of_positive = (1 - other) * positive + other * negative
        of_negative = (1 - other) * negative + other * positive
        if self.weights is not None:
            of_class = self.weights.to(logits)
            of_negative, of_positive = of_class[0] * of_negative, of_class[1] * of_positive
        return -(known * (targets * of_positive + (1 - targets) * of_negative)).mean()


def objective(kind: LossKind, targets: np.ndarray, gamma: float, smoothing: float, device: torch.device) -> Objective:
    """Return the loss by its name for training targets (N, L) of 0, 1 and NaN; `gamma` is that of `focal`.

    `weighted` gives both classes of a label the same total weight; the mean weight of an image is 1, so that rates keep
    their meaning.
    """
    weights = None
    if kind == "weighted":
        share = np.nanmean(targets, axis=0)
        weights = torch.from_numpy(np.stack([0.5 / (1 - share), 0.5 / share])).to(device)
    return Objective(weights, gamma if kind == "focal" else 0.0, smoothing)


def mean_targets(targets: np.ndarray, balanced: bool) -> np.ndarray:
    """Return the mean of each label, (L,), among the images drawn, given the training targets (N, L) of 0, 1 and NaN.

    `balanced` draws as many images of either class of the first label.
    """
    first = targets[:, 0]
    # Whole numbers, so that nothing is rounded: an image weighs as many as there are of the other class.
    weights = np.where(first == 1, (first == 0).sum(), (first == 1).sum()) if balanced else np.ones(len(first))
    return np.nansum(weights[:, None] * targets, axis=0) / (weights[:, None] * ~np.isnan(targets)).sum(axis=0)


def starting_logit(share: float, smoothing: float) -> float:
    """Return the log odds of the mean target, for a share of positives after any weighting or resampling."""
    target = share * (1 - smoothing) + smoothing / 2
    return math.log(target / (1 - target))
