"""What ingest left of an archive, as far as labels are joined to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.labels.joining import COLUMNS
from pipeline.store.tables.ingest import FILES, IMAGES, NEAR_DUPLICATES, QUARANTINE
from pipeline.store.tables.io import iterate, read_table

NAMES = ["patient_id", "image_id", "series_id", "study_id", "pixel_hash", "reason"]


@dataclass(frozen=True)
class Archive:
    """What ingest left. `files` have the `row_id` by which a label table knows them, `present` all pseudonyms by join.

    `examined` and `assembled` are all pictures and volumes that could be read, copies that were refused among them.
    """

    images: pd.DataFrame
    files: pd.DataFrame
    near: pd.DataFrame
    quarantine: pd.DataFrame
    examined: pd.DataFrame
    assembled: pd.DataFrame
    present: dict[str, set[str]]


def read_archive(file: Callable[[str], Path]) -> Archive:
    """Return what ingest left; `file` gives the path of one of its files by name."""

    def every(name: str, *columns: str) -> pd.DataFrame:
        pieces = [piece.to_pandas() for piece in iterate(file(name), [*columns, *NAMES])]
        return pd.concat([pd.DataFrame(columns=[*columns, *NAMES]), *pieces], ignore_index=True)

    images = read_table(file("images.parquet"), IMAGES)
    examined = every("examined.parquet", "source_id", "row_id", "part_of")
    row_ids = examined.set_index("source_id")["row_id"]
    files = read_table(file("files.parquet"), FILES)
    files["row_id"] = files["source_id"].map(row_ids)
    quarantine = read_table(file("quarantine.parquet"), QUARANTINE)
    quarantine["row_id"] = quarantine["source_id"].map(row_ids)
    return Archive(
        images,
        files,
        read_table(file("near_duplicates.parquet"), NEAR_DUPLICATES),
        quarantine,
        examined,
        every("assembled.parquet", "sources"),
        {join: {*(files["row_id"] if join == "path" else images[column])} for join, column in COLUMNS.items()},
    )
