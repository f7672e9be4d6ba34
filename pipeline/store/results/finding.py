"""findings.json of calibrate and evaluate: what a reader must know of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.store.results.record import Record

Level = Literal["fail", "warn", "info"]


@dataclass(frozen=True)
class Finding(Record):
    """Something that a reader must know. `code` is stable; `on` names the patients: calibration or test."""

    STAGE = "calibrate"
    code: str
    level: Level
    on: str
    message: str

    @property
    def in_words(self) -> str:
        """The finding with the patients that it is about: `Test patients: the threshold refers no patient.`"""
        message = self.message.strip()
        who = f"{self.on} patients" if self.on in ("calibration", "test") else self.on
        return f"{who[0].upper()}{who[1:]}: {message}" + ("" if message.endswith((".", "!", "?")) else ".")


def findings_from(content: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return the findings of a findings.json. Raises ValueError as `Finding.from_dict`."""
    return [Finding.from_dict(one) for one in content]


def that_fail(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that forbid using the operating point."""
    return [one for one in findings if one.level == "fail"]
