"""Every table that flows between stages: its columns, their types, units and meaning, named once.

Reading and writing check them: a missing, extra or mistyped column stops the stage with its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store.files import atomic

TEXT = pa.string()
INTEGER = pa.int64()
NUMBER = pa.float64()
YES_NO = pa.bool_()
NUMBERS = pa.list_(pa.float64())
TEXTS = pa.list_(pa.string())
BYTES = pa.binary()

ROWS_PER_PIECE = 1024
SPLITS = ("pretrain", "train", "tune", "calibration", "test")


class TableError(ValueError):
    """A table's columns or values are not what its definition says."""


@dataclass(frozen=True)
class Column:
    """One column: name, Arrow type, meaning with unit, and whether a value may be missing."""

    name: str
    type: pa.DataType
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """A named list of columns, and the columns that its rows are ordered by."""

    name: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, nullability included."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.optional) for c in self.columns])


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

SCORES = Table(
    "scores",
    (
        Column("image_id", TEXT, "pseudonym of the image"),
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("arm", TEXT, "mae, scratch, imported, linear_probe or hog"),
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

SWEEP = Table(
    "sweep",
    (
        Column("threshold", NUMBER, "logit; refer when the patient's score is at least this"),
        Column(
            "probability", NUMBER, "calibrated probability at that score, at the prevalence that threshold.json states"
        ),
        Column("true_positive", INTEGER, "patients with the condition, referred"),
        Column("false_positive", INTEGER, "patients without the condition, referred"),
        Column("true_negative", INTEGER, "patients without the condition, not referred"),
        Column("false_negative", INTEGER, "patients with the condition, missed"),
        Column("recall", NUMBER, "true positives / all with the condition", optional=True),
        Column("recall_low", NUMBER, "lower Wilson limit", optional=True),
        Column("recall_high", NUMBER, "upper Wilson limit", optional=True),
        Column("missed_share", NUMBER, "false negatives / all with the condition", optional=True),
        Column(
            "certified_recall",
            NUMBER,
            "recall certified with the stated confidence at this threshold",
            optional=True,
        ),
        Column("specificity", NUMBER, "true negatives / all without the condition", optional=True),
        Column("specificity_low", NUMBER, "lower Wilson limit", optional=True),
        Column("specificity_high", NUMBER, "upper Wilson limit", optional=True),
        Column("ppv", NUMBER, "positive predictive value at the prevalence of these patients", optional=True),
        Column("npv", NUMBER, "negative predictive value at the prevalence of these patients", optional=True),
        Column("referral_rate", NUMBER, "share of all patients referred"),
        Column("total_cost", NUMBER, "of screening all and examining the referred, in the currency of the settings"),
        Column("cost_per_found", NUMBER, "total cost / true positives", optional=True),
        Column("operating_point", YES_NO, "the certified operating threshold"),
        Column(
            "band_recall",
            NUMBER,
            "recall certified in all rows at once, so that a row may be picked after looking; missing where too many"
            " are missed",
            optional=True,
        ),
    ),
    order=("threshold",),
)

SUBGROUPS = Table(
    "subgroups",
    (
        Column("attribute", TEXT, "sex, age band, view, manufacturer, site"),
        Column("group", TEXT, "value of the attribute; 'unknown' when missing"),
        Column("patients", INTEGER, "patients in the group"),
        Column("positives", INTEGER, "of these, with the condition"),
        Column("referred", INTEGER, "patients referred at the operating threshold", optional=True),
        *(
            Column(f"{metric}{limit}", NUMBER, f"{metric}{limit.replace('_', ' ')}", optional=True)
            for metric in ("recall", "specificity", "auc")
            for limit in ("", "_low", "_high")
        ),
        Column("note", TEXT, "why a number is missing; empty otherwise"),
        *(
            Column(
                f"{rate}_{limit}_simultaneous",
                NUMBER,
                f"{limit} limit of {rate}, for all groups at once",
                optional=True,
            )
            for rate in ("recall", "specificity")
            for limit in ("low", "high")
        ),
        *(
            Column(
                f"{rate}_gap{limit}", NUMBER, f"{rate} of the group minus that of all others{meaning}", optional=True
            )
            for rate in ("recall", "specificity")
            for limit, meaning in (
                ("", ""),
                ("_low", ": lower limit, for all groups at once"),
                ("_high", ": upper limit, for all groups at once"),
            )
        ),
    ),
    order=("attribute", "group"),
)

ARM_COLUMNS = (
    Column("arm", TEXT, "model compared"),
    Column("seeds", INTEGER, "training seeds averaged"),
    Column("patients", INTEGER, "test patients, the same for every arm"),
    Column("positives", INTEGER, "of these, with the condition"),
    Column("auc", NUMBER, "area under the ROC curve", optional=True),
    Column("auc_low", NUMBER, "lower limit", optional=True),
    Column("auc_high", NUMBER, "upper limit", optional=True),
    Column("auc_seed_min", NUMBER, "lowest AUC of a single seed", optional=True),
    Column("auc_seed_max", NUMBER, "highest AUC of a single seed", optional=True),
)

COMPARISON = Table(
    "comparison",
    (
        *ARM_COLUMNS,
        Column("difference", NUMBER, "AUC of the reported arm minus this arm's, paired", optional=True),
        Column("difference_low", NUMBER, "lower limit, paired DeLong", optional=True),
        Column("difference_high", NUMBER, "upper limit, paired DeLong", optional=True),
        Column("p", NUMBER, "two-sided p, paired DeLong", optional=True),
        Column(
            "threshold",
            NUMBER,
            "logit that misses as many calibration patients as the certificate allows",
            optional=True,
        ),
        *(
            Column(f"{rate}{suffix}", NUMBER, f"{rate} at that threshold{meaning}", optional=True)
            for rate in ("recall", "specificity")
            for suffix, meaning in (
                ("", ""),
                ("_difference", ": reported arm minus this one, paired"),
                (
                    "_difference_low",
                    ": lower limit of the difference, calibration and test patients resampled together",
                ),
                ("_difference_high", ": upper limit of the difference"),
                ("_p", ": always missing, since both thresholds are estimates"),
            )
        ),
        Column("reported", YES_NO, "the arm that was calibrated and is reported"),
    ),
    order=("arm",),
)

LABEL_FRACTIONS = Table(
    "label_fractions",
    (
        LABELLED_PATIENTS,
        Column("labelled_positives", INTEGER, "of these, with the condition"),
        *ARM_COLUMNS,
        Column("difference", NUMBER, "AUC of arm mae minus this arm's, paired; missing for mae itself", optional=True),
        Column("difference_low", NUMBER, "lower limit, paired DeLong", optional=True),
        Column("difference_high", NUMBER, "upper limit, paired DeLong", optional=True),
        Column("p", NUMBER, "two-sided p, paired DeLong", optional=True),
    ),
    order=("labelled_patients", "arm"),
)

CURVES = Table(
    "curves",
    (
        Column(
            "curve",
            TEXT,
            "roc, precision_recall, reliability_before, reliability_after; net_benefit and, at the headline prevalence,"
            " screening_benefit, each also with _all and _operating_point",
        ),
        Column("arm", TEXT, "model"),
        Column("x", NUMBER, "false-positive rate, recall, mean predicted probability, or threshold probability"),
        Column("y", NUMBER, "recall, precision, observed share with the condition, or net benefit per patient"),
        Column("y_low", NUMBER, "lower limit where one exists", optional=True),
        Column("y_high", NUMBER, "upper limit where one exists", optional=True),
        Column("n", INTEGER, "patients behind the point, where they differ by point", optional=True),
    ),
    order=(),
)

PATIENT_SCORES = Table(
    "patient_scores",
    (
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("arm", TEXT, "model"),
        Column("score", NUMBER, "logit of the patient: mean over seeds, then aggregated over images"),
        Column(
            "probability",
            NUMBER,
            "calibrated probability at the prevalence that threshold.json states; reported arm only",
            optional=True,
        ),
        Column("label", INTEGER, "1 positive, 0 negative"),
        Column("referred", YES_NO, "score at or above the operating threshold; reported arm only", optional=True),
    ),
    order=("arm", "patient_id"),
)


def write_table(path: Path, frame: pd.DataFrame, table: Table) -> None:
    """Write `frame` as Parquet after checking columns, types and missing values; rows are ordered as the table says.

    Raises TableError with every problem found.
    """
    problems = _column_problems(list(frame.columns), table)
    problems += [
        f"{c.name}: {int(frame[c.name].isna().sum())} missing values"
        for c in table.columns
        if not c.optional and c.name in frame and frame[c.name].isna().any()
    ]
    if problems:
        raise TableError(f"{table.name}: " + "; ".join(problems))
    ordered = frame.sort_values(list(table.order), kind="stable") if table.order else frame
    try:
        content = pa.Table.from_pandas(ordered[list(frame.columns)], schema=table.schema, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        # Arrow's message can quote the offending cell, which may be identifying.
        raise TableError(f"{table.name}: a column has values of another type than its definition") from error
    with atomic(path) as temporary:
        pq.write_table(content, temporary, compression="zstd")


def write_arrow(path: Path, rows: pa.Table) -> None:
    """Write rows as they are."""
    with atomic(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], table: Table) -> None:
    """Write dictionaries as Parquet, in their order; columns that one of them lacks are missing there."""
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=table.schema), temporary, compression="zstd")


