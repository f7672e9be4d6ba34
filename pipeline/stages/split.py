"""Join labels to images and divide the patients: every image of a patient, and every copy of it, in one split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.imaging.labels import LabelsError, meanings, normal_path, read_labels
from pipeline.imaging.pseudonyms import path_pseudonym, patient_pseudonym, pseudonym
from pipeline.store.files import write_json
from pipeline.store.tables import (
    FILES,
    FURTHER_LABELS,
    IMAGES,
    NEAR_DUPLICATES,
    QUARANTINE,
    SPLIT,
    SPLITS,
    UNMATCHED,
    read_table,
    write_table,
)

if TYPE_CHECKING:
    from pipeline.config import CardLabel, SplitFractions, SplitSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

LABELLED_SPLITS = ("train", "tune", "calibration", "test")
# Fewest positives that can certify a recall of 0.95 with confidence 0.95 without a miss: 0.95**59 < 0.05.
USUAL_POSITIVES_NEEDED = 59
LABEL_ALONE, IMAGE_ALONE = "label without image", "image without label"
# The pseudonym to join by, and the way to it from a value of the label table, per way of joining.
JOINS = {
    "path": ("source_id", lambda secret, value: path_pseudonym(secret, normal_path(value))),
    "sop_instance_uid": ("image_id", lambda secret, value: pseudonym(secret, "image", value)),
    "series_instance_uid": ("series_id", lambda secret, value: pseudonym(secret, "series", value)),
    "study_instance_uid": ("study_id", lambda secret, value: pseudonym(secret, "study", value)),
    "patient_id": ("patient_id", patient_pseudonym),
}


def split(settings: SplitSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `split.parquet`, `unmatched.parquet`, `summary.json` and, if the card has any, `further_labels.parquet`.

    Patients that share pixels, exactly or nearly, stay together. A group's split is a pure function of the seed and of
    the smallest pseudonym in it: adding, removing or relabelling other patients moves nobody. A split that the
    dataset itself names is kept, after its patients were checked. Unlabelled patients go to `pretrain`, unless they
    share pixels with a labelled one. An image keeps its own label, and none where it has none; a patient is positive
    when any of their images is. Of an external test set, labelled patients are test patients, and others are left out.

    Further labels are those of images with the main label, and move nobody: where the main one is missing, a further
    one is not used. External test sets are there for the main label alone.

    Raises LabelsError when the table has problems, ValueError when a split would lack a class, the patients of the
    dataset's own splits overlap, or an external test set has no labelled image.
    """
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    files = read_table(inputs.file("ingest", "files.parquet"), FILES)
    near = read_table(inputs.file("ingest", "near_duplicates.parquet"), NEAR_DUPLICATES)
    labels = _labels(inputs, inputs.card.label, inputs.card.columns.label)
    joined = _join(images, files, labels)
    joined["unit"] = _units(joined, near)
    _check_shared(joined, settings)
    assigned = _test_only(joined) if inputs.test_only else _assign(joined, inputs.card.splits, settings)
    rows = joined.assign(split=assigned, label=joined["label"].astype("Int64")).dropna(subset="split")
    rows["label_source"] = np.where(
        rows["label"].isna(), "", f"label table, column {inputs.card.columns.label}, joined by {labels.column}"
    )
    _check_disjoint(rows)
    further = pd.DataFrame() if inputs.test_only else _further_labels(inputs, images, files, rows, log)
    quarantine = read_table(inputs.file("ingest", "quarantine.parquet"), QUARANTINE)
    unmatched = _unmatched(joined, files, labels, quarantine)
    patients = joined.groupby("patient_id")["label"].agg(["max", "min"])
    summary = {
        "splits": _counts(rows),
        "further_labels": {label_id: _counts(own) for label_id, own in _by_label(rows, further).items()},
        "patients_shared_between_splits": 0,
        "labels_without_images": int((unmatched["what"] == LABEL_ALONE).sum()),
        "images_without_labels": int((unmatched["what"] == IMAGE_ALONE).sum()),
        "conflicting_patients": int((patients["max"] != patients["min"])[patients["max"].notna()].sum()),
        "linked_patients": _linked(joined),
        "given_splits": {value: list(names) for value, names in inputs.card.splits.items()},
        "fractions": settings.fractions.model_dump(),
        "seed": settings.seed,
        "positives_needed": USUAL_POSITIVES_NEEDED,
    }
    _say(summary, log)
    if not inputs.test_only:
        _refuse_missing_class({"": summary["splits"], **summary["further_labels"]})
    elif rows.empty:
        column = inputs.card.columns.join
        raise ValueError(
            f"none of {len(joined)} accepted images has a label; see which column the card names as {column}"
        )
    write_table(work / "split.parquet", rows[[c.name for c in SPLIT.columns]], SPLIT)
    write_table(work / "unmatched.parquet", unmatched, UNMATCHED)
    if not further.empty:
        write_table(work / "further_labels.parquet", further, FURTHER_LABELS)
    write_json(work / "summary.json", summary)


