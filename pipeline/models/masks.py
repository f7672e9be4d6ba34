"""Masks as targets: a structure's number per pixel, kept beside the arrays of pixels and moved as these are.

Shapes: B images; masks are (B, H, W) or (B, D, H, W) uint8: 0 background, 1 and on structures, NOT_ANNOTATED where
nothing is known, which is never learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.augmentation import Augmentation, Draws
from pipeline.models.images import Images, ImagesError
from pipeline.models.mask_arrays import MaskArrays, read_masks
from pipeline.models.randomness import uniform
from pipeline.store.tables.masks import NOT_ANNOTATED, mask_name

WINDOW = 5  # the stream of random numbers that place training windows
FOCUSED_SHARE = 0.5  # of training windows that are laid round a pixel of a structure, where there is one


@dataclass(frozen=True)
class Masks:
    """Masks of the images of one or several splits, with the structures' names by number.

    `arrays` are memory maps by the file name of their images.
    """

    arrays: dict[str, np.ndarray]
    structures: Mapping[int, str]

    @property
    def classes(self) -> int:
        """Background and structures."""
        return 1 + len(self.structures)

    def of(self, images: Images, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the masks of the images at `rows`, (B, ...) uint8."""
        return MaskArrays(images.index, self.arrays).at(rows)

    def annotated(self, images: Images) -> np.ndarray:
        """Return which images have a mask, (N,) bool."""
        return MaskArrays(images.index, self.arrays).annotated

    def shares(self, images: Images) -> np.ndarray:
        """Return the share of each class among the annotated pixels, (classes,)."""
        counts = np.zeros(NOT_ANNOTATED + 1, np.int64)
        for rows in images.chunks(64):
            counts += np.bincount(self.of(images, rows).ravel(), minlength=len(counts))
        return counts[: self.classes] / max(1, counts[: self.classes].sum())


def masks_of(arrays: Sequence[Path], structures: Mapping[str, str], images: Sequence[Images]) -> Masks:
    """Open the masks of `images`; `structures` are names by number, as `preprocess` leaves them in its summary.

    Raises ImagesError, naming every array that is missing, of another size than its pixels or with unknown numbers.
    """
    names = {int(number): name for number, name in structures.items()}
    opened = {shard: array for part in images for shard, array in read_masks(part, arrays).arrays.items()}
    known = np.isin(np.arange(NOT_ANNOTATED + 1), [0, *names, NOT_ANNOTATED])
    strange = [
        mask_name(shard) for shard, masks in opened.items() if not all(known[np.unique(one)].all() for one in masks)
    ]
    if strange:
        raise ImagesError(f"masks hold numbers that are no structure: {', '.join(strange)}")
    return Masks(opened, names)


def moved(masks: Tensor, augment: Augmentation, seed: int, epoch: int, images: np.ndarray) -> Tensor:
    """Return masks (B, ...) where `augment` moves the pixels of the same images to, by the nearest pixel.

    What comes from outside the image is not annotated. Changes of values, cut-out boxes among them, move nothing.
    """
    draws = Draws.of(seed, epoch, images)
    maps = torch.from_numpy(augment.matrices(draws, tuple(masks.shape[1:]))).float()
    # grid_sample counts axes from the fastest; 0 stands for the outside.
    fastest_first = torch.cat((maps[:, :, :-1].flip(1, 2), maps[:, :, -1:].flip(1)), dim=2).to(masks.device)
    places = F.affine_grid(fastest_first, [len(masks), 1, *masks.shape[1:]], align_corners=False)
    numbered = (masks.float() + 1)[:, None]
    found = F.grid_sample(numbered, places, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
    return torch.where(found == 0, NOT_ANNOTATED, found - 1).to(torch.uint8)


def cut_windows(
    pixels: Tensor, masks: Tensor, window: Sequence[int], seed: int, epoch: int, images: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Return a window of each image and mask; half of them, on average, round a pixel of a structure.

    Places depend on (seed, epoch, image) alone.
    """
    draws = uniform(seed, epoch, images, WINDOW, 2 + len(window))
    cut = []
    for image, mask, (focused, which, *place) in zip(pixels, masks, draws, strict=True):
        room = np.array(mask.shape) - window
        start = np.floor(np.array(place) * (room + 1)).astype(int)
        inside = torch.nonzero((mask > 0) & (mask != NOT_ANNOTATED)) if focused < FOCUSED_SHARE else mask.new_empty(0)
        if len(inside):
            centre = inside[int(which * len(inside))].cpu().numpy()
            start = np.clip(centre - np.array(window) // 2, 0, room)
        box = tuple(slice(a, a + b) for a, b in zip(start.tolist(), window, strict=True))
        cut.append((image[(slice(None), *box)], mask[box]))
    return torch.stack([image for image, _ in cut]), torch.stack([mask for _, mask in cut])
