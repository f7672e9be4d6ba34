"""What a segmentation minimises, and the overlap by which it is judged while it is trained.

Shapes: B images, K classes, the first of them background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.store.tables.masks import NOT_ANNOTATED

SMOOTHING = 1.0  # pixels; so that an image without a structure asks for none of it


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean over images of cross-entropy and soft Dice loss, of logits (B, K, ...) and masks (B, ...).

    Both are each image's own: the cross-entropy its mean over annotated pixels, the Dice loss (Milletari et al. 2016)
    1 minus its mean over structures, which counts a small structure like a large one. Where nothing is annotated, both
    are 0. Their sum, the usual choice (Isensee et al. 2021), neglects neither rare structures nor sure pixels.
    """
    known = masks != NOT_ANNOTATED
    targets = torch.where(known, masks, 0).long()
    pixels = tuple(range(1, masks.ndim))
    entropy = (F.cross_entropy(logits, targets, reduction="none") * known).sum(dim=pixels)
    annotated = known.sum(dim=pixels)
    entropy = entropy / annotated.clamp(min=1)
    wanted = F.one_hot(targets, logits.shape[1]).movedim(-1, 1)[:, 1:] * known[:, None]
    found = logits.softmax(dim=1)[:, 1:] * known[:, None]
    within = tuple(range(2, logits.ndim))
    both = (found * wanted).sum(dim=within)
    overlap = (2 * both + SMOOTHING) / (found.sum(dim=within) + wanted.sum(dim=within) + SMOOTHING)
    return (entropy + (1 - overlap.mean(dim=1)) * (annotated > 0)).mean()


def dice(found: np.ndarray, reference: np.ndarray, structures: Sequence[int]) -> np.ndarray:
    """Return the Dice overlap of each structure in a mask with its reference, (structures,); NaN where neither has it.

    Twice the pixels of both, divided by the sum of the pixels of each (Dice 1945); pixels without annotation are left
    out. A structure that only one of them has is 0, and counts.
    """
    known = reference != NOT_ANNOTATED
    each = []
    for number in structures:
        one, other = (found == number) & known, (reference == number) & known
        total = int(one.sum()) + int(other.sum())
        each.append(2 * int((one & other).sum()) / total if total else np.nan)
    return np.array(each)


def mean_dice(each: np.ndarray, patients: np.ndarray) -> float:
    """Return the mean over patients of each one's mean over images and structures, of `each` (images, structures).

    What neither mask nor reference has is left out; NaN when there is nothing else.
    """
    of_image = pd.Series(each.ravel(), index=np.repeat(patients, each.shape[1])).dropna()
    return float(of_image.groupby(level=0).mean().mean())