# ---------------------------------------------------------------- labels


@dataclass(frozen=True)
class Labels:
    """0 or 1, and the dataset's own split (empty when it names none), by values of the pseudonym `column`.

    `other` counts the rows that have neither a positive nor a negative value.
    """

    column: str
    label: pd.Series
    given: pd.Series
    other: int


def _labels(inputs: Inputs, meaning: CardLabel, value_column: str) -> Labels:
    """Return one label of the table in terms of pseudonyms.

    Raises LabelsError with all problems, none of them quoting the table.
    """
    if inputs.labels is None:
        raise LabelsError("there is no label table; name it in data.labels")
    card, columns = inputs.card, inputs.card.columns
    join = getattr(columns, columns.join)
    table = read_labels(inputs.labels, [join, value_column, *filter(None, [columns.split])])
    label, explained = meanings(table[value_column], meaning.positive, meaning.negative, meaning.unused)
    given = table[columns.split].fillna("") if columns.split else pd.Series("", index=table.index)
    other = int((~explained).sum())
    unknown = other if meaning is card.label else 0  # of a further label, other values are no answer
    nameless = int(table[join].isna().sum())
    strange = sorted({*given} - {*card.splits, ""})
    labelled = table[join].notna() & label.notna()
    column, translate = JOINS[columns.join]
    keys = table.loc[labelled, join].map(lambda value: translate(inputs.secret, value))
    label, given = label[labelled].astype(int).set_axis(keys), given[labelled].set_axis(keys)
    # Several rows about a patient or study may differ, as their images do; about one image they may not.
    several = columns.join in ("path", "sop_instance_uid")
    conflicting = int((label.groupby(level=0).nunique() > 1).sum()) if several else 0
    unsplit = int((given == "").sum()) if columns.split else 0
    divided = int((given.groupby(level=0).nunique() > 1).sum())
    problems = [
        text
        for count, text in (
            (
                unknown,
                f"{unknown} of {len(table)} rows {'has' if unknown == 1 else 'have'} a value in column {value_column} "
                f"that is neither {meaning.positive} nor {meaning.negative}; "
                "add it to label.positive, label.negative or label.unused",
            ),
            (nameless, f"{nameless} rows have nothing in column {join}"),
            (conflicting, f"{conflicting} images have contradicting labels in several rows"),
            (label.empty, "no row has a label"),
            (len(strange), f"{len(strange)} values of column {columns.split} are not explained by the card's splits"),
            (unsplit, f"{unsplit} labelled rows have nothing in column {columns.split}"),
            (divided, f"{divided} values of column {join} are in several splits of column {columns.split}"),
        )
        if count
    ]
    if problems:
        raise LabelsError("label table: " + "; ".join(problems) + "; correct the table or the dataset card")
    return Labels(column, label.groupby(level=0).max(), given.groupby(level=0).first(), other)


