"""Where the pixels of an image lie."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, NUMBERS, TEXT, Column, Table

INDEX = Table(
    "index",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("label", INTEGER, "1 positive, 0 negative; missing when unlabelled", optional=True),
        Column("shard", TEXT, "file name of the array"),
        Column("row", INTEGER, "row in that array"),
        Column("padding", NUMBERS, "padding in pixels before and after each axis, slowest axis first"),
    ),
    order=("shard", "row"),
)
