"""Tables that flow between stages: what a column is, and reading and writing with every column checked.

A missing, extra or mistyped column stops the stage with its name. The definitions lie beside, in one file per stage
that writes them: a stage whose code imports a definition depends on it, and on no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
