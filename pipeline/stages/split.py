"""Join labels to images and divide the patients: every image of a patient, and every copy of it, in one split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.imaging.archive.sources import SourcesError, find_sources
from pipeline.labels.contradictions import contradictions, labels_of_files, one_label, with_labels_of_copies
from pipeline.labels.exam import completeness, sentence
from pipeline.labels.joining import COLUMNS, contradicting_rows, row_keys, why_unmatched
from pipeline.labels.path_rules import PathRule, check_paths
from pipeline.labels.patient_groups import linked, missed_shares, shares_of, units
from pipeline.labels.values import LabelsError, meanings, read_labels
from pipeline.store.files import read_json, write_json
from pipeline.store.tables.ingest import FILES, IMAGES, NEAR_DUPLICATES, QUARANTINE
from pipeline.store.tables.io import iterate, read_table, write_table
from pipeline.store.tables.split import FURTHER_LABELS, SPLIT, SPLITS, UNMATCHED
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.card import CardLabel
    from pipeline.settings.images import SplitFractions, SplitSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

LABELLED_SPLITS = ("train", "tune", "calibration", "test")
# Fewest positives that can certify a recall of 0.95 with confidence 0.95 without a miss: 0.95**59 < 0.05.
USUAL_POSITIVES_NEEDED = 59
LABEL_ALONE, IMAGE_ALONE, CONTRADICTING = "label without image", "image without label", "label contradicted by a copy"
NAMES = ["patient_id", "image_id", "series_id", "study_id", "pixel_hash", "reason"]


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
    archive = _archive(inputs)
    labels = _labels(inputs, archive, inputs.card.label, inputs.card.columns.label, log)
    found = _join(inputs, archive, labels)
    _check_matches(inputs, archive, labels, found, log)
    found["unit"] = units(found, archive.near)
    _check_shared(found, settings)
    # By the labels of the table, so that it moves nobody whether one of them is doubted.
    assigned = _test_only(found) if inputs.test_only else _assign(found, inputs.card.splits, settings)
    doubted = contradictions(found, _labels_of_files(archive, labels), archive.near)
    joined = found.assign(label=found["label"].mask(found["image_id"].isin(doubted.left_out)).astype("Int64"))
    rows = joined.assign(split=assigned).dropna(subset="split")
    rows["label_source"] = np.where(
        rows["label"].isna(), "", f"label table, column {inputs.card.columns.label}, joined by {labels.column}"
    )
    _check_disjoint(rows)
    further = pd.DataFrame() if inputs.test_only else _further_labels(inputs, archive, rows, log)
    unmatched = _unmatched(found, archive, labels, doubted.left_out)
    patients = joined.groupby("patient_id")["label"].agg(["max", "min"])
    summary = {
        "splits": _counts(rows),
        "further_labels": {label_id: _counts(own) for label_id, own in _by_label(rows, further).items()},
        "patients_shared_between_splits": 0,
        "labels_without_images": int((unmatched["what"] == LABEL_ALONE).sum()),
        "images_without_labels": int((unmatched["what"] == IMAGE_ALONE).sum()),
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
        _refuse_single_class(labels, joined, doubted.counts["left_out"])
        _check_shares(inputs, settings, rows)
        counts = {"": summary["splits"], **summary["further_labels"]}
        _refuse_missing_class(counts, bool(inputs.card.splits), summary["linked_patients"])
    elif rows["label"].isna().all():
        raise ValueError(
            f"none of {counted(len(joined), 'accepted image')} is left with a label: each is contradicted by a copy"
        )
    write_table(work / "split.parquet", rows[[c.name for c in SPLIT.columns]], SPLIT)
    write_table(work / "unmatched.parquet", unmatched, UNMATCHED)
    if not further.empty:
        write_table(work / "further_labels.parquet", further, FURTHER_LABELS)
    write_json(work / "summary.json", summary)


# ---------------------------------------------------------------- labels


@dataclass(frozen=True)
class Archive:
    """What ingest left. `files` have the `row_id` by which a label table knows them, `present` all pseudonyms by join.

    `examined` and `assembled` are all pictures and volumes that could be read, copies that were refused among them.
    """

    images: pd.DataFrame
    files: pd.DataFrame
    near: pd.DataFrame
    quarantine: pd.DataFrame
    examined: pd.DataFrame
    assembled: pd.DataFrame
    present: dict[str, set[str]]


def _archive(inputs: Inputs) -> Archive:
    def every(name: str, *columns: str) -> pd.DataFrame:
        pieces = [piece.to_pandas() for piece in iterate(inputs.file("ingest", name), [*columns, *NAMES])]
        return pd.concat([pd.DataFrame(columns=[*columns, *NAMES]), *pieces], ignore_index=True)

    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    examined = every("examined.parquet", "source_id", "row_id", "part_of")
    row_ids = examined.set_index("source_id")["row_id"]
    files = read_table(inputs.file("ingest", "files.parquet"), FILES)
    files["row_id"] = files["source_id"].map(row_ids)
    quarantine = read_table(inputs.file("ingest", "quarantine.parquet"), QUARANTINE)
    quarantine["row_id"] = quarantine["source_id"].map(row_ids)
    return Archive(
        images,
        files,
        read_table(inputs.file("ingest", "near_duplicates.parquet"), NEAR_DUPLICATES),
        quarantine,
        examined,
        every("assembled.parquet", "sources"),
        {join: {*(files["row_id"] if join == "path" else images[column])} for join, column in COLUMNS.items()},
    )


@dataclass(frozen=True)
class Labels:
    """0 or 1, and the dataset's own split (empty when it names none), by values of the pseudonym `column`.

    `rows` are the labelled rows of the table: their `value` in the column that joins, and its `key`, the pseudonym.
    `other` counts the rows that have neither a positive nor a negative value.
    """

    column: str
    label: pd.Series
    given: pd.Series
    rows: pd.DataFrame
    other: int


def _labels(inputs: Inputs, archive: Archive, meaning: CardLabel, value_column: str, log: RunLog) -> Labels:
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
    rule = PathRule(**columns.path_rule)
    values = table.loc[labelled, join]
    keys = row_keys(values, columns.join, inputs.secret, archive.present[columns.join], rule, columns.id_ignore)
    label, given = label[labelled].astype(int), given[labelled]
    contradicting = contradicting_rows(partial(read_labels, inputs.labels), keys, label, columns.join)
    if contradicting and columns.several_rows == "any_positive":
        log.info(f"{contradicting.partition(' in several rows')[0]}; any positive row makes them positive")
        contradicting = ""
    label, given = label.set_axis(keys), given.set_axis(keys)
    unsplit = int((given == "").sum()) if columns.split else 0
    divided = int((given.groupby(level=0).nunique() > 1).sum())
    problems = [
        text
        for count, text in (
            (
                unknown,
                f"{unknown} of {counted(len(table), 'row')} {'has' if unknown == 1 else 'have'} a value in column "
                f"{value_column} that is neither {meaning.positive} nor {meaning.negative}; "
                "add it to label.positive, label.negative or label.unused",
            ),
            (nameless, f"{counted(nameless, 'row has', 'rows have')} nothing in column {join}"),
            (contradicting, contradicting),
            (label.empty, "no row has a label"),
            (
                len(strange),
                f"{counted(len(strange), 'value')} of column {columns.split} {'is' if len(strange) == 1 else 'are'} "
                "not explained by the card's splits",
            ),
            (
                unsplit,
                f"{counted(unsplit, 'labelled row has', 'labelled rows have')} nothing in column {columns.split}",
            ),
            (
                divided,
                f"{counted(divided, 'value')} of column {join} {'is' if divided == 1 else 'are'} in several splits of "
                f"column {columns.split}",
            ),
        )
        if count
    ]
    if problems:
        raise LabelsError("label table: " + "; ".join(problems) + "; correct the table or the dataset card")
    rows = pd.DataFrame({"value": values, "key": keys})
    return Labels(COLUMNS[columns.join], label.groupby(level=0).max(), given.groupby(level=0).first(), rows, other)


def _labels_of_files(archive: Archive, labels: Labels) -> pd.DataFrame:
    return labels_of_files(archive.examined, archive.assembled, labels.column, labels.label, labels.given)


def _check_matches(inputs: Inputs, archive: Archive, labels: Labels, found: pd.DataFrame, log: RunLog) -> None:
    """Say how many rows found images.

    Raises LabelsError when none did, or many would with a setting that the message names.
    """
    columns, keys = inputs.card.columns, labels.rows["key"]
    column, matched = getattr(columns, columns.join), keys.isin(archive.present[columns.join])
    log.info(
        f"{int(matched.sum())} of {len(keys)} labelled rows of the label table matched "
        f"{int(found['label'].notna().sum())} of {len(found)} images"
    )
    if columns.join == "path" and not matched.all():
        try:
            sources = find_sources(inputs.studies, inputs.labels)
        except SourcesError:
            sources = []  # not needed for anything else here, so that they may be elsewhere by now
        if sources:
            rule = PathRule(**columns.path_rule)
            _warn(log, check_paths(labels.rows["value"], [source.path for source in sources], rule, column))
    text, stop = why_unmatched(labels.rows["value"], keys, columns.join, column, inputs.secret, archive.present)
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


def _further_labels(inputs: Inputs, archive: Archive, rows: pd.DataFrame, log: RunLog) -> pd.DataFrame:
    """Return the columns of tables.FURTHER_LABELS for the images in `rows` that have the main label.

    Raises LabelsError naming every label with a problem.
    """
    labelled = rows.loc[rows["label"].notna(), "image_id"]
    tables, problems = [pd.DataFrame()], []
    for further in inputs.card.further_labels:
        try:
            labels = _labels(inputs, archive, further, further.column or inputs.card.columns.label, log)
            found = _join(inputs, archive, labels)
        except LabelsError as error:
            problems.append(f"further label {further.id}: {error}")
            continue
        if labels.other:
            rows_are = counted(labels.other, "row is", "rows are")
            log.warn(f"further label {further.id}: {rows_are} neither positive nor negative, not used")
        doubted = contradictions(found, _labels_of_files(archive, labels), archive.near)
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


def _join(inputs: Inputs, archive: Archive, labels: Labels) -> pd.DataFrame:
    """Return the images with their labels; a volume has the label of any of its files.

    Raises LabelsError when files of one volume have different labels.
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
        label = one_label(files["label"], files["image_id"], inputs.card.columns.several_rows == "any_positive")
        label, given = (joined["image_id"].map(of) for of in (label, files.groupby("image_id")["given"].first()))
    joined = joined.assign(label=label, given=given.astype(object).fillna(""))
    return with_labels_of_copies(joined, _labels_of_files(archive, labels))


