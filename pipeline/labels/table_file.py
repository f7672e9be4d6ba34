"""A table in a file, as text: CSV whatever its separator and encoding, Parquet, or MedMNIST's .npz."""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.imaging.archive.sources import array_path, image_arrays
from pipeline.imaging.pseudonyms import visible
from pipeline.store.wording import counted

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# How files begin that hold tables otherwise: their content would be taken for names of columns.
OTHERS = {"<": "HTML or XML", "{\\rtf": "RTF", "{": "JSON", "[": "JSON", "%PDF": "PDF"}
WORKBOOKS = ((b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)"), (b"PK\x03\x04", "a workbook (.xlsx or .ods)"))
# Characters that stand in no text; in so many bytes, any other file has some of them.
CONTROLS, LOOKED_AT = re.compile(rb"[\x00-\x08\x0e-\x1a]"), 4096
SHOWN_LINES = 5
GUESSED = "cp1252"
# In Western European words, letters outside ASCII stand alone or in twos ("infecção"). Read as if they were such, those
# of other scripts stand in long rows, or are signs that no word has.
LONGEST_ROW = 2
SIGNS_OF_NO_WORD = set("\u0192\u201a\u02c6\u2030\u2039\u2020\u2021\u00a4\u00a6\u00a8\u00ac\u00af\u00b8")
TO_UTF_8 = "save it as CSV (UTF-8), or, if it is in CP1251: iconv -f CP1251 -t UTF-8 TABLE > NEW_TABLE"
# What pandas adds to a Parquet file to keep the numbers of its rows.
INDEX_COLUMN = "__index_level_"


class LabelsError(ValueError):
    """The label table cannot be used; the message lists all problems and quotes no patient's data."""


def read_table_file(path: Path) -> pd.DataFrame:
    """Return every named column of a table as stripped text; an empty cell is None, and nothing else is.

    `None`, `NA` and `nan` are values that somebody wrote. Numbers of Parquet files become what they are in CSV: an
    integer has no decimal point, also where gaps have made its column one of floats. Raises LabelsError.
    """
    try:
        if path.suffix.lower() == ".npz":
            return _labels_of_arrays(path)
        data = path.read_bytes()
    except LabelsError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        # The message of an operating system or a parser can quote a name or a cell.
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "damaged, or no such format"
        raise LabelsError(f"the label table cannot be read: {why.lower()}") from None
    return _parquet(data) if _is_parquet(path, data) else _csv(data)


def encoding_remark(path: Path) -> str:
    """Return what to say of a table whose letters were guessed; nothing of others, nor of what is no table."""
    try:
        data = b"" if path.suffix.lower() == ".npz" else path.read_bytes()
        if _is_parquet(path, data) or _decoded(data)[1] != GUESSED:
            return ""
    except (OSError, LabelsError):  # for `read_table_file` to say
        return ""
    return (
        "the label table is not UTF-8 and was read as Windows-1252: letters outside ASCII may be wrong, and then match "
        f"neither names nor the card's values. Where they do, {TO_UTF_8}"
    )


def _is_parquet(path: Path, data: bytes) -> bool:
    return path.suffix.lower() == ".parquet" or data.startswith(b"PAR1")


def column_name(text: str) -> str:
    """Return what a column is called: spaces and line breaks inside a cell of the header are one space, and what
    nobody sees, such as a byte order mark, is none of it.
    """
    return " ".join(visible(text).split())


# ---------------------------------------------------------------- text


def _csv(data: bytes) -> pd.DataFrame:
    text, _ = _decoded(data)
    if not text.strip():
        raise LabelsError("the label table is empty")
    if other := next((what for mark, what in OTHERS.items() if text.lstrip().startswith(mark)), None):
        raise LabelsError(f"the label table is {other}, not CSV; save it as CSV (UTF-8) and name that file")
    separator, rows = _separated(text)
    header = [column_name(name) for name in rows[0][1]]
    _refuse_repeated(header)
    if len(rows) == 1:
        raise LabelsError("the label table has no row below its header")
    ragged = [line for line, cells in rows[1:] if len(_without_empty_end(cells, len(header))) != len(header)]
    if ragged:
        some = ", ".join(map(str, ragged[:SHOWN_LINES])) + (", …" if len(ragged) > SHOWN_LINES else "")
        raise LabelsError(
            f"{counted(len(ragged), 'row')} of the label table {'has' if len(ragged) == 1 else 'have'} more or fewer "
            f"cells than its header, which has {len(header)} separated by {SEPARATORS[separator]} (line {some}); "
            "correct its separators and quotes"
        )
    columns = {
        name: [cells[place].strip() or None for _, cells in rows[1:]] for place, name in enumerate(header) if name
    }
    return pd.DataFrame(columns, dtype=object)


def _decoded(data: bytes) -> tuple[str, str]:
    """Return the text of a file and its encoding: UTF-8, UTF-16, UTF-32 or, where it seems to be that, Windows-1252."""
    for mark, workbook in WORKBOOKS:
        if data.startswith(mark):
            raise LabelsError(f"the label table is {workbook}; save it as CSV (UTF-8) and name that file")
    if data.startswith(b"\x1f\x8b"):
        raise LabelsError("the label table is compressed; unpack it and name the CSV file")
    for encoding in (_stated(data), GUESSED):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != GUESSED or _is_western(text):
            return text, encoding
    raise LabelsError(
        "the label table's letters are neither UTF-8, UTF-16 nor, it seems, Windows-1252; it may be in CP1251, "
        f"GB18030, SHIFT_JIS or another encoding, which the file does not say: {TO_UTF_8}"
    )


def _stated(data: bytes) -> str:
    """Return the encoding that the beginning of a file states; UTF-8 where it states none."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in data[:2]:  # every table starts with a letter, a digit or a quote
        return "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    if b"\0" in data or CONTROLS.search(data[:LOOKED_AT]):
        raise LabelsError(
            "the label table holds zero bytes or other control characters: it is damaged, or no text; save it as CSV "
            "(UTF-8)"
        )
    return "utf-8-sig"


def _is_western(text: str) -> bool:
    """Say whether most of the characters outside ASCII can be those of a Western European language."""
    rows = re.findall(r"[^\x00-\x7f]+", text)
    strange = sum(len(row) for row in rows if len(row) > LONGEST_ROW or SIGNS_OF_NO_WORD & {*row})
    return 2 * strange < len("".join(rows))


def _separated(text: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the separator and the rows that are not blank, each with its line number."""
    first, _, rest = text.lstrip().partition("\n")
    if (said := re.fullmatch(r"sep=(.)\s*", first)) and said[1] in SEPARATORS:  # Excel's own note to itself
        return said[1], _rows(rest, said[1])
    parsed, problems = {}, []
    for separator in [one for one in SEPARATORS if one in first] or SEPARATORS:
        try:
            parsed[separator] = _rows(text, separator)
        except LabelsError as error:
            problems.append(error)
    if not parsed:
        raise problems[0]
    widths = {separator: len(rows[0][1]) for separator, rows in parsed.items()}
    several = {separator: rows for separator, rows in parsed.items() if widths[separator] > 1}
    if not several:
        raise LabelsError(
            "the header of the label table has a single cell; it takes two columns at least, separated by comma, "
            "semicolon, tab or bar"
        )
    even = [separator for separator, rows in several.items() if _is_even(rows)]
    if len(even) > 1:
        names = " and by ".join(SEPARATORS[separator] for separator in even)
        raise LabelsError(f"the label table can be read as separated by {names}; put cells that hold either in quotes")
    separator = even[0] if even else max(several, key=lambda one: widths[one])
    return separator, parsed[separator]


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        if "field limit" in str(error):
            raise LabelsError(
                f"the label table has a cell of more than {csv.field_size_limit():,} characters near line "
                f"{reader.line_num}: shorten it, or close a quotation mark that is left open"
            ) from None
        raise LabelsError(
            f"the label table is not readable near line {reader.line_num}: a quotation mark is not closed, or stands "
            "inside a cell; correct its quotes"
        ) from None
    return rows


def _is_even(rows: Sequence[tuple[int, list[str]]]) -> bool:
    return len({len(_without_empty_end(cells, len(rows[0][1]))) for _, cells in rows}) == 1


def _without_empty_end(cells: list[str], width: int) -> list[str]:
    """Return the cells without empty ones beyond the header: separators at the end of a line."""
    return cells[:width] if not any(cell.strip() for cell in cells[width:]) else cells


def _refuse_repeated(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise LabelsError(
            f"the label table has {counted(len(repeated), 'column name')} more than once: {', '.join(repeated)}; "
            "which column is meant cannot be told: rename them"
        )


# ---------------------------------------------------------------- Parquet and arrays


def _parquet(data: bytes) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError):
        raise LabelsError("the label table cannot be read: damaged, or not Parquet") from None
    names = [column_name(name) for name in table.column_names]
    _refuse_repeated(names)
    if not table.num_rows:
        raise LabelsError("the label table has no row below its header")
    columns = {}
    for name, column in zip(names, table.columns, strict=True):
        if not name or name.startswith(INDEX_COLUMN):
            continue
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise LabelsError(f"column {name} of the label table holds {kind}, which is no text; leave it out")
        columns[name] = [_text(value) for value in column.to_pylist()]
    return pd.DataFrame(columns, dtype=object)


def _text(value: Any) -> str | None:
    """Return a value of a typed column as it would stand in a CSV file."""
    if value is None or value != value:
        return None
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        return str(int(value)) if value == value.to_integral_value() else format(value.normalize(), "f")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value).strip() or None


