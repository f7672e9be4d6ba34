"""Which patients were read before, and with what: a file that only grows.

A certificate counts on calibration patients whom nobody has looked at to choose the model, a verdict on test patients
who were read once. Running again with another arm, seed or split changes an artifact's key, and no artifact knows of
the others. The ledger does: a line per calibration and evaluation that was made, with the patients it read and the
setting it read them under. Patients count by overlap of pseudonyms, so that a new split of the same people is no
fresh one. Artifacts that are reused add nothing; artifacts that are deleted take nothing away. What was made by
versions without a ledger is not in it.

`<store>/ledger/readings.jsonl`: each line holds the SHA-256 of the one before, so that none can be changed, left out or
moved without a trace. `<store>/ledger/patients/`: the pseudonyms, hashed once more, in files named by their own hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.store.artifacts import Artifact, StoreError
from pipeline.store.files import append_line, read_json, sha256_bytes, sha256_json, write_json

FOLDER, READINGS = "ledger", "readings.jsonl"
# What a stage leaves for the ledger.
READING = "reading.json"
START = "0" * 64


class LedgerError(RuntimeError):
    """The ledger was changed; the message says where."""


@dataclass(frozen=True)
class Reading:
    """One line: patients (the hash that names their file) that the artifact `stage` `key` read, and under what."""

    stage: str
    key: str
    patients: str
    setting: dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The ledger of the store at `root`. There is no file until something was read."""

    root: Path

    @property
    def _path(self) -> Path:
        return self.root / FOLDER / READINGS

    def lines(self) -> list[dict[str, Any]]:
        """Return every line, oldest first. Raises LedgerError when one cannot be read or the chain is broken."""
        if not self._path.exists():
            return []
        found, previous = [], START
        for number, text in enumerate(self._path.read_text("utf-8").splitlines(), 1):
            line: dict[str, Any] = {}
            try:
                line = json.loads(text)
                sound = line["previous"] == previous and line.pop("sha256") == sha256_json(line)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise LedgerError(
                    f"line {number} of {FOLDER}/{READINGS} in the store was changed, removed or moved: what was read"
                    " before is no longer known; restore the file from a backup, or use another store"
                )
            previous = sha256_json(line)
            found.append(line)
        return found

    @property
    def head(self) -> str:
        """The hash of the last line, which stands for all of them."""
        lines = self.lines()
        return sha256_json(lines[-1]) if lines else START

    def earlier(self, stage: str, patients: Iterable[str], key: str = "") -> list[Reading]:
        """Return the readings by other artifacts of a stage of some of these patients, oldest first.

        `patients` are pseudonyms; `key` is that of the artifact that asks. A file of patients that is gone counts as
        one with them in it.
        """
        asked = set(self.hashed(patients))
        found = [
            Reading(**{name: line[name] for name in ("stage", "key", "patients", "setting")})
            for line in self.lines()
            if line["stage"] == stage and line["key"] != key
        ]
        overlap = {name: self._overlap(name, asked) for name in {one.patients for one in found}}
        return [one for one in found if overlap[one.patients]]

    def _overlap(self, name: str, asked: set[str]) -> bool:
        path = self.root / FOLDER / "patients" / f"{name}.json"
        return not path.exists() or not asked.isdisjoint(read_json(path))

    def append(self, artifacts: Iterable[Artifact]) -> None:
        """Add the reading that each artifact left, unless it left none or is in the ledger already."""
        left = [one for one in artifacts if _left_a_reading(one)]
        if not left:
            return
        folder = self.root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            lines = self.lines()
            known = {(line["stage"], line["key"]) for line in lines}
            previous = sha256_json(lines[-1]) if lines else START
            for artifact in left:
                if (artifact.stage, artifact.key) in known:
                    continue
                reading = read_json(artifact.file(READING))
                patients = sorted(reading["patients"])
                name = sha256_json(patients)
                if not (path := folder / "patients" / f"{name}.json").exists():
                    write_json(path, patients)
                line = {
                    "stage": artifact.stage,
                    "key": artifact.key,
                    "created": artifact.record["created"],
                    "patients": name,
                    "count": len(patients),
                    "setting": reading["setting"],
                    "previous": previous,
                }
                previous = sha256_json(line)
                append_line(self._path, json.dumps({**line, "sha256": previous}, sort_keys=True, ensure_ascii=False))

    @staticmethod
    def hashed(patients: Iterable[str]) -> list[str]:
        """Return pseudonyms hashed once more, sorted: the ledger outlives artifacts and need not name anybody."""
        return sorted(sha256_bytes(f"ledger\0{one}".encode())[:32] for one in set(patients))

    @staticmethod
    def distinct(readings: Sequence[Reading], now: dict[str, Any]) -> int:
        """Return how many settings there are among earlier readings and the present one."""
        return len({sha256_json(setting) for setting in (*(one.setting for one in readings), now)})


def _left_a_reading(artifact: Artifact) -> bool:
    try:
        artifact.file(READING)
    except StoreError:  # none, or damaged: whoever needs the artifact is told so
        return False
    return True
