"""The same picture with opposite labels: nobody can tell which is right, so neither is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.labels.values import LabelsError
from pipeline.store.wording import counted


def labels_of_files(
    examined: pd.DataFrame, assembled: pd.DataFrame, column: str, label: pd.Series, given: pd.Series
) -> pd.DataFrame:
    """Return `patient_id`, `pixel_hash`, `label` and `given` of every labelled picture and volume.

    Copies that ingest refused are among them. `label` and `given` are by values of the pseudonym `column`; files have
    theirs, of their path, in `row_id`.
    """
    whole = examined[(examined["reason"] == "") & (examined["part_of"] == "")]
    volumes = assembled[assembled["reason"] == ""].reset_index(drop=True)
    if column == "source_id":
        by_row = examined.set_index("source_id")["row_id"]
        rows = volumes.assign(row_id=volumes["sources"].explode().map(by_row).groupby(level=0).agg(list))
        rows = rows.explode("row_id")
        rows = rows.assign(label=rows["row_id"].map(label), given=rows["row_id"].map(given))
        rows = rows.groupby(level=0).agg(
            {"patient_id": "first", "pixel_hash": "first", "label": "max", "given": "first"}
        )
        keys = whole["row_id"]
    else:
        keys, own = whole[column], volumes[column]
        rows = volumes.assign(label=own.map(label), given=own.map(given))
    pictures = whole.assign(label=keys.map(label), given=keys.map(given))
    names = ["patient_id", "pixel_hash", "label", "given"]
    return pd.concat([part[names].dropna(subset="label") for part in (pictures, rows)], ignore_index=True)


def with_labels_of_copies(images: pd.DataFrame, of_files: pd.DataFrame) -> pd.DataFrame:
    """Return the images, those without a label with that of a copy of the same patient that ingest refused."""
    keys = ["patient_id", "pixel_hash"]
    copies = of_files.drop_duplicates([*keys, "label"]).drop_duplicates(keys, keep=False).set_index(keys)
    found = copies.reindex(pd.MultiIndex.from_frame(images[keys]))
    lacking = images["label"].isna().to_numpy() & found["label"].notna().to_numpy()
    return images.assign(
        label=np.where(lacking, found["label"], images["label"].astype(float)),
        given=np.where(lacking, found["given"], images["given"]),
    )


@dataclass(frozen=True)
class Contradictions:
    """Images whose label cannot be trusted: copies with opposite labels, and what else of their patients is doubtful.

    `counts` are of `pictures`, `copies`, `patients`, and images `left_out`, the other images of patients among them.
    """

    copies: frozenset[str]
    left_out: frozenset[str]
    counts: dict[str, int]


def contradictions(images: pd.DataFrame, of_files: pd.DataFrame, near: pd.DataFrame) -> Contradictions:
    """Find copies with opposite labels: equal pixels, of anybody, and nearly equal ones of one patient.

    A patient of such a copy who is positive by another image stays positive. One who is not may have been positive by
    the copy: none of their images is used.
    """
    values = of_files.groupby("pixel_hash")["label"].nunique()
    opposite = images["pixel_hash"].isin(values.index[values > 1])
    label = images.set_index("image_id")["label"]
    pairs = near[(near["how"] == "copy") & ~near["across_patients"].astype(bool)]
    first, second = pairs["image_id"].map(label), pairs["other_image_id"].map(label)
    pairs = pairs[first.notna() & second.notna() & (first != second)]
    nearly = images["image_id"].isin([*pairs["image_id"], *pairs["other_image_id"]])
    copies = (opposite & images["label"].notna()) | nearly
    patients = images.loc[copies, "patient_id"].unique()
    rest = images["label"].where(~copies).groupby(images["patient_id"]).max()
    doubtful = images["patient_id"].isin(patients) & ~images["patient_id"].map(rest).eq(1)
    left_out = copies | (doubtful & images["label"].notna())
    counts = {
        "pictures": int(images.loc[opposite & copies, "pixel_hash"].nunique()) + len(pairs),
        "copies": int(copies.sum()),
        "patients": len(patients),
        "left_out": int(left_out.sum()),
    }
    return Contradictions(
        frozenset(images.loc[copies, "image_id"]), frozenset(images.loc[left_out, "image_id"]), counts
    )


def one_label(labels: pd.Series, image_ids: Iterable[str], any_positive: bool) -> pd.Series:
    """Return the label of each volume from those of its files; the two go together by place.

    Raises LabelsError when files of one volume have different labels, unless any positive one makes it positive.
    """
    by_image = labels.groupby(list(image_ids))
    mixed = int((by_image.nunique() > 1).sum())
    if mixed and not any_positive:
        raise LabelsError(
            f"label table: the files of {counted(mixed, 'volume')} have different labels; correct the table, or, if "
            "any positive file makes a volume positive, say columns.several_rows: any_positive in the dataset card"
        )
    return by_image.max()
