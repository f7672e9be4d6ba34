"""Fingerprints by which copies of an image are found although it was rescaled, recompressed or windowed anew.

256-bit hashes, of the lowest frequencies and of gradients, propose pairs. What decides is the correlation of their
small copies without what all pictures of the set have in common: pictures of one organ have alike hashes, whosoever
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image as pillow
from scipy.fft import dctn

SIDE = 64
BITS = 256
HASH_SIDE = 16
SMALL_SIDE = 32
# Differing bits of 256. On 1,000 chest radiographs of 264 patients neither rule linked any of 491,169 pairs of images
# of different patients, and both found all copies made by JPEG at quality 50 and by changes of brightness,
# contrast, size and gamma.
PERCEPTUAL_DISTANCE = 32
GRADIENT_DISTANCE = 24
# At 0.97, four pairs of different children were linked among 5,190 radiographs; at 0.98 none.
CORRELATION = 0.98
# Correlation of two pictures without what all of a set have in common. Of 402 fundus photographs (201 people), 1,555
# pairs of different people have hashes of copies; 5 are left by this. Copies shifted by a pixel, brightened, with
# noise, recompressed, mirrored or inverted all are, and those cropped by 2 % nearly all (benchmarks/near_copies.py).
RESIDUAL = 0.5
MOST_WAYS, IMAGES_PER_WAY, TEMPLATE_IMAGES = 24, 16, 2000
SAME = 0.9995
BLOCK = 512
# Reads the small copies from one image to another, (count, 1024) uint8: those of a large archive stay on disk.
SmallCopies = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of 32 bytes each, of the image and of its mirror image, and a copy of 32 x 32 pixels (uint8)."""

    perceptual: bytes
    mirrored: bytes
    gradient: bytes
    small: bytes


