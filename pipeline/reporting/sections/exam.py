"""Views and sides: whose examination is complete, and what each view or side alone shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.reporting.document import Block, Bullets, Heading, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count, missing, plain_percent, short_interval


def completeness(e: Evidence) -> list[Block]:
    """Return how many patients of each part have all views and sides; nothing where the card expects none."""
    parts = e.split.get("exam")
    if not parts:
        return []
    places = next(iter(parts.values()))["expected"]
    rows = [
        [
            name,
            count(one["patients"]),
            count(one["complete"]),
            *(count(one["lacking"][place]) for place in places),
            count(one["elsewhere"]),
        ]
        for name, one in parts.items()
    ]
    caption = (
        f"Examinations: patients who have an image of each of {', '.join(places)}, those who lack one of a view or "
        "side, and images that are none of these or do not say. Nobody was left out for it"
    )
    columns = ["Part", "Patients", "Complete", *(f"No {place}" for place in places), "Other images"]
    return [Table("exam_completeness", caption, columns, rows)]


def views_and_sides(e: Evidence) -> Section | None:
    """Return what each view and side alone shows of the test patients; None where the card expects none."""
    if e.exam is None:
        return None
    usable = e.point is not None
    rows = [_row(row, usable) for row in e.exam.to_dict("records")]
    level = plain_percent(e.metrics.discrimination.auc.level)
    caption = f"Test patients by the images of one view or side alone, with {level} intervals of each row by itself"
    columns = ["Images looked at", "Images", "Patients", "With the condition"]
    columns += ["Referred", "Sensitivity, %", "Specificity, %"] if usable else []
    threshold = (
        " The threshold is that of all images together, so that fewer images refer fewer patients where the highest "
        "score decides; what is certified is the first row's way of judging, and no other."
        if usable
        else ""
    )
    text = (
        "Patients are the unit in every row: a patient's score and label are those of the images looked at, and the "
        f"same patients are in several rows, so that rows are not independent.{threshold}"
    )
    notes = [f"{own['note']}: {_name(own)}" for own in e.exam.to_dict("records") if own["note"]]
    blocks: list[Block] = [Paragraph(text), Table("exam", caption, [*columns, "AUC"], rows)]
    remarks: list[Block] = [Heading("Why numbers of views and sides are missing"), Bullets(notes)] if notes else []
    return Section("views_and_sides", "Views and sides", blocks, remarks)


def _row(row: Mapping[Any, Any], usable: bool) -> list[str]:
    def cell(measure: str, scale: int) -> str:
        value, low, high = (row[f"{measure}{limit}"] for limit in ("", "_low", "_high"))
        return "—" if missing(value) else short_interval(value, low, high, digits=1 if scale == 100 else 3, scale=scale)

    referred = "—" if pd.isna(row["referred"]) else count(row["referred"])
    at_threshold = [referred, cell("recall", 100), cell("specificity", 100)] if usable else []
    counts = [count(row[name]) for name in ("images", "patients", "positives")]
    return [_name(row), *counts, *at_threshold, cell("auc", 1)]


def _name(row: Mapping[Any, Any]) -> str:
    return "all images" if row["by"] == "patient" else f"{row['by']} {row['group']}"
