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

LABEL_FRACTION_SCORES = Table(
    "label_fraction_scores", (*SCORES.columns, LABELLED_PATIENTS), order=("labelled_patients", *SCORES.order)
)
