"""What the store remembers of MLflow: which artifacts and runs it has, so that it need not be opened to be asked."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.files import read_json, sha256_json, write_json

FOLDER = "indexed"
KINDS = ("stage", "pipeline")
DATABASE = "mlflow.db"


@dataclass(frozen=True)
class Memory:
    """The keys of the runs that were completely indexed, by kind, and what the database looked like then."""

    state: Sequence[int] | None
    experiment_id: str
    keys: Mapping[str, Collection[str]]


def state(store: Path, uri: str | None) -> list[int] | None:
    """Return what tells that the database inside the store is the same and unwritten: place on disk, size, time.

    Nothing of a server, which keeps what it was given, and of a database that is not there.
    """
    try:
        status = os.stat(store / DATABASE) if uri is None else None
    except FileNotFoundError:
        return None
    return None if status is None else [status.st_ino, status.st_size, status.st_mtime_ns]


def readable(store: Path) -> str:
    """Return why the database inside the store cannot be used, or an empty text. MLflow would take seconds."""
    try:
        with closing(sqlite3.connect(f"{(store / DATABASE).resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM experiments").fetchone()
    except sqlite3.Error as error:
        return f"does not answer ({type(error).__name__})"
    return ""


def recall(store: Path, project: str, uri: str | None) -> Memory | None:
    """Return what is remembered of a project; None when MLflow has to be asked.

    That is so when the database was removed, replaced, restored or written to since, and always for one by file: only
    the database inside the store and a server can be known to be the same.
    """
    try:
        memory = Memory(**read_json(_file(store, project, uri)))
    except (FileNotFoundError, TypeError, ValueError):
        return None
    if uri is None:
        return memory if memory.state is not None and memory.state == state(store, None) else None
    return memory if uri.startswith(("http://", "https://")) else None


def note(store: Path, project: str, uri: str | None, memory: Memory) -> None:
    """Write down what MLflow has of a project."""
    keys = {kind: sorted(memory.keys[kind]) for kind in KINDS}
    content = {"state": memory.state, "experiment_id": memory.experiment_id, "keys": keys}
    write_json(_file(store, project, uri), content)


def forget(store: Path) -> None:
    """Remove what is remembered, as when runs were removed from MLflow."""
    for path in (store / FOLDER).glob("*.json"):
        path.unlink(missing_ok=True)


def _file(store: Path, project: str, uri: str | None) -> Path:
    # An address may hold a password.
    return store / FOLDER / f"{project}-{sha256_json([uri])[:16]}.json"
