"""Whether a finished segmenter uses its encoder: its overlap with the encoder's tokens, and with noise in their place.

In several published hybrids of transformer and convolutions the score stays the same when the transformer is taken away
(Primus, arXiv 2503.01835): what was pretrained is then not used, and a comparison of starts says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.models.segmenter import Segmenter

LEAST_FALL = 0.1  # of the mean Dice, as a share of it


def encoder_test(model: Segmenter, mean_dice: Callable[[Segmenter], float], dice: float) -> dict[str, Any]:
    """Return `dice` of the tuning images, what it is with noise in the place of the encoder's tokens, and a verdict.

    Noise is Gaussian with mean and spread, per channel of width, of an image's own tokens; the decoder sees the image
    as before. The encoder counts as used when the Dice falls by LEAST_FALL of itself or more.
    """
    generator = torch.Generator()

    def noise(tokens: Tensor) -> Tensor:
        drawn = torch.randn(tokens.shape, generator=generator.manual_seed(0)).to(tokens)
        return tokens.mean(dim=1, keepdim=True) + drawn * tokens.std(dim=1, keepdim=True)

    model.noise = noise
    try:
        without = mean_dice(model)
    finally:
        model.noise = None
    used = dice > 0 and without <= (1 - LEAST_FALL) * dice
    return {"tune_dice": dice, "tune_dice_with_noise": without, "least_fall": LEAST_FALL, "used": used}
