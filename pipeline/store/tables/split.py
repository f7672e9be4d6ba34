"""Which patient is in which split, and their labels."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, TEXT, Column, Table

SPLITS = ("pretrain", "train", "tune", "calibration", "test")

SPLIT = Table(
    "split",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("label", INTEGER, "1 positive, 0 negative; missing when unlabelled", optional=True),
        Column("label_source", TEXT, "which table and column gave the label; empty when unlabelled"),
        Column("split", TEXT, "pretrain, train, tune, calibration or test"),
        Column("unit", TEXT, "smallest patient pseudonym among the patients that must stay together"),
        Column("given", TEXT, "value of the dataset's own split; empty when it has none"),
    ),
    order=("image_id",),
)

UNMATCHED = Table(
    "unmatched",
    (
        Column("what", TEXT, "label without image, image without label, or label contradicted by a copy"),
        Column("joined_by", TEXT, "which pseudonym: source_id, image_id, series_id, study_id or patient_id"),
        Column("pseudonym", TEXT, "keyed hash of what the label table names, or of the image"),
        Column("reason", TEXT, "why the file is in quarantine, when it is; empty otherwise"),
    ),
    order=("what", "pseudonym"),
)

LABEL_ID = Column("label_id", TEXT, "id of the further label in the dataset's card")

FURTHER_LABELS = Table(
    "further_labels",
    (
        Column("image_id", TEXT, "pseudonym of an image with the main label"),
        LABEL_ID,
        Column("label", INTEGER, "1 positive, 0 negative; missing when unlabelled", optional=True),
    ),
    order=("label_id", "image_id"),
)
