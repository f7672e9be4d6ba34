"""What the images of one view or one side alone would have found."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, NUMBER, TEXT, Column, Table

EXAM = Table(
    "exam",
    (
        Column("by", TEXT, "patient, view or side"),
        Column("group", TEXT, "all images, or the view or side whose images alone were looked at"),
        Column("images", INTEGER, "test images looked at"),
        Column("patients", INTEGER, "test patients who have such images"),
        Column("positives", INTEGER, "of these, with the condition, by the labels of these images"),
        Column("referred", INTEGER, "patients referred at the operating threshold", optional=True),
        *(
            Column(f"{metric}{limit}", NUMBER, f"{metric}{limit.replace('_', ' ')}", optional=True)
            for metric in ("recall", "specificity", "auc")
            for limit in ("", "_low", "_high")
        ),
        Column("note", TEXT, "why a number is missing; empty otherwise"),
    ),
    order=("by", "group"),
)
