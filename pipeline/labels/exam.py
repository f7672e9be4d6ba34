"""Views and sides: what headers and the label table say of each image, and which of an examination's are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.imaging import vocabulary
from pipeline.imaging.archive.quality import Limits, reassessed
from pipeline.labels.identity import row_pseudonym
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError, read_labels
from pipeline.store.files import sha256_json
from pipeline.store.wording import agreeing, counted

if TYPE_CHECKING:
    from pipeline.settings.card import CardColumns

ATTRIBUTES = ("view", "laterality")
# How people write sides, and how ophthalmologists do.
SIDES = {"l": "L", "left": "L", "os": "L", "r": "R", "right": "R", "od": "R", "b": "B", "both": "B", "ou": "B"}
UNCLEAR = "exam_contradicts"


def named_exams(labels: Path, columns: Mapping[str, Any], join: str, rule: PathRule) -> pd.DataFrame:
    """Return view and side of each image that the label table names them of, empty where it does not.

    Indexed by what is compared of a row's path, or by its UID; the columns are ATTRIBUTES, as `vocabulary` has them.
    Empty when the card names no such column. Raises LabelsError for values that are neither, or that differ between
    rows about one image.
    """
    named = {name: columns[name] for name in ATTRIBUTES if columns.get(name)}
    if not named:
        return pd.DataFrame(columns=list(ATTRIBUTES))
    table = read_labels(labels, [columns[join], *named.values()]).dropna(subset=[columns[join]])
    keys = table[columns[join]].map(rule.of_row) if join == "path" else table[columns[join]]
    said, problems = pd.DataFrame("", index=keys.to_numpy(), columns=list(ATTRIBUTES)), []
    for name, column in named.items():
        cells = table[column].fillna("")
        values = cells.map(vocabulary.view if name == "view" else _side)
        if strange := int(((cells != "") & (values == "")).sum()):
            known = "a view position of DICOM" if name == "view" else "L, R, left, right, OD or OS"
            problems.append(
                f"{counted(strange, 'row has', 'rows have')} a value in column {column} that is not {known}"
            )
        said[name] = values.to_numpy()
        if several := int((said[name].groupby(level=0).nunique() > 1).sum()):
            problems.append(f"{counted(several, 'image has', 'images have')} several values in column {column}")
    if problems:
        raise LabelsError(f"label table: {'; '.join(problems)}; correct the table or the dataset card")
    return said[~said.index.duplicated()]


def exams_digest(labels: Path, columns: Mapping[str, Any], join: str, rule: PathRule) -> str:
    """Return a digest of all that the label table says of views and sides, and of whom to believe."""
    said = named_exams(labels, columns, join, rule).sort_index()
    return sha256_json([said.index.tolist(), said.to_numpy().tolist(), columns.get("exam_from")])


def told_apart(
    images: pd.DataFrame, row_ids: pd.Series, said: pd.DataFrame, join: str, exam_from: str | None, secret: bytes
) -> tuple[pd.DataFrame, pd.Series]:
    """Return the images with the view and side to go by, and what of it header and table name differently.

    `row_ids` holds, by image, the pseudonyms by which the label table knows its files. The table fills in what the
    header does not state. Where they differ, `exam_from` says whom to believe; without it, the second result, by
    image_id, names what differs.
    """
    said = said.set_axis([row_pseudonym(secret, join, key) for key in said.index])
    differing = pd.Series("", index=images["image_id"])
    settled = images.copy()
    for name in ATTRIBUTES:
        values = row_ids.map(said[name]).fillna("")
        values = values[values != ""].groupby(level=0).first()
        table = images["image_id"].map(values).astype(object).fillna("")
        header = images[name].astype(object).fillna("")
        first, second = (table, header) if exam_from == "table" else (header, table)
        settled[name] = first.where(first != "", second)
        differs = ((header != "") & (table != "") & (header != table)).to_numpy()
        if exam_from is None:
            differing[differs] = differing[differs].map(lambda text, name=name: f"{text} and {name}" if text else name)
    return settled, differing[differing != ""]


def with_exams(
    tables: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    row_ids: pd.Series,
    labels: Path,
    columns: CardColumns,
    limits: Limits,
    secret: bytes,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return ingest's images, files and quarantine with views and sides from the label table.

    Images of which header and table differ go into quarantine. `row_ids` are what the table knows each source by.
    """
    images, files, quarantine = tables
    said = named_exams(labels, columns.model_dump(), columns.join, PathRule(**columns.path_rule))
    by_image = files["source_id"].map(row_ids).set_axis(files["image_id"])
    images, differing = told_apart(images, by_image, said, columns.join, columns.exam_from, secret)
    facts = zip(*(images[name] for name in ("quality_flags", "modality", "view", "body_part")), strict=True)
    images["quality_flags"] = [
        ",".join(reassessed(filter(None, flags.split(",")), modality, view, body_part, limits))
        for flags, modality, view, body_part in facts
    ]
    refused = files[files["image_id"].isin(differing.index)]
    files = files[~files["image_id"].isin(differing.index)]
    # The frames of one file can be several volumes, of which one is still used.
    lost = refused[~refused["source_id"].isin(files["source_id"])].drop_duplicates("source_id")
    lost = lost.assign(reason=UNCLEAR, detail=lost["image_id"].map(differing))
    quarantine = pd.concat([quarantine, lost[quarantine.columns]], ignore_index=True)
    return images[~images["image_id"].isin(differing.index)].reset_index(drop=True), files, quarantine


def completeness(images: pd.DataFrame, exam: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return how many patients have all views and sides of an examination, and how many lack which.

    `images` has patient_id, view and laterality; an image of both sides counts for either. `elsewhere` counts images
    that are none of what is expected, or do not say.
    """
    expected = places(exam)
    patients = images["patient_id"].nunique()
    fits = pd.DataFrame({name: _fits(images, *place) for name, place in expected.items()}, index=images.index)
    have = fits.groupby(images["patient_id"]).any()
    return {
        "expected": list(expected),
        "patients": int(patients),
        "complete": int(have.all(axis=1).sum()),
        "lacking": {str(name): int(count) for name, count in (~have).sum().items()},
        "images": {str(name): int(count) for name, count in fits.sum().items()},
        "elsewhere": int((~fits.any(axis=1)).sum()),
    }


def places(exam: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """Return view and side of each image that an examination has, by its name: `CC L`, or `CC` where sides are open."""
    pairs = [(view, side) for view in exam.get("views") or [""] for side in exam.get("sides") or [""]]
    return {" ".join(filter(None, pair)): pair for pair in pairs}


def _fits(images: pd.DataFrame, view: str, side: str) -> pd.Series:
    fits = pd.Series(True, index=images.index)
    if view:
        fits &= images["view"] == view
    return fits & images["laterality"].isin([side, "B"]) if side else fits


def sentence(found: Mapping[str, Any]) -> str:
    """Return completeness in words."""
    lacking = ", ".join(f"{name} in {count}" for name, count in found["lacking"].items() if count)
    text = (
        f"{found['complete']} of {counted(found['patients'], 'patient')} "
        f"{agreeing(found['complete'], 'has', 'have')} all of {', '.join(found['expected'])}"
    )
    if lacking:
        text += f"; missing: {lacking}"
    if found["elsewhere"]:
        others = counted(found["elsewhere"], "image is", "images are")
        text += f"; {others} none of these, or {agreeing(found['elsewhere'], 'does', 'do')} not say"
    return text


def _side(text: str) -> str:
    return SIDES.get(text.strip().casefold(), "")
