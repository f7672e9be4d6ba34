"""What MLflow is told of artifacts: a stage run each, one per trained model, the headline numbers of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.inference.decision import Decision, decide
from pipeline.settings.load import flatten
from pipeline.store.artifacts import Artifact
from pipeline.store.files import read_json

if TYPE_CHECKING:
    from pipeline.store.tracking import Tracker


# The files of each stage that MLflow gets: settings, summaries and curves of training, nothing per patient, and no
# threshold, since the gate may still forbid to use it. What a report holds is decided by then.
TRACKED = {
    "ingest": ("summary.json",),
    "split": ("summary.json",),
    "preprocess": ("summary.json",),
    "pretrain": ("summary.json", "model.json", "history.json"),
    "finetune": ("summary.json", "*/model.json", "*/history.json"),
    "score": ("summary.json",),
    "calibrate": ("calibrator.json", "findings.json", "further/*/calibrator.json", "further/*/findings.json"),
    "evaluate": ("findings.json",),
    "package": (),
    "report": ("report.json", "tables/*.csv", "data/*.csv"),
}
# These show patients.
PICTURES = {"pretrain": ("reconstructions.png",), "report": ("report.pdf", "report.html", "figures/*")}


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
    tracker.files(run_id, artifact.path, _tracked(tracker, artifact))
    if artifact.stage == "finetune":
        _index_trainings(tracker, artifact, key, run_id)
    tracker.finish(run_id, {"git_commit": record["git_commit"], "device": record["device"]})


def _tracked(tracker: Tracker, artifact: Artifact) -> list[str]:
    """Return the names of the files that MLflow gets of an artifact."""
    patterns = TRACKED[artifact.stage] + (PICTURES.get(artifact.stage, ()) if tracker.pictures else ())
    return [name for name in artifact.record["files"] if any(fnmatch(name, pattern) for pattern in patterns)]


def _index_trainings(tracker: Tracker, artifact: Artifact, key: str, stage_run: str) -> None:
    """Give every arm, seed and number of labelled patients a run of its own, below that of the stage."""
    done = tracker.indexed("training")
    for name in sorted(artifact.record["files"]):
        folder, own_key = Path(name).parent, f"{key}/{Path(name).parent}"
        if Path(name).name != "model.json" or own_key in done:
            continue
        *fewer, arm, seed = folder.parts
        patients = fewer[0].removeprefix("labelled") if fewer else "all"
        number = seed.removeprefix("seed")
        title = f"{arm} seed {number}" + (f", {patients} labelled patients" if fewer else "")
        run_id = tracker.open("training", own_key, title, parent=stage_run)
        tracker.parameters(run_id, {"arm": arm, "seed": number, "labelled_patients": patients})
        tracker.series(run_id, read_json(artifact.file(str(folder / "history.json"))))
        tracker.metrics(run_id, {"kept_tune_auc": read_json(artifact.file(name))["tune_auc"]})
        tracker.finish(run_id, {})


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
    if "calibrate" in artifacts and decision(artifacts).usable:
        tracker.table(run_id, pq.read_table(artifacts["calibrate"].file("sweep.parquet")).to_pydict(), "sweep.json")
    if "report" in artifacts:
        tracker.files(run_id, artifacts["report"].path, _tracked(tracker, artifacts["report"]))
    tracker.finish(run_id, {})


def headline(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Return the numbers that runs are compared by, each interval as name, name_low and name_high."""
    numbers: dict[str, Any] = {}
    if "calibrate" in artifacts:
        threshold = decision(artifacts).threshold(read_json(artifacts["calibrate"].file("threshold.json")))
        numbers |= {
            name: threshold[name] for name in ("certified_recall", "misses_allowed", "misses_seen", "threshold")
        }
    if "evaluate" in artifacts:
        metrics = decision(artifacts).metrics(read_json(artifacts["evaluate"].file("metrics.json")))
        numbers |= {"test_patients": metrics["patients"], "test_positives": metrics["positives"]}
        numbers |= {f"test_{name}": value for name, value in metrics["discrimination"].items()}
        numbers |= {f"test_{name}": value for name, value in metrics["label_fractions"]["intervals"].items()}
        numbers["test_brier"] = metrics["calibration"]["after"]["brier"]
        point = metrics["operating_point"] or {}
        numbers |= {
            f"test_{n}": point[n] for n in ("recall", "specificity", "ppv", "npv", "referral_rate") if n in point
        }
        for name, external in metrics["external"].items():
            numbers |= {f"external_{name}_{measure}": value for measure, value in _beside(external).items()}
        for name, further in metrics["further_labels"].items():
            numbers |= {f"further_{name}_{measure}": value for measure, value in _beside(further).items()}
        for measure in ("auc", "recall", "specificity") if metrics["macro"] else ():
            numbers[f"macro_{measure}"] = metrics["macro"][measure]
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


def _beside(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an external test set or a further label that the comparison of runs shows, if any."""
    if not metrics["patients"]:
        return {}
    point = metrics["operating_point"] or {}
    rates = {name: point[name] for name in ("recall", "specificity", "referral_rate") if name in point}
    return {"patients": metrics["patients"], "auc": metrics["discrimination"]["auc"], **rates}


def decision(artifacts: Mapping[str, Artifact]) -> Decision:
    """Return whether the operating point of these artifacts, `calibrate` among them, may be used."""
    calibrate, evaluate = artifacts["calibrate"], artifacts.get("evaluate")
    metrics = read_json(evaluate.file("metrics.json")) if evaluate else None
    findings = read_json((evaluate or calibrate).file("findings.json"))
    return decide(findings, read_json(calibrate.file("threshold.json")), metrics)


def gate_failures(artifacts: Mapping[str, Artifact]) -> list[dict[str, str]]:
    """Return the findings that forbid using the operating point."""
    last = artifacts.get("evaluate") or artifacts.get("calibrate")
    findings = read_json(last.file("findings.json")) if last else []
    return [finding for finding in findings if finding["level"] == "fail"]
