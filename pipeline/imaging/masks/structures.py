"""What the values of a mask mean: structures by index, 1 to 254; 0 is background, 255 means not annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.imaging.quarantine import Refused
from pipeline.store.tables.masks import BACKGROUND, NOT_ANNOTATED

__all__ = ["BACKGROUND", "NOT_ANNOTATED", "Structures"]

ANY = "nonzero"
LISTED = 5  # values in a message


@dataclass(frozen=True)
class Structures:
    """The structures of a dataset. That of index n, from 1 on, is called `names[n - 1]` and has `values[n - 1]`.

    Without values, any value but 0 is the only structure. With `refuse_others`, no other value may occur, else such
    ones count as background. With `empty_negatives`, a negative image without a mask shows none of them.
    """

    names: tuple[str, ...]
    values: tuple[int, ...] = ()
    refuse_others: bool = True
    empty_negatives: bool = False

    @classmethod
    def from_card(cls, mask: Mapping[str, Any]) -> Structures:
        """Return what the content of `label.mask` of a card says."""
        named: dict[int | str, str] = dict(mask["structures"])
        values = () if ANY in named else tuple(int(value) for value in named)
        return cls(tuple(named.values()), values, mask["others"] == "refuse", mask.get("missing") == "empty")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Structures:
        """Return the structures that ingest wrote down."""
        values = tuple(content["values"])
        return cls(tuple(content["names"]), values, content["refuse_others"], content.get("empty_negatives", False))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; those of cards that say nothing of missing masks are what they always were."""
        return {name: value for name, value in asdict(self).items() if name != "empty_negatives" or value}

    def indices(self, values: np.ndarray) -> np.ndarray:
        """Return the index of the structure at each place, uint8, for the values of a mask.

        Raises Refused when values are no whole numbers, or are not named and have to be.
        """
        if values.dtype.kind not in "iub" and not (np.isfinite(values).all() and (np.round(values) == values).all()):
            raise Refused("mask_values", "no whole numbers")
        if not self.values:
            return (values != 0).astype(np.uint8)
        found = np.zeros(values.shape, np.uint8)
        for index, value in enumerate(self.values, start=1):
            found[values == value] = index
        if self.refuse_others and len(others := np.unique(values[(found == 0) & (values != 0)])):
            listed = ", ".join(f"{value:.0f}" for value in others[:LISTED])
            raise Refused("mask_values", f"{len(others)} not named: {listed}{' ...' if len(others) > LISTED else ''}")
        return found

    def counts(self, indices: np.ndarray) -> list[int]:
        """Return the number of pixels of each structure."""
        return np.bincount(indices.ravel(), minlength=256)[1 : len(self.names) + 1].tolist()
