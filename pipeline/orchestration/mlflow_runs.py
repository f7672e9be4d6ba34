"""What MLflow is told of artifacts: a stage run each, one per trained model, the headline numbers of a whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.inference.decision import Decision, decide
from pipeline.settings.load import flatten
from pipeline.store import indexed
from pipeline.store.artifacts import Artifact
from pipeline.store.files import read_json
from pipeline.store.results.finding import Finding, findings_from, that_fail
from pipeline.store.results.interval import Interval
from pipeline.store.results.metrics import GroupMetrics, Metrics
from pipeline.store.results.operating_point import AtTarget
from pipeline.store.results.threshold import Threshold
from pipeline.store.server import comparison_fragment

if TYPE_CHECKING:
    from pipeline.settings.config import Config
    from pipeline.store.tracking import Tracker


RATES = ("recall", "specificity", "referral_rate")
Number = float | Interval | None
# The tables of a report that MLflow gets: counts, results and statements. Not among them: the patients shown as errors,
# and the digests of what was read, from which a label table or a file could be recognised.
REPORT_TABLES = (
    *("intended_use", "dataset", "splits", "make_up", "quarantine", "quality_flags", "duplicates"),
    *("reference_standard", "making", "arms", "discrimination", "certificate", "verified", "two_by_two"),
    *("measures", "targets", "sweep", "consequences", "calibration", "decision_curve", "subgroups", "comparison"),
    *("deployment", "deployment_groups", "certificate_more", "verified_more", "measures_more", "external_calibration"),
    *("decisions", "label_fractions", "external", "definitions", "shift", "coverage", "findings", "statements"),
    *("stages", "warnings", "guidelines"),
    *("further_labels", "further_certificates", "further_calibration", "further_definitions"),
    *("further_deployment", "between_sites", "coverage_first", "findings_first", "external_*"),
)
# The files of each stage that MLflow gets: settings, summaries and curves of training, nothing per patient, and no
# threshold, since the gate may still forbid to use it. What a report holds is decided by then. Of others, none.
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
    "report": (*(f"tables/{name}.csv" for name in REPORT_TABLES), "data/*.csv"),
}
# These show single patients, in pictures or in rows.
OF_PATIENTS = {
    "pretrain": ("reconstructions.png",),
    "report": (
        *("report.json", "report.pdf", "appendix.pdf", "report.html", "model_card.md"),
        *("figures/*", "tables/*.csv"),
    ),
}


class Index:
    """MLflow as a run sees it: opened, which takes seconds, only when the store does not remember what is wanted."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._memory = indexed.recall(config.store, config.project, config.tracking.uri)

    @cached_property
    def tracker(self) -> Tracker:
        """The database or server. Raises TrackingError when it cannot be used."""
        from pipeline.store.tracking import Tracker

        config = self._config
        # From now on MLflow itself is asked, also by the next run if this one does not come to its end.
        self._memory = None
        indexed.forget(config.store)
        return Tracker(config.project, config.store, config.tracking.uri, config.tracking.pictures)

    def has(self, kind: str, key: str) -> bool:
        """Return whether the run for `key` is there with everything that belongs to it."""
        if self._memory is not None and key in self._memory.keys[kind]:
            return True
        return self.tracker.has(kind, key)

    def stage(self, artifact: Artifact) -> None:
        """Make sure MLflow has the finished run of an artifact, also after a kill between publishing and indexing."""
        if not self.has("stage", f"{artifact.stage}/{artifact.key}"):
            _index_stage(self.tracker, artifact)

    def comparison(self) -> str:
        """Return the part of the UI's address that opens the pipeline runs side by side."""
        return comparison_fragment(self.tracker.experiment_id if self._memory is None else self._memory.experiment_id)

    def remember(self) -> None:
        """Write down in the store what MLflow has, for the next time."""
        if self._memory is None:
            config = self._config
            # Looked at before it is asked: what another process writes meanwhile makes the memory void.
            state = indexed.state(config.store, config.tracking.uri)
            keys = {kind: self.tracker.indexed(kind) for kind in indexed.KINDS}
            memory = indexed.Memory(state, self.tracker.experiment_id, keys)
            indexed.note(config.store, config.project, config.tracking.uri, memory)


