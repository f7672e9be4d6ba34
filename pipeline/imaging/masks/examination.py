"""Every mask that is named for an image, checked against it: accepted with the pixels of each structure, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from pipeline.imaging.archive.loading import image_of
from pipeline.imaging.archive.members import Member
from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.formats.dicom import is_dicom
from pipeline.imaging.formats.nifti import inflate, is_nifti
from pipeline.imaging.image import Policy
from pipeline.imaging.masks.reading import read_mask
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.quarantine import PASSING_REASONS, Refusal, Refused
from pipeline.store.files import sha256_bytes, sha256_json
from pipeline.store.tables.io import write_rows
from pipeline.store.tables.masks import MASKS

Row = dict[str, Any]
BATCH = 16


@dataclass(frozen=True)
class Pair:
    """A mask and the image it is named for; `content` is a digest of both and of what values mean."""

    image_id: str
    source_id: str
    mask: Source
    files: tuple[Member, ...]
    axes: int
    pixel_hash: str
    content: str


@dataclass(frozen=True)
class Checked:
    """The verdict on a mask."""

    sha256: str
    format: str = ""
    pixels: tuple[int, ...] = ()
    refusal: Refusal | None = None


def pair_content(mask_sha256: str, pixel_hash: str, files: Sequence[str], structures: Structures) -> str:
    """Return the digest of a mask, the files of its image and the meaning of values."""
    meaning = [structures.names, structures.values, structures.refuse_others]
    return sha256_json([mask_sha256, pixel_hash, files, meaning])


def check_pairs(
    task: Callable[[Pair], Checked], pairs: Sequence[Pair], before: Sequence[Row], pool: Pool, journal: Path
) -> Iterator[Row]:
    """Yield a row of tables.MASKS for each pair; `before` are those of an earlier ingest, `task` is `check_pair`.

    Finished batches are pages in `journal`, so that a killed run goes on where it was.
    """
    known = {(row["image_id"], row["source_id"], row["content"]): row for row in before}
    left = []
    for pair in pairs:
        row = known.get((pair.image_id, pair.source_id, pair.content))
        if row is None or row["reason"] in PASSING_REASONS:
            left.append(pair)
        else:
            yield row
    batches = dict(enumerate(left[at : at + BATCH] for at in range(0, len(left), BATCH)))
    pages = {n: _page(journal, batch) for n, batch in batches.items()}
    todo = {n: batch for n, batch in batches.items() if not pages[n].exists()}
    for number, page in pages.items():
        if number not in todo:
            yield from pq.read_table(page).to_pylist()
    for number, found in each_batch(task, todo, pool, journal):
        rows = [_row(pair, result) for pair, result in zip(batches[number], found, strict=True)]
        write_rows(pages[number], rows, MASKS)
        yield from rows


def _page(journal: Path, batch: Sequence[Pair]) -> Path:
    names = [(pair.image_id, pair.source_id, pair.content) for pair in batch]
    return journal / f"masks-{sha256_json(names)[:16]}.parquet"


def check_pair(structures: Structures, policy: Policy, pair: Pair) -> Checked:
    """Read a mask and its image, and return the verdict. Raises Refused when the mask cannot be read."""
    data = read_bytes(pair.mask, policy.max_file_bytes)
    sha256 = sha256_bytes(data)
    try:
        contents = [read_bytes(one.source, policy.max_file_bytes) for one in pair.files]
        if any(sha256_bytes(content) != one.sha256 for content, one in zip(contents, pair.files, strict=True)):
            raise Refused("unreadable", "the image changed while it was read")
        image = image_of(contents, [one.source for one in pair.files], pair.axes, pair.pixel_hash, policy)
        indices = read_mask(data, image, contents, structures, policy)
    except Refused as refused:
        return Checked(sha256, refusal=refused.refusal)
    return Checked(sha256, _format(data, policy), tuple(structures.counts(indices)))


def _format(data: bytes, policy: Policy) -> str:
    if is_dicom(data):
        return "segmentation"
    return "nifti" if is_nifti(inflate(data, policy.max_file_bytes)) else "picture"


def _row(pair: Pair, result: Checked | Refusal) -> Row:
    checked = Checked("", refusal=result) if isinstance(result, Refusal) else result
    return {
        "image_id": pair.image_id,
        "source_id": pair.source_id,
        "sha256": checked.sha256,
        "content": pair.content,
        "format": checked.format,
        "reason": checked.refusal.reason if checked.refusal else "",
        "detail": checked.refusal.detail if checked.refusal else "",
        "pixels": [float(count) for count in checked.pixels],
    }


def settled(rows: Iterable[Row], of_one_image: bool) -> pd.DataFrame:
    """Return the verdicts, with one mask at most for an image.

    A picture fits all images of its size: unless it was named for `of_one_image`, it may be that of one alone.
    """
    found = pd.DataFrame(list(rows), columns=[column.name for column in MASKS.columns])
    fits = found["reason"] == ""
    several = fits & found["image_id"].isin(_repeated(found.loc[fits, "image_id"]))
    if not of_one_image:
        pictures = fits & (found["format"] == "picture")
        several |= pictures & found["source_id"].isin(_repeated(found.loc[pictures, "source_id"]))
    found.loc[several, "reason"] = "mask_ambiguous"
    return found.sort_values(["image_id", "source_id"], ignore_index=True)


def _repeated(values: pd.Series) -> set[str]:
    return {value for value, count in Counter(values).items() if count > 1}


def refused_files(verdicts: pd.DataFrame, masks: dict[str, Source]) -> pd.DataFrame:
    """Return the columns of tables.QUARANTINE for each mask that is that of no image."""
    used = {*verdicts.loc[verdicts["reason"] == "", "source_id"]}
    first = verdicts.drop_duplicates("source_id")[["source_id", "sha256", "reason", "detail"]]
    reasons = {row[0]: row[1:] for row in first.itertuples(index=False, name=None)}
    rows = []
    for name, source in masks.items():
        if name in used:
            continue
        refusal = source.refusal or Refusal("mask_without_image")
        rows.append((name, *reasons.get(name, ("", refusal.reason, refusal.detail))))
    return pd.DataFrame(rows, columns=["source_id", "sha256", "reason", "detail"])
