"""What lies in the store, stage by stage, and its removal: one thing at a time, never what another process holds."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from filelock import FileLock, Timeout

from pipeline.store.artifacts import OLD, RECORD, Store, StoreError, remove_folder

Kind = Literal["artifact", "unfinished", "superseded", "torn", "request", "lock"]
PARTIAL, REQUEST, LOCK = ".partial", ".rebuild.json", ".lock"
NAME = re.compile(r"([0-9a-f]{16})(\.partial|\.old|\.rebuild\.json|\.lock|)")


@dataclass(frozen=True)
class Lying:
    """Something in the folder of a stage.

    An `artifact`; `unfinished` work of one; a `superseded` one that its successor has replaced; what is left of an
    interrupted removal, `torn`; a `request` to make an artifact anew; or a `lock`. `record` is that of an artifact,
    None when it is damaged. `held` says that another process works on this key.
    """

    kind: Kind
    stage: str
    key: str
    path: Path
    size_bytes: int
    changed: datetime
    held: bool
    record: Mapping[str, Any] | None = None


def inventory(store: Store, stages: Iterable[str]) -> list[Lying]:
    """Return everything of ours that lies in the folders of these stages, by stage and key; change nothing."""
    found: list[Lying] = []
    for stage in stages:
        suffixes: dict[str, set[str]] = defaultdict(set)
        for path in (store.root / stage).glob("*"):
            if name := NAME.fullmatch(path.name):
                suffixes[name[1]].add(name[2])
        for key in sorted(suffixes):
            found += _of_key(store, stage, key, suffixes[key])
    return found


def remove(store: Store, lying: Lying) -> bool:
    """Remove one thing; return False, and leave it, when another process holds its lock by now.

    The lock of a key goes with the last of its things.
    """
    folder = store.root / lying.stage
    try:
        with FileLock(folder / f"{lying.key}{LOCK}").acquire(timeout=0):
            if lying.path.is_dir():
                remove_folder(lying.path)
            elif lying.kind != "lock":
                lying.path.unlink(missing_ok=True)
            others = (f"{lying.key}{suffix}" for suffix in ("", PARTIAL, OLD, REQUEST))
            if not any((folder / name).exists() for name in others):
                (folder / f"{lying.key}{LOCK}").unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def folder_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(status.st_size for status in _statuses(path) if S_ISREG(status.st_mode))


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Return what the system says of a path and of all below it, but for what another process removes meanwhile."""
    for one in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            yield one.lstat()


def _of_key(store: Store, stage: str, key: str, suffixes: set[str]) -> Iterator[Lying]:
    folder = store.root / stage
    held = LOCK in suffixes and _held(folder / f"{key}{LOCK}")
    artifact = store.find(stage, key)

    def lying(kind: Kind, suffix: str, record: Mapping[str, Any] | None = None) -> Lying:
        path = folder / f"{key}{suffix}"
        return Lying(kind, stage, key, path, folder_bytes(path), _changed(path, record), held, record)

    for suffix in ("", OLD):
        path = folder / f"{key}{suffix}"
        if suffix not in suffixes or not path.is_dir():
            continue
        if artifact is not None and artifact.path == path:
            try:
                yield lying("artifact", suffix, artifact.record)
            except StoreError:
                yield lying("artifact", suffix)
        else:
            yield lying("superseded" if (path / RECORD).is_file() else "torn", suffix)
    if PARTIAL in suffixes:
        yield lying("unfinished", PARTIAL)
    if REQUEST in suffixes:
        yield lying("request", REQUEST)
    if LOCK in suffixes:
        yield lying("lock", LOCK)


def _held(path: Path) -> bool:
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _changed(path: Path, record: Mapping[str, Any] | None) -> datetime:
    """Return when something was last changed: an artifact when it was made, work when a file of it was written."""
    if record is not None and "created" in record:
        made = datetime.fromisoformat(record["created"])
        return made if made.tzinfo else made.replace(tzinfo=UTC)
    times = [status.st_mtime for status in _statuses(path)]
    return datetime.fromtimestamp(max(times), UTC) if times else datetime.now(UTC)
