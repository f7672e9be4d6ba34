"""Randomness as a pure function of (seed, epoch, image): nothing to save for a resume, nothing that a batch can change.

Numbers are made on the CPU by a counter-based generator, so that they are the same on every device, in every batch
and in every process.
"""

from __future__ import annotations

import hashlib

import numpy as np

# Independent streams of the same image and epoch.
AUGMENTATION, MASK, DROP_PATH, MIXUP = 1, 2, 3, 4

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int, images: np.ndarray, stream: int, draws: int) -> np.ndarray:
    """Return `draws` uniform numbers in [0, 1) for each image, (len(images), draws) float64.

    A number depends on nothing but (seed, epoch, image, stream, its column). The mixing function is SplitMix64
    (Steele, Lea and Flood 2014), applied to the key and then to the counter.
    """
    key = np.uint64(derived_seed(seed, epoch, stream))
    rows = _mix(_mix(np.asarray(images, dtype=np.uint64) * _GOLDEN + key))
    cells = _mix(rows[:, None] + np.arange(1, draws + 1, dtype=np.uint64)[None, :] * _GOLDEN)
    return (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of range(count) that depends on (seed, epoch) alone."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, epoch))).permutation(count)


def derived_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on their order."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _mix(values: np.ndarray) -> np.ndarray:
    # Wrapping multiplication of unsigned integers is meant.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
