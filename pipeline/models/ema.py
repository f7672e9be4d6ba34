"""The running mean of a model's weights over the steps of a training."""

from __future__ import annotations

import copy
from typing import Any

import torch

from pipeline.models.finished import Network


class RunningAverage:
    """Exponential moving average of the weights after each step, corrected for its start.

    After step t the average is that of the weights w_1 to w_t with shares proportional to decay^(t - i): the plain
    mean of the steps at first, of about the last 1 / (1 - decay) later. The weights before step 1 have no share
    (the correction of Kingma and Ba 2015), so that a short training is not held at its start.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: Network) -> None:
        """Take in the weights of `model` after a step."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        for average, new in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(new, share)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
