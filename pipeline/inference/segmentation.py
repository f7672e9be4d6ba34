"""Masks and marks of images: the mean of what the networks of an arm say of pixels, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.models.finished import Maps
from pipeline.models.marks import Mark, Suspects, marks_of
from pipeline.models.windows import slabs

FULL_SCALE = 255


@dataclass(frozen=True)
class Segmented:
    """Masks (N, ...) uint8, 0 for background and the structures' numbers; the marks of each image, the surest first.

    `left_out` counts the marks beyond what is kept of an image.
    """

    masks: np.ndarray
    marks: Sequence[Sequence[Mark]]
    left_out: int
    structures: Mapping[int, str]


def segment(maps: Sequence[Maps], array: np.ndarray, masks: np.ndarray | None = None) -> Segmented:
    """Return masks and marks of images (N, C, ...) uint8 by the models of an arm; `masks` is filled where given.

    A mask has the class with the highest mean probability over the models; of equal ones the first, so that background
    wins. Volumes larger than the models' windows are gone through plane by plane. Raises ValueError when an image is
    smaller than a window.
    """
    first, size = maps[0], array.shape[2:]
    filled = np.empty((len(array), *size), np.uint8) if masks is None else masks
    marks, left_out = [], 0
    for image, mask in zip(array, filled, strict=True):
        suspects = _segment(maps, image, mask)
        found = marks_of(suspects, size)
        left_out += max(0, len(found) - first.marks_per_image)
        marks.append(found[: first.marks_per_image])
    return Segmented(filled, marks, left_out, first.structures)


def _segment(maps: Sequence[Maps], image: np.ndarray, mask: np.ndarray) -> list[Suspects]:
    """Fill a mask (...), and return each structure's pixels above the threshold of marks."""

    def read(box: tuple[slice, ...]) -> Tensor:
        return torch.from_numpy(np.array(image[(slice(None), *box)])).float() / FULL_SCALE

    above: list[list[Suspects]] = [[] for _ in maps[0].structures]
    plane = int(np.prod(mask.shape[1:]))
    done = 0
    for parts in zip(*(slabs(one, mask.shape, read) for one in maps), strict=True):
        probabilities = torch.stack([part.softmax(dim=0) for part in parts]).mean(dim=0).numpy()
        planes = probabilities.shape[1]
        mask[done : done + planes] = probabilities.argmax(axis=0)
        for found, of_structure in zip(above, probabilities[1:], strict=True):
            places = np.flatnonzero(of_structure > maps[0].mark_threshold)
            found.append(Suspects(places + done * plane, of_structure.ravel()[places]))
        done += planes
    return [
        Suspects(np.concatenate([one.places for one in own]), np.concatenate([one.values for one in own]))
        for own in above
    ]
