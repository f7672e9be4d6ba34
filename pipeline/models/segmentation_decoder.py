"""A light decoder that segments: from a transformer's tokens at four depths to a class per pixel, in 2-D and 3-D.

The deepest tokens are laid on the patch grid, projected; from there on, each level doubles the grid by interpolation
and a plain convolution, and takes in the tokens of the next shallower depth, projected and interpolated to its grid,
until pixels are reached; the last level sees the image itself, too. Interpolation with a convolution leaves none of the
checkerboards of transposed convolutions (Odena et al. 2016), and did better than these on a masked autoencoder's
features (arXiv 2507.01744).

Shapes: B images, C channels, L tokens, D encoder width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.vit import EncoderSpec

DEPTHS = 4
LEAST_WIDTH = 8  # channels of a level, and what the width has to be a multiple of
GROUPS = 4  # of a group norm, which knows nothing of the other images of a batch


def depths_of(blocks: int) -> tuple[int, ...]:
    """Return after which blocks tokens are taken, deepest first: at four equal steps, or fewer in a shallow encoder.

    >>> depths_of(12), depths_of(2)
    ((12, 9, 6, 3), (2, 1))
    """
    return tuple(sorted({-(-blocks * step // DEPTHS) for step in range(1, DEPTHS + 1)}, reverse=True))


def levels_of(spec: EncoderSpec) -> list[tuple[int, ...]]:
    """Return the grid of each level: the patches, twice as many per axis and so on, and the pixels."""
    sizes = [spec.grid]
    while sizes[-1] != spec.image_size:
        sizes.append(tuple(min(2 * now, side) for now, side in zip(sizes[-1], spec.image_size, strict=True)))
    return sizes


class Level(nn.Module):
    """One convolution with norm and activation."""

    def __init__(self, axes: int, before: int, after: int) -> None:
        super().__init__()
        self.convolution = _convolution(axes)(before, after, kernel_size=3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, after)

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, after, ...) of values (B, before, ...)."""
        return F.gelu(self.norm(self.convolution(values)))


class Decoder(nn.Module):
    """Class logits per pixel from the encoder's tokens and the image."""

    def __init__(self, spec: EncoderSpec, classes: int, width: int) -> None:
        super().__init__()
        axes = len(spec.image_size)
        self.sizes = levels_of(spec)
        widths = [max(LEAST_WIDTH, width >> level) for level in range(len(self.sizes))]
        depths = depths_of(spec.depth)
        # Where patches are small there are fewer levels than depths: the last one takes in the rest.
        self.level_of = [min(number, len(self.sizes) - 1) for number in range(len(depths))]
        # The deepest tokens come normalised.
        self.norms = nn.ModuleList([nn.Identity(), *(nn.LayerNorm(spec.width, eps=spec.eps) for _ in depths[1:])])
        self.projections = nn.ModuleList(nn.Linear(spec.width, widths[level]) for level in self.level_of)
        before = [widths[0], *widths[:-1]]
        self.levels = nn.ModuleList(Level(axes, a, b) for a, b in zip(before, widths, strict=True))
        self.image = Level(axes, spec.channels, LEAST_WIDTH)
        self.mixed = Level(axes, widths[-1] + LEAST_WIDTH, widths[-1])
        self.classes = _convolution(axes)(widths[-1], classes, kernel_size=1)

    def forward(self, depths: Sequence[Tensor], image: Tensor) -> Tensor:
        """Return logits (B, K, ...) of patch tokens (B, L, D), deepest first, and the normalised image (B, C, ...)."""
        first, *others = self._taken(0, depths)
        values = self.levels[0](sum(others, start=first))
        for level, size in enumerate(self.sizes[1:], start=1):
            doubled = self.levels[level](resized(values, size))
            values = sum(self._taken(level, depths), start=doubled)
        return self.classes(self.mixed(torch.cat((values, self.image(image)), dim=1)))

    def _taken(self, level: int, depths: Sequence[Tensor]) -> list[Tensor]:
        """Return the depths that a level takes in, on its grid."""
        own = [(number, tokens) for number, tokens in enumerate(depths) if self.level_of[number] == level]
        return [resized(self._laid(number, tokens), self.sizes[level]) for number, tokens in own]

    def _laid(self, number: int, tokens: Tensor) -> Tensor:
        """Return one depth's tokens, projected, on the patch grid."""
        projected = self.projections[number](self.norms[number](tokens))
        return projected.transpose(1, 2).unflatten(2, self.sizes[0])


def resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Return values (B, W, ...) interpolated linearly to a grid."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="bilinear" if len(size) == 2 else "trilinear")


def _convolution(axes: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if axes == 2 else nn.Conv3d
