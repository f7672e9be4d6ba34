"""Which images without labels are not pretrained on."""

from __future__ import annotations

from pipeline.store.tables.io import TEXT, Column, Table

LEFT_OUT = Table(
    "left_out",
    (
        Column("image_id", TEXT, "pseudonym of an image of data.unlabelled"),
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("reason", TEXT, "whom or what of the run it would repeat, from a closed list"),
    ),
    order=("image_id",),
)
