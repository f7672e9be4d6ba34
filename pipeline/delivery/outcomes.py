"""What became of studies, as readers recorded it: a table that only grows, which `monitor` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.store.files import append_line

TABLE = "outcomes.jsonl"
OUTCOMES = ("condition found", "not found", "unknown")
MEANINGS = {
    "study": "the study's id in the queue, which is `study` of its result.json",
    "outcome": "condition found, not found or unknown; the last line of a study holds",
    "time": "when it was recorded, ISO 8601, UTC",
    "model_hash": "SHA-256 of the model that judged it",
    "decision": "what the model had said: refer, no refer or not assessable",
    "score": "its score then; missing when it had none",
}


class Outcomes:
    """The table in the folder of a queue; the last outcome of each study is kept in memory."""

    def __init__(self, root: Path) -> None:
        self.path = root / TABLE
        self._read_to = 0
        self._latest: dict[str, dict[str, Any]] = {}

    def record(self, outcome: str, row: Mapping[str, Any]) -> None:
        """Append what became of the study of a row of results. Raises ValueError when `outcome` is none."""
        if outcome not in OUTCOMES:
            raise ValueError(f"an outcome is one of: {', '.join(OUTCOMES)}")
        line = {
            "study": row["study"],
            "outcome": outcome,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "model_hash": row["model_sha256"],
            "decision": row["decision"],
            "score": row["score"],
        }
        append_line(self.path, json.dumps(line, ensure_ascii=False))

    def latest(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the last line of each study, by its id; lines that a crash cut are left out."""
        if self.path.is_file():
            with self.path.open("rb") as stream:
                stream.seek(self._read_to)
                new = stream.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for text in whole.splitlines():
                if (line := _line(text)) is not None:
                    self._latest[line["study"]] = line
        return self._latest


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and MEANINGS.keys() <= line.keys() else None
