"""Finished runs side by side: which settings differ, and what came out, each number with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.commands.trace import artifacts_behind, read_report
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.mlflow_runs import headline, results
from pipeline.orchestration.plan import RunError, plan
from pipeline.reporting import pdf
from pipeline.reporting.comparison import MOST_RUNS, Against, Run, build
from pipeline.settings.card import Card
from pipeline.settings.common import UsageError
from pipeline.settings.config import Config
from pipeline.settings.load import flatten, later_defaults
from pipeline.statistics.compare import delong_test
from pipeline.statistics.errors import collect_warnings
from pipeline.store.artifacts import Artifact, Store
from pipeline.store.files import read_json, sha256_json
from pipeline.store.results.metrics import Metrics
from pipeline.store.tables.calibrate import PATIENT_SCORES
from pipeline.store.tables.evaluate import CURVES
from pipeline.store.tables.io import read_table

MEASURES = ("test_auc", "certified_recall", "test_recall", "test_specificity", "test_referral_rate")

# What a report is called changes no number.
COMPARED = tuple(name for name in NAMES if name != "report")

Found = Mapping[str, Artifact]


@dataclass(frozen=True)
class Finished:
    """A run to compare: what it is called, of which data, its settings (flat), and its artifacts by step."""

    name: str
    dataset: str
    settings: Mapping[str, Any]
    artifacts: Found


def of_config(name: str, config: Config, card: Card, secret: bytes | None) -> Finished:
    """Return the run of a config, as the present code plans it; with fewer artifacts when it has not been finished."""
    store = Store(config.store)
    steps = [step for step in plan(config, card, secret) if step.stage.name != "report"]
    own = {step.name: store.find(step.stage.name, step.key) for step in steps}
    settings = later_defaults() | flatten({stage: getattr(config, stage).model_dump(mode="json") for stage in COMPARED})
    return Finished(name, card.title, settings, {step: there for step, there in own.items() if there is not None})


def of_report(path: Path, stores: Sequence[Store]) -> Finished:
    """Return the run behind a finished report, by whatever code it was made: PDF, report.json, or their folder.

    Raises TraceError when it is no report, or when none of the stores holds its artifacts.
    """
    keys, dataset = read_report(path)
    artifacts = artifacts_behind(path.name, keys, stores)
    own = {step: artifact.record["settings"] for step, artifact in artifacts.items() if "@" not in step}
    settings = later_defaults() | flatten(own)
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return Finished(folder.name if path.is_dir() or path.stem == "report" else path.stem, dataset, settings, artifacts)


def compare(runs: Sequence[Finished], destination: Path, fonts: Path | None = None) -> dict[str, Any]:
    """Lay runs side by side: one entry per run in each row, in the order given; write them as one PDF, too.

    `destination` is the PDF's path; `fonts` is a folder, as in the settings of `report`. Returns `{runs, settings,
    measures, gate_failures, against_first, pdf, warnings}`. Raises RunError naming every run that has not been
    finished.
    """
    if len(runs) > MOST_RUNS:
        raise RunError(f"at most {MOST_RUNS} runs can be compared, not {len(runs)}")
    if unfinished := [one.name for one in runs if {"calibrate", "evaluate"} - {*one.artifacts}]:
        raise RunError(
            f"not finished with the present code: {', '.join(unfinished)}; run: maescreen run CONFIG, or compare "
            "finished reports: a report.pdf, report.json or their folder instead of CONFIG"
        )
    numbers = [headline(one.artifacts) for one in runs]
    names = sorted({name for one in runs for name in one.settings})
    others = [against(runs[0].artifacts, one.artifacts) for one in runs[1:]]
    lacking = pdf.write(destination, build([as_run(one) for one in runs], others), fonts)
    return {
        "runs": [one.name for one in runs],
        "settings": {
            name: values for name in names if len(set(map(str, values := [one.settings.get(name) for one in runs]))) > 1
        },
        "measures": {measure: [_interval(one, measure) for one in numbers] for measure in MEASURES},
        "gate_failures": [int(one.get("gate_failures", 0)) for one in numbers],
        "against_first": [asdict(x) for x in others],
        "pdf": str(destination),
        "warnings": [lacking] if lacking else [],
    }


def _interval(numbers: dict[str, float], name: str) -> dict[str, float | None]:
    return {limit or "value": numbers.get(name + (f"_{limit}" if limit else "")) for limit in ("", "low", "high")}


def against(first: Found, other: Found) -> Against:
    """Compare a run with the first one: paired only where patients and labels are the same."""
    a, b = _scores(first), _scores(other)
    level = _metrics(first).discrimination.auc.level
    shared = len(a.index.intersection(b.index))
    if not a["label"].equals(b["label"]):
        return Against(shared, False, None, level)
    with collect_warnings():
        difference = delong_test(a["label"], a["score"], b["score"], level)
    return Against(shared, True, difference.to_dict(), level)


def _scores(found: Found) -> pd.DataFrame:
    """Return label and score of the reported arm's test patients, by patient."""
    table = read_table(found["evaluate"].file("patient_scores.parquet"), PATIENT_SCORES)
    return table[table["arm"] == _metrics(found).arm].set_index("patient_id").sort_index()[["label", "score"]]


def _metrics(found: Found) -> Metrics:
    return Metrics.from_json(read_json(found["evaluate"].file(Metrics.FILE)))


def as_run(one: Finished) -> Run:
    """Return a finished run as the comparison shows it. Raises RunError when it has not been finished."""
    evaluate, found = one.artifacts["evaluate"], results(one.artifacts)
    if found.metrics is None or found.threshold is None:
        raise RunError(f"not finished: {one.name}")
    curves = read_table(evaluate.file("curves.parquet"), CURVES)
    return Run(
        name=one.name,
        dataset=one.dataset,
        settings=one.settings,
        metrics=found.metrics,
        threshold=found.threshold,
        findings=found.findings,
        roc=curves[(curves["curve"] == "roc") & (curves["arm"] == found.metrics.arm)],
        keys={step: artifact.key for step, artifact in one.artifacts.items()},
        date=evaluate.record["created"][:10],
    )


def beside(runs: Sequence[Finished], config: Config | None, report: Path) -> Path:
    """Return where a comparison goes when nobody says: with the reports of the config, else beside the folder of one.

    Its name ends with digits of what is compared. Raises UsageError when the report lies in the store.
    """
    keys = [[one.artifacts[step].key for step in ("calibrate", "evaluate") if step in one.artifacts] for one in runs]
    name = f"compare-{sha256_json(keys)[:8]}.pdf"
    if config is not None:
        return config.reports / f"{config.project}-{name}"
    folder = report.resolve() if report.is_dir() else report.resolve().parent
    if (folder / "artifact.json").exists():
        raise UsageError(f"{report.name} is inside the store; say with --pdf where the comparison goes")
    return folder.parent / name


def name_of(path: Path, overrides: Sequence[str]) -> str:
    """Return how a run is called in the table."""
    return " ".join([path.stem, *overrides])
