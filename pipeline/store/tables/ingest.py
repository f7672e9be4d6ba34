"""What `ingest` knows of files and images."""

from __future__ import annotations

from dataclasses import replace

from pipeline.store.tables.io import BYTES, INTEGER, NUMBER, NUMBERS, TEXT, TEXTS, YES_NO, Column, Table

# What is known of an image by itself; the stages that read sources write it for each file or volume.
IMAGE_COLUMNS = (
    Column("image_id", TEXT, "pseudonym of the image: keyed hash of its SOP or Series Instance UID, or of its content"),
    Column("patient_id", TEXT, "pseudonym of the patient: keyed hash"),
    Column("study_id", TEXT, "pseudonym of the study: keyed hash"),
    Column("series_id", TEXT, "pseudonym of the series: keyed hash; empty when it states none"),
    Column("pixel_hash", TEXT, "XXH3-128 of the decoded display pixels and their shape"),
    Column("format", TEXT, "dicom, nifti, raster or array"),
    Column("axes", INTEGER, "2 for a picture, 3 for a volume"),
    Column("modality", TEXT, "DICOM modality, e.g. DX, CR, MR; empty when unknown"),
    Column("site", TEXT, "pseudonym of the institution; empty when unknown"),
    Column("view", TEXT, "view position from a closed list, e.g. PA; empty when unknown"),
    Column("laterality", TEXT, "L, R, B or empty"),
    Column("body_part", TEXT, "body part from a closed list; OTHER; empty when unknown"),
    Column("rows", INTEGER, "image height in pixels"),
    Column("columns", INTEGER, "image width in pixels"),
    Column("slices", INTEGER, "number of slices; 1 for a picture"),
    Column("spacing_mm", NUMBERS, "spacing per axis in mm, slowest axis first; missing when unknown", optional=True),
    Column("photometric", TEXT, "photometric interpretation as stored; empty outside DICOM"),
    Column("polarity_fixed", YES_NO, "grey values were inverted once, so that bone and dense tissue are bright"),
    Column("bits_stored", INTEGER, "bits stored per sample"),
    Column("manufacturer", TEXT, "manufacturer from a closed list; OTHER; empty when unknown"),
    Column("sex", TEXT, "F, M, O or empty"),
    Column("age_years", NUMBER, "age at the study in years, 90 standing for 90 and above", optional=True),
    Column("quality_flags", TEXT, "comma-separated quality flags; empty when none"),
)

IMAGES = Table(
    "images",
    (*IMAGE_COLUMNS, Column("study_day", INTEGER, "days since the patient's first study", optional=True)),
    order=("image_id",),
)

FILES = Table(
    "files",
    (
        Column("image_id", TEXT, "pseudonym of the image that the file is, or is a part of"),
        Column("part", INTEGER, "place of the file in the image: slices in order along their normal, from 0"),
        Column("source_id", TEXT, "keyed hash of the file's path inside its source; paths carry names"),
        Column("sha256", TEXT, "SHA-256 of the file's bytes"),
    ),
    order=("image_id", "part"),
)

QUARANTINE = Table(
    "quarantine",
    (
        Column("source_id", TEXT, "keyed hash of the file's path inside its source"),
        Column("sha256", TEXT, "SHA-256 of the file's bytes; empty when it could not be read"),
        Column("reason", TEXT, "reason from the closed list in imaging/quarantine.py"),
        Column("detail", TEXT, "fixed words, sizes and tag numbers; never text from a header"),
    ),
    order=("source_id",),
)

# What measuring an image gave, apart from what goes into `images`.
MEASURED_COLUMNS = (
    Column("shifted_day", INTEGER, "day of the study, moved by the patient's secret shift", optional=True),
    Column("lowest", NUMBER, "lowest display value that is not padding", optional=True),
    Column("highest", NUMBER, "highest display value that is not padding", optional=True),
    Column("clipped_share", NUMBER, "larger share of pixels at the lowest or the highest value", optional=True),
    Column("perceptual", BYTES, "256-bit hash of the lowest frequencies; missing when blank", optional=True),
    Column("mirrored", BYTES, "the same of the mirror image", optional=True),
    Column("gradient", BYTES, "256-bit hash of horizontal gradients", optional=True),
    Column("small", BYTES, "copy of 32 x 32 pixels, uint8", optional=True),
)

EXAMINED = Table(
    "examined",
    (
        Column("source_id", TEXT, "keyed hash of the file's path inside its source"),
        Column(
            "stored_sha256", TEXT, "SHA-256 of the file on disk: of the archive, for a member; empty when unreadable"
        ),
        Column(
            "row_id", TEXT, "keyed hash by which the label table knows the file, of its path or a UID; empty when none"
        ),
        Column("header_patient", TEXT, "pseudonym of the patient that the header names; empty when none"),
        Column(
            "placeholder",
            TEXT,
            "empty for an identifier; `word` for one that names nobody; for zeros, the pseudonym of the next number",
        ),
        Column("sha256", TEXT, "SHA-256 of the file's bytes; empty when it could not be read"),
        Column("reason", TEXT, "reason for refusal; empty when accepted or a part of a volume"),
        Column("detail", TEXT, "fixed words, sizes and tag numbers; never text from a header"),
        Column("part_of", TEXT, "keyed hash of what the parts of a volume have in common; empty for a whole image"),
        *(replace(column, optional=True) for column in (*IMAGE_COLUMNS, *MEASURED_COLUMNS)),
    ),
    order=("source_id",),
)

ASSEMBLED = Table(
    "assembled",
    (
        Column("part_of", TEXT, "keyed hash of what the parts have in common"),
        Column("members", TEXT, "digest of all files with this `part_of`"),
        Column("sources", TEXTS, "source_id of the files of one volume in order, or of one refused file"),
        Column("reason", TEXT, "reason for refusal; empty for a volume"),
        Column("detail", TEXT, "fixed words, sizes and tag numbers; never text from a header"),
        *(replace(column, optional=True) for column in (*IMAGE_COLUMNS, *MEASURED_COLUMNS)),
    ),
    order=("part_of", "reason", "image_id"),
)

QUALITY = Table(
    "quality",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("lowest", NUMBER, "lowest display value that is not padding"),
        Column("highest", NUMBER, "highest display value that is not padding"),
        Column("clipped_share", NUMBER, "larger share of pixels at the lowest or the highest value"),
        Column(
            "likeness",
            NUMBER,
            "correlation with the average image of the same modality, body part and view; missing for few or blank",
            optional=True,
        ),
        Column("quality_flags", TEXT, "comma-separated quality flags; empty when none"),
    ),
    order=("image_id",),
)

NEAR_DUPLICATES = Table(
    "near_duplicates",
    (
        Column("image_id", TEXT, "pseudonym of one image"),
        Column("other_image_id", TEXT, "pseudonym of the image that shows nearly the same"),
        Column("how", TEXT, "copy, mirrored or inverted"),
        Column("distance", INTEGER, "differing bits of the 256-bit perceptual hash"),
        Column("correlation", NUMBER, "of copies of 32 x 32 pixels"),
        Column("across_patients", YES_NO, "the two images belong to different patients"),
    ),
    order=("image_id", "other_image_id"),
)
