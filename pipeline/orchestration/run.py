"""Running a plan: what has to be made is made, locked, entered in the ledger and indexed in MLflow."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.orchestration import graph
from pipeline.orchestration.estimate import cores, estimates, threads_of, warnings
from pipeline.orchestration.graph import NAMES, READERS, call_stage, needed
from pipeline.orchestration.mlflow_runs import Index, gate_failures, index_pipeline
from pipeline.orchestration.plan import ChoiceError, RunError, Step, check_names, plan, previous
from pipeline.orchestration.sources import Dataset, datasets, externals, source_hashes
from pipeline.orchestration.torchrun import announce
from pipeline.settings.card import Card
from pipeline.settings.config import Config
from pipeline.settings.load import flatten
from pipeline.settings.where import Machine
from pipeline.store.artifacts import Artifact, Inputs, Store
from pipeline.store.ledger import Ledger
from pipeline.store.lineage import SourceHashes, git_commit
from pipeline.store.results.finding import Finding
from pipeline.store.run_records import RunRecord, remember, remembered
from pipeline.store.runlog import RunLog
from pipeline.store.versions import package_versions, runtime_versions


@dataclass(frozen=True)
class Result:
    """What a run left: its artifacts by step, the gate's failures, and the finished report."""

    artifacts: Mapping[str, Artifact]
    failures: Sequence[Finding]
    report: Path | None
    comparison: str


@dataclass(frozen=True)
class Context:
    """What all steps of a run share. No step is begun after `deadline`, a time.monotonic()."""

    config: Config
    card: Card
    secret: bytes
    store: Store
    index: Index
    deadline: float = math.inf


