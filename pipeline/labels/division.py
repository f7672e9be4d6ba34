"""Who goes into which split, and what a division has to be to be of use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.labels.patient_groups import linked, missed_shares, shares_of
from pipeline.store.tables.split import SPLITS
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.images import SplitFractions, SplitSettings

LABELLED_SPLITS = ("train", "tune", "calibration", "test")
# With as many images of each patient, a split that cannot be made may have a site or a class for its patients.
MANY_IMAGES = 10


def assign(images: pd.DataFrame, given: Mapping[str, Sequence[str]], settings: SplitSettings) -> pd.Series:
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


def assign_test_only(images: pd.DataFrame) -> pd.Series:
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


def check_shared(joined: pd.DataFrame, settings: SplitSettings) -> None:
    """Raise ValueError when patients share an image and the settings say to stop."""
    shared = linked(joined)
    if shared and settings.shared_images == "stop":
        raise ValueError(
            f"{shared} patients share an image with another patient, exactly or nearly (quality flags in "
            "images.parquet, near_duplicates.parquet); find out whose it is, or set split.shared_images=keep_together"
        )


def check_disjoint(rows: pd.DataFrame) -> None:
    """Raise RuntimeError when a patient, a group, an image or a picture is in more than one split."""
    for what in ("patient_id", "unit", "image_id", "pixel_hash"):
        shared = int((rows.groupby(what)["split"].nunique() > 1).sum())
        if shared:
            raise RuntimeError(f"{shared} values of {what} are in more than one split")


def counts(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return how many patients and images each split has, and how many of them are labelled and positive."""
    found = {}
    for name in SPLITS:
        part = rows[rows["split"] == name]
        positive = part[part["label"] == 1]
        found[name] = {
            "patients": int(part["patient_id"].nunique()),
            "images": len(part),
            "labelled_patients": int(part.loc[part["label"].notna(), "patient_id"].nunique()),
            "positive_patients": int(positive["patient_id"].nunique()),
            "positive_images": len(positive),
        }
    return found


def check_shares(rows: pd.DataFrame, given: Mapping[str, Sequence[str]], settings: SplitSettings) -> None:
    """Raise ValueError when linked patients leave a split far from its share."""
    labelled = rows[rows["label"].notna()]
    fractions = settings.fractions.model_dump()
    shares = {value: shares_of(given.get(value, LABELLED_SPLITS), fractions) for value in labelled["given"].unique()}
    if missed := missed_shares(labelled, shares):
        raise ValueError(
            f"{missed}. See near_duplicates.parquet and the flags in images.parquet of ingest for what they share: "
            "leave out what is no study (blank pictures, masks, logos; data.exclude, ingest.refuse), set "
            "ingest.near_duplicates=false where different people's pictures are alike, or change split.fractions"
        )


def refuse_single_class(label: pd.Series, joined: pd.DataFrame, left_out: int) -> None:
    """Raise ValueError when all labelled images are of one class: no way of dividing them helps.

    `label` are those of the rows of the table.
    """
    values = joined["label"].dropna().unique()
    if len(values) > 1:
        return
    missing = "negative" if 1 in values else "positive"
    rows = int((label == (missing == "positive")).sum())
    without = f"; {counted(left_out, 'image is', 'images are')} left out, contradicted by a copy" if left_out else ""
    raise ValueError(
        f"no {missing} label has an accepted image, of {rows} in the label table{without}. See what the card's label "
        f"calls {missing}, and unmatched.parquet for labels without an image"
        if rows
        else f"the label table has no {missing} row{without}; see what the card's label calls {missing}"
    )


def refuse_missing_class(counts: dict[str, dict[str, dict[str, int]]], given: bool, linked_patients: int) -> None:
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
        images, patients = (sum(split[what] for split in counts[""].values()) for what in ("images", "patients"))
        if images >= MANY_IMAGES * patients:
            advice += (
                f". {images} images are of {counted(patients, 'patient')}: see that the column of columns.patient_id, "
                "or PatientID in the headers, tells people apart"
            )
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
