"""Where the finding lies, on the test patients: masks by patient, lesions against false marks, arms in pairs."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, NUMBER, TEXT, Column, Table

_ARM = Column("arm", TEXT, "model that drew the masks")
_STRUCTURE = Column("structure", TEXT, "structure, as the card names it")

SEGMENTATION_PATIENTS = Table(
    "segmentation_patients",
    (
        _ARM,
        Column("patient_id", TEXT, "pseudonym of the patient"),
        _STRUCTURE,
        Column("images", INTEGER, "annotated images of the patient"),
        Column("found", INTEGER, "of these, with a predicted pixel inside the structure"),
        Column("missed", INTEGER, "with the structure and no predicted pixel inside it"),
        Column("invented", INTEGER, "without the structure, though the model drew one"),
        Column("both_empty", INTEGER, "without it in either mask; in no mean"),
        Column("dice", NUMBER, "mean Dice of the other images; missed and invented count 0", optional=True),
        Column("nsd", NUMBER, "mean normalised surface distance of those whose spacing is known", optional=True),
        Column("size_error", NUMBER, "mean of predicted minus reference size: ml, cm² of images", optional=True),
        Column("relative_size_error", NUMBER, "mean absolute error as a share of the reference's size", optional=True),
        Column("lesions", INTEGER, "lesions of the reference masks"),
        Column("lesions_found", INTEGER, "of these, with the peak of a mark inside"),
        Column("false_marks", INTEGER, "marks whose peak lies in no lesion"),
    ),
    order=("arm", "structure", "patient_id"),
)

FROC = Table(
    "froc",
    (
        _ARM,
        _STRUCTURE,
        Column("false_marks_per_image", NUMBER, "false marks per image, at most"),
        Column("sensitivity", NUMBER, "highest share of lesions found at that"),
        Column("low", NUMBER, "lower limit", optional=True),
        Column("high", NUMBER, "upper limit", optional=True),
    ),
    order=("arm", "structure", "false_marks_per_image"),
)

SEGMENTATION_COMPARISON = Table(
    "segmentation_comparison",
    (
        Column("arm", TEXT, "the arm that the reported one is compared with"),
        _STRUCTURE,
        Column("measure", TEXT, "dice, nsd, or sensitivity at one false mark per image"),
        Column("patients", INTEGER, "patients with the structure, the same for both arms"),
        Column("difference", NUMBER, "reported arm minus this one, paired", optional=True),
        Column("low", NUMBER, "lower limit, patients drawn anew", optional=True),
        Column("high", NUMBER, "upper limit", optional=True),
    ),
    order=("arm", "structure", "measure"),
)
