"""Join labels to images and divide the patients: every image of a patient, and every copy of it, in one split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.labels.answers import Labels, LabelTable, labels_of
from pipeline.labels.archive import Archive, read_archive
from pipeline.labels.contradictions import contradictions
from pipeline.labels.division import (
    assign,
    assign_test_only,
    check_disjoint,
    check_shared,
    check_shares,
    counts,
    refuse_missing_class,
    refuse_single_class,
)
from pipeline.labels.exam import completeness, sentence
from pipeline.labels.matching import IMAGE_ALONE, LABEL_ALONE, check_matches, join, of_files, unmatched
from pipeline.labels.patient_groups import linked, units
from pipeline.labels.values import LabelsError
from pipeline.store.files import read_json, write_json
from pipeline.store.tables.io import write_table
from pipeline.store.tables.split import FURTHER_LABELS, SPLIT, SPLITS, UNMATCHED
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.images import SplitSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

# Fewest positives that can certify a recall of 0.95 with confidence 0.95 without a miss: 0.95**59 < 0.05.
USUAL_POSITIVES_NEEDED = 59


def split(settings: SplitSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `split.parquet`, `unmatched.parquet`, `summary.json` and, if the card has any, `further_labels.parquet`.

    Patients that share pixels, exactly or nearly, stay together. A group's split is a pure function of the seed and of
    the smallest pseudonym in it: adding, removing or relabelling other patients moves nobody. A split that the
    dataset itself names is kept, after its patients were checked. Unlabelled patients go to `pretrain`, unless they
    share pixels with a labelled one. An image keeps its own label, and none where it has none or where a copy has the
    opposite one; a patient is positive when any of their images is. Of an external test set, labelled patients are
    test patients, and others are left out.

    Further labels are those of images with the main label, and move nobody: where the main one is missing, a further
    one is not used. External test sets are there for the main label alone.

    Raises LabelsError when the table has problems or does not match the images, ValueError when table and headers
    disagree about who is who, a split would lack a class or miss its share for linked patients, or the patients of the
    dataset's own splits overlap.
    """
    if objection := read_json(inputs.file("ingest", "summary.json"))["identity"]["objection"]:
        raise ValueError(objection)
    if inputs.labels is None:
        raise LabelsError("there is no label table; name it in data.labels")
    table = LabelTable(inputs.labels, inputs.card, inputs.secret)
    archive = read_archive(partial(inputs.file, "ingest"))
    labels = labels_of(table, archive, inputs.card.label, inputs.card.columns.label, log)
    found = _joined(table, archive, labels)
    check_matches(table, inputs.studies, archive, labels, found, log)
    found["unit"] = units(found, archive.near)
    check_shared(found, settings)
    # By the labels of the table, so that it moves nobody whether one of them is doubted.
    assigned = assign_test_only(found) if inputs.test_only else assign(found, inputs.card.splits, settings)
    doubted = contradictions(found, of_files(archive, labels), archive.near)
    joined = found.assign(label=found["label"].mask(found["image_id"].isin(doubted.left_out)).astype("Int64"))
    rows = joined.assign(split=assigned).dropna(subset="split")
    rows["label_source"] = np.where(
        rows["label"].isna(), "", f"label table, column {inputs.card.columns.label}, joined by {labels.column}"
    )
    check_disjoint(rows)
    further = pd.DataFrame() if inputs.test_only else _further_labels(table, archive, rows, log)
    apart = unmatched(found, archive, labels, doubted.left_out)
    patients = joined.groupby("patient_id")["label"].agg(["max", "min"])
    summary = {
        "splits": counts(rows),
        "further_labels": {label_id: counts(own) for label_id, own in _by_label(rows, further).items()},
        "patients_shared_between_splits": 0,
        "labels_without_images": int((apart["what"] == LABEL_ALONE).sum()),
        "images_without_labels": int((apart["what"] == IMAGE_ALONE).sum()),
        "conflicting_patients": int((patients["max"] != patients["min"])[patients["max"].notna()].sum()),
        "contradicting_copies": doubted.counts,
        "linked_patients": linked(joined),
        "given_splits": {value: list(names) for value, names in inputs.card.splits.items()},
        "fractions": settings.fractions.model_dump(),
        "seed": settings.seed,
        "positives_needed": USUAL_POSITIVES_NEEDED,
    }
    if exam := inputs.card.exam:
        seen = archive.images.merge(rows[["image_id", "split"]], on="image_id")
        each = {name: completeness(seen[seen["split"] == name], exam.model_dump()) for name in SPLITS}
        summary["exam"] = {name: one for name, one in each.items() if one["patients"]}
    _say(summary, log)
    if not inputs.test_only:
        refuse_single_class(labels.label, joined, doubted.counts["left_out"])
        check_shares(rows, inputs.card.splits, settings)
        by_label = {"": summary["splits"], **summary["further_labels"]}
        refuse_missing_class(by_label, bool(inputs.card.splits), summary["linked_patients"])
    elif rows["label"].isna().all():
        raise ValueError(
            f"none of {counted(len(joined), 'accepted image')} is left with a label: each is contradicted by a copy"
        )
    write_table(work / "split.parquet", rows[[c.name for c in SPLIT.columns]], SPLIT)
    write_table(work / "unmatched.parquet", apart, UNMATCHED)
    if not further.empty:
        write_table(work / "further_labels.parquet", further, FURTHER_LABELS)
    write_json(work / "summary.json", summary)


