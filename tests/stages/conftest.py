"""Made-up cohorts: scores of every arm and seed, as the stages before calibrate leave them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stages.sources_run import make_card

from pipeline.orchestration.graph import STAGES
from pipeline.settings.decision import CalibrateSettings, EvaluateSettings
from pipeline.stages.calibrate import calibrate
from pipeline.stages.evaluate import evaluate
from pipeline.store.artifacts import Artifact, Inputs
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import write_table
from pipeline.store.tables.score import SCORES
from pipeline.store.tables.split import SPLIT

READS = {stage.name: stage.reads for stage in STAGES}
# Distance between the classes' mean logits in standard deviations: AUC = Phi(distance / sqrt 2).
ARMS = {"mae": 2.4, "scratch": 1.7, "linear_probe": 1.9, "hog": 1.8}


@dataclass
class Cohort:
    """A folder of artifacts, and the metrics that the stages handed to the tracker."""

    folder: Path
    tracked: dict[str, dict[str, float]] = field(default_factory=dict)

    def path(self, stage: str, name: str) -> Path:
        return self.folder / stage / name

    def json(self, stage: str, name: str) -> Any:
        return read_json(self.path(stage, name))

    def table(self, stage: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.path(stage, name))

    def publish(self, stage: str) -> None:
        files = [p for p in sorted((self.folder / stage).rglob("*")) if p.is_file() and p.name != "artifact.json"]
        record = {"files": {str(p.relative_to(self.folder / stage)): sha256_file(p) for p in files}}
        write_json(self.path(stage, "artifact.json"), record)

    def write_scores(self, split: str, scores: pd.DataFrame) -> None:
        write_table(self.path("score", f"scores_{split}.parquet"), scores, SCORES)
        self.publish("score")

    def inputs(self, stage: str) -> Inputs:
        """What the pipeline would hand to a stage, and no more."""
        artifacts = {name: Artifact(name, "0" * 16, self.folder / name) for name in READS[stage]}
        return Inputs(card=make_card(path="path"), machine=None, artifacts=artifacts, readable=READS[stage])

    def run(self, stage: str, **settings: Any) -> Cohort:
        """Run calibrate or evaluate on the artifacts there are, and publish what it leaves."""
        function, kind = {"calibrate": (calibrate, CalibrateSettings), "evaluate": (evaluate, EvaluateSettings)}[stage]
        work = self.folder / stage
        work.mkdir(exist_ok=True)

        def sink(values: Any, step: int) -> None:
            self.tracked.setdefault(stage, {}).update(values)

        function(kind(**settings), self.inputs(stage), work, RunLog(stage, sink=sink, quiet=True))
        self.publish(stage)
        return self


def make_cohort(
    folder: Path,
    *,
    patients: dict[str, int],
    prevalence: float = 0.5,
    seeds: int = 3,
    images_per_patient: int = 1,
    arms: dict[str, float] = ARMS,
    seed: int = 5,
) -> Cohort:
    """Write ingest, split, finetune and score artifacts of a made-up cohort with binormal scores."""
    generator = np.random.default_rng(seed)
    cohort = Cohort(folder)
    images, split, scores = [], [], {}
    for name, count in {"train": 40, "tune": 20, **patients}.items():
        label = np.zeros(count, int)
        label[: round(count * prevalence)] = 1
        people = pd.DataFrame(
            {
                "patient_id": [f"p-{name}-{i:05d}" for i in range(count)],
                "label": generator.permutation(label),
                "site": generator.choice(["s1", "s2"], count),
                "manufacturer": generator.choice(["FUJIFILM", "GE", ""], count),
                "sex": generator.choice(["F", "M", ""], count, p=[0.48, 0.48, 0.04]),
                "age_years": np.where(generator.random(count) < 0.05, np.nan, generator.integers(1, 91, count)),
            }
        )
        rows = people.loc[people.index.repeat(images_per_patient)].reset_index(drop=True)
        rows["image_id"] = [f"i-{name}-{i:05d}" for i in range(len(rows))]
        rows["view"] = generator.choice(["AP", "PA"], len(rows))
        images.append(rows)
        split.append(rows.assign(split=name, label_source="labels.csv:label", unit=rows["patient_id"], given=""))
        if name in patients:
            scores[name] = _scores(rows, arms, seeds, generator)
    all_images = pd.concat(images, ignore_index=True).drop(columns="label")
    write_table(cohort.path("ingest", "images.parquet"), _filled(all_images), IMAGES)
    columns = [c.name for c in SPLIT.columns]
    write_table(cohort.path("split", "split.parquet"), pd.concat(split, ignore_index=True)[columns], SPLIT)
    write_json(
        cohort.path("finetune", "summary.json"),
        {
            "arms": {
                arm: {"seeds": {str(k): {"model_sha256": f"{arm}-{k}".ljust(64, "0")} for k in range(1, seeds + 1)}}
                for arm in arms
            }
        },
    )
    for name, table in scores.items():
        write_table(cohort.path("score", f"scores_{name}.parquet"), table, SCORES)
    for stage in ("ingest", "split", "finetune", "score"):
        cohort.publish(stage)
    return cohort


def _scores(rows: pd.DataFrame, arms: dict[str, float], seeds: int, generator: np.random.Generator) -> pd.DataFrame:
    """Part of each score is the patient's, shared by all arms, part the seed's."""
    shared = generator.normal(size=len(rows))
    tables = []
    for arm, distance in arms.items():
        own = generator.normal(size=len(rows))
        for k in range(1, seeds + 1):
            noise = 0.8 * shared + 0.5 * own + 0.33 * generator.normal(size=len(rows))
            logit = 1.5 * (noise + distance * (rows["label"] - 0.5)) + 0.3
            tables.append(rows[["image_id", "patient_id", "label"]].assign(arm=arm, seed=k, logit=logit))
    return pd.concat(tables, ignore_index=True)[[c.name for c in SCORES.columns]]


def _filled(rows: pd.DataFrame) -> pd.DataFrame:
    """Give the image table's other columns plausible values."""
    text = {"modality": "DX", "format": "dicom", "laterality": "", "body_part": "CHEST", "photometric": "MONOCHROME2"}
    numbers = {"rows": 1024, "columns": 1024, "slices": 1, "axes": 2, "bits_stored": 12, "study_day": 0}
    ids = {f"{name}": rows["image_id"] for name in ("study_id", "series_id", "pixel_hash")}
    rest = {"spacing_mm": [[0.14, 0.14]] * len(rows), "polarity_fixed": False, "quality_flags": ""}
    return rows.assign(**text, **numbers, **ids, **rest)[[c.name for c in IMAGES.columns]]


@pytest.fixture
def cohort(tmp_path):
    """Return a function that makes a cohort in the test's folder."""
    return lambda **choices: make_cohort(tmp_path, **choices)
