"""Which files under the studies are masks, and of what: by a rule from path to path, or by the label table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.imaging.archive.sources import Source
from pipeline.imaging.pseudonyms import normal_path, path_pseudonym
from pipeline.labels.joining import COLUMNS, row_keys
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError, read_labels
from pipeline.store.files import sha256_json
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.card import CardColumns, CardMask

# Rows by these are about one file; others can be about several images.
OF_ONE_IMAGE = ("path", "sop_instance_uid")


@dataclass(frozen=True)
class MaskFiles:
    """The sources that are masks, and `named`, what each is named for: the columns `value` and `source_id` of the mask.

    A value is the source_id of an image's file where a rule led from it, else what stands in the column of the label
    table by which rows are joined to images. `missing` counts those that the table names and for which there is no
    file; an image to which no rule finds a mask is not annotated.
    """

    sources: tuple[Source, ...]
    named: pd.DataFrame
    by_rule: bool
    missing: int

    def images(self, sources: Sequence[Source]) -> list[Source]:
        """Return the sources that are no masks."""
        masks = {source.place for source in self.sources}
        return [source for source in sources if source.place not in masks]

    def of_images(
        self, files: pd.DataFrame, images: pd.DataFrame, row_ids: dict[str, str], columns: CardColumns, secret: bytes
    ) -> pd.DataFrame:
        """Return the columns image_id and source_id: for which of the accepted images each mask is named.

        `files` and `images` are ingest's tables, `row_ids` lead from source_id to what a table of paths knows it by.
        """
        join = "path" if self.by_rule else columns.join
        if join == "path":
            keys = files["source_id"] if self.by_rule else files["source_id"].map(row_ids)
            known = pd.DataFrame({"key": keys, "image_id": files["image_id"]})
        else:
            known = pd.DataFrame({"key": images[COLUMNS[join]], "image_id": images["image_id"]})
        key = self.named["value"]
        if not self.by_rule:
            rule = PathRule(**columns.path_rule)
            key = row_keys(key, join, secret, {*known["key"]}, rule, columns.id_ignore)
        pairs = self.named.assign(key=key).merge(known, on="key")[["image_id", "source_id"]]
        return pairs.drop_duplicates().sort_values(["source_id", "image_id"], ignore_index=True)


def find_masks(
    mask: CardMask, columns: CardColumns, labels: Path | None, sources: Sequence[Source], secret: bytes
) -> MaskFiles:
    """Return the masks among the sources. Raises LabelsError when not one is found."""
    usable = [source for source in sources if source.refusal is None or source.refusal.reason != "left_out"]
    if mask.rule is not None:
        pairs, missing = _by_rule(usable, mask.rule.image, mask.rule.mask)
        named = [(path_pseudonym(secret, image.place), found) for image, found in pairs]
        said = "the rule of label.mask leads"
    else:
        rows = named_in_table(mask, columns, labels)
        paths = {normal_path(source.path): source for source in usable}
        rule = PathRule(columns.path_without, columns.path_within)
        wanted = [(value, paths.get(rule.of_row(path)) or paths.get(normal_path(path))) for value, path in rows]
        named = [(value, found) for value, found in wanted if found is not None]
        missing, said = len(wanted) - len(named), f"column {mask.column} of the label table leads"
    if not named:
        raise LabelsError(
            f"{said} from none of {counted(len(usable), 'file')} under data.studies to a mask there "
            f"({missing} named); correct label.mask in the dataset card, or put the masks under data.studies"
        )
    table = pd.DataFrame(
        [(value, path_pseudonym(secret, found.place)) for value, found in named], columns=["value", "source_id"]
    )
    masks = {found.place: found for _, found in named}
    return MaskFiles(tuple(masks.values()), table, mask.rule is not None, 0 if mask.rule else missing)


def _by_rule(sources: Sequence[Source], image: str, mask: str) -> tuple[list[tuple[Source, Source]], int]:
    """Return pairs of image and mask, and how many images have none."""
    pattern = re.compile(image, re.DOTALL)
    places = {(source.root, normal_path(source.path)): source for source in sources}
    pairs, missing = [], 0
    for source in sources:
        if (match := pattern.fullmatch(normal_path(source.path))) is None:
            continue
        found = places.get((source.root, normal_path(match.expand(mask))))
        if found is None:
            missing += 1
        elif found is not source:
            pairs.append((source, found))
    return pairs, missing


def named_in_table(mask: CardMask, columns: CardColumns, labels: Path | None) -> list[tuple[str, str]]:
    """Return, for each row of the label table that names a mask, what it is about and the mask's path.

    Raises LabelsError.
    """
    if labels is None or mask.column is None:
        raise LabelsError("there is no label table; name it in data.labels")
    join = getattr(columns, columns.join)
    table = read_labels(labels, [join, mask.column]).dropna().drop_duplicates()
    return list(zip(table[join], table[mask.column], strict=True))


def masks_digest(mask: CardMask, columns: CardColumns, labels: Path) -> str:
    """Return the digest of what card and label table say of masks."""
    rows = sorted(named_in_table(mask, columns, labels)) if mask.column is not None and labels.exists() else []
    return sha256_json([mask.model_dump(), rows])