def _joined(table: LabelTable, archive: Archive, labels: Labels) -> pd.DataFrame:
    return join(archive, labels, table.card.columns.several_rows == "any_positive")


def _further_labels(table: LabelTable, archive: Archive, rows: pd.DataFrame, log: RunLog) -> pd.DataFrame:
    """Return the columns of tables.FURTHER_LABELS for the images in `rows` that have the main label.

    Raises LabelsError naming every label with a problem.
    """
    labelled = rows.loc[rows["label"].notna(), "image_id"]
    tables, problems = [pd.DataFrame()], []
    for further in table.card.further_labels:
        try:
            labels = labels_of(table, archive, further, further.column or table.card.columns.label, log)
            found = _joined(table, archive, labels)
        except LabelsError as error:
            problems.append(f"further label {further.id}: {error}")
            continue
        if labels.other:
            rows_are = counted(labels.other, "row is", "rows are")
            log.warn(f"further label {further.id}: {rows_are} neither positive nor negative, not used")
        doubted = contradictions(found, of_files(archive, labels), archive.near)
        if left_out := doubted.counts["left_out"]:
            images_are = counted(left_out, "image is", "images are")
            log.warn(f"further label {further.id}: {images_are} contradicted by copies; it is not used")
        values = found.set_index("image_id")["label"].astype("Int64")
        values = values.mask(values.index.isin(doubted.left_out))
        if unused := int(values[~values.index.isin(labelled)].notna().sum()):
            images_lack = counted(unused, "image lacks", "images lack")
            log.warn(f"further label {further.id}: {images_lack} the main label; it is not used")
        tables.append(pd.DataFrame({"image_id": labelled, "label_id": further.id, "label": values[labelled].array}))
    if problems:
        raise LabelsError("\n".join(problems))
    return pd.concat(tables, ignore_index=True)


def _by_label(rows: pd.DataFrame, further: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return, for each further label, the rows of the images that have it, with its values in place of the main."""
    if further.empty:
        return {}
    joined = rows.drop(columns="label").merge(further, on="image_id")
    return {str(label_id): own.dropna(subset="label") for label_id, own in joined.groupby("label_id")}


def _say(summary: dict[str, Any], log: RunLog) -> None:
    log.info("split        patients  images  positive patients  positive images")
    for name, count in summary["splits"].items():
        if not count["images"]:
            continue
        log.info(
            f"{name:<12} {count['patients']:>8}  {count['images']:>6}  {count['positive_patients']:>17}  "
            f"{count['positive_images']:>15}"
        )
    log.info("no patient is in more than one split")
    for name, exam in summary.get("exam", {}).items():
        log.info(f"examinations, {name}: {sentence(exam)}")
    for key, text in (
        ("labels_without_images", ("label has no accepted image", "labels have no accepted image")),
        (
            "conflicting_patients",
            (
                "patient has positive and negative labels and counts as positive",
                "patients have positive and negative labels; they count as positive",
            ),
        ),
        ("linked_patients", ("", "patients share an image with another patient and were kept together")),
    ):
        if summary[key]:
            log.warn(counted(summary[key], *text))
    if (doubted := summary["contradicting_copies"])["copies"]:
        log.warn(
            f"{counted(doubted['copies'], 'image shows', 'images show')} {counted(doubted['pictures'], 'picture')} "
            f"with opposite labels elsewhere; with the doubtful images of {counted(doubted['patients'], 'patient')}, "
            f"{doubted['left_out']} in all are not used with a label (unmatched.parquet)"
        )
    calibration = summary["splits"]["calibration"]
    positives = calibration["positive_patients"]
    if calibration["patients"] and positives < USUAL_POSITIVES_NEEDED:
        most = 0.05 ** (1 / positives) if positives else 0.0  # where none of them is missed (Clopper and Pearson 1934)
        log.warn(
            f"the calibration split has {counted(positives, 'positive patient')}, so that a recall of at most "
            f"{most:.3f} can be certified with 95 % confidence; 0.95 needs at least {USUAL_POSITIVES_NEEDED}"
        )