def _further_labels(
    inputs: Inputs, images: pd.DataFrame, files: pd.DataFrame, rows: pd.DataFrame, log: RunLog
) -> pd.DataFrame:
    """Return the columns of tables.FURTHER_LABELS for the images in `rows` that have the main label.

    Raises LabelsError naming every label with a problem.
    """
    labelled = rows.loc[rows["label"].notna(), "image_id"]
    tables, problems = [pd.DataFrame()], []
    for further in inputs.card.further_labels:
        try:
            labels = _labels(inputs, further, further.column or inputs.card.columns.label)
            values = _join(images, files, labels).set_index("image_id")["label"].astype("Int64")
        except LabelsError as error:
            problems.append(f"further label {further.id}: {error}")
            continue
        if labels.other:
            log.warn(f"further label {further.id}: {labels.other} rows are neither positive nor negative, not used")
        if unused := int(values[~values.index.isin(labelled)].notna().sum()):
            log.warn(f"further label {further.id}: {unused} images lack the main label; it is not used")
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


def _join(images: pd.DataFrame, files: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Return the images with their labels; a volume has the label of any of its files.

    Raises LabelsError when files of one volume have different labels.
    """
    joined = images[["image_id", "patient_id", "series_id", "study_id", "pixel_hash"]].copy()
    if labels.column != "source_id":
        return joined.assign(
            label=joined[labels.column].map(labels.label), given=joined[labels.column].map(labels.given).fillna("")
        )
    by_file = files.assign(label=files["source_id"].map(labels.label), given=files["source_id"].map(labels.given))
    by_image = by_file.dropna(subset=["label"]).groupby("image_id")
    mixed = int((by_image["label"].nunique() > 1).sum())
    if mixed:
        raise LabelsError(f"label table: the files of {mixed} volumes have different labels; correct the table")
    return joined.assign(
        label=joined["image_id"].map(by_image["label"].first()),
        given=joined["image_id"].map(by_image["given"].first()).astype(object).fillna(""),
    )


def _unmatched(joined: pd.DataFrame, files: pd.DataFrame, labels: Labels, quarantine: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of tables.UNMATCHED: labels and images that did not find each other."""
    present = files["source_id"] if labels.column == "source_id" else joined[labels.column]
    alone = labels.label.index[~labels.label.index.isin(present)]
    reasons = quarantine.set_index("source_id")["reason"]
    reason = reasons.reindex(alone).fillna("").to_numpy() if labels.column == "source_id" else ""
    without = joined.loc[joined["label"].isna(), "image_id"]
    return pd.concat(
        [
            pd.DataFrame({"what": LABEL_ALONE, "joined_by": labels.column, "pseudonym": alone, "reason": reason}),
            pd.DataFrame({"what": IMAGE_ALONE, "joined_by": "image_id", "pseudonym": without, "reason": ""}),
        ],
        ignore_index=True,
    )


# ---------------------------------------------------------------- who goes where


def _units(images: pd.DataFrame, near: pd.DataFrame) -> pd.Series:
    """Return, per image, the smallest pseudonym among the patients linked to its patient by shared pictures."""
    patient, names = pd.factorize(images["patient_id"], sort=True)
    pixels, contents = pd.factorize(images["pixel_hash"])
    of_image = pd.Series(patient, index=images["image_id"])
    nodes = len(names) + len(contents)
    ends = np.concatenate([patient, of_image[near["image_id"]].to_numpy()])
    others = np.concatenate([len(names) + pixels, of_image[near["other_image_id"]].to_numpy()])
    links = coo_array((np.ones(len(ends)), (ends, others)), shape=(nodes, nodes))
    _, component = connected_components(links, directed=False)
    # Patients are sorted, so the first of a component is its smallest.
    first = pd.Series(np.asarray(names)).groupby(component[: len(names)]).first()
    return pd.Series(component[patient], index=images.index).map(first)


def _assign(images: pd.DataFrame, given: Mapping[str, Sequence[str]], settings: SplitSettings) -> pd.Series:
    """Return the split of every image.

    Raises ValueError when patients that must stay together are in several of the dataset's own splits.
    """
    labelled = images[images["label"].notna()]
    values = labelled.groupby("unit")["given"].agg(lambda own: sorted(set(own)))
    crossing = values[values.map(len) > 1].index
    if len(crossing) and settings.crossing == "stop":
        patients = images.loc[images["unit"].isin(crossing), "patient_id"].nunique()
        raise ValueError(
            f"{len(crossing)} groups of patients, {patients} patients in all, are in more than one split of the "
            "dataset: the same patient, or patients who share an image. split.crossing=train puts all of them into "
            "train; correcting the label table is better"
        )
    chosen = dict.fromkeys(images["unit"].unique(), "pretrain")
    for unit, own in values.items():
        allowed = given.get(own[0], LABELLED_SPLITS) if len(own) == 1 else ("train",)
        chosen[unit] = _bucket(str(unit), settings.seed, settings.fractions, allowed)
    return images["unit"].map(chosen)


def _test_only(images: pd.DataFrame) -> pd.Series:
    """Return `test` for the images of labelled patients and of those who share pictures with them, else nothing."""
    labelled = images.groupby("unit")["label"].transform("count") > 0
    return labelled.map({True: "test", False: None})


def _bucket(unit: str, seed: int, fractions: SplitFractions, allowed: Sequence[str] = LABELLED_SPLITS) -> str:
    """Return the split in whose share of [0, 1), among those allowed, the hash of seed and unit falls."""
    digest = hashlib.sha256(f"{seed}\0{unit}".encode()).digest()
    position = int.from_bytes(digest[:6], "big") / 2**48
    shares = {name: getattr(fractions, name, 1.0) for name in allowed}
    upper = 0.0
    for name, share in shares.items():
        upper += share / sum(shares.values())
        if position < upper:
            return name
    return allowed[-1]  # the shares add up to a little less than 1 in floating point


# ---------------------------------------------------------------- checks


def _check_shared(joined: pd.DataFrame, settings: SplitSettings) -> None:
    linked = _linked(joined)
    if linked and settings.shared_images == "stop":
        raise ValueError(
            f"{linked} patients share an image with another patient, exactly or nearly (quality flags in "
            "images.parquet, near_duplicates.parquet); find out whose it is, or set split.shared_images=keep_together"
        )


def _check_disjoint(rows: pd.DataFrame) -> None:
    for what in ("patient_id", "unit", "image_id", "pixel_hash"):
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
    """Return the number of patients that share a picture with another one, exactly or nearly."""
    sizes = joined.groupby("unit")["patient_id"].nunique()
    return int(sizes[sizes > 1].sum())


def _refuse_missing_class(counts: dict[str, dict[str, dict[str, int]]]) -> None:
    """`counts` are those of the main label by an empty name, and of further ones by their id."""
    problems = []
    for label, of_label in counts.items():
        for name in LABELLED_SPLITS:
            patients, positive = of_label[name]["patients"], of_label[name]["positive_patients"]
            if positive in (0, patients):
                what = f"further label {label}: " if label else ""
                problems.append(f"{what}{name} has {positive} positive and {patients - positive} negative patients")
    if problems:
        advice = "Add patients, or change split.fractions or split.seed"
        if any(problem.startswith("further") for problem in problems):
            advice += ", or take the label off the card's further_labels"
        raise ValueError(f"{'; '.join(problems)}; every split needs both. {advice}")


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
    for key, text in (
        ("labels_without_images", "labels have no accepted image"),
        ("conflicting_patients", "patients have positive and negative labels; they count as positive"),
        ("linked_patients", "patients share an image with another patient and were kept together"),
    ):
        if summary[key]:
            log.warn(f"{summary[key]} {text}")
    calibration = summary["splits"]["calibration"]
    positives = calibration["positive_patients"]
    if calibration["patients"] and positives < USUAL_POSITIVES_NEEDED:
        log.warn(
            f"the calibration split has {positives} positive patients; recall 0.95 with 95 % confidence needs at "
            f"least {USUAL_POSITIVES_NEEDED}"
        )
