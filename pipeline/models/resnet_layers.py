"""The layers of the residual network, as numbers: what `resnet` builds, and what `plan` counts without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Residual blocks of two convolutions in each of the four stages, by the number of layers (He et al. 2016, table 1).
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# From this side on, the first stage works on a quarter of the side, as in the paper; below, on half of it.
POOLED_FROM = 128
FIRST_KERNEL, KERNEL = 7, 3


@dataclass(frozen=True)
class Convolution:
    """A convolution: its channels before and after, the weights of one pair of them, the places of its output."""

    before: int
    after: int
    kernel: int
    places: int

    @property
    def weights(self) -> int:
        """Its parameters."""
        return self.before * self.after * self.kernel

    @property
    def flops(self) -> int:
        """Its operations on one image, a multiplication and an addition counted as two."""
        return 2 * self.weights * self.places

    @property
    def values(self) -> int:
        """The numbers that it gives for one image."""
        return self.after * self.places


def is_pooled(image_size: Sequence[int]) -> bool:
    """Return whether the first stage works on a quarter of the image's sides."""
    return min(image_size) >= POOLED_FROM


def convolutions(image_size: Sequence[int], channels: int, depth: int, width: int) -> list[Convolution]:
    """Return all convolutions of a residual network of `depth` layers, its first stage `width` channels wide."""
    axes = len(image_size)
    sides = _halved(image_size)
    found = [Convolution(channels, width, FIRST_KERNEL**axes, math.prod(sides))]
    sides = _halved(sides) if is_pooled(image_size) else sides
    before = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        after, sides = width * 2**stage, _halved(sides) if stage else sides
        places = math.prod(sides)
        if after != before:
            found.append(Convolution(before, after, 1, places))
        found.append(Convolution(before, after, KERNEL**axes, places))
        found += [Convolution(after, after, KERNEL**axes, places)] * (2 * blocks - 1)
        before = after
    return found


def _halved(sides: Sequence[int]) -> list[int]:
    return [math.ceil(side / 2) for side in sides]
