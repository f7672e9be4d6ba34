"""Join labels to images and divide the patients: every image of a patient, and every copy of it, in one split."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.imaging.labels import LabelsError, normal_path, read_labels
from pipeline.imaging.pseudonyms import path_pseudonym, patient_pseudonym, pseudonym
from pipeline.store.files import write_json
from pipeline.store.tables import IMAGES, SPLIT, SPLITS, read_table, write_table

if TYPE_CHECKING:
    from pipeline.config import CardColumns, CardLabel, SplitFractions, SplitSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

LABELLED_SPLITS = ("train", "tune", "calibration", "test")
# Fewest positives that can certify a recall of 0.95 with confidence 0.95 without a miss: 0.95**59 < 0.05.
USUAL_POSITIVES_NEEDED = 59
# The column of images.parquet, and the way from a value of the label table to it, per way of joining.
JOINS = {
    "path": ("source_id", lambda secret, value: path_pseudonym(secret, normal_path(value))),
    "sop_instance_uid": ("image_id", lambda secret, value: pseudonym(secret, "image", value)),
    "study_instance_uid": ("study_id", lambda secret, value: pseudonym(secret, "study", value)),
    "patient_id": ("patient_id", patient_pseudonym),
}


def split(settings: SplitSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `split.parquet` and `summary.json`.

    Patients that share pixels stay together. A group's split is a pure function of the seed and of the smallest
    pseudonym in it: adding, removing or relabelling other patients moves nobody. Unlabelled patients go to
    `pretrain`, unless they share pixels with a labelled one. An image keeps its own label, and none where it has
    none; a patient is positive when any of their images is.

    Raises LabelsError when the table has problems, ValueError when a split would lack a class.
    """
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    if inputs.labels is None:
        raise LabelsError("there is no label table; name it in data.labels")
    column, labels = _labels(inputs.labels, inputs.card.columns, inputs.card.label, inputs.secret)
    joined = images[["image_id", "patient_id", "source_id", "study_id", "pixel_sha256"]].copy()
    joined["label"] = joined[column].map(labels)
    patients = joined.groupby("patient_id")["label"].agg(["max", "min"])
    joined["unit"] = _units(joined)
    rows = joined.assign(split=_assign(joined, settings), label=joined["label"].astype("Int64"))
    rows["label_source"] = np.where(
        rows["label"].isna(), "", f"label table, column {inputs.card.columns.label}, joined by {column}"
    )
    _check_disjoint(rows)
    summary = {
        "splits": _counts(rows),
        "patients_shared_between_splits": 0,
        "labels_without_images": int((~labels.index.isin(joined[column])).sum()),
        "images_without_labels": int(joined["label"].isna().sum()),
        "conflicting_patients": int((patients["max"] != patients["min"])[patients["max"].notna()].sum()),
        "linked_patients": _linked(joined),
        "fractions": settings.fractions.model_dump(),
        "seed": settings.seed,
        "positives_needed": USUAL_POSITIVES_NEEDED,
    }
    _say(summary, log)
    _refuse_missing_class(summary["splits"])
    write_table(work / "split.parquet", rows[[c.name for c in SPLIT.columns]], SPLIT)
    write_json(work / "summary.json", summary)


# ---------------------------------------------------------------- labels


def _labels(path: Path, columns: CardColumns, meaning: CardLabel, secret: bytes) -> tuple[str, pd.Series]:
    """Return the column of images.parquet to join by, and 0 or 1 by its values.

    Raises LabelsError with all problems, none of them quoting the table.
    """
    join = getattr(columns, columns.join)
    table = read_labels(path, [join, columns.label])
    values = {**dict.fromkeys(meaning.positive, 1), **dict.fromkeys(meaning.negative, 0)}
    label = table[columns.label].map(values)
    unknown = int((label.isna() & table[columns.label].notna()).sum())
    nameless = int(table[join].isna().sum())
    labelled = table[join].notna() & label.notna()
    column, translate = JOINS[columns.join]
    keys = table.loc[labelled, join].map(lambda value: translate(secret, value))
    label = label[labelled].astype(int).set_axis(keys)
    # Several rows about a patient or study may differ, as their images do; about one image they may not.
    several = columns.join in ("path", "sop_instance_uid")
    conflicting = int((label.groupby(level=0).nunique() > 1).sum()) if several else 0
    problems = [
        text
        for count, text in (
            (unknown, f"{unknown} rows have a label that is neither {meaning.positive} nor {meaning.negative}"),
            (nameless, f"{nameless} rows have nothing in column {join}"),
            (conflicting, f"{conflicting} images have contradicting labels in several rows"),
            (label.empty, "no row has a label"),
        )
        if count
    ]
    if problems:
        raise LabelsError("label table: " + "; ".join(problems) + "; correct the table or the dataset card")
    return column, label.groupby(level=0).max()


