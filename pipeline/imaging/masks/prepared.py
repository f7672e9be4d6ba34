"""The masks of a dataset while arrays are made: which image has which, what is odd about them, and their spacing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.imaging.archive.sources import Source
from pipeline.imaging.masks.structures import Structures
from pipeline.store.tables.masks import MASK_GRID
from pipeline.store.wording import counted

AXES = {2: ["rows", "columns"], 3: ["slices", "rows", "columns"]}


@dataclass(frozen=True)
class Masks:
    """By image_id: the file of its mask with its SHA-256, a digest of what it is made of, pixels of each structure.

    No file stands for an empty mask: that of a negative image for which the card says so.
    """

    structures: Structures
    files: dict[str, tuple[Source | None, str]]
    contents: dict[str, tuple[str]]
    pixels: dict[str, list[float]]

    @classmethod
    def of(cls, table: pd.DataFrame, structures: Structures, found: Mapping[str, Source], rows: pd.DataFrame) -> Masks:
        """Return the accepted masks of a table of tables.MASKS; `found` are the sources by source_id.

        `rows` has image_id and label of all images. One whose mask was refused is not annotated, whatever its label.
        Raises ValueError when one is gone.
        """
        used = table[table["reason"] == ""].set_index("image_id")
        if missing := int((~used["source_id"].isin(found.keys())).sum()):
            raise ValueError(f"{missing} of {len(used)} masks are gone since ingest; restore them or run ingest again")
        images, names, hashes = used.index.tolist(), used["source_id"].tolist(), used["sha256"].tolist()
        files: dict[str, tuple[Source | None, str]]
        files = {image: (found[n], sha256) for image, n, sha256 in zip(images, names, hashes, strict=True)}
        contents = {image: (content,) for image, content in zip(images, used["content"].tolist(), strict=True)}
        pixels = {image: list(row) for image, row in zip(images, used["pixels"].tolist(), strict=True)}
        if structures.empty_negatives:
            negative = (rows["label"] == 0).fillna(False).astype(bool)
            empty = rows.loc[negative & ~rows["image_id"].isin(table["image_id"]), "image_id"].tolist()
            files |= dict.fromkeys(empty, (None, ""))
            contents |= dict.fromkeys(empty, ("empty",))
            pixels |= dict.fromkeys(empty, [0.0] * len(structures.names))
        return cls(structures, files, contents, pixels)

    def summary(self, rows: pd.DataFrame, shown: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return what the summary says of masks.

        `rows` has image_id, label and split of all prepared images; `shown` the pixels of each structure in the arrays
        of those with a mask.
        """
        own = rows[rows["image_id"].isin(self.files.keys())]
        label = own["label"].astype("Float64")
        empty = own["image_id"].map(lambda image: not any(self.pixels[image])).astype(bool)
        lost = [any(a and not b for a, b in zip(self.pixels[i], shown[i], strict=True)) for i in own["image_id"]]
        annotated = own["split"].value_counts()
        without = ~rows["image_id"].isin(self.files.keys())
        assumed = sum(source is None for source, _ in self.files.values())
        return {
            **({"taken_for_empty": assumed} if self.structures.empty_negatives else {}),
            "structures": {str(n): name for n, name in enumerate(self.structures.names, start=1)},
            "annotated": {str(name): int(annotated.get(name, 0)) for name in rows["split"].unique()},
            "positive_without_mask": int(((label == 1).fillna(False) & empty).sum()),
            "negative_with_mask": int(((label == 0).fillna(False) & ~empty).sum()),
            "positive_annotated": int((label == 1).sum()),
            "negative_annotated": int((label == 0).sum()),
            "positive_not_annotated": int((rows.loc[without, "label"].astype("Float64") == 1).sum()),
            "structure_lost": int(sum(lost)),
        }


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Return what to warn of."""
    empty, full = summary["positive_without_mask"], summary["negative_with_mask"]
    found = []
    if empty:
        found.append(
            f"{empty} of {counted(summary['positive_annotated'], 'positive image')} with a mask "
            f"{'has' if empty == 1 else 'have'} an empty one"
        )
    if full:
        found.append(
            f"{full} of {counted(summary['negative_annotated'], 'negative image')} with a mask "
            f"{'shows' if full == 1 else 'show'} a structure in it"
        )
    if lost := summary["structure_lost"]:
        found.append(
            f"in {counted(lost, 'image')} a structure of the mask is not in the array: smaller than its pixels, or "
            "beyond image_size"
        )
    return found


def mask_grid(
    rows: pd.DataFrame, padding: Mapping[str, Sequence[float]], fields: Mapping[str, Sequence[int]], size: Sequence[int]
) -> pd.DataFrame:
    """Return the columns of tables.MASK_GRID: the spacing of each image's array.

    `rows` has size and spacing of the images, `padding` and `fields` what was added to and cut out of each.
    """
    names = [column.name for column in MASK_GRID.columns]
    found: list[tuple[Any, ...]] = []
    for row in rows.to_dict("records"):
        image, spacing = row["image_id"], row["spacing_mm"]
        if spacing is None:
            found.append((image, None, None, None))
            continue
        _, *box = fields[image]
        sides = np.diff(np.reshape(box, (-1, 2)))[:, 0] if box else [row[name] for name in AXES[row["axes"]]]
        resized = np.array(size) - np.reshape(padding[image], (-1, 2)).sum(axis=1)
        lengths = np.array(spacing) * sides / resized
        found.append((image, *[None] * (3 - len(lengths)), *lengths.tolist()))
    return pd.DataFrame(found, columns=names)