def merge_pages(pages: Sequence[Path], path: Path, table: Table, scratch: Path) -> None:
    """Write the rows of many Parquet files as one, in the table's order, in memory that does not grow with them.

    Rows are dealt to files by the first character of the first column that they are ordered by; these are sorted one
    by one, in a folder inside `scratch`.
    """
    key = table.order[0]
    with TemporaryDirectory(dir=scratch) as folder, ExitStack() as stack:
        piles: dict[str, pa.ipc.RecordBatchStreamWriter] = {}
        for page in pages:
            rows = pq.read_table(page)
            first = np.array([text[0] for text in rows[key].to_pylist()])
            for letter in np.unique(first).tolist():
                if letter not in piles:
                    stream = stack.enter_context(pa.OSFile(f"{folder}/{ord(letter)}", "wb"))
                    piles[letter] = stack.enter_context(pa.ipc.new_stream(stream, table.schema))
                piles[letter].write_table(rows.filter(pa.array(first == letter)))
            return_memory()
        stack.close()
        with atomic(path) as temporary, pq.ParquetWriter(temporary, table.schema, compression="zstd") as merged:
            for letter in sorted(piles):
                with pa.OSFile(f"{folder}/{ord(letter)}") as stream, pa.ipc.open_stream(stream) as pile:
                    ordered = pile.read_all().combine_chunks().sort_by([(name, "ascending") for name in table.order])
                    merged.write_table(ordered, row_group_size=ROWS_PER_PIECE)
                    del ordered
                    return_memory()


