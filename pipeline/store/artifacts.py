"""Versioned artifacts on disk: complete or absent, locked while made, checked when read.

An artifact is the folder `<store>/<stage>/<key>/` with its files and `artifact.json`, which lists the SHA-256 of
every file. Work happens in `<key>.partial/`; one rename publishes it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.store.files import flush_directory, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from pipeline.config import Card, Machine

RECORD = "artifact.json"


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
        """The content of artifact.json."""
        return read_json(self.path / RECORD)

    def file(self, name: str) -> Path:
        """Return the path of a file after comparing its bytes with the SHA-256 recorded when it was made.

        Raises StoreError when the file is unknown, missing or changed.
        """
        expected = self.record["files"].get(name)
        path = self.path / name
        if expected is None:
            raise StoreError(f"{self.stage} {self.key} has no file {name}")
        if not path.is_file():
            raise StoreError(f"{self.stage} {self.key}: {name} is missing; rebuild with --rebuild {self.stage}")
        if sha256_file(path) != expected:
            raise StoreError(
                f"{self.stage} {self.key}: {name} has changed since it was made (SHA-256 differs); "
                f"rebuild with --rebuild {self.stage}"
            )
        return path


@dataclass(frozen=True)
class Inputs:
    """All that a stage may read.

    `artifacts` are those of earlier stages; `readable` limits their files by pattern, so that, for instance,
    `calibrate` cannot open the test scores.
    """

    card: Card
    machine: Machine
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    readable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    studies: tuple[Path, ...] = ()
    labels: Path | None = None
    secret: bytes = b""

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
        """Return the record of an earlier stage's artifact: settings, versions, hashes, warnings, wall time."""
        return self.artifacts[stage].record
