"""What MLflow is told of artifacts: a stage run each, and the headline numbers of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.config_file import flatten
from pipeline.store.artifacts import RECORD, Artifact
from pipeline.store.files import read_json

if TYPE_CHECKING:
    from pipeline.store.tracking import Tracker


# Pictures of the oddest images, which may show anything, and small copies of all: nobody has looked at these yet.
KEPT_IN_STORE = {"ingest": ("examined.parquet", "assembled.parquet", "contact_sheet.png")}


def index_stage(tracker: Tracker, artifact: Artifact) -> None:
    """Make sure MLflow has the finished run of an artifact, also when a kill came between publishing and indexing."""
    key = f"{artifact.stage}/{artifact.key}"
    if key in tracker.indexed("stage"):
        return
    record = artifact.record
    run_id = tracker.open("stage", key, f"{record.get('step', artifact.stage)} {artifact.key[:8]}")
    tracker.parameters(run_id, flatten({artifact.stage: record["settings"]}))
    tracker.datasets(run_id, {**record["sources"], **record["inputs"]})
    tracker.metrics(run_id, {"seconds": record["seconds"]})
    names = [name for name in record["files"] if name not in KEPT_IN_STORE.get(artifact.stage, ())]
    tracker.files(run_id, artifact.path, [RECORD, *names])
    tracker.finish(run_id, {"git_commit": record["git_commit"], "device": record["device"]})


def index_pipeline(tracker: Tracker, run_id: str, artifacts: Mapping[str, Artifact]) -> None:
    """Put the headline numbers, the sweep, the report and the stage runs on the pipeline run."""
    # MLflow refuses an @ in the name of a tag.
    tagged = {name.replace("@", "."): artifact for name, artifact in artifacts.items()}
    runs = {f"stage.{name}": tracker.find("stage", f"{a.stage}/{a.key}") or "" for name, a in tagged.items()}
    tracker.tags(run_id, runs | {f"key.{name}": a.key for name, a in tagged.items()})
    datasets = {
        source + step.removeprefix(artifact.stage): digest
        for step, artifact in artifacts.items()
        if artifact.stage in ("ingest", "split")
        for source, digest in artifact.record["sources"].items()
    }
    tracker.datasets(run_id, datasets)
    tracker.metrics(run_id, headline(artifacts))
    if "calibrate" in artifacts:
        tracker.table(run_id, pq.read_table(artifacts["calibrate"].file("sweep.parquet")).to_pydict(), "sweep.json")
    if "report" in artifacts:
        report = artifacts["report"]
        tracker.files(run_id, report.path, list(report.record["files"]))
    tracker.finish(run_id, {})


def headline(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Return the numbers that runs are compared by, each interval as name, name_low and name_high."""
    numbers: dict[str, Any] = {}
    if "calibrate" in artifacts:
        threshold = read_json(artifacts["calibrate"].file("threshold.json"))
        numbers |= {
            name: threshold[name] for name in ("certified_recall", "misses_allowed", "misses_seen", "threshold")
        }
    if "evaluate" in artifacts:
        metrics = read_json(artifacts["evaluate"].file("metrics.json"))
        numbers |= {"test_patients": metrics["patients"], "test_positives": metrics["positives"]}
        numbers |= {f"test_{name}": value for name, value in metrics["discrimination"].items()}
        numbers |= {f"test_{name}": value for name, value in metrics["label_fractions"]["intervals"].items()}
        numbers["test_brier"] = metrics["calibration"]["after"]["brier"]
        point = metrics["operating_point"] or {}
        numbers |= {
            f"test_{n}": point[n] for n in ("recall", "specificity", "ppv", "npv", "referral_rate") if n in point
        }
        for name, external in metrics["external"].items():
            numbers |= {f"external_{name}_{measure}": value for measure, value in _of_external(external).items()}
        for other in metrics["other_operating_points"]:
            point = other["operating_point"] or {}
            names = ("recall", "specificity", "referral_rate")
            numbers |= {f"test_{n}_at_{other['recall_target']:g}": point[n] for n in names if n in point}
        numbers["gate_failures"] = float(len(gate_failures(artifacts)))
    flat: dict[str, float] = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            flat |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            flat[name] = value
    return {name: float(value) for name, value in flat.items() if value is not None}


def _of_external(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an external test set that the comparison of runs shows; none when no patient is left."""
    if not metrics["patients"]:
        return {}
    point = metrics["operating_point"] or {}
    rates = {name: point[name] for name in ("recall", "specificity", "referral_rate") if name in point}
    return {"patients": metrics["patients"], "auc": metrics["discrimination"]["auc"], **rates}


def gate_failures(artifacts: Mapping[str, Artifact]) -> list[dict[str, str]]:
    """Return the findings that forbid using the operating point."""
    last = artifacts.get("evaluate") or artifacts.get("calibrate")
    findings = read_json(last.file("findings.json")) if last else []
    return [finding for finding in findings if finding["level"] == "fail"]
