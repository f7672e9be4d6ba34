"""What concerns the files of an archive together: which are copies of others, few slices beside many, negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipeline.imaging.copies.duplicates import (
    ACROSS_PATIENTS,
    NEARLY_ACROSS_PATIENTS,
    find_near_duplicates,
    read_fingerprints,
    resolve_duplicates,
    with_flag,
)
from pipeline.imaging.copies.template_correlation import INVERTED_BELOW, likeness
from pipeline.imaging.padding import padding_of_maker
from pipeline.store.tables.ingest import EXAMINED, IMAGE_COLUMNS, NEAR_DUPLICATES
from pipeline.store.tables.io import iterate, return_memory

COMPARED = ["image_id", "patient_id", "pixel_hash"]
SUMMED_UP = [column.name for column in IMAGE_COLUMNS] + ["shifted_day", "lowest", "highest", "clipped_share"]


def settle(work: Path, min_slices: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return the images kept, with their first source, files, quarantine and counts of duplicates."""
    whole = frame(work / "examined.parquet", ["source_id", "sha256", "reason", "detail", "part_of", *COMPARED])
    volumes = frame(work / "assembled.parquet", ["sources", "reason", "detail", "study_id", "slices", *COMPARED])
    largest = volumes[volumes["reason"] == ""].groupby("study_id")["slices"].max()
    few = (volumes["reason"] == "") & (volumes["slices"] < min_slices)
    few &= volumes["study_id"].map(largest) >= min_slices
    volumes.loc[few, "reason"] = "few_slices"
    hashes = whole.set_index("source_id")["sha256"]
    refused = [whole.loc[whole["reason"] != "", ["source_id", "sha256", "reason", "detail"]]]
    lost = volumes.loc[volumes["reason"] != "", ["sources", "reason", "detail"]].explode("sources")
    refused.append(_with_hash(lost.rename(columns={"sources": "source_id"}), hashes))
    accepted = whole.loc[(whole["reason"] == "") & (whole["part_of"] == ""), ["source_id", *COMPARED]]
    accepted = accepted.rename(columns={"source_id": "first_source"})
    built = volumes.loc[volumes["reason"] == "", ["sources", *COMPARED]]
    built = built.assign(first_source=built["sources"].map(min))
    resolved = resolve_duplicates(pd.concat([accepted, built.drop(columns="sources")], ignore_index=True))
    parts = built.set_index("image_id")["sources"]
    again = _with_sources(resolved.refused, parts)[["source_id", "reason", "detail"]]
    refused.append(_with_hash(again, hashes))
    files = _with_sources(resolved.kept, parts)[["image_id", "source_id"]]
    files["part"] = files.groupby("image_id").cumcount()
    files["sha256"] = hashes.reindex(files["source_id"]).to_numpy()
    quarantine = pd.concat(refused, ignore_index=True).drop_duplicates("source_id")
    # Of a file with several volumes, one can be refused, as a copy of another, while the file is used.
    quarantine = quarantine[~quarantine["source_id"].isin(files["source_id"])]
    kept = resolved.kept[["image_id", "first_source", "shared"]]
    return kept, files, quarantine, resolved.counts


def _with_sources(rows: pd.DataFrame, parts: pd.Series) -> pd.DataFrame:
    """Return a row for each file of each image: the parts of a volume, or the one file of a picture."""
    pictures = rows[~rows["image_id"].isin(parts.index)].rename(columns={"first_source": "source_id"})
    volumes = rows[rows["image_id"].isin(parts.index)]
    volumes = volumes.assign(source_id=volumes["image_id"].map(parts[~parts.index.duplicated()])).explode("source_id")
    return pd.concat([pictures, volumes], ignore_index=True)


def rows_of(kept: pd.DataFrame, work: Path) -> pd.DataFrame:
    """Return all that is known of the images kept, ordered by image_id, with days since the patient's first study."""
    chosen = pd.Index(kept["image_id"] + kept["first_source"])
    pieces = []
    for name, source in (("examined.parquet", "source_id"), ("assembled.parquet", "sources")):
        for piece in iterate(work / name, [source, *SUMMED_UP], where="reason"):
            of = piece[source].to_pandas()
            pairs = piece["image_id"].to_pandas() + (of if source == "source_id" else of.map(min))
            pieces.append(piece.filter(pa.array(chosen.get_indexer(pairs) >= 0)).select(SUMMED_UP))
    table = pa.concat_tables(pieces) if pieces else EXAMINED.schema.empty_table().select(SUMMED_UP)
    del pieces, chosen
    table = table.sort_by("image_id")
    return_memory()
    images = table.to_pandas(split_blocks=True, self_destruct=True)
    del table
    shared = images["image_id"].isin(kept.loc[kept["shared"], "image_id"])
    images = with_flag(images, shared, ACROSS_PATIENTS)
    days = images["shifted_day"].astype("Int64")
    images["study_day"] = days - days.groupby(images["patient_id"]).transform("min")
    images["age_years"] = images["age_years"].astype("Float64")
    return images


def frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return these columns of all rows of a table of ingest, examined or assembled."""
    pieces = list(iterate(path, columns))
    if not pieces:
        return pd.DataFrame(columns=list(columns))
    return pa.concat_tables(pieces).to_pandas()


def _with_hash(rows: pd.DataFrame, hashes: pd.Series) -> pd.DataFrame:
    """Return the columns of tables.QUARANTINE."""
    found = hashes.reindex(rows["source_id"]).to_numpy()
    return rows.assign(sha256=found)[["source_id", "sha256", "reason", "detail"]]


def compare(
    images: pd.DataFrame, work: Path, scratch: Path, near_duplicates: bool
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return the images with flags for what other images show of them, the near-duplicates, counts."""
    files = [work / name for name in ("examined.parquet", "assembled.parquet")]
    hashes, small = read_fingerprints(files, images["image_id"], scratch / "small.bin")
    images = images.assign(likeness=likeness(images, small))
    images = with_flag(images, images["likeness"].to_numpy() < INVERTED_BELOW, "inversion_suspected")
    images = with_flag(images, padding_of_maker(images), "padding_of_maker")
    if near_duplicates:
        near = find_near_duplicates(images, hashes, small)
    else:
        near = pd.DataFrame(columns=[column.name for column in NEAR_DUPLICATES.columns])
    across = near[near["across_patients"].astype(bool)]
    images = with_flag(
        images, images["image_id"].isin([*across["image_id"], *across["other_image_id"]]), NEARLY_ACROSS_PATIENTS
    )
    return images, near, {"near_duplicates": len(near), "near_duplicates_across_patients": len(across)}
