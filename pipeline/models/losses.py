"""What fine-tuning minimises: cross-entropy of the logit with the label, plain, weighted by class, or focal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

LossKind = Literal["bce", "weighted", "focal"]


@dataclass(frozen=True)
class Objective:
    """Binary cross-entropy with weights of the negative and the positive class, focusing and label smoothing.

    `gamma` above 0 weakens what is already told apart: the focal loss (Lin et al. 2017) without its class weight.
    `smoothing` moves targets 0 and 1 towards 1/2 by its half (Szegedy et al. 2016). Weights 1, gamma 0 and smoothing 0
    are the plain cross-entropy.
    """

    weights: tuple[float, float] = (1.0, 1.0)
    gamma: float = 0.0
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (B,) with targets (B,) in [0, 1]; those in between are mixtures."""
        if self == Objective():
            return F.binary_cross_entropy_with_logits(logits, targets)
        log_negative, log_positive = F.logsigmoid(-logits), F.logsigmoid(logits)
        # (1 - p)^gamma through its logarithm, whose gradient stays finite where p is 0 or 1 in float32.
        positive = (self.gamma * log_negative).exp() * log_positive
        negative = (self.gamma * log_positive).exp() * log_negative
        other = self.smoothing / 2
        # Smoothed within each class, so that a class keeps its weight.
        of_positive = self.weights[1] * ((1 - other) * positive + other * negative)
        of_negative = self.weights[0] * ((1 - other) * negative + other * positive)
        return -(targets * of_positive + (1 - targets) * of_negative).mean()


def objective(kind: LossKind, labels: np.ndarray, gamma: float, smoothing: float) -> Objective:
    """Return the loss by its name for training labels (N,) of 0 and 1; `gamma` is that of `focal`.

    `weighted` gives both classes the same total weight; the mean weight of an image is 1, so that rates keep their
    meaning.
    """
    share = float(labels.mean())
    weights = (0.5 / (1 - share), 0.5 / share) if kind == "weighted" else (1.0, 1.0)
    return Objective(weights, gamma if kind == "focal" else 0.0, smoothing)


def starting_logit(share: float, smoothing: float) -> float:
    """Return the log odds of the mean target, for a share of positives after any weighting or resampling."""
    target = share * (1 - smoothing) + smoothing / 2
    return math.log(target / (1 - target))
