"""What images were made of, and what was cut out of those whose field of view is round.

Apart from preprocess.py, since the stages that train read nothing of it.
"""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, TEXT, YES_NO, Column, Table

FIELD_OF_VIEW = Table(
    "field_of_view",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("found", YES_NO, "whether the disc was found; if not, the whole image was taken"),
        Column("top", INTEGER, "first row that was taken, pixels of the image"),
        Column("bottom", INTEGER, "row after the last one"),
        Column("left", INTEGER, "first column"),
        Column("right", INTEGER, "column after the last one"),
    ),
    order=("image_id",),
)

CONTENTS = Table(
    "contents",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("content", TEXT, "digest of the bytes of its files and of its decoded pixels"),
    ),
    order=("image_id",),
)
