"""Which patches are hidden: at random, in contiguous blocks, or all but a regular lattice.

Shapes: B images, L patches of the grid, K visible, M predicted (K + M <= L). A mask is two lists of grid places. It is
a pure function of the noise given, so that (seed, epoch, image) make it again, and every image of a batch has the same
number of hidden patches, whatever the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MaskKind = Literal["random", "block", "grid"]


@dataclass(frozen=True)
class Mask:
    """Places in the grid: `visible` (B, K) are encoded, `masked` (B, M) are predicted."""

    visible: Tensor
    masked: Tensor


def mask_draws(kind: MaskKind, grid: Sequence[int]) -> int:
    """Return how many uniform numbers an image's mask takes: one per patch, then those of its kind."""
    own = {"random": 0, "block": math.prod(_anchors(grid)), "grid": len(grid)}
    return math.prod(grid) + own[kind]


def make_mask(
    kind: MaskKind, noise: Tensor, grid: Sequence[int], mask_ratio: float, decoded_share: float = 1.0
) -> Mask:
    """Hide the share `mask_ratio` of the patches of a 2-D or 3-D grid; keep `decoded_share` of these to predict.

    `noise` (B, mask_draws) in [0, 1) decides alone. Its first L numbers order the patches, so that those predicted are
    a random choice among the hidden ones. At least one patch is visible and one predicted.

    - `random`: each patch alike (He et al. 2021).
    - `block`: contiguous blocks, as in BEiT (Bao et al. 2021) and MaskFeat (Wei et al. 2021).
    - `grid`: what is visible lies on a regular lattice (grid-wise sampling of He et al. 2021).

    Raises ValueError when the grid has fewer than two patches.
    """
    total = math.prod(grid)
    if total < 2:
        raise ValueError("masking needs at least 2 patches; use a smaller patch size")
    visible = min(max(round(total * (1 - mask_ratio)), 1), total - 1)
    decoded = max(round((total - visible) * decoded_share), 1)
    order = _ORDERS[kind](noise[:, :total], noise[:, total:], tuple(grid), visible)
    return Mask(order[:, :visible], order[:, visible : visible + decoded])


# Each kind lists all places (B, L), the `visible` ones first and both parts by noise.


def _random_order(noise: Tensor, _own: Tensor, _grid: tuple[int, ...], _visible: int) -> Tensor:
    return noise.argsort(dim=1, stable=True)


def _block_order(noise: Tensor, own: Tensor, grid: tuple[int, ...], visible: int) -> Tensor:
    """Hide whole blocks, those with the highest numbers first, until enough is hidden; the last one is cut short.

    Every place is the corner of one block, those beyond the edge included, so that no place is hidden more often than
    another. The highest number among the blocks that cover a place says when it is hidden.
    """
    pool = F.max_pool2d if len(grid) == 2 else F.max_pool3d
    hidden_first = pool(own.reshape(-1, 1, *_anchors(grid)), kernel_size=_block(grid), stride=1).flatten(1)
    # Places of one block are equal: a stable sort keeps them row by row, so that what is left of a cut block is whole.
    return _visible_first(hidden_first.argsort(dim=1, stable=True), noise, visible)


def _grid_order(noise: Tensor, own: Tensor, grid: tuple[int, ...], visible: int) -> Tensor:
    """Show a lattice with a drawn offset; where it holds too many or too few places, noise makes up the number."""
    strides = _strides(grid, visible)
    axes = torch.meshgrid(*(torch.arange(side, device=noise.device) for side in grid), indexing="ij")
    off_lattice = torch.zeros_like(noise, dtype=torch.bool)
    for axis, (places, stride) in enumerate(zip(axes, strides, strict=True)):
        offset = (own[:, axis] * stride).long()
        off_lattice |= (places.flatten()[None] - offset[:, None]) % stride != 0
    order = noise.argsort(dim=1, stable=True)
    order = order.gather(1, off_lattice.gather(1, order).byte().argsort(dim=1, stable=True))
    return _visible_first(order, noise, visible)


_ORDERS: dict[MaskKind, Callable[[Tensor, Tensor, tuple[int, ...], int], Tensor]] = {
    "random": _random_order,
    "block": _block_order,
    "grid": _grid_order,
}


def _visible_first(order: Tensor, noise: Tensor, visible: int) -> Tensor:
    """Keep which places come first in `order` and sort both parts by noise."""
    parts = (order[:, :visible], order[:, visible:])
    return torch.cat([part.gather(1, noise.gather(1, part).argsort(dim=1, stable=True)) for part in parts], dim=1)


def _block(grid: Sequence[int]) -> tuple[int, ...]:
    """A quarter of each axis: 4 by 4 patches of a 14 by 14 grid, the smallest block of BEiT."""
    return tuple(min(side, max(2, round(side / 4))) for side in grid)


def _anchors(grid: Sequence[int]) -> tuple[int, ...]:
    return tuple(side + block - 1 for side, block in zip(grid, _block(grid), strict=True))


def _strides(grid: Sequence[int], visible: int) -> list[int]:
    """Widen the lattice evenly, axis by axis from the last, while it still has `visible` places: 2 by 2 for 0.75."""
    strides = [1] * len(grid)
    while True:
        widest = [axis for axis, stride in enumerate(strides) if stride < grid[axis]]
        axis = min(widest, key=lambda axis: (strides[axis], -axis), default=None)
        if axis is None:
            return strides
        wider = [stride + (index == axis) for index, stride in enumerate(strides)]
        if math.prod(grid) < visible * math.prod(wider):
            return strides
        strides = wider
