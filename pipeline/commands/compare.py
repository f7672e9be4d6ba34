"""Finished runs side by side: which settings differ, and what came out, each number with its interval."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.orchestration import run
from pipeline.orchestration.mlflow_runs import headline
from pipeline.reporting import pdf
from pipeline.reporting.comparison import MOST_RUNS, Against, Run, build
from pipeline.settings.config import Card, Config
from pipeline.settings.load import flatten
from pipeline.statistics.compare import delong_test
from pipeline.statistics.errors import collect_warnings
from pipeline.store.artifacts import Artifact, Store
from pipeline.store.files import atomic, read_json, sha256_json
from pipeline.store.tables import CURVES, PATIENT_SCORES, read_table

MEASURES = ("test_auc", "certified_recall", "test_recall", "test_specificity", "test_referral_rate")

Loaded = tuple[str, Config, Card, bytes | None]
Found = Mapping[str, Artifact]


def compare(runs: Sequence[Loaded], destination: Path | None = None) -> dict[str, Any]:
    """Lay runs side by side: one entry per run in each row, in the order given; write them as one PDF, too.

    `destination` is the PDF's path; None puts it beside the reports of the first run's project. Returns `{runs,
    settings, measures, gate_failures, against_first, pdf}`. Raises run.RunError naming every run that has not been
    finished.
    """
    if len(runs) > MOST_RUNS:
        raise run.RunError(f"at most {MOST_RUNS} runs can be compared, not {len(runs)}")
    artifacts = _artifacts(runs)
    numbers = [headline(found) for found in artifacts]
    settings = [_settings(config) for _, config, *_ in runs]
    failures = [int(one.get("gate_failures", 0)) for one in numbers]
    names = sorted({name for one in settings for name in one})
    against = [_against(artifacts[0], found) for found in artifacts[1:]]
    shown = [_shown(*each) for each in zip(runs, artifacts, settings, strict=True)]
    path = destination or _beside_reports(runs[0][1], artifacts)
    _write(path, shown, against)
    return {
        "runs": [name for name, *_ in runs],
        "settings": {
            name: values for name in names if len(set(map(str, values := [one.get(name) for one in settings]))) > 1
        },
        "measures": {measure: [_interval(one, measure) for one in numbers] for measure in MEASURES},
        "gate_failures": failures,
        "against_first": [asdict(x) for x in against],
        "pdf": str(path),
    }


def _artifacts(runs: Sequence[Loaded]) -> list[Found]:
    found, unfinished = [], []
    for name, config, card, secret in runs:
        store = Store(config.store)
        steps = [step for step in run.plan(config, card, secret) if step.stage.name != "report"]
        own = {step.name: store.find(step.stage.name, step.key) for step in steps}
        there = {step: artifact for step, artifact in own.items() if artifact is not None}
        if {"calibrate", "evaluate"} - set(there):
            unfinished.append(name)
        found.append(there)
    if unfinished:
        raise run.RunError(f"not finished with the present code: {', '.join(unfinished)}; run: maescreen run CONFIG")
    return found


def _settings(config: Config) -> dict[str, Any]:
    return flatten({stage: getattr(config, stage).model_dump(mode="json") for stage in run.NAMES})


def _interval(numbers: dict[str, float], name: str) -> dict[str, float | None]:
    return {limit or "value": numbers.get(name + (f"_{limit}" if limit else "")) for limit in ("", "low", "high")}


def _against(first: Found, other: Found) -> Against:
    """Compare a run with the first one: paired only where patients and labels are the same."""
    a, b = _scores(first), _scores(other)
    level = read_json(first["evaluate"].file("metrics.json"))["discrimination"]["auc"]["level"]
    shared = len(a.index.intersection(b.index))
    if not a["label"].equals(b["label"]):
        return Against(shared, False, None, level)
    with collect_warnings():
        difference = delong_test(a["label"], a["score"], b["score"], level)
    return Against(shared, True, difference.to_dict(), level)


def _scores(found: Found) -> pd.DataFrame:
    """Return label and score of the reported arm's test patients, by patient."""
    table = read_table(found["evaluate"].file("patient_scores.parquet"), PATIENT_SCORES)
    arm = read_json(found["evaluate"].file("metrics.json"))["arm"]
    return table[table["arm"] == arm].set_index("patient_id").sort_index()[["label", "score"]]


def _shown(loaded: Loaded, found: Found, settings: dict[str, Any]) -> Run:
    name, _, card, _ = loaded
    metrics = read_json(found["evaluate"].file("metrics.json"))
    curves = read_table(found["evaluate"].file("curves.parquet"), CURVES)
    return Run(
        name=name,
        dataset=card.title,
        settings=settings,
        metrics=metrics,
        threshold=read_json(found["calibrate"].file("threshold.json")),
        findings=read_json(found["evaluate"].file("findings.json")),
        roc=curves[(curves["curve"] == "roc") & (curves["arm"] == metrics["arm"])],
        keys={step: artifact.key for step, artifact in found.items()},
        date=found["evaluate"].record["created"][:10],
    )


def _beside_reports(config: Config, artifacts: Sequence[Found]) -> Path:
    digest = sha256_json([[found["calibrate"].key, found["evaluate"].key] for found in artifacts])
    return config.reports / f"{config.project}-compare-{digest[:8]}.pdf"


def _write(path: Path, shown: Sequence[Run], against: Sequence[Against]) -> None:
    document = build(shown, against)
    with tempfile.TemporaryDirectory() as folder:
        for figure in document.figures:
            drawn = Path(folder) / figure.file
            drawn.parent.mkdir(exist_ok=True)
            drawn.write_bytes(figure.picture)
        content = pdf.render(document.to_dict(), Path(folder))
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def name_of(path: Path, overrides: Sequence[str]) -> str:
    """Return how a run is called in the table."""
    return " ".join([path.stem, *overrides])
