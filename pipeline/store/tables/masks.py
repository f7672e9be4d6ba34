"""Which image has which mask, and how large the pixels of its array are.

Apart from ingest.py and preprocess.py, since only runs with masks read it.
"""

from __future__ import annotations

from pipeline.store.tables.io import NUMBER, NUMBERS, TEXT, Column, Table

BACKGROUND, NOT_ANNOTATED = 0, 255


def mask_name(shard: str) -> str:
    """Return the file name of the masks beside an array file."""
    return f"masks-{shard}"


MASKS = Table(
    "masks",
    (
        Column("image_id", TEXT, "pseudonym of the image that the mask is named for"),
        Column("source_id", TEXT, "keyed hash of the path of the mask's file inside its source"),
        Column("sha256", TEXT, "SHA-256 of the mask's bytes; empty when it could not be read"),
        Column("content", TEXT, "digest of mask, files of the image and meaning of values"),
        Column("format", TEXT, "nifti, picture or segmentation; empty when refused"),
        Column("reason", TEXT, "why the mask is not that of this image; empty when it is"),
        Column("detail", TEXT, "fixed words and sizes; never text from a header"),
        Column(
            "pixels", NUMBERS, "pixels of each structure on the image, in the order of the card; empty when refused"
        ),
    ),
    order=("image_id", "source_id"),
)

MASK_GRID = Table(
    "mask_grid",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column(
            "spacing_z_mm", NUMBER, "between slices of the array, mm; missing for pictures or unknown", optional=True
        ),
        Column("spacing_y_mm", NUMBER, "between rows of the array, mm; missing when unknown", optional=True),
        Column("spacing_x_mm", NUMBER, "between columns of the array, mm; missing when unknown", optional=True),
    ),
    order=("image_id",),
)
