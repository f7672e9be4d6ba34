"""Versioned artifacts on disk: complete or absent, locked while made, checked when read.

An artifact is the folder `<store>/<stage>/<key>/` with its files and `artifact.json`, which lists the SHA-256 of
every file. Work happens in `<key>.partial/`; one rename publishes it. One that is made again is replaced only when its
successor is complete: it steps aside to `<key>.old/` for the moment of that rename. That it is to be made again stands
in `<key>.rebuild.json` until then, so that an interrupted rebuild is known to be unfinished.
"""

from __future__ import annotations

import fnmatch
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.store.files import flush_directory, read_json, sha256_file, write_json
from pipeline.store.lineage import SourceHashes

if TYPE_CHECKING:
    from pipeline.settings.card import Card
    from pipeline.settings.where import Machine
    from pipeline.store.ledger import Ledger

RECORD = "artifact.json"
OLD = ".old"


class StoreError(RuntimeError):
    """An artifact is missing, damaged or busy; the message says which and what to do."""


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    stage: str
    key: str
    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of artifact.json. Raises StoreError when it is damaged."""
        try:
            return read_json(self.path / RECORD)
        except ValueError as error:
            raise StoreError(
                f"{self.stage} {self.key}: {RECORD} is damaged; make it anew with --rebuild {self.stage}"
            ) from error

    def file(self, name: str) -> Path:
        """Return the path of a file after comparing its bytes with the SHA-256 recorded when it was made.

        Raises StoreError when the file is unknown, missing or changed.
        """
        expected = self.record["files"].get(name)
        path, step = self.path / name, self.record.get("step", self.stage)
        if expected is None:
            raise StoreError(f"{step} {self.key} has no file {name}")
        if not path.is_file():
            raise StoreError(f"{step} {self.key}: {name} is missing; rebuild with --rebuild {step}")
        if sha256_file(path) != expected:
            raise StoreError(
                f"{step} {self.key}: {name} has changed since it was made (SHA-256 differs); "
                f"rebuild with --rebuild {step}"
            )
        return path


@dataclass(frozen=True)
class Inputs:
    """All that a stage may read.

    `artifacts` are those of earlier stages; `readable` limits their files by pattern, so that, for instance,
    `calibrate` cannot open the test scores. `lookup` is the private table beside the key that leads from pseudonyms
    back to paths and patients; None when nobody needs one. `hashes` gives the SHA-256 of a source file without reading
    an unchanged one again. `include` and `exclude` are patterns of paths under `studies`. `imported_weights` are those
    of another project or run. `previous` is an earlier artifact of this stage that differs in
    nothing but sources and inputs that the stage takes in piecemeal. `deadline` is
    the time.monotonic() after which a training should save and stop. `test_only` says that these are the studies of an
    external test set, of which every labelled patient is a test patient; `external` has the cards of such sets by name,
    whose artifacts are called `score@name` and so on. `ledger` knows which patients other artifacts read, and `own_key`
    is the key of the artifact that is being made; the ledger is no part of it, so that reading on changes no key.
    """

    card: Card
    machine: Machine
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    readable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    studies: tuple[Path, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels: Path | None = None
    imported_weights: Path | None = None
    secret: bytes = b""
    kept: Mapping[str, str] = field(default_factory=dict)
    lookup: Path | None = None
    hashes: SourceHashes = field(default_factory=SourceHashes)
    previous: Artifact | None = None
    deadline: float = math.inf
    test_only: bool = False
    external: Mapping[str, Card] = field(default_factory=dict)
    ledger: Ledger | None = None
    own_key: str = ""

    def file(self, stage: str, name: str) -> Path:
        """Return the verified path of one file of an earlier stage.

        Raises StoreError when this stage may not read it, or when it is missing or damaged.
        """
        if not any(fnmatch.fnmatch(name, pattern) for pattern in self.readable.get(stage, ())):
            raise StoreError(f"{name} of {stage} is not an input of this stage")
        return self.artifacts[stage].file(name)

    def files(self, stage: str, pattern: str) -> list[Path]:
        """Return the verified paths, sorted by name, of the readable files of a stage that match `pattern`."""
        names = fnmatch.filter(sorted(self.artifacts[stage].record["files"]), pattern)
        allowed = self.readable.get(stage, ())
        return [
            self.artifacts[stage].file(name)
            for name in names
            if any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
        ]

    def key(self, stage: str) -> str:
        """Return the key of an earlier stage's artifact."""
        return self.artifacts[stage].key

    def record(self, stage: str) -> dict[str, Any]:
        """Return the record of an earlier stage's artifact: settings, versions, hashes, warnings, wall time.

        `kept` says why an artifact made by earlier code was used all the same; it is empty otherwise.
        """
        return {**self.artifacts[stage].record, "kept": self.kept.get(stage, "")}


