"""Choose the images without labels that may be pretrained on: of nobody, and like nobody, whom the run is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.imaging.copies.meeting import FINGERPRINTS, Gathered, met
from pipeline.labels.division import counts
from pipeline.labels.patient_groups import units
from pipeline.store.files import read_json, write_json
from pipeline.store.tables.ingest import IMAGES, NEAR_DUPLICATES
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.split import SPLIT
from pipeline.store.tables.unlabelled import LEFT_OUT
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.images import SplitSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

OWN, THEIRS = "ingest", "ingest@unlabelled"
# Settings are chosen, thresholds certified and results shown on these: nothing may be learnt from their images before.
JUDGED = ("tune", "calibration", "test")
LINKED = "of a patient with such an image"
REPEATED = "among the run's own images"


def keep_apart(settings: SplitSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `split.parquet` with the images without labels that go to `pretrain`, `left_out.parquet` with the others,
    and `summary.json`.

    Left out is everybody who is, or has the same or nearly the same picture as, a patient of tune, calibration or
    test, with whoever shares a picture with them in turn; further, images that training and pretraining have already.
    Images that are nearly the same are looked for where ingest did so. Raises ValueError when nothing is left.
    """
    theirs = read_json(inputs.file(THEIRS, "summary.json"))
    if objection := theirs["identity"]["objection"]:
        raise ValueError(f"data.unlabelled: {objection}")
    images = read_table(inputs.file(THEIRS, "images.parquet"), IMAGES)
    images["unit"] = units(images, read_table(inputs.file(THEIRS, "near_duplicates.parquet"), NEAR_DUPLICATES))
    images["reason"] = _reasons(images, inputs, work)
    kept, out = images[images["reason"] == ""], images[images["reason"] != ""]
    if kept.empty:
        raise ValueError(
            f"none of {counted(len(images), 'image')} of data.unlabelled is left: {_said(out)}; name other folders, or "
            "none"
        )
    chosen = kept.assign(label=pd.array([pd.NA] * len(kept), "Int64"), label_source="", split="pretrain", given="")
    summary = _summary(theirs, out, chosen)
    if not out.empty:
        log.warn(
            f"{counted(len(out), 'image is', 'images are')} left out of pretraining, of "
            f"{counted(summary['left_out_patients'], 'patient')}: {_said(out)} (left_out.parquet)"
        )
    log.info(
        f"{counted(len(chosen), 'image')} of {counted(summary['patients'], 'patient')} without labels go to pretraining"
    )
    write_table(work / "split.parquet", chosen[[column.name for column in SPLIT.columns]], SPLIT)
    write_table(work / "left_out.parquet", out[[column.name for column in LEFT_OUT.columns]], LEFT_OUT)
    write_json(work / "summary.json", summary)


def _reasons(images: pd.DataFrame, inputs: Inputs, work: Path) -> pd.Series:
    """Return why each image is left out; empty for those that are not."""
    split = read_table(inputs.file("split", "split.parquet"), SPLIT)[["image_id", "split"]]
    own = read_table(inputs.file(OWN, "images.parquet"), IMAGES).merge(split, on="image_id", validate="one_to_one")
    judged = own["split"].isin(JUDGED)
    fingerprints = FINGERPRINTS if inputs.record(OWN)["settings"]["near_duplicates"] else ()
    known, others = (
        Gathered(rows, [inputs.file(step, name) for name in fingerprints])
        for step, rows in ((OWN, own[judged]), (THEIRS, images))
    )
    why = met(known, others, work / ".small.tmp").to_dict()
    reasons = images["image_id"].map(lambda image: why.get(image, ""))
    linked = (reasons == "") & images["unit"].isin(images.loc[reasons != "", "unit"])
    rest = own[~judged]
    again = images["image_id"].isin(rest["image_id"]) | images["pixel_hash"].isin(rest["pixel_hash"])
    return reasons.mask(linked, LINKED).mask((reasons == "") & ~linked & again, REPEATED)


def _summary(theirs: dict[str, Any], out: pd.DataFrame, chosen: pd.DataFrame) -> dict[str, Any]:
    """Return the counts; those of files and of reasons for quarantine are of ingest."""
    return {
        "splits": counts(chosen),
        "received": theirs["received"],
        "quarantined": theirs["quarantined"],
        "accepted": theirs["accepted"],
        "left_out": _by_reason(out),
        "left_out_patients": int(out["patient_id"].nunique()),
        "images": len(chosen),
        "patients": int(chosen["patient_id"].nunique()),
    }


def _by_reason(out: pd.DataFrame) -> dict[str, int]:
    return {str(reason): int(count) for reason, count in out["reason"].value_counts().sort_index().items()}


def _said(out: pd.DataFrame) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in _by_reason(out).items())