def run(
    config: Config,
    card: Card,
    secret: bytes,
    *,
    until: str = NAMES[-1],
    only: str | None = None,
    keep: Sequence[str] = (),
    rebuild: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Result:
    """Run what has to run up to step `until`, or the step `only`, and index it in MLflow.

    Raises RunError when a costly stage would run only because its code changed, or when `only` lacks an input;
    ChoiceError when `keep` or `rebuild` name what this command does not make or read; KeyboardInterrupt when
    `machine.max_minutes` have passed.
    """
    minutes = config.machine.max_minutes
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    context = Context(config, card, secret, Store(config.store), Index(config), deadline)
    planned = plan(config, card, secret, keep=keep, rebuild=rebuild)
    names = [step.name for step in planned]
    check_names([only or until], names)
    steps = planned[: names.index(only or until) + 1]
    _check_choices(steps, only, keep, rebuild)
    for step in steps:
        say(step.line())
    _refuse(steps, context.store, only)
    wanted = steps if only is None else steps[-1:]
    for warning in warnings(estimates(config, wanted), config.store):
        say(warning)
    _note_rebuilds(planned, context.store)
    artifacts = _make(steps, context) if only is None else _make_steps(steps[-1:], steps, context)
    _leave_rebuilds(planned, context.store)
    if only is None:
        _remember(steps, artifacts, context)
    context.index.remember()
    report = _deliver(config, artifacts.get("report")) if only is None else None
    return Result(artifacts, gate_failures(artifacts), report, context.index.comparison())


def _make(steps: Sequence[Step], context: Context) -> dict[str, Artifact]:
    """Make what has to be made of all steps, below a pipeline run in MLflow unless that is complete already."""
    key, index = _pipeline_key(steps), context.index
    if index.has("pipeline", key) and not any(step.anew for step in steps):
        return _make_steps(steps, steps, context)
    from pipeline.store.tracking import closing

    tracker = index.tracker
    run_id = tracker.open("pipeline", key, _pipeline_name(steps, context))
    with closing(tracker, run_id):
        tracker.parameters(run_id, _parameters(context.config))
        artifacts = _make_steps(steps, steps, context)
        index_pipeline(tracker, run_id, artifacts)
    return artifacts


def _pipeline_key(steps: Sequence[Step]) -> str:
    return f"{steps[-1].stage.name}/{steps[-1].key}"


def _pipeline_name(steps: Sequence[Step], context: Context) -> str:
    return f"{context.config.project} {steps[-1].key[:8]}"


def _remember(steps: Sequence[Step], artifacts: Mapping[str, Artifact], context: Context) -> None:
    made = {step: (artifact.stage, artifact.key) for step, artifact in artifacts.items()}
    key, name, config = _pipeline_key(steps), _pipeline_name(steps, context), context.config
    remember(context.store, RunRecord(config.project, key, name, _parameters(config), made))


def _check_choices(steps: Sequence[Step], only: str | None, keep: Sequence[str], rebuild: Sequence[str]) -> None:
    """Raise ChoiceError when a step that was named is not among those that this command makes, or reads."""
    last = steps[-1].name
    allowed = [step.name for step in steps]
    if only is not None:
        if others := [name for name in rebuild if name != only]:
            raise ChoiceError(
                f"{only} makes {only} alone, --rebuild {others[0]} would make more; "
                f"run: maescreen run CONFIG --rebuild {others[0]}"
            )
        rests_on = needed([step.stage for step in steps], only)
        allowed = [name for name in allowed if name in rests_on]
    if beyond := [name for name in [*keep, *rebuild] if name not in allowed]:
        option = "--keep" if beyond[0] in keep else "--rebuild"
        raise ChoiceError(f"{option} {beyond[0]}: {last}, with which this command ends, does not need it")


def _refuse(steps: Sequence[Step], store: Store, only: str | None) -> None:
    stopped = [step for step in steps if step.action == "stop" and only in (None, step.name)]
    if only is not None:
        rests_on = needed([step.stage for step in steps], only)
        missing = [s for s in steps[:-1] if s.name in rests_on and not _usable(s, store)]
        if missing:
            names = ", ".join(step.name for step in missing)
            due = "not made yet or to be made anew" if any(step.anew for step in missing) else "not made yet"
            lines = [f"{only} needs {names}, {due}; run: maescreen run CONFIG --until {missing[-1].name}"]
            lines += [f"{step.name}: {step.reason}" for step in missing if step.action == "stop"]
            raise RunError("\n".join(lines))
    if stopped:
        raise RunError("\n".join(f"{step.name}: {step.reason}" for step in stopped))


def _usable(step: Step, store: Store) -> bool:
    return not step.anew and store.find(step.stage.name, step.key) is not None


def _note_rebuilds(steps: Sequence[Step], store: Store) -> None:
    """Note what is to be made anew, also beyond this command: it would rest on what an artifact no longer holds."""
    for step in steps:
        if step.asked is not None:
            store.ask_rebuild(step.stage.name, step.key, step.asked)
        elif step.kept:
            store.withdraw_rebuild(step.stage.name, step.key)


def _leave_rebuilds(steps: Sequence[Step], store: Store) -> None:
    """Note that this command is done: named again, its steps are to be made anew once more."""
    for step in steps:
        if store.rebuild_asked(step.stage.name, step.key):
            store.ask_rebuild(step.stage.name, step.key, ())


def _make_steps(wanted: Sequence[Step], steps: Sequence[Step], context: Context) -> dict[str, Artifact]:
    """Return the artifacts of all steps that have one, those of the `wanted` made where they have to be."""
    store, config = context.store, context.config
    artifacts = {s.name: a for s in steps if (a := store.find(s.stage.name, s.key)) is not None}
    # A run that ended between an artifact and its line in the ledger left one that is not entered yet.
    Ledger(store.root).append(one for name in READERS for one in store.all(name))
    kept = {step.name: step.kept for step in steps if step.kept}
    data, hashes = datasets(config, context.card), source_hashes(config, context.secret)
    for step in wanted:
        if time.monotonic() > context.deadline and (step.anew or step.name not in artifacts):
            raise KeyboardInterrupt(f"stopped before {step.name}: machine.max_minutes have passed")
        artifacts[step.name] = _build(step, _inputs(step, artifacts, kept, data, hashes, context), context)
    return artifacts


def _inputs(
    step: Step,
    artifacts: Mapping[str, Artifact],
    kept: Mapping[str, str],
    data: Mapping[str, Dataset],
    hashes: SourceHashes,
    context: Context,
) -> Inputs:
    stage, config = step.stage, context.config
    studies, card = data[stage.external]
    return Inputs(
        card=card,
        machine=config.machine,
        artifacts={read: artifacts[stage.source(read)] for read in stage.reads},
        readable=stage.reads,
        studies=tuple(studies.studies),
        include=tuple(studies.include),
        exclude=tuple(studies.exclude),
        labels=studies.labels,
        imported_weights=config.data.imported_weights,
        secret=context.secret,
        kept={read: kept[stage.source(read)] for read in stage.reads if stage.source(read) in kept},
        lookup=None if card.identifiers == "synthetic" else config.data.key_file.with_suffix(".lookup"),
        hashes=hashes,
        previous=previous(step, context.store),
        deadline=context.deadline,
        test_only=stage.external in externals(data),
        external={name: data[name][1] for name in externals(data) if stage.of_external},
        ledger=Ledger(context.store.root),
        own_key=step.key,
    )


def _build(step: Step, inputs: Inputs, context: Context) -> Artifact:
    name, key, store = step.stage.name, step.key, context.store
    log = RunLog(step.name)
    with store.lock(name, key, waiting=lambda: log.info("another run is making this artifact; waiting for it")):
        # Another run may have finished the rebuild while this one waited.
        artifact = store.find(name, key) if store.rebuild_asked(name, key) is None else None
        if artifact is None:
            artifact = _execute(step, inputs, context, log)
        context.index.stage(artifact)
    return artifact


def _execute(step: Step, inputs: Inputs, context: Context, log: RunLog) -> Artifact:
    from pipeline.store.tracking import closing

    name, key, store, tracker = step.stage.name, step.key, context.store, context.index.tracker
    run_id = tracker.open("stage", f"{name}/{key}", f"{step.name} {key[:8]}")
    log.sink = lambda values, at: tracker.metrics(run_id, values, at)
    started = time.monotonic()
    with closing(tracker, run_id):
        work = store.begin(name, key)
        if step.stage.shared:
            announce(step)
        call_stage(step.stage.works, getattr(context.config, name), inputs, work, log)
        seconds = time.monotonic() - started
        about = {"device": _device(inputs.machine.device), "seconds": round(seconds, 1), "warnings": log.warnings}
        about |= {"machine": _machine(inputs.machine)}
        artifact = store.publish(name, key, _record(step, context.config.project) | about | {"mlflow_run_id": run_id})
    Ledger(store.root).append([artifact])
    log.info(f"done in {seconds:.0f} s")
    return artifact


def _record(step: Step, project: str) -> dict[str, Any]:
    """Return what is written down of an artifact when it is finished, but for how the run of its stage went."""
    return {
        "stage": step.stage.name,
        "step": step.name,
        "key": step.key,
        "project": project,
        "settings": step.settings,
        "inputs": step.inputs,
        "sources": step.sources,
        "code": step.code,
        "git_commit": git_commit(),
        "versions": {"maescreen": __version__, **runtime_versions(), **package_versions()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine(settings: Machine) -> dict[str, int]:
    """Return what made an artifact, as far as it decides how long that takes."""
    return {"cores": cores(), "threads": threads_of(settings.model_dump()), "workers": settings.workers}


def _device(wanted: str) -> str:
    torch = sys.modules.get("torch")
    if torch is None or wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name())


def _parameters(config: Config) -> dict[str, Any]:
    return flatten({name: getattr(config, name).model_dump(mode="json") for name in NAMES})


def reindex(config: Config) -> tuple[int, int]:
    """Index every artifact and finished run of the store in MLflow again, as after a lost database.

    Returns how many artifacts and runs are indexed. A run is left out when an artifact of it is gone.
    """
    from pipeline.store.tracking import closing

    store, index = Store(config.store), Index(config)
    tracker = index.tracker
    artifacts = [a for stage in graph.STAGES for a in store.all(stage.name) if a.record["project"] == config.project]
    for artifact in artifacts:
        index.stage(artifact)
    done = tracker.indexed("pipeline")
    whole = [one for one in remembered(store, config.project) if {*one.found(store)} == {*one.artifacts}]
    for record in whole:
        if record.key not in done:
            run_id = tracker.open("pipeline", record.key, record.name)
            with closing(tracker, run_id):
                tracker.parameters(run_id, record.parameters)
                index_pipeline(tracker, run_id, record.found(store))
    index.remember()
    return len(artifacts), len(whole)


# The report's other files, such as the key to its sites, stay in the store.
LEAVING = ("report.pdf", "report.html", "report.json", "appendix.pdf", "model_card.md")


def _deliver(config: Config, report: Artifact | None) -> Path | None:
    """Copy the finished report and its data beside the other reports of the project; return the PDF's path."""
    if report is None:
        return None
    folder = config.reports / f"{config.project}-{report.key[:8]}"
    for name in report.record["files"]:
        if name in LEAVING or name.startswith("data/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(report.file(name), folder / name)
    return folder / "report.pdf"
