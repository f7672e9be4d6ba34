"""Which model is which version of which name: one line per registration, so that MLflow can be filled again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.store.alias_history import FOLDER, Move
from pipeline.store.files import append_line

FILE = "registered.jsonl"
FIELDS = {"name", "version", "sha256"}


def note(store: Path, name: str, version: str, sha256: str) -> None:
    """Add a line, flushed to disk, unless it is there. The caller holds the lock of the store's models."""
    if known(store).get(name, {}).get(version) != sha256:
        line = {"name": name, "version": version, "sha256": sha256}
        append_line(store / FOLDER / FILE, json.dumps(line, ensure_ascii=False))


def known(store: Path, moves: Sequence[Move] = ()) -> Mapping[str, Mapping[str, str]]:
    """Return the hash of each version of each name; `moves` of aliases know some that earlier code did not note."""
    found: dict[str, dict[str, str]] = {}
    for move in moves:
        for version, sha256 in ((move.from_version, move.from_sha256), (move.to_version, move.to_sha256)):
            if version:
                found.setdefault(move.name, {})[version] = sha256
    path = store / FOLDER / FILE
    for text in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.keys() == FIELDS:
            found.setdefault(line["name"], {})[line["version"]] = line["sha256"]
    return found
