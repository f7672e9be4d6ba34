"""Logits of every arm and seed."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, NUMBER, TEXT, Column, Table
from pipeline.store.tables.split import LABEL_ID

SCORES = Table(
    "scores",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("arm", TEXT, "mae, scratch, imported, cnn, linear_probe, attentive_probe, hog, classical or ensemble"),
        Column("seed", INTEGER, "training seed"),
        Column(
            "logit",
            NUMBER,
            "raw model output, natural-log odds before calibration; higher is more suspicious",
        ),
        Column("label", INTEGER, "1 positive, 0 negative"),
    ),
    order=("arm", "seed", "image_id"),
)

FURTHER_SCORES = Table("further_scores", (*SCORES.columns, LABEL_ID), order=("label_id", *SCORES.order))
LABELLED_PATIENTS = Column("labelled_patients", INTEGER, "labelled training patients that the model was trained with")

MARKS = Table(
    "marks",
    (
        Column("arm", TEXT, "mae, scratch, imported or classical"),
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("structure", INTEGER, "number of the structure in the masks, from 1"),
        Column("mark", INTEGER, "number of the mark in its image, from 1, the surest first"),
        Column("score", NUMBER, "highest probability of the structure in the mark, mean over the seeds"),
        Column(
            "z", INTEGER, "slice of the array with the highest probability, from 0; missing in pictures", optional=True
        ),
        Column("y", INTEGER, "its row, from 0"),
        Column("x", INTEGER, "its column, from 0"),
        Column("voxels", INTEGER, "pixels of the array above the threshold that are connected, corners included"),
    ),
    order=("arm", "image_id", "mark"),
)

LABEL_FRACTION_SCORES = Table(
    "label_fraction_scores", (*SCORES.columns, LABELLED_PATIENTS), order=("labelled_patients", *SCORES.order)
)
