"""Images of one dataset that another one has, too: the same, nearly the same, or of the same patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.imaging.copies.duplicates import met_before, near_copies, read_fingerprints

NEARLY_THE_SAME = "nearly the same image"
FINGERPRINTS = ("examined.parquet", "assembled.parquet")  # the tables that have them


@dataclass(frozen=True)
class Gathered:
    """Images of a dataset, with image_id, patient_id and pixel_hash, and the tables that have their fingerprints.

    These are tables of what was examined and assembled; none where nobody is to look for images nearly the same.
    """

    images: pd.DataFrame
    tables: Sequence[Path]


def met(known: Gathered, others: Gathered, scratch: Path) -> pd.Series:
    """Return, by image_id, why images of the others are not new: `same image`, `same patient`, NEARLY_THE_SAME.

    Pseudonyms are under the same key. `scratch` is where small copies lie on disk meanwhile.
    """
    found = met_before(known.images, others.images)
    new = others.images.loc[~others.images["image_id"].isin(found.index), "image_id"]
    if new.empty or known.images.empty or not (known.tables and others.tables):
        return found
    places = [scratch.with_name(f"{scratch.name}{number}") for number in (1, 2)]
    prints = [
        read_fingerprints(one.tables, ids, place)
        for one, ids, place in zip((known, others), (known.images["image_id"], new), places, strict=True)
    ]
    near = new[near_copies(*prints)]
    for place in places:
        place.unlink()
    return pd.concat([found, pd.Series(NEARLY_THE_SAME, index=near)])