@dataclass(frozen=True)
class Store:
    """The folder that holds all artifacts."""

    root: Path

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the published artifact, or None."""
        final, old = self._final(stage, key), self._old(stage, key)
        # A kill between the two renames of `publish` left the earlier one aside; without a kill the new one follows.
        for path in (final, old, final):
            if (path / RECORD).is_file():
                return Artifact(stage, key, path)
        return None

    def _final(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    def _old(self, stage: str, key: str) -> Path:
        return self.root / stage / f"{key}{OLD}"

    def partial(self, stage: str, key: str) -> Path:
        """Return the folder in which an artifact is made."""
        return self.root / stage / f"{key}.partial"

    def all(self, stage: str) -> list[Artifact]:
        """Return every published artifact of a stage that can be read, newest first."""
        keys = {path.parent.name.removesuffix(OLD) for path in (self.root / stage).glob(f"*/{RECORD}")}
        found = [self.find(stage, key) for key in keys if "." not in key]
        dated = [(created, one.key, one) for one in found if one is not None and (created := _created(one))]
        return [one for *_, one in sorted(dated, key=lambda row: row[:2], reverse=True)]

    @contextmanager
    def lock(self, stage: str, key: str, waiting: Any = None) -> Iterator[None]:
        """Hold the lock, which the kernel frees when a process dies; if it is taken, call `waiting()` once and wait."""
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        held = FileLock(self.root / stage / f"{key}.lock")
        try:
            held.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            held.acquire()
        try:
            yield
        finally:
            held.release()

    def begin(self, stage: str, key: str) -> Path:
        """Return the work folder of an artifact, with what an interrupted run finished and without its torn files.

        A rebuild that has not begun yet takes over nothing.
        """
        work, final, old = self.partial(stage, key), self._final(stage, key), self._old(stage, key)
        if not final.exists() and (old / RECORD).is_file():
            old.rename(final)
        asked = self._rebuild(stage, key)
        if asked is not None and not asked["begun"]:
            remove_folder(work)
            write_json(self._request(stage, key), {**asked, "begun": True})
        work.mkdir(parents=True, exist_ok=True)
        for torn in work.rglob(".*.tmp*"):
            torn.unlink()
        return work

    def publish(self, stage: str, key: str, record: Mapping[str, Any]) -> Artifact:
        """Hash and flush every file of the work folder, write artifact.json and rename the folder into place.

        An earlier artifact of the same key is there until then.
        """
        work, final, old = self.partial(stage, key), self._final(stage, key), self._old(stage, key)
        names = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
        names = [name for name in names if name != RECORD]
        for name in names:
            with (work / name).open("rb") as stream:
                os.fsync(stream.fileno())
        write_json(work / RECORD, {**record, "files": {name: sha256_file(work / name) for name in names}})
        if final.exists():
            remove_folder(old)
            final.rename(old)
        work.rename(final)
        flush_directory(final.parent)
        self.withdraw_rebuild(stage, key)
        remove_folder(old)
        return Artifact(stage, key, final)

    # -------------------------------------------------- rebuilds that were asked for and are not finished

    def ask_rebuild(self, stage: str, key: str, steps: Iterable[str]) -> None:
        """Note that an artifact is to be made anew, and the steps that were named when this was asked for."""
        begun = bool((self._rebuild(stage, key) or {}).get("begun"))
        write_json(self._request(stage, key), {"steps": sorted(steps), "begun": begun})

    def rebuild_asked(self, stage: str, key: str) -> frozenset[str] | None:
        """Return the steps that were named when a rebuild of this artifact was asked for; None when none is due."""
        asked = self._rebuild(stage, key)
        return None if asked is None else frozenset(asked["steps"])

    def withdraw_rebuild(self, stage: str, key: str) -> None:
        """Let the artifact count as it is."""
        self._request(stage, key).unlink(missing_ok=True)

    def _request(self, stage: str, key: str) -> Path:
        return self.root / stage / f"{key}.rebuild.json"

    def _rebuild(self, stage: str, key: str) -> dict[str, Any] | None:
        try:
            return read_json(self._request(stage, key))
        except FileNotFoundError:
            return None

    def discard(self, stage: str, key: str) -> None:
        """Remove an artifact and its unfinished work."""
        for path in (self._final(stage, key), self._old(stage, key), self.partial(stage, key)):
            remove_folder(path)
        self.withdraw_rebuild(stage, key)


def _created(artifact: Artifact) -> str:
    """Return when an artifact was made; nothing when its record is damaged."""
    try:
        return artifact.record["created"]
    except StoreError:
        return ""


def remove_folder(folder: Path) -> None:
    """Remove a folder, its record first: what a kill leaves of it is no artifact."""
    if folder.exists():
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder)
