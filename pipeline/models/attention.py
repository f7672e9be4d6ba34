"""Where a classifier looked in an image, as far as its attention tells.

Attention rollout (Abnar & Zuidema 2020), read by the head, which takes the mean of the patch tokens or the class token;
where the head reads patch tokens by learned queries, the attention of these, see `pooling`. Attention times
gradient (Chefer et al. 2021) was tried and left: on networks of one to four blocks that find a planted sign in every
image, rollout gave the patch with the sign the largest share in every image, attention times gradient in 0 to 100 % of
them by network, since a sure answer has hardly any gradient. The test beside this module repeats the former.

Shapes: B images, L patches, T = L + 1 or more tokens, N heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.vit import attention_blocks

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier


@torch.no_grad()
def rollout(model: Classifier, pixels: Tensor) -> np.ndarray:
    """Return the share of each patch in what the head reads, (B, *grid) float64, each image adding to 1.

    `pixels` (B, C, ...) are in [0, 1]. Per block the mean attention of the heads counts half and the residual
    connection, by which a token keeps what it has, the other half (Abnar & Zuidema 2020, section 3).
    """
    before = model.spec.prefix
    size = before + model.spec.tokens
    reached = torch.eye(size, dtype=torch.float64).repeat(len(pixels), 1, 1)

    def follow(_module: nn.Module, _inputs: tuple[Tensor, ...], attention: Tensor) -> None:
        nonlocal reached
        mixed = attention.double().cpu().mean(dim=1)  # (B, N, T, T) to (B, T, T)
        reached = 0.5 * mixed @ reached + 0.5 * reached

    blocks = attention_blocks(model.encoder)
    # The fused kernel never shows its attention; on the other path dropout, which is off, sees it.
    hooks = [block.drop_weights.register_forward_hook(follow) for block in blocks]
    fused = [block.use_flash_attention for block in blocks]
    try:
        for block in blocks:
            block.use_flash_attention = False
        model(pixels)
    finally:
        for block, hook, was in zip(blocks, hooks, fused, strict=True):
            hook.remove()
            block.use_flash_attention = was
    of_patches = reached[:, :, before:]
    shares = of_patches[:, 0] if model.pooling == "class_token" else of_patches[:, before:].mean(dim=1)
    shares = shares / shares.sum(dim=1, keepdim=True)
    return shares.reshape(-1, *model.spec.grid).numpy()


def half_of(shares: np.ndarray) -> np.ndarray:
    """Return the fewest cells that together hold half of all shares, as booleans; equal ones all or none."""
    falling = np.sort(shares, axis=None)[::-1]
    needed = int(np.searchsorted(np.cumsum(falling), 0.5 * falling.sum() * (1 - 1e-9)))
    return shares >= falling[min(needed, len(falling) - 1)]


def on_pixels(cells: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return an array of cells of a grid over an image as one of its pixels, of this size: each cell's value."""
    for axis, (side, count) in enumerate(zip(size, cells.shape, strict=True)):
        cells = np.take(cells, np.arange(side) * count // side, axis=axis)
    return cells


def most_attended(shares: np.ndarray, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the pixel in the middle of the cell with the largest share, the first of equals, in an image of this
    size."""
    place = np.unravel_index(shares.argmax(), shares.shape)
    each = zip(place, size, shares.shape, strict=True)
    return tuple((2 * int(at) + 1) * side // (2 * count) for at, side, count in each)
