"""Masks of an archive: each is checked against the images that it is named for, and has a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq

from pipeline.imaging.archive.journal import Reading
from pipeline.imaging.archive.members import Member
from pipeline.imaging.archive.tasks import check_mask
from pipeline.imaging.masks.examination import Pair, check_pairs, pair_content, refused_files, settled
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.pseudonyms import path_pseudonym
from pipeline.imaging.quarantine import REASONS
from pipeline.labels.identity import row_pseudonyms
from pipeline.labels.mask_files import OF_ONE_IMAGE, MaskFiles
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.card import CardColumns


def check_masks(
    reading: Reading,
    structures: Structures,
    masks: MaskFiles,
    images: pd.DataFrame,
    files: pd.DataFrame,
    columns: CardColumns,
) -> pd.DataFrame:
    """Return the rows of tables.MASKS: the verdict on each mask for each image that it is named for."""
    archive, rules, secret = reading.archive, reading.rules, reading.rules.secret
    row_ids = row_pseudonyms(archive, columns, secret)
    named = masks.of_images(files, images, row_ids, columns, secret)
    by_id = {path_pseudonym(secret, source.place): source for source in masks.sources}
    parts = files[files["image_id"].isin(named["image_id"])].sort_values(["image_id", "part"])
    found = archive.chosen({*parts["source_id"]})
    members = {
        str(image): tuple(Member(n, found[n], s) for n, s in zip(group["source_id"], group["sha256"], strict=True))
        for image, group in parts.groupby("image_id")
    }
    facts = images.set_index("image_id")[["axes", "pixel_hash"]]
    stored = {name: archive.stored_sha256(source) for name, source in by_id.items()}
    pairs = []
    for image, name in named.itertuples(index=False):
        axes, pixels = facts.loc[image]
        content = pair_content(stored[name], pixels, [one.sha256 for one in members[image]], structures)
        pairs.append(Pair(image, name, by_id[name], members[image], int(axes), pixels, content))
    before = []
    if reading.previous is not None and "masks.parquet" in reading.previous.record["files"]:
        before = pq.read_table(reading.previous.file("masks.parquet")).to_pylist()
    task = partial(check_mask, structures, rules.policy)
    rows = check_pairs(task, pairs, before, reading.slow_pool, reading.journal)
    of_one_image = masks.by_rule or columns.join in OF_ONE_IMAGE
    return settled(reading.log.track(rows, "masks", total=len(pairs)), of_one_image)


def settle_masks(verdicts: pd.DataFrame, masks: MaskFiles, secret: bytes) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of masks that are those of images, and the quarantine of the others.

    Raises ValueError when not one mask can be used.
    """
    by_id = {path_pseudonym(secret, source.place): source for source in masks.sources}
    refused, used = refused_files(verdicts, by_id), verdicts[verdicts["reason"] == ""]
    if used.empty:
        counts = refused["reason"].value_counts()
        reasons = ", ".join(f"{count} {reason} ({REASONS[str(reason)]})" for reason, count in counts.items())
        raise ValueError(
            f"none of {counted(len(by_id), 'mask')} can be used: {reasons}; correct label.mask in the card"
        )
    return used, refused


def summary_of_masks(
    summary: Mapping[str, Any], masks: MaskFiles, used: pd.DataFrame, refused: pd.DataFrame
) -> dict[str, Any]:
    """Return what the summary says of masks, and the files received with them."""
    reasons = {str(reason): int(count) for reason, count in refused["reason"].value_counts().sort_index().items()}
    counts = {
        "files": len(masks.sources),
        "accepted": int(used["source_id"].nunique()),
        "images": int(used["image_id"].nunique()),
        "named_but_missing": masks.missing,
        "refused": reasons,
    }
    return {"received": summary["received"] + counts["accepted"], "masks": counts}