def return_memory() -> None:
    """Give memory that was freed back to the system, which the allocator otherwise keeps for later."""
    pa.default_memory_pool().release_unused()


def iterate(path: Path, columns: Sequence[str], where: str = "") -> Iterator[pa.Table]:
    """Yield some columns of a Parquet file piece by piece; `where` names a column that must be an empty text."""
    wanted = [*columns, *([where] if where and where not in columns else [])]
    with pq.ParquetFile(path) as file:
        # iter_batches holds on to every row group it has read.
        for group in range(file.num_row_groups):
            piece = file.read_row_group(group, columns=wanted, use_threads=False)
            kept = piece.filter(pc.field(where) == "") if where else piece
            del piece
            yield kept.select(list(columns)).combine_chunks()
            del kept
            return_memory()


def read_table(path: Path, table: Table) -> pd.DataFrame:
    """Read a Parquet file and check that it has exactly the table's columns and types.

    Raises TableError when it has not.
    """
    content = pq.read_table(path)
    problems = _column_problems(content.column_names, table)
    problems += [
        f"{c.name}: {content.schema.field(c.name).type} instead of {c.type}"
        for c in table.columns
        if c.name in content.column_names and content.schema.field(c.name).type != c.type
    ]
    if problems:
        raise TableError(f"{path.name} is not a table of {table.name}: " + "; ".join(problems))
    frame = content.to_pandas()
    for column in table.columns:
        # A missing value would otherwise turn integers into floats and booleans into objects.
        nullable = {INTEGER: pd.Int64Dtype(), YES_NO: pd.BooleanDtype()}.get(column.type)
        if column.optional and nullable is not None:
            frame[column.name] = content[column.name].to_pandas(types_mapper=lambda _, kind=nullable: kind)
    return frame


def _column_problems(names: list[str], table: Table) -> list[str]:
    expected = [c.name for c in table.columns]
    return [f"column {name} is missing" for name in expected if name not in names] + [
        f"column {name} is not defined" for name in names if name not in expected
    ]
