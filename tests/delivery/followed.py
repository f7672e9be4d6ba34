"""Studies of a device in use, written as predict and the queue write them, and a model folder to hold them against."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from pipeline.inference.model_folder import CONTENT, TYPICALITY, seal
from pipeline.inference.typicality import Cohort, fit
from pipeline.store.files import write_json

FIRST = date(2026, 1, 5)
THRESHOLD = 1.0
EDGES = [-1.0, -0.5, 0.0, 0.5]
PATIENTS = 119


def make_model(folder: Path, *, usable: bool = True, watch: bool = True) -> tuple[Path, str]:
    """Write a model folder of normal scores; return it and its hash. Of all others, 16 % are referred."""
    folder.mkdir(parents=True)
    threshold = {"threshold_hex": THRESHOLD.hex(), "recall_target": 0.95, "confidence": 0.95}
    rule = {
        "operating_points": [threshold],
        "usable": usable,
        "not_usable_because": [] if usable else ["Test: stopped."],
    }
    content = {"schema": "model/1", "title": "Lungs", "files": {}, "rule": rule}
    if watch:
        specificity = {"value": 0.84, "low": 0.8, "high": 0.88}
        expected = {"prevalence": 0.05, "expected_recall": 0.96, "specificity": specificity}
        # Of 200 calibration patients, as many as a normal distribution has in each bin.
        gaps = [32, 30, 39, 38, 62]
        content["watch"] = {"scores_without": {"edges": EDGES, "gaps": gaps}, "expected": expected}
    write_json(folder / CONTENT, content)
    rng = np.random.default_rng(0)
    cohorts = [
        Cohort({"full": rng.normal(size=(n, 3))}, np.array([f"{name}{k}" for k in range(n)]))
        for name, n in (("train", 30), ("tune", 10), ("calibration", PATIENTS))
    ]
    fit(*cohorts).save(folder / TYPICALITY)
    return folder, seal(folder)


@dataclass(frozen=True)
class Week:
    """A week of studies at a site; `missed` positives have a score below the threshold."""

    number: int
    site: str = ""
    studies: int = 50
    shift: float = 0.0
    positives: int = 3
    missed: int = 0
    failed: int = 0


def rows_of(week: Week, sha256: str, rng: np.random.Generator) -> tuple[list[dict], list[bool]]:
    """Return the rows of results.json, and who has the condition."""
    rows, truth = [], []
    for at in range(week.studies):
        positive = at < week.positives
        score = float(rng.normal() + week.shift)
        if positive:
            score = THRESHOLD - 0.2 if at < week.missed else THRESHOLD + 1.0
        rank = min(1.0, (1 + int((PATIENTS + 1) * rng.random() ** (1 + 2 * week.shift))) / (PATIENTS + 1))
        failed = at >= week.studies - week.failed
        rows.append(
            {
                "study": f"{week.site}/{week.number}/{at}",
                "study_uid": "",
                "decision": "not assessable" if failed else "refer" if score >= THRESHOLD else "no refer",
                "score": None if failed else score,
                "typicality": None if failed else rank,
                "model_sha256": sha256,
            }
        )
        truth.append(positive)
    return rows, truth


def write_weeks(folder: Path, weeks: list[Week], sha256: str, audited: float, seed: int = 0) -> tuple[list[str], Path]:
    """Write a folder per week and a table of outcomes: of all looked at, and of a share `audited` of the others."""
    rng, places, lines = np.random.default_rng(seed), [], ["study,outcome,date,site"]
    for week in weeks:
        day = FIRST + timedelta(weeks=week.number)
        rows, truth = rows_of(week, sha256, rng)
        own = folder / f"{week.site or 'here'}-{day}"
        own.mkdir(parents=True)
        (own / "results.json").write_text(json.dumps({"schema": "results/1", "results": rows}))
        places.append(f"{week.site}={own}" if week.site else str(own))
        for row, positive in zip(rows, truth, strict=True):
            if row["decision"] != "no refer" or rng.random() < audited:
                back = day + timedelta(days=9)
                lines.append(f"{row['study']},{'found' if positive else 'not found'},{back},{week.site}")
    table = folder / "outcomes.csv"
    table.write_text("\n".join(lines) + "\n")
    return places, table