def _unmatched(found: pd.DataFrame, archive: Archive, labels: Labels, left_out: Collection[str]) -> pd.DataFrame:
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


# ---------------------------------------------------------------- who goes where


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
            f"{counted(len(crossing), 'group')} of patients, {counted(patients, 'patient')} in all, "
            f"{'is' if len(crossing) == 1 else 'are'} in more than one split of the dataset: the same patient, or "
            "patients who share an image. split.crossing=train puts all of them into train; correcting the label table "
            "is better"
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
    shared = linked(joined)
    if shared and settings.shared_images == "stop":
        raise ValueError(
            f"{shared} patients share an image with another patient, exactly or nearly (quality flags in "
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
            "labelled_patients": int(part.loc[part["label"].notna(), "patient_id"].nunique()),
            "positive_patients": int(positive["patient_id"].nunique()),
            "positive_images": len(positive),
        }
    return counts


def _check_shares(inputs: Inputs, settings: SplitSettings, rows: pd.DataFrame) -> None:
    """Raise ValueError when linked patients leave a split far from its share."""
    labelled = rows[rows["label"].notna()]
    fractions, given = settings.fractions.model_dump(), inputs.card.splits
    shares = {value: shares_of(given.get(value, LABELLED_SPLITS), fractions) for value in labelled["given"].unique()}
    if missed := missed_shares(labelled, shares):
        raise ValueError(
            f"{missed}. See near_duplicates.parquet and the flags in images.parquet of ingest for what they share: "
            "leave out what is no study (blank pictures, masks, logos; data.exclude, ingest.refuse), set "
            "ingest.near_duplicates=false where different people's pictures are alike, or change split.fractions"
        )


