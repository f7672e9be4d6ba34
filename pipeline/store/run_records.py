"""What each finished pipeline run was, one small JSON file each, so that a lost MLflow database can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.store.artifacts import Artifact, Store
from pipeline.store.files import read_json, write_json

FOLDER = "runs"


@dataclass(frozen=True)
class RunRecord:
    """A pipeline run as MLflow shows it: `artifacts` are stage and key by step, `parameters` every setting."""

    project: str
    key: str
    name: str
    parameters: Mapping[str, Any]
    artifacts: Mapping[str, tuple[str, str]]
    created: str = ""

    def found(self, store: Store) -> dict[str, Artifact]:
        """Return its artifacts by step; fewer when some are no longer in the store."""
        artifacts = {step: store.find(stage, key) for step, (stage, key) in self.artifacts.items()}
        return {step: artifact for step, artifact in artifacts.items() if artifact is not None}


def remember(store: Store, record: RunRecord) -> None:
    """Write a record, unless the same run has left one before."""
    path = record_path(store, record)
    if not path.exists():
        write_json(path, {**asdict(record), "created": datetime.now(UTC).isoformat(timespec="seconds")})


def remembered(store: Store, project: str) -> list[RunRecord]:
    """Return the records of a project, oldest first."""
    return [one for one in every_record(store) if one.project == project]


def every_record(store: Store) -> list[RunRecord]:
    """Return the records of all projects, oldest first."""
    records = [RunRecord(**read_json(path)) for path in (store.root / FOLDER).glob("[!.]*.json")]
    return sorted(records, key=lambda one: (one.created, one.key))


def record_path(store: Store, record: RunRecord) -> Path:
    """Return the file of a record."""
    return store.root / FOLDER / f"{record.project}-{record.key.replace('/', '-')}.json"
