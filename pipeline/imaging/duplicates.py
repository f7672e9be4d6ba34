"""Images that came in more than once, and images that different patients share."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

ACROSS_PATIENTS = "duplicate_across_patients"


@dataclass(frozen=True)
class Deduplicated:
    """The rows kept, the refused ones as (source_id, sha256, reason, detail), and counts."""

    kept: pd.DataFrame
    refused: pd.DataFrame
    counts: dict[str, int]


def resolve_duplicates(images: pd.DataFrame) -> Deduplicated:
    """Keep one of each image per patient: the first by source_id, which no order of reading changes.

    Different pixels or patients under one image_id (one SOP Instance UID) are all refused, as nobody can tell which
    is right. Equal pixels of different patients are kept and flagged: they may be an error of either patient.
    """
    images = images.sort_values("source_id", kind="stable", ignore_index=True)
    by_uid = images.groupby("image_id")
    conflict = (by_uid["pixel_sha256"].transform("nunique") > 1) | (by_uid["patient_id"].transform("nunique") > 1)
    same_uid = ~conflict & images.duplicated("image_id")
    left = images[~conflict & ~same_uid]
    same_pixels = left.duplicated(["patient_id", "pixel_sha256"]).reindex(images.index, fill_value=False)
    refused = pd.concat(
        [
            _refusals(images[conflict], "uid_conflict", ""),
            _refusals(images[same_uid], "duplicate", "same SOP Instance UID or same bytes"),
            _refusals(images[same_pixels], "duplicate", "same pixels"),
        ]
    )
    kept = images[~conflict & ~same_uid & ~same_pixels].copy()
    shared = kept.groupby("pixel_sha256")["patient_id"].transform("nunique") > 1
    kept.loc[shared, "quality_flags"] = kept.loc[shared, "quality_flags"].map(_with_flag)
    counts = {
        "same_image": int(same_uid.sum()),
        "same_pixels": int(same_pixels.sum()),
        "uid_conflicts": int(conflict.sum()),
        "images_shared_between_patients": int(shared.sum()),
        "patients_sharing_images": int(kept.loc[shared, "patient_id"].nunique()),
    }
    return Deduplicated(kept, refused, counts)


def _refusals(rows: pd.DataFrame, reason: str, detail: str) -> pd.DataFrame:
    return rows[["source_id", "sha256"]].assign(reason=reason, detail=detail)


def _with_flag(flags: str) -> str:
    return ",".join(sorted({*filter(None, flags.split(",")), ACROSS_PATIENTS}))
