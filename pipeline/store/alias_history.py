"""When which model was called champion, and why: one line per move of an alias, chained by hash, never rewritten."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.store.files import append_line, sha256_json

FOLDER, FILE = "models", "history.jsonl"
START = "0" * 64  # what the first line follows


@dataclass(frozen=True)
class Move:
    """An alias of a registered model led to one version, and now leads to another, whose SHA-256 is `to_sha256`.

    `from_version` and `from_sha256` are empty when the alias was new. `not_usable_because` says what `forced` passed
    over. `when` is in UTC; `account` is the one on the operating system.
    """

    when: str
    name: str
    alias: str
    from_version: str
    from_sha256: str
    to_version: str
    to_sha256: str
    account: str
    why: str
    forced: bool
    not_usable_because: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """The moves of all models, oldest first, the hash of each one's line, and what is wrong with the chain."""

    moves: tuple[Move, ...]
    hashes: tuple[str, ...]
    problems: tuple[str, ...]

    def of(self, name: str) -> list[Move]:
        """Return the moves of one registered model."""
        return [move for move in self.moves if move.name == name]

    def forced(self, sha256: str) -> list[Move]:
        """Return how a model was promoted although it was not usable, whatever it was called."""
        return [move for move in self.moves if move.forced and move.to_sha256 == sha256]


def append(store: Path, move: Move) -> str:
    """Add a line, flushed to disk; return its hash. The caller holds the lock of the store's models."""
    path = store / FOLDER / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    content = {**asdict(move), "previous": _last_hash(before)}
    sha256 = sha256_json(content)
    append_line(path, json.dumps({**content, "sha256": sha256}, ensure_ascii=False))
    return sha256


def read(store: Path) -> History:
    """Return all moves, and every place where the chain of hashes is broken."""
    path = store / FOLDER / FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    moves, hashes, problems = [], [], []
    previous = START
    for number, text in enumerate(lines, 1):
        content: dict[str, Any] | None = _parsed(text)
        if content is None:
            problems.append(f"line {number} of {FILE} is no entry")
            continue
        claimed = content.pop("sha256")
        if sha256_json(content) != claimed:
            problems.append(f"line {number} of {FILE} was changed after it was written")
        if content.pop("previous") != previous:
            problems.append(f"before line {number} of {FILE} something was removed, added or moved")
        previous = claimed
        hashes.append(claimed)
        moves.append(Move(**content | {"not_usable_because": tuple(content["not_usable_because"])}))
    return History(tuple(moves), tuple(hashes), tuple(problems))


def _last_hash(content: bytes) -> str:
    for text in reversed(content.splitlines()):
        if (line := _parsed(text)) is not None:
            return line["sha256"]
    return START


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    names = {*Move.__dataclass_fields__, "previous", "sha256"}
    return line if isinstance(line, dict) and line.keys() == names else None