def _refuse_single_class(labels: Labels, joined: pd.DataFrame, left_out: int) -> None:
    """Raise ValueError when all labelled images are of one class: no way of dividing them helps."""
    values = joined["label"].dropna().unique()
    if len(values) > 1:
        return
    missing = "negative" if 1 in values else "positive"
    rows = int((labels.label == (missing == "positive")).sum())
    without = f"; {counted(left_out, 'image is', 'images are')} left out, contradicted by a copy" if left_out else ""
    raise ValueError(
        f"no {missing} label has an accepted image, of {rows} in the label table{without}. See what the card's label "
        f"calls {missing}, and unmatched.parquet for labels without an image"
        if rows
        else f"the label table has no {missing} row{without}; see what the card's label calls {missing}"
    )


def _refuse_missing_class(counts: dict[str, dict[str, dict[str, int]]], given: bool, linked_patients: int) -> None:
    """Raise ValueError when a split lacks one of the classes.

    `counts` are those of the main label by an empty name, and of further ones by their id; `given` says whether the
    dataset itself divides its patients, `linked_patients` how many share pictures with others.
    """
    problems = []
    for label, of_label in counts.items():
        for name in LABELLED_SPLITS:
            patients, positive = of_label[name]["labelled_patients"], of_label[name]["positive_patients"]
            if positive in (0, patients):
                what = f"further label {label}: " if label else ""
                problems.append(
                    f"{what}{name} has {positive} positive and {counted(patients - positive, 'negative patient')}"
                )
    if problems:
        advice = "Add patients, or change split.fractions or split.seed"
        if given:
            advice += ", or which of our splits the card's splits name for each of the dataset's own"
        if any(problem.startswith("further") for problem in problems):
            advice += ", or take the label off the card's further_labels"
        if linked_patients:
            advice += (
                f". {linked_patients} patients share pictures with others and cannot be divided from them; see "
                "near_duplicates.parquet and the flags in images.parquet of ingest for what they share"
            )
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
        log.warn(
            f"the calibration split has {counted(positives, 'positive patient')}; recall 0.95 with 95 % confidence "
            f"needs at least {USUAL_POSITIVES_NEEDED}"
        )
