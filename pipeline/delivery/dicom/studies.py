"""Which entries of a queue are about one study: a list of ids by the hash of study and patient, kept in the queue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.store.files import append_line

FOLDER = "studies"
# What lies beside a result: what its objects are about, and whether an archive has acknowledged them.
OBJECTS, UNDELIVERED, DELIVERED = "objects.json", "undelivered.json", "delivered.json"


@dataclass(frozen=True)
class Studies:
    """The lists in `root`, the folder of a queue."""

    root: Path

    def entries(self, subject: str) -> list[str]:
        """Return the ids of the entries about a study, the earliest first, each once."""
        try:
            lines = self._file(subject).read_text("ascii", "replace").splitlines()
        except FileNotFoundError:
            return []
        return list(dict.fromkeys(line for line in lines if line))

    def add(self, subject: str, entry_id: str) -> None:
        """Remember that an entry is about a study; once this returns, no crash loses it."""
        file = self._file(subject)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        append_line(file, entry_id)

    def _file(self, subject: str) -> Path:
        return self.root / FOLDER / subject
