"""Class probabilities of an image of any size by windows of one size, in memory that does not grow with its length.

Windows overlap and count by a Gaussian about their middle, as in nnU-Net (Isensee et al. 2021) and MONAI's
sliding_window_inference, which keeps the whole image's probabilities in memory; here, planes along the first axis are
handed on as soon as no window to come reaches them.

Shapes: C channels, K classes; an image is (C, H, W) or (C, D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.finished import Maps

SIGMA_SHARE = 0.125  # of a window's side
LEAST_WEIGHT = 1e-3
SMOOTHED_SIDE = 3  # pixels per axis over which the log odds of a lesion are averaged

# Returns pixels (C, ...) in [0, 1] of a box.
Read = Callable[[tuple[slice, ...]], Tensor]


def slabs(maps: Maps, size: Sequence[int], read: Read) -> Iterator[Tensor]:
    """Yield the log probabilities of an image of this size, (K, planes, ...) float32, from first to last planes.

    A place in several windows gets the weighted mean of their log probabilities, which adds to 1 but nearly. Raises
    ValueError when the image is smaller than a window.
    """
    window = maps.window or tuple(size)
    if any(side < least for side, least in zip(size, window, strict=True)):
        raise ValueError(f"an image of {tuple(size)} pixels is smaller than what the model looks at, {tuple(window)}")
    first, *others = (starts(side, own, maps.overlap) for side, own in zip(size, window, strict=True))
    weights = _weights(window) if math.prod(map(len, (first, *others))) > 1 else torch.ones(window)
    planes = (window[0], *size[1:])
    total, weight = torch.zeros(1 + len(maps.structures), *planes), torch.zeros(planes)
    for start, following in zip(first, [*first[1:], size[0]], strict=True):
        for place in product(*others):
            box = tuple(slice(at, at + side) for at, side in zip(place, window[1:], strict=True))
            found = maps.log_probabilities(read((slice(start, start + window[0]), *box))[None]).cpu()
            total[(slice(None), slice(None), *box)] += weights * found
            weight[(slice(None), *box)] += weights
        done = following - start
        yield total[:, :done] / weight[:done]
        for sums in (total.movedim(1, 0), weight):
            kept = sums[done:].clone()
            sums[: len(kept)] = kept
            sums[len(kept) :] = 0


def starts(side: int, window: int, overlap: float) -> list[int]:
    """Return where windows start along an axis: equal steps of at most the window without its overlap, to the end.

    >>> starts(10, 4, 0.5), starts(4, 4, 0.5)
    ([0, 2, 4, 6], [0])
    """
    steps = math.ceil((side - window) / max(1, math.floor(window * (1 - overlap))))
    return [round((side - window) * step / max(1, steps)) for step in range(steps + 1)]


def lesion_logit(parts: Iterable[Tensor]) -> float:
    """Return an image's score by its most suspicious place, from its `slabs`.

    The log odds that a pixel is in any structure, averaged over a box of three pixels per axis, of which the largest
    counts: a lone pixel does not decide, and log odds, unlike probabilities, are never tied at 0 or 1.
    """
    highest, before = -math.inf, None
    for log_probabilities in parts:
        odds = foreground_log_odds(log_probabilities[None])[0]
        odds = odds if before is None else torch.cat((before, odds))
        if len(odds) >= SMOOTHED_SIDE:
            highest = max(highest, float(smoothed(odds[None]).max()))
        before = odds[1 - SMOOTHED_SIDE :]
    return highest


def foreground_log_odds(scores: Tensor) -> Tensor:
    """Return the log odds (B, ...) of any structure against background, of logits or log probabilities (B, K, ...)."""
    return scores[:, 1:].logsumexp(dim=1) - scores[:, 0]


def smoothed(odds: Tensor) -> Tensor:
    """Return the means of (B, ...) over boxes that lie inside it."""
    pool = F.avg_pool2d if odds.ndim == 3 else F.avg_pool3d
    return pool(odds[:, None], SMOOTHED_SIDE, stride=1)[:, 0]


def _weights(window: Sequence[int]) -> Tensor:
    weights = torch.ones(tuple(window))
    for axis, side in enumerate(window):
        place = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        along = torch.exp(-0.5 * (place / (SIGMA_SHARE * side)) ** 2)
        weights *= along.view([-1 if at == axis else 1 for at in range(len(window))])
    return weights.clamp(min=LEAST_WEIGHT)