def _labels_of_arrays(path: Path) -> pd.DataFrame:
    """Return `path`, `split` and the labels of every image of a .npz file as MedMNIST has it.

    The array `train_images` has its labels in `train_labels`, and `train` is the split. One label per image, (N,) or
    (N, 1), is the column `label`; several, (N, L), are the columns `label_0` to `label_<L-1>`. There are no patients
    in such a file: a card that names the column `path` as patient_id says that each image has its own.

    Raises LabelsError when an array of labels has another length than its images.
    """
    parts = []
    with np.load(path, allow_pickle=False) as arrays:
        for name, count in image_arrays(path).items():
            split = name.removesuffix("_images")
            if f"{split}_labels" not in arrays:
                continue
            labels = arrays[f"{split}_labels"]
            if len(labels) != count or labels.ndim > 2:
                raise LabelsError(
                    f"{split}_labels of the .npz file has the shape {labels.shape}; {name} holds {count} images"
                )
            values = labels.reshape(count, -1).astype(str)
            names = ["label"] if values.shape[1] == 1 else [f"label_{place}" for place in range(values.shape[1])]
            paths = {"path": [array_path(name, row) for row in range(count)], "split": split}
            parts.append(pd.DataFrame(paths).join(pd.DataFrame(values, columns=names)))
    if not parts:
        raise LabelsError("the .npz file has no labels: for train_images, for example, it takes train_labels")
    return pd.concat(parts, ignore_index=True).astype(object)