@dataclass(frozen=True)
class Results:
    """What a run found, read once: its last findings, what was certified, and the content of metrics.json.

    `threshold` is None before `calibrate`, `metrics` before `evaluate`.
    """

    findings: Sequence[Finding]
    threshold: Threshold | None
    metrics: Metrics | None

    @property
    def decision(self) -> Decision:
        """Whether the operating point may be used: never before the test patients, who may contradict it, were read."""
        if self.threshold is None or self.metrics is None:
            return Decision(("the test patients have not been read",))
        return decide(self.findings, self.threshold, self.metrics)

    @property
    def failures(self) -> list[Finding]:
        """The findings that forbid using the operating point."""
        return that_fail(self.findings)


def results(artifacts: Mapping[str, Artifact]) -> Results:
    """Return what the artifacts of a run, by step, say of its threshold and of the test patients."""
    calibrate, evaluate = artifacts.get("calibrate"), artifacts.get("evaluate")
    last = evaluate or calibrate
    return Results(
        findings_from(read_json(last.file("findings.json"))) if last else [],
        Threshold.from_json(read_json(calibrate.file(Threshold.FILE))) if calibrate else None,
        Metrics.from_json(read_json(evaluate.file(Metrics.FILE))) if evaluate else None,
    )


def _index_stage(tracker: Tracker, artifact: Artifact) -> None:
    key, record = f"{artifact.stage}/{artifact.key}", artifact.record
    run_id = tracker.open("stage", key, f"{record.get('step', artifact.stage)} {artifact.key[:8]}")
    tracker.parameters(run_id, flatten({artifact.stage: record["settings"]}))
    # By their keys: a plain digest of a label table or of studies would tell who holds them that they are the same.
    tracker.datasets(run_id, record["inputs"])
    tracker.metrics(run_id, {"seconds": record["seconds"]})
    tracker.files(run_id, artifact.path, _tracked(tracker, artifact))
    if artifact.stage == "finetune":
        _index_trainings(tracker, artifact, key, run_id)
    tracker.finish(run_id, {"git_commit": record["git_commit"], "device": record["device"]})


def _tracked(tracker: Tracker, artifact: Artifact) -> list[str]:
    """Return the names of the files that MLflow gets of an artifact."""
    patterns = TRACKED.get(artifact.stage, ()) + (OF_PATIENTS.get(artifact.stage, ()) if tracker.pictures else ())
    return [name for name in artifact.record["files"] if any(fnmatch(name, pattern) for pattern in patterns)]


def _index_trainings(tracker: Tracker, artifact: Artifact, key: str, stage_run: str) -> None:
    """Give every arm, seed and number of labelled patients a run of its own, below that of the stage."""
    done = tracker.indexed("training")
    _index_trials(tracker, artifact, key, stage_run, done)
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


def _index_trials(tracker: Tracker, artifact: Artifact, key: str, stage_run: str, done: set[str]) -> None:
    """Give every recipe that was tried a run of its own, below that of the stage."""
    for name in sorted(artifact.record["files"]):
        folder, own_key = Path(name).parent, f"{key}/{Path(name).parent}"
        if Path(name).name != "trial.json" or own_key in done:
            continue
        trial = read_json(artifact.file(name))
        title = f"recipe {trial['recipe']}, {trial['arm']} seed {trial['seed']}"
        run_id = tracker.open("training", own_key, title, parent=stage_run)
        tracker.parameters(run_id, {name: str(trial[name]) for name in ("recipe", "arm", "seed", "epochs")})
        tracker.series(run_id, read_json(artifact.file(str(folder / "history.json"))))
        figures = ("tune_auc", "standard_error", "seconds")
        tracker.metrics(run_id, {f"kept_{name}": trial[name] for name in figures})
        tracker.finish(run_id, {})


