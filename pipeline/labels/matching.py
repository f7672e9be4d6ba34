"""Labels and images that find each other, and those that do not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.imaging.archive.sources import SourcesError, find_sources
from pipeline.labels.contradictions import labels_of_files, one_label, with_labels_of_copies
from pipeline.labels.joining import why_unmatched
from pipeline.labels.path_rules import PathRule, check_paths
from pipeline.labels.values import LabelsError
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.labels.answers import Labels, LabelTable
    from pipeline.labels.archive import Archive
    from pipeline.store.runlog import RunLog

LABEL_ALONE, IMAGE_ALONE, CONTRADICTING = "label without image", "image without label", "label contradicted by a copy"


def of_files(archive: Archive, labels: Labels) -> pd.DataFrame:
    """Return the label of every labelled picture and volume, copies that ingest refused among them."""
    return labels_of_files(archive.examined, archive.assembled, labels.column, labels.label, labels.given)


def join(archive: Archive, labels: Labels, any_positive: bool) -> pd.DataFrame:
    """Return the images with their labels; a volume has the label of any of its files.

    Raises LabelsError when files of one volume have different labels, unless `any_positive` settles it.
    """
    joined = archive.images[["image_id", "patient_id", "series_id", "study_id", "pixel_hash"]].copy()
    # A blank picture is everybody's and nobody's: it links no patients.
    blank = archive.images["quality_flags"].str.split(",").map(lambda flags: "blank" in flags)
    joined["pixel_hash"] = joined["pixel_hash"].where(~blank, joined["image_id"])
    if labels.column != "source_id":
        label, given = (joined[labels.column].map(values) for values in (labels.label, labels.given))
    else:
        files = archive.files.assign(
            label=archive.files["row_id"].map(labels.label), given=archive.files["row_id"].map(labels.given)
        ).dropna(subset=["label"])
        label = one_label(files["label"], files["image_id"], any_positive)
        label, given = (joined["image_id"].map(of) for of in (label, files.groupby("image_id")["given"].first()))
    joined = joined.assign(label=label, given=given.astype(object).fillna(""))
    return with_labels_of_copies(joined, of_files(archive, labels))


def check_matches(
    table: LabelTable, studies: Sequence[Path], archive: Archive, labels: Labels, found: pd.DataFrame, log: RunLog
) -> None:
    """Say how many rows found images; where some did not, `studies` are looked at for the paths that there are.

    Raises LabelsError when none did, or many would with a setting that the message names.
    """
    columns, keys = table.card.columns, labels.rows["key"]
    column, matched = getattr(columns, columns.join), keys.isin(archive.present[columns.join])
    log.info(
        f"{int(matched.sum())} of {len(keys)} labelled rows of the label table matched "
        f"{int(found['label'].notna().sum())} of {len(found)} images"
    )
    if columns.join == "path" and not matched.all():
        try:
            sources = find_sources(studies, table.path)
        except SourcesError:
            sources = []  # not needed for anything else here, so that they may be elsewhere by now
        if sources:
            rule = PathRule(**columns.path_rule)
            _warn(log, check_paths(labels.rows["value"], [source.path for source in sources], rule, column))
    text, stop = why_unmatched(labels.rows["value"], keys, columns.join, column, table.secret, archive.present)
    refused = archive.quarantine[archive.quarantine["row_id"].isin(keys)]["reason"].value_counts()
    if stop and len(refused):
        text += f". In quarantine: {', '.join(f'{count} {reason}' for reason, count in refused.items())}"
    if found["label"].isna().all():
        raise LabelsError(f"none of {counted(len(found), 'accepted image')} has a label: {text}")
    if stop:
        raise LabelsError(f"label table: {text}")
    _warn(log, text)


def _warn(log: RunLog, text: str) -> None:
    if text:
        log.warn(text)


def unmatched(found: pd.DataFrame, archive: Archive, labels: Labels, left_out: Collection[str]) -> pd.DataFrame:
    """Return the columns of tables.UNMATCHED: labels and images that did not find each other, or not for good."""
    by_path = labels.column == "source_id"
    present = archive.files["row_id"] if by_path else found[labels.column]
    alone = labels.label.index[~labels.label.index.isin(present)]
    reasons = archive.quarantine.drop_duplicates("row_id").set_index("row_id")["reason"]
    reason = reasons.reindex(alone).fillna("").to_numpy() if by_path else ""
    without = found.loc[found["label"].isna(), "image_id"]
    doubted = sorted(left_out)
    return pd.concat(
        [
            pd.DataFrame({"what": LABEL_ALONE, "joined_by": labels.column, "pseudonym": alone, "reason": reason}),
            pd.DataFrame({"what": IMAGE_ALONE, "joined_by": "image_id", "pseudonym": without, "reason": ""}),
            pd.DataFrame({"what": CONTRADICTING, "joined_by": "image_id", "pseudonym": doubted, "reason": ""}),
        ],
        ignore_index=True,
    )
