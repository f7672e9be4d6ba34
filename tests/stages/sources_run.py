"""The stages that read sources, run as the pipeline would run them, on files in one folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.orchestration.graph import STAGES
from pipeline.settings.card import Card
from pipeline.settings.images import IngestSettings, PreprocessSettings, SplitSettings
from pipeline.settings.where import Machine
from pipeline.store.artifacts import Artifact, Inputs
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.lineage import SourceHashes
from pipeline.store.runlog import RunLog

READS = {stage.name: stage.reads for stage in STAGES}
SETTINGS = {"ingest": IngestSettings, "split": SplitSettings, "preprocess": PreprocessSettings}
SECRET = b"s" * 32
USE = {"condition": "c", "population": "p", "user": "u", "place": "p"}


def make_card(
    splits: Mapping[str, list[str]] | None = None,
    expected: Mapping[str, list[str]] | None = None,
    positive: Sequence[str] = ("ill",),
    negative: Sequence[str] = ("well",),
    mask: Mapping[str, Any] | None = None,
    **columns: str,
) -> Card:
    """Return a card whose label column says `ill` or `well`, if nothing else is asked for."""
    return Card.model_validate(
        {
            "name": "test",
            "title": "t",
            "source": "s",
            "licence": "l",
            "attribution": "a",
            "identifiers": "real",
            "intended_use": USE,
            "columns": columns,
            "splits": splits or {},
            "expected": expected or {},
            "label": {
                "name": "n",
                "definition": "d",
                "reference_standard": "r",
                "positive": [*positive],
                "negative": [*negative],
                "mask": mask,
            },
        }
    )


@dataclass
class Archive:
    """A folder with studies, labels and the artifacts made of them."""

    folder: Path
    card: Card = field(default_factory=lambda: make_card(path="path"))
    secret: bytes = SECRET
    workers: int = 2
    previous: Artifact | None = None
    hashes: SourceHashes = field(default_factory=SourceHashes)
    sources: tuple[str, ...] = ("studies",)
    label_table: str = "labels.csv"

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def lookup(self) -> Path:
        return self.folder / "keys" / "test.lookup"

    def add(self, name: str, content: bytes) -> None:
        path = self.studies / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def label(self, rows: list[dict[str, str]]) -> None:
        pd.DataFrame(rows).to_csv(self.folder / "labels.csv", index=False)

    def work(self, stage: str) -> Path:
        return self.folder / stage

    def inputs(self, stage: str) -> Inputs:
        artifacts = {name: Artifact(name, "0" * 16, self.work(name)) for name in READS[stage]}
        return Inputs(
            card=self.card,
            machine=Machine(workers=self.workers),
            artifacts=artifacts,
            readable=READS[stage],
            studies=tuple(self.folder / name for name in self.sources),
            labels=self.folder / self.label_table,
            hashes=self.hashes,
            secret=self.secret,
            lookup=self.lookup,
            previous=self.previous,
        )

    def run(self, stage: str, log: RunLog | None = None, **settings: Any) -> Archive:
        """Run a stage in its folder and publish what it leaves."""
        # Imported here, so that a test of ingest does not wait for what only preprocess needs.
        function = getattr(importlib.import_module(f"pipeline.stages.{stage}"), stage)
        self.work(stage).mkdir(exist_ok=True)
        function(SETTINGS[stage](**settings), self.inputs(stage), self.work(stage), log or RunLog(stage, quiet=True))
        write_json(self.work(stage) / "artifact.json", {"files": self.files(stage)})
        return self

    def files(self, stage: str) -> dict[str, str]:
        """Return the SHA-256 of every file that a stage left."""
        paths = [
            path for path in sorted(self.work(stage).rglob("*")) if path.is_file() and path.name != "artifact.json"
        ]
        return {str(path.relative_to(self.work(stage))): sha256_file(path) for path in paths}

    def table(self, stage: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.work(stage) / f"{name}.parquet")

    def summary(self, stage: str) -> dict[str, Any]:
        return read_json(self.work(stage) / "summary.json")