def index_pipeline(tracker: Tracker, run_id: str, artifacts: Mapping[str, Artifact]) -> None:
    """Put the headline numbers, the sweep, the report and the stage runs on the pipeline run."""
    # MLflow refuses an @ in the name of a tag.
    tagged = {name.replace("@", "."): artifact for name, artifact in artifacts.items()}
    runs = {f"stage.{name}": tracker.find("stage", f"{a.stage}/{a.key}") or "" for name, a in tagged.items()}
    tracker.tags(run_id, runs | {f"key.{name}": a.key for name, a in tagged.items()})
    tracker.datasets(run_id, {name: a.key for name, a in artifacts.items() if a.stage in ("ingest", "split")})
    found = results(artifacts)
    tracker.metrics(run_id, _numbers(found))
    if found.decision.usable:
        import pyarrow.parquet as pq

        tracker.table(run_id, pq.read_table(artifacts["calibrate"].file("sweep.parquet")).to_pydict(), "sweep.json")
    if "report" in artifacts:
        tracker.files(run_id, artifacts["report"].path, _tracked(tracker, artifacts["report"]))
    tracker.finish(run_id, {})


def headline(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Return the numbers that runs are compared by, each interval as name, name_low and name_high."""
    return _numbers(results(artifacts))


def _numbers(found: Results) -> dict[str, float]:
    numbers: dict[str, Number] = {}
    if found.threshold is not None and (at := found.decision.threshold(found.threshold).at) is not None:
        numbers |= {
            "certified_recall": at.certified_recall,
            "misses_allowed": at.misses_allowed,
            "misses_seen": at.misses_seen,
            "threshold": at.threshold,
        }
    if found.metrics is not None:
        metrics = found.decision.metrics(found.metrics)
        numbers |= _tested(metrics) | {"gate_failures": float(len(found.failures))}
    flat: dict[str, float | None] = {}
    for name, value in numbers.items():
        if isinstance(value, Interval):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            flat[name] = value
    # A tracker has no word for a number that does not exist.
    return {name: float(value) for name, value in flat.items() if value is not None and value == value}


def _tested(metrics: Metrics) -> dict[str, Number]:
    """Return the numbers of the test patients, of external sets and of further labels."""
    numbers: dict[str, Number] = {"test_patients": metrics.patients, "test_positives": metrics.positives}
    numbers |= {f"test_{name}": value for name, value in vars(metrics.discrimination).items()}
    numbers |= {f"test_{name}": value for name, value in metrics.label_fractions.intervals.items()}
    numbers["test_brier"] = metrics.calibration.after.brier
    shown = _rates(metrics.operating_point, ("recall", "specificity", "ppv", "npv", "referral_rate"))
    numbers |= {f"test_{name}": value for name, value in shown.items()}
    for name, external in metrics.external.items():
        numbers |= {f"external_{name}_{measure}": value for measure, value in _beside(external.judged).items()}
    for name, further in metrics.further_labels.items():
        numbers |= {f"further_{name}_{measure}": value for measure, value in _beside(further).items()}
    if macro := metrics.macro:
        numbers |= {"macro_auc": macro.auc, "macro_recall": macro.recall, "macro_specificity": macro.specificity}
    for other in metrics.other_operating_points:
        shown = _rates(other.operating_point)
        numbers |= {f"test_{name}_at_{other.recall_target:g}": value for name, value in shown.items()}
    return numbers


def _beside(metrics: GroupMetrics | None) -> dict[str, Number]:
    """Return the numbers of an external test set or a further label that the comparison of runs shows, if any."""
    if metrics is None or not metrics.patients:
        return {}
    return {"patients": metrics.patients, "auc": metrics.discrimination.auc, **_rates(metrics.operating_point)}


def _rates(point: AtTarget | None, names: Sequence[str] = RATES) -> dict[str, Interval]:
    return {name: getattr(point, name) for name in names} if point else {}


def gate_failures(artifacts: Mapping[str, Artifact]) -> list[Finding]:
    """Return the findings that forbid using the operating point."""
    return results(artifacts).failures