def fingerprint(pixels: np.ndarray) -> Fingerprint | None:
    """Return the fingerprint of pixels (H, W), or of the middle plane of (D, H, W); None when it is blank."""
    plane = pixels if pixels.ndim == 2 else pixels[pixels.shape[0] // 2]
    reduced = _reduced(plane)
    spread = float(reduced.max() - reduced.min())
    if not spread > 0:
        return None
    reduced = (reduced - reduced.min()) / spread
    small = reduced.reshape(SMALL_SIDE, 2, SMALL_SIDE, 2).mean(axis=(1, 3))
    return Fingerprint(
        perceptual=_perceptual(reduced),
        mirrored=_perceptual(reduced[:, ::-1]),
        gradient=_gradient(reduced),
        small=(small * 255).round().astype(np.uint8).tobytes(),
    )


def _reduced(plane: np.ndarray) -> np.ndarray:
    """Return the means of the areas of a 64 x 64 grid over the plane."""
    # Whole blocks first, which is fast and leaves less than a hundredth of a side unseen.
    rows, columns = (max(1, side // (2 * SIDE)) for side in plane.shape)
    height, width = plane.shape[0] // rows, plane.shape[1] // columns
    # One axis at a time: both at once, numpy is several times slower.
    strips = plane[: height * rows].reshape(height, rows, -1).mean(axis=1)
    blocks = strips[:, : width * columns].reshape(height, width, columns).mean(axis=2)
    return np.asarray(pillow.fromarray(blocks.astype(np.float32)).resize((SIDE, SIDE), pillow.Resampling.BOX))


def _perceptual(reduced: np.ndarray) -> bytes:
    """Return which of the 16 x 16 lowest frequencies of a cosine transform lie above their median."""
    low = dctn(reduced, norm="ortho")[:HASH_SIDE, :HASH_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def _gradient(reduced: np.ndarray) -> bytes:
    """Return where a 16 x 17 copy gets brighter from left to right."""
    picture = pillow.fromarray(np.ascontiguousarray(reduced, dtype=np.float32))
    coarse = np.asarray(picture.resize((HASH_SIDE + 1, HASH_SIDE), pillow.Resampling.BOX))
    return np.packbits(coarse[:, 1:] > coarse[:, :-1]).tobytes()


@dataclass(frozen=True)
class Link:
    """Two images, by their numbers, that show the same: differing bits of the perceptual hash, and their correlation.

    `how` is `copy`, `mirrored` or `inverted`.
    """

    first: int
    second: int
    how: str
    distance: int
    correlation: float


def links(
    perceptual: np.ndarray, mirrored: np.ndarray, gradient: np.ndarray, small: SmallCopies, known: int | None = None
) -> Iterator[Link]:
    """Yield every pair of near-duplicates among N images; with `known`, pairs of one of the first `known` and a later.

    Hashes are (N, 32) uint8, all zero for a blank image, which has no duplicates. Time grows with N squared, or with
    known x (N - known); memory does not.
    """
    hashes = [np.ascontiguousarray(h).view(np.uint64) for h in (perceptual, mirrored, gradient)]
    count = len(perceptual)
    template = Template.of(small, count)
    for start in range(0, count if known is None else known, BLOCK):
        for other in range(start if known is None else known // BLOCK * BLOCK, count, BLOCK):
            for link in _links_between(hashes, small, template, start, other):
                if known is None or link.first < known <= link.second:
                    yield link


def _links_between(
    hashes: list[np.ndarray], small: SmallCopies, template: Template, start: int, other: int
) -> Iterator[Link]:
    perceptual, mirrored, gradient = hashes
    rows, columns = slice(start, start + BLOCK), slice(other, other + BLOCK)
    copies = _distances(perceptual[rows], perceptual[columns])
    flipped = _distances(mirrored[rows], perceptual[columns])
    proposed = _distances(gradient[rows], gradient[columns]) <= GRADIENT_DISTANCE
    near = (copies <= PERCEPTUAL_DISTANCE) | (copies >= BITS - PERCEPTUAL_DISTANCE)
    near |= (flipped <= PERCEPTUAL_DISTANCE) | proposed
    near &= np.logical_and.outer(perceptual[rows].any(axis=1), perceptual[columns].any(axis=1))
    if start == other:
        near = np.triu(near, 1)
    if not near.any():
        return
    first, second = small(start, start + BLOCK), small(other, other + BLOCK)
    own = template.residual(first)
    theirs = {
        "copy": template.residual(second),
        "inverted": template.residual(255 - second),
        "mirrored": template.residual(_mirror(second)),
    }
    for i, j in np.argwhere(near).tolist():
        correlation = _correlation(first[i], second[j])
        for how, distance in _hows(int(copies[i, j]), int(flipped[i, j]), correlation):
            if float(own[i] @ theirs[how][j]) > RESIDUAL:
                if how == "mirrored":
                    correlation = _correlation(first[i], _mirror(second[j : j + 1])[0])
                yield Link(start + i, other + j, how, distance, correlation)
                break


def _hows(copy: int, flipped: int, correlation: float) -> list[tuple[str, int]]:
    """Return what the second image of a proposed pair can be of the first, and in how many bits they differ then."""
    hows = [("copy", copy)] if copy <= PERCEPTUAL_DISTANCE or correlation > CORRELATION else []
    hows += [("inverted", BITS - copy)] if copy >= BITS - PERCEPTUAL_DISTANCE else []
    return hows + ([("mirrored", flipped)] if flipped <= PERCEPTUAL_DISTANCE else [])


def _mirror(small: np.ndarray) -> np.ndarray:
    return small.reshape(-1, SMALL_SIDE, SMALL_SIDE)[:, :, ::-1].reshape(len(small), -1)


@dataclass(frozen=True)
class Template:
    """What the pictures of a set have in common: their mean (1024,) and main ways of differing (k, 1024), orthonormal.

    Pictures of one organ are alike: the disc of a fundus photograph, the ribs of a chest film. What is left without
    that is a picture's own, and only copies have that in common.
    """

    mean: np.ndarray
    ways: np.ndarray

    @classmethod
    def of(cls, small: SmallCopies, count: int) -> Template:
        """Return the template of `count` images, from a regular sample of them; of few images, an empty one."""
        step = max(1, count // TEMPLATE_IMAGES)
        starts = range(0, count, BLOCK)
        sample = np.concatenate([small(start, start + BLOCK)[-start % step :: step] for start in starts] or [_NOTHING])
        pictures = _standardised(sample)
        pictures = pictures[np.abs(pictures).sum(axis=1) > 0]
        # Copies of one picture are no way in which pictures differ.
        again = np.triu(pictures @ pictures.T / pictures.shape[1] > SAME, 1).any(axis=0)
        pictures = pictures[~again]
        ways = min(MOST_WAYS, len(pictures) // IMAGES_PER_WAY)
        if not ways:
            return cls(np.zeros(SMALL_SIDE**2), np.zeros((0, SMALL_SIDE**2)))
        mean = pictures.mean(axis=0)
        centred = pictures - mean
        return cls(mean, np.linalg.eigh(centred.T @ centred)[1][:, : -ways - 1 : -1].T)

    def residual(self, small: np.ndarray) -> np.ndarray:
        """Return what is each picture's own, (N, 1024), each row of length 1."""
        own = _standardised(small) - self.mean
        own -= own @ self.ways.T @ self.ways
        length = np.linalg.norm(own, axis=1, keepdims=True)
        return own / np.where(length > 0, length, 1)


_NOTHING = np.zeros((0, SMALL_SIDE**2), np.uint8)


def _standardised(small: np.ndarray) -> np.ndarray:
    centred = small.astype(float) - small.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return centred / np.where(spread > 0, spread, 1)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the number of differing bits of every pair of rows of (N, 4) and (M, 4) uint64."""
    distance = np.zeros((len(a), len(b)), np.uint16)
    for word in range(a.shape[1]):
        distance += np.bitwise_count(a[:, word, None] ^ b[None, :, word])
    return distance


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(float), b.astype(float))[0, 1])
