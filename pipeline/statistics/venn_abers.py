"""Isotonic regression with one patient more, at every place where that patient could stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Block:
    """Groups pooled into one, and the block that comes before it on its side; means fall from block to block."""

    weight: float
    total: float
    next: _Block | None

    @property
    def mean(self) -> float:
        return self.total / self.weight


def venn_abers_pairs(weights: np.ndarray, sums: np.ndarray) -> tuple[list[float], list[float]]:
    """Return p0 and p1, each (2m-1,): at the first score, between the first and the second, at the second, and so on.

    weights, sums: (m,) patients and positives at each distinct score, by rising score. p0 is the fitted share at the
    place of a further patient who is negative, p1 of one who is positive (Vovk & Petej, UAI 2014). Isotonic
    regression pools neighbours that stand in the wrong order, in whatever sequence: those left and those right of
    the patient are pooled once for every place, and only what meets at the patient is pooled anew.
    """
    m = len(weights)
    # Seen from the right, shares must fall: the same pooling of negated sums.
    left = _pooled(weights, sums)
    right = _pooled(weights[::-1], -sums[::-1])
    pairs: tuple[list[float], list[float]] = ([], [])
    for cell in range(2 * m - 1):
        at, between = divmod(cell, 2)
        own_weight, own_total = (0.0, 0.0) if between else (float(weights[at]), float(sums[at]))
        before, after = left[at + 1 if between else at], right[m - 1 - at]
        for label, values in enumerate(pairs):
            values.append(_met(own_weight + 1, own_total + label, before, after))
    return pairs


def _pooled(weights: np.ndarray, sums: np.ndarray) -> list[_Block | None]:
    """Return the last block of the isotonic regression of the first 0, 1, …, m groups."""
    last: list[_Block | None] = [None]
    for weight, total in zip(weights.tolist(), sums.tolist(), strict=True):
        before = last[-1]
        while before is not None and before.mean >= total / weight:
            weight, total, before = weight + before.weight, total + before.total, before.next
        last.append(_Block(weight, total, before))
    return last


def _met(weight: float, total: float, left: _Block | None, right: _Block | None) -> float:
    """Return the share of the block around a patient; totals on the right are negated."""
    while True:
        if left is not None and left.mean >= total / weight:
            weight, total, left = weight + left.weight, total + left.total, left.next
        elif right is not None and -right.mean <= total / weight:
            weight, total, right = weight + right.weight, total - right.total, right.next
        else:
            return total / weight
