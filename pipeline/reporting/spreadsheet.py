"""CSV files that no spreadsheet program executes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# What starts a formula, also in its full-width forms, at the start of a cell or after a separator: a program that
# expects semicolons or tabs splits a comma-separated file there.
_FORMULA = re.compile(r"(^|[;\t|])(\s*)(?=[=+\-@\t\r＝＋－＠])")
_NUMERIC = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|0x[01]\.[0-9a-f]+p[+-]\d+)")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a CSV file. Missing values are empty; text that would start a formula gets a leading apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow([cell(c) for c in columns])
    writer.writerows([cell(value) for value in row] for row in rows)
    return stream.getvalue()


def cell(value: Any) -> Any:
    """Return a value as it may stand in a CSV file."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    return value if _NUMERIC.fullmatch(value) else _FORMULA.sub(r"\1\2'", value)
