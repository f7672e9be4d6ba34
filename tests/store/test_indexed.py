"""What the store remembers of MLflow is believed only while nothing else can have changed what it has."""

import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from pipeline.store import indexed

SERVER = "https://mlflow.example.org"


@pytest.fixture
def store(tmp_path):
    with closing(sqlite3.connect(tmp_path / indexed.DATABASE)) as database, database:
        database.execute("CREATE TABLE experiments (name TEXT)")
    return tmp_path


def note(store, uri=None, project="mini"):
    keys = {"stage": {"fit/1", "split/2"}, "pipeline": {"report/3"}}
    indexed.note(store, project, uri, indexed.Memory(indexed.state(store, uri), "7", keys))


def test_what_was_noted_is_recalled_by_project_and_address(store):
    note(store)
    memory = indexed.recall(store, "mini", None)
    assert memory is not None
    assert (memory.experiment_id, memory.keys["stage"]) == ("7", ["fit/1", "split/2"])
    assert indexed.recall(store, "other", None) is None
    assert indexed.recall(store, "mini", SERVER) is None
    note(store, SERVER)
    assert indexed.recall(store, "mini", SERVER) is not None


def written(file):
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("INSERT INTO experiments VALUES ('another')")
    os.utime(file, ns=(0, 1))  # clocks of file systems are coarse


def restored(file):
    shutil.copy2(file, file.with_suffix(".old"))
    file.with_suffix(".old").replace(file)


@pytest.mark.parametrize("change", [written, restored, lambda file: file.unlink()])
def test_a_database_that_was_written_restored_or_removed_is_asked(store, change):
    note(store)
    change(store / indexed.DATABASE)
    assert indexed.recall(store, "mini", None) is None


def test_a_database_elsewhere_is_always_asked(store):
    note(store, "sqlite:////elsewhere/mlflow.db")
    assert indexed.recall(store, "mini", "sqlite:////elsewhere/mlflow.db") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": null}'])
def test_a_damaged_memory_is_none(store, text):
    note(store)
    (file,) = (store / indexed.FOLDER).iterdir()
    file.write_text(text)
    assert indexed.recall(store, "mini", None) is None


def test_after_runs_were_removed_nothing_is_remembered(store):
    note(store, SERVER)
    indexed.forget(store)
    assert indexed.recall(store, "mini", SERVER) is None


def test_a_database_that_is_none_does_not_answer(store):
    assert indexed.readable(store) == ""
    (store / indexed.DATABASE).write_bytes(b"no database, but long enough to be looked at" * 100)
    assert indexed.readable(store) == "does not answer (DatabaseError)"
