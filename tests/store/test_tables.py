"""A table is what its definition says, or the stage stops with the column's name."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.store.tables import catalogue
from pipeline.store.tables.ingest import IMAGES, QUARANTINE
from pipeline.store.tables.io import Table, TableError, iterate, merge_pages, read_table, write_rows, write_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import SCORES


def scores() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["b", "a"],
            "patient_id": ["p", "q"],
            "arm": "mae",
            "seed": 1,
            "logit": [0.5, -1.0],
            "label": [1, 0],
        }
    )


def test_round_trip_keeps_types_and_orders_rows(tmp_path):
    write_table(tmp_path / "s.parquet", scores(), SCORES)
    back = read_table(tmp_path / "s.parquet", SCORES)
    assert back.image_id.tolist() == ["a", "b"]
    assert back.label.tolist() == [0, 1]
    assert back.label.dtype == "int64"


def test_missing_labels_stay_missing_and_integers_stay_integers(tmp_path):
    frame = pd.DataFrame(
        {"image_id": ["a", "b"], "patient_id": ["p", "q"], "label": pd.array([1, None], dtype="Int64"),
         "shard": "x.npy", "row": [0, 1], "padding": [[0.0], [0.0]]}
    )  # fmt: skip
    write_table(tmp_path / "i.parquet", frame, INDEX)
    label = read_table(tmp_path / "i.parquet", INDEX).label
    assert label.dtype == "Int64"
    assert label[0] == 1
    assert label.isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="logit"), "column logit is missing"),
        (lambda f: f.assign(extra=1), "column extra is not defined"),
        (lambda f: f.assign(label=[1, None]), "label: 1 missing values"),
        (lambda f: f.assign(logit=["Meier", "Huber"]), "another type"),
    ],
)
def test_wrong_tables_are_refused_without_quoting_cells(tmp_path, change, message):
    with pytest.raises(TableError, match=message) as error:
        write_table(tmp_path / "s.parquet", change(scores()), SCORES)
    assert "Meier" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_foreign_table_is_not_read(tmp_path):
    write_table(tmp_path / "s.parquet", scores(), SCORES)
    with pytest.raises(TableError, match="column view is missing"):
        read_table(tmp_path / "s.parquet", IMAGES)


def test_same_rows_same_bytes(tmp_path):
    write_table(tmp_path / "1.parquet", scores(), SCORES)
    write_table(tmp_path / "2.parquet", scores().iloc[::-1], SCORES)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_every_column_has_a_meaning():
    tables = [table for table in vars(catalogue).values() if isinstance(table, Table)]
    assert len(tables) >= 20
    for table in tables:
        assert all(column.meaning for column in table.columns)


def test_the_catalogue_has_every_table():
    """Of each file of definitions."""
    folder = Path(catalogue.__file__).parent
    for path in folder.glob("[!_]*.py"):
        module = importlib.import_module(f"pipeline.store.tables.{path.stem}")
        defined = {name for name, value in vars(module).items() if isinstance(value, Table)}
        assert defined <= vars(catalogue).keys()


def test_pages_are_merged_in_order_and_read_piece_by_piece(tmp_path):
    names = [f"{letter}{number:04d}" for letter in "cab" for number in range(900)]
    rows = [{"source_id": name, "sha256": "0" * 64, "reason": "" if n % 3 else "colour", "detail": ""}
            for n, name in enumerate(names)]  # fmt: skip
    np.random.default_rng(0).shuffle(rows)
    for page, start in enumerate(range(0, len(rows), 70)):
        write_rows(tmp_path / f"{page}.parquet", rows[start : start + 70], QUARANTINE)
    merge_pages(sorted(tmp_path.glob("*.parquet")), tmp_path / "all", QUARANTINE, tmp_path)
    assert read_table(tmp_path / "all", QUARANTINE)["source_id"].tolist() == sorted(names)
    first = (tmp_path / "all").read_bytes()
    for page in tmp_path.glob("*.parquet"):
        page.unlink()
    for page, start in enumerate(range(0, len(rows), 333)):
        write_rows(tmp_path / f"{page}.parquet", rows[start : start + 333], QUARANTINE)
    merge_pages(sorted(tmp_path.glob("*.parquet")), tmp_path / "all", QUARANTINE, tmp_path)
    assert (tmp_path / "all").read_bytes() == first
    pieces = list(iterate(tmp_path / "all", ["source_id"], where="reason"))
    assert sum(piece.num_rows for piece in pieces) == len(rows) * 2 // 3
    assert max(piece.num_rows for piece in pieces) <= 1024


def test_no_pages_make_an_empty_table(tmp_path):
    merge_pages([], tmp_path / "all", QUARANTINE, tmp_path)
    assert len(read_table(tmp_path / "all", QUARANTINE)) == 0
