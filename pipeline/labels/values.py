"""The label table: the columns that a dataset's card names, as text, and what their values mean."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pandas as pd

from pipeline.imaging.pseudonyms import visible
from pipeline.labels.table_file import LabelsError, column_name, encoding_remark, read_table_file
from pipeline.store.wording import counted

__all__ = ["LabelsError", "meanings", "read_labels", "refuse_shortened", "spelling"]
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d+", re.IGNORECASE)
MINUS_SIGNS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2212"), "-")


def read_labels(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the named columns, or all, as stripped text; empty cells are missing values.

    Raises LabelsError when the file is no table or lacks a column.
    """
    table = read_table_file(path)
    wanted = {name: column_name(name) for name in ([*table.columns] if columns is None else columns)}
    missing = [name for name, own in wanted.items() if own not in table.columns]
    if missing:
        near = {name: difflib.get_close_matches(name, map(str, table.columns), n=1) for name in missing}
        hints = "".join(f"; did you mean {close[0]} for {name}?" for name, close in near.items() if close)
        remark = encoding_remark(path)
        raise LabelsError(
            f"the label table has no column {', '.join(missing)}, named in the card; "
            f"its columns: {', '.join(map(str, table.columns))}{hints}{remark and f'; {remark}'}"
        )
    return pd.DataFrame({name: table[own] for name, own in wanted.items()}).dropna(how="all")


def refuse_shortened(identifiers: pd.Series) -> None:
    """Raise LabelsError when identifiers are numbers as a spreadsheet shows long ones: their last digits are lost."""
    if shortened := int(identifiers.dropna().map(lambda text: bool(SHORTENED.fullmatch(text))).sum()):
        raise LabelsError(
            f"{counted(shortened, 'identifier')} in column {identifiers.name} of the label table "
            f"{'is a number' if shortened == 1 else 'are numbers'} that a spreadsheet has shortened (as 1.23E+10): "
            "the other digits are lost; export the table again with that column as text"
        )


def spelling(value: str) -> str:
    """Return what is compared of a label's value: not case, blanks, nor how a number is written (1, 1.0, 01, 1,0).

    Letters composed and decomposed are the same, of full width and of half, and characters without width are none.
    """
    seen = visible(value).translate(MINUS_SIGNS)
    folded = unicodedata.normalize("NFC", " ".join(seen.split()).casefold())
    if not NUMBER.fullmatch(folded):
        return folded
    number = Decimal(folded.replace(",", "."))
    return str(int(number)) if number == number.to_integral_value() else format(number.normalize(), "f")


def meanings(
    column: pd.Series, positive: Sequence[str], negative: Sequence[str], unused: Sequence[str] = ()
) -> tuple[pd.Series, pd.Series]:
    """Return 1, 0 or nothing for each cell, and whether the card explains it; an empty cell needs no explanation.

    A cell is first compared as it is, then by its `spelling`, unless that would mean two things. `unused` are values
    that are no answer.
    """
    listed = {**dict.fromkeys(unused), **dict.fromkeys(negative, 0), **dict.fromkeys(positive, 1)}
    spelled: dict[str, set[int | None]] = {}
    for value, meaning in listed.items():
        spelled.setdefault(spelling(value), set()).add(meaning)
    cells = {
        cell: {listed[cell]} if cell in listed else spelled.get(spelling(cell), set())
        for cell in column.dropna().unique()
    }
    known = {cell: next(iter(found)) for cell, found in cells.items() if len(found) == 1}
    return column.map(known).astype("Int64"), column.isna() | column.isin(known.keys())