# ---------------------------------------------------------------- who goes where


def _units(images: pd.DataFrame) -> pd.Series:
    """Return, per image, the smallest pseudonym among the patients linked to its patient by shared pixels."""
    patient, names = pd.factorize(images["patient_id"], sort=True)
    pixels, contents = pd.factorize(images["pixel_sha256"])
    nodes = len(names) + len(contents)
    links = coo_array((np.ones(len(images)), (patient, len(names) + pixels)), shape=(nodes, nodes))
    _, component = connected_components(links, directed=False)
    # Patients are sorted, so the first of a component is its smallest.
    first = pd.Series(np.asarray(names)).groupby(component[: len(names)]).first()
    return pd.Series(component[patient], index=images.index).map(first)


def _assign(images: pd.DataFrame, settings: SplitSettings) -> pd.Series:
    labelled = images.groupby("unit")["label"].transform("count") > 0
    chosen = {unit: _bucket(unit, settings.seed, settings.fractions) for unit in images["unit"].unique()}
    return images["unit"].map(chosen).where(labelled, "pretrain")


def _bucket(unit: str, seed: int, fractions: SplitFractions) -> str:
    """Return the split in whose share of [0, 1) the hash of seed and unit falls."""
    digest = hashlib.sha256(f"{seed}\0{unit}".encode()).digest()
    position = int.from_bytes(digest[:6], "big") / 2**48
    upper = 0.0
    for name in LABELLED_SPLITS:
        upper += getattr(fractions, name)
        if position < upper:
            return name
    return LABELLED_SPLITS[-1]  # the shares add up to a little less than 1 in floating point


# ---------------------------------------------------------------- checks


def _check_disjoint(rows: pd.DataFrame) -> None:
    for what in ("patient_id", "unit", "image_id", "pixel_sha256"):
        shared = int((rows.groupby(what)["split"].nunique() > 1).sum())
        if shared:
            raise RuntimeError(f"{shared} values of {what} are in more than one split")


def _counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    counts = {}
    for name in SPLITS:
        part = rows[rows["split"] == name]
        positive = part[part["label"] == 1]
        counts[name] = {
            "patients": int(part["patient_id"].nunique()),
            "images": len(part),
            "positive_patients": int(positive["patient_id"].nunique()),
            "positive_images": len(positive),
        }
    return counts


def _linked(joined: pd.DataFrame) -> int:
    """Return the number of patients that share pixels with another one."""
    sizes = joined.groupby("unit")["patient_id"].nunique()
    return int(sizes[sizes > 1].sum())


def _refuse_missing_class(counts: dict[str, dict[str, int]]) -> None:
    problems = []
    for name in LABELLED_SPLITS:
        patients, positive = counts[name]["patients"], counts[name]["positive_patients"]
        if positive in (0, patients):
            problems.append(f"{name} has {positive} positive and {patients - positive} negative patients")
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}; every split needs both. Add patients, or change split.fractions or split.seed"
        )


def _say(summary: dict[str, Any], log: RunLog) -> None:
    log.info("split        patients  images  positive patients  positive images")
    for name, count in summary["splits"].items():
        log.info(
            f"{name:<12} {count['patients']:>8}  {count['images']:>6}  {count['positive_patients']:>17}  "
            f"{count['positive_images']:>15}"
        )
    log.info("no patient is in more than one split")
    for key, text in (
        ("labels_without_images", "labels have no accepted image"),
        ("conflicting_patients", "patients have positive and negative labels; they count as positive"),
        ("linked_patients", "patients share pixels with another patient and were kept together"),
    ):
        if summary[key]:
            log.warn(f"{summary[key]} {text}")
    positives = summary["splits"]["calibration"]["positive_patients"]
    if positives < USUAL_POSITIVES_NEEDED:
        log.warn(
            f"the calibration split has {positives} positive patients; recall 0.95 with 95 % confidence needs at "
            f"least {USUAL_POSITIVES_NEEDED}"
        )
