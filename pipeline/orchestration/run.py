"""The pipeline: ten stages in order, what each may read, what has to run and why, and running it.

Nothing here knows how a stage works. A stage is a function `stage(settings, inputs, work, log)` that meets the
others only through the files named in STAGES. A step is a stage at work: on the studies of the run, `ingest`, or on
those of an external test set, `ingest@site_b`.
"""

from __future__ import annotations

import importlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline import __version__
from pipeline.orchestration.chosen_studies import chosen_digest
from pipeline.orchestration.mlflow_runs import gate_failures, index_pipeline, index_stage
from pipeline.orchestration.torchrun import announce
from pipeline.settings.card import Card
from pipeline.settings.common import UsageError
from pipeline.settings.config import Config
from pipeline.settings.load import flatten, read_card
from pipeline.settings.where import Studies
from pipeline.store.artifacts import Artifact, Inputs, Store
from pipeline.store.files import sha256_file, sha256_json
from pipeline.store.ledger import Ledger
from pipeline.store.lineage import (
    SourceHashes,
    artifact_key,
    code_digests,
    git_commit,
    studies_digest,
)
from pipeline.store.run_records import RunRecord, remember, remembered
from pipeline.store.runlog import RunLog
from pipeline.store.versions import package_versions, runtime_versions


@dataclass(frozen=True)
class Stage:
    """A stage: the files of earlier stages that it may read, and the sources from outside the store.

    A source that a run does not use is none of its key. When only sources in `incremental` changed, the stage may take
    over from its previous artifact what did not. Under torchrun, all processes work on a `shared` stage. `of_external`
    are the files that it may read of each external test set. `external` is the set it works on; empty for the studies
    of the run.
    """

    name: str
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    costly: bool = False
    incremental: tuple[str, ...] = ()
    shared: bool = False
    of_external: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    external: str = ""

    @property
    def step(self) -> str:
        """What the plan calls it."""
        return _step(self.name, self.external)

    def source(self, read: str) -> str:
        """Return the step whose artifact the stage function knows as `read`: of an external set, its own."""
        return _step(read, self.external) if read in EXTERNAL else read


def _step(stage: str, external: str) -> str:
    return f"{stage}@{external}" if external else stage


# The stages that an external test set goes through by itself, with the settings and models of the run.
EXTERNAL = ("ingest", "split", "preprocess", "score")
STAGES = (
    Stage(
        "ingest",
        sources=("studies", "patients", "join", "expected", "key"),
        costly=True,
        incremental=("studies", "patients"),
    ),
    Stage(
        "split",
        {
            "ingest": (
                *("images.parquet", "files.parquet", "quarantine.parquet", "near_duplicates.parquet"),
                *("examined.parquet", "assembled.parquet", "summary.json"),
            )
        },
        sources=("labels", "label", "further_labels", "columns", "splits", "key"),
    ),
    Stage(
        "preprocess",
        {"ingest": ("images.parquet", "files.parquet"), "split": ("split.parquet", "further_labels.parquet")},
        costly=True,
    ),
    Stage(
        "pretrain",
        {"preprocess": ("summary.json", "index_train.*", "train-*", "index_pretrain.*", "pretrain-*")},
        costly=True,
        shared=True,
    ),
    Stage(
        "finetune",
        {
            "pretrain": ("encoder.safetensors", "model.json"),
            "preprocess": (
                "summary.json",
                *("index_train.*", "further_labels_train.*", "train-*"),
                *("index_tune.*", "further_labels_tune.*", "tune-*"),
            ),
        },
        sources=("imported_weights",),
        costly=True,
        shared=True,
    ),
    Stage(
        "score",
        {
            "finetune": ("*",),
            "preprocess": (
                "summary.json",
                *("index_tune.*", "tune-*", "index_calibration.*", "calibration-*", "index_test.*", "test-*"),
                *("further_labels_tune.*", "further_labels_calibration.*", "further_labels_test.*"),
            ),
        },
    ),
    Stage(
        "calibrate",
        {
            "score": ("scores_calibration.parquet", "further_scores_calibration.parquet"),
            "finetune": ("summary.json",),
            "ingest": ("images.parquet",),
            "split": ("split.parquet",),
        },
    ),
    Stage(
        "evaluate",
        {
            "score": (
                *("scores_calibration.parquet", "scores_test.parquet", "label_fractions_test.parquet"),
                *("further_scores_calibration.parquet", "further_scores_test.parquet"),
            ),
            "finetune": ("summary.json",),
            "calibrate": ("*",),
            "ingest": ("images.parquet", "examined.parquet", "assembled.parquet"),
            "split": ("split.parquet", "further_labels.parquet"),
        },
        of_external={
            "ingest": ("images.parquet", "examined.parquet", "assembled.parquet"),
            "split": ("split.parquet",),
            "score": ("scores_test.parquet",),
        },
    ),
    Stage(
        "package",
        {
            "ingest": ("images.parquet",),
            "split": ("split.parquet",),
            "preprocess": (
                "summary.json",
                *("index_train.*", "train-*", "index_tune.*", "tune-*", "index_calibration.*", "calibration-*"),
            ),
            "finetune": ("summary.json", "*/seed*/model.json", "*/seed*/model.safetensors"),
            "score": ("summary.json",),
            "calibrate": ("*",),
            "evaluate": ("metrics.json", "findings.json"),
        },
        sources=("card",),
    ),
    Stage(
        "report",
        {
            "ingest": ("*",),
            "split": ("*",),
            "preprocess": ("summary.json", "index_test.*", "test-*"),
            "pretrain": ("*.json", "*.png"),
            "finetune": ("*.json", "*.safetensors"),
            "score": ("summary.json", "scores_test.parquet"),
            "calibrate": ("*",),
            "evaluate": ("*",),
            "package": ("model/model.json", "model/SHA256SUMS"),
        },
        sources=("card", "fonts"),
        of_external=dict.fromkeys(EXTERNAL, ("summary.json",)),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
# The stages that enter into the ledger which patients they read.
READERS = ("calibrate", "evaluate")


class RunError(RuntimeError):
    """The run cannot start or go on; the message says why and what to do."""


class ChoiceError(RunError, UsageError):
    """What was asked for does not go together, whatever is in the store; the message says why and what to do."""


@dataclass(frozen=True)
class Step:
    """What the plan says about one stage at work."""

    stage: Stage
    key: str
    action: Literal["reuse", "run", "stop"]
    reason: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    sources: Mapping[str, str]
    code: Mapping[str, str]
    kept: str = ""
    asked: frozenset[str] | None = None

    @property
    def anew(self) -> bool:
        """Whether it is to be made anew, since --rebuild named one of the steps in `asked`, now or earlier."""
        return self.asked is not None

    @property
    def name(self) -> str:
        """What the plan calls it."""
        return self.stage.step

    def line(self) -> str:
        """Return the line that the plan prints."""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.name:<10} {self.key}  {self.action}{why}"


@dataclass(frozen=True)
class Result:
    """What a run left: its artifacts by step, the gate's failures, and the finished report."""

    artifacts: Mapping[str, Artifact]
    failures: Sequence[Mapping[str, str]]
    report: Path | None
    comparison: str


# ---------------------------------------------------------------- the plan


def plan(
    config: Config, card: Card, secret: bytes | None, *, keep: Sequence[str] = (), rebuild: Sequence[str] = ()
) -> list[Step]:
    """Return each step in order, its key and whether it is reused or must run, with the reason.

    Nothing is made with `secret`: empty, there is no key yet; None, it is the one of the newest ingest in the store.
    A rebuild that was interrupted goes on, whether it is asked for again or not, but for the steps in `keep`.

    Raises RunError when a step cannot be kept, ChoiceError when `keep` and `rebuild` contradict each other or name what
    is no step.
    """
    store = Store(config.store)
    available = {name: _sources(config, data, secret) for name, data in _datasets(config, card).items()}
    external = [name for name in available if name]
    stages = _stages(external)
    _check_names([*keep, *rebuild], [stage.step for stage in stages])
    if both := [name for name in keep if name in rebuild]:
        raise ChoiceError(f"--keep {both[0]} and --rebuild {both[0]} contradict each other; choose one")
    follows = _following(stages, rebuild)
    keys: dict[str, str] = {}
    kept: dict[str, str] = {}
    steps = []
    for stage in stages:
        found = available[stage.external]
        sources = {name: found[name] for name in stage.sources if name in found}
        if stage.name == "report":
            sources |= {_step("card", name): available[name]["card"] for name in external}
            sources |= {f"kept.{name}": reason for name, reason in kept.items()}
        settings = getattr(config, stage.name).model_dump(mode="json")
        inputs = {read: keys[stage.source(read)] for read in stage.reads}
        code = code_digests(f"pipeline.stages.{stage.name}")
        key = artifact_key(stage.name, settings, inputs, sources, sha256_json(code))
        step = Step(stage, key, "run", "", settings, inputs, sources, code)
        if step.name in keep:
            step = _keep(step, store, step.name in follows)
        keys[step.name] = step.key
        if step.kept:
            kept[step.name] = step.kept
        steps.append(step)
    asked = _asked(steps, store, rebuild)
    return [_decide(replace(step, asked=asked.get(step.name)), store) for step in steps]


def _stages(external: Sequence[str]) -> list[Stage]:
    """Return the stages in order, those in EXTERNAL once more for each external test set.

    What these leave is read by stages with `of_external` alone: nothing is trained, calibrated or chosen by it.
    """
    found = []
    for stage in STAGES:
        more = {_step(read, name): files for name in external for read, files in stage.of_external.items()}
        found.append(replace(stage, reads={**stage.reads, **more}))
        found += [_of_external(stage, name) for name in external if stage.name in EXTERNAL]
    return found


def _of_external(stage: Stage, name: str) -> Stage:
    # The same studies are divided otherwise as an external set, so that the artifact needs another key.
    sources = (*stage.sources, "purpose") if stage.name == "split" else stage.sources
    return replace(stage, external=name, sources=sources)


def _read_by(stage: Stage) -> set[str]:
    """Return the steps whose artifacts a stage reads."""
    return {stage.source(read) for read in stage.reads}


def _following(stages: Sequence[Stage], names: Sequence[str]) -> set[str]:
    """Return the steps with these names and all that read what they leave, directly or not."""
    found = set(names)
    for stage in stages:
        found |= {stage.step} if found & _read_by(stage) else set()
    return found


def _check_names(wanted: Sequence[str], steps: Sequence[str]) -> None:
    if unknown := [name for name in wanted if name not in steps]:
        raise ChoiceError(f"there is no step {', '.join(unknown)}; this run has {', '.join(steps)}")


def _datasets(config: Config, card: Card) -> dict[str, tuple[Studies, Card]]:
    """Return the studies and card of each external test set by its name, those of the run by an empty name."""
    datasets: dict[str, tuple[Studies, Card]] = {"": (config.data, card)}
    return datasets | {one.name: (one, read_card(one.card)) for one in config.data.external}


def _sources(config: Config, dataset: tuple[Studies, Card], secret: bytes | None) -> dict[str, str]:
    """Return the digest of each thing from outside the store, as fine as the stages use it."""
    from pipeline.imaging import pseudonyms
    from pipeline.labels import identity, path_rules

    (data, card), hashes = dataset, _hashes(config, secret)
    used = {}
    if "imported" in config.finetune.arms and config.data.imported_weights is not None:
        used["imported_weights"] = hashes.of(config.data.imported_weights)
    if config.report.fonts is not None:
        used["fonts"] = studies_digest([config.report.fonts], hashes)
    if card.further_labels:
        used["further_labels"] = sha256_json([label.model_dump() for label in card.further_labels])
    return {
        **used,
        "studies": chosen_digest(data, hashes, config.ingest.links == "inside", _track_hashing),
        "patients": identity.patients_digest(
            data.labels,
            card.columns.join,
            getattr(card.columns, card.columns.join),
            card.columns.patient_id,
            card.columns.patient_from,
            path_rules.PathRule(**card.columns.path_rule),
        ),
        "join": card.columns.join,
        "labels": sha256_file(data.labels),
        "label": sha256_json(card.label.model_dump()),
        "columns": sha256_json(card.columns.model_dump()),
        "expected": sha256_json(card.expected.model_dump()),
        "splits": sha256_json(card.splits),
        "key": _newest_key(config) if secret is None else pseudonyms.fingerprint(secret),
        "card": sha256_json(card.model_dump()),
        "purpose": "external test set",
    }


def _newest_key(config: Config) -> str:
    """Return the fingerprint of the key that made the newest ingest of the project, or an empty text."""
    made = (one.record for one in Store(config.store).all("ingest"))
    return next((record["sources"]["key"] for record in made if record["project"] == config.project), "")


def _hashes(config: Config, secret: bytes | None) -> SourceHashes:
    # Without a key, nothing may be kept that names of files could be guessed from.
    return SourceHashes(secret, config.store / "source_hashes.sqlite") if secret else SourceHashes()


def _track_hashing(paths: Sequence[Path]) -> Iterator[Path]:
    return RunLog("plan").track(paths, "files hashed", total=len(paths))


def _keep(step: Step, store: Store, asked: bool) -> Step:
    """Return the step with the artifact that is there, although its code has changed or its rebuild was asked for."""
    if store.find(step.stage.name, step.key) is not None:
        due = asked or store.rebuild_asked(step.stage.name, step.key) is not None
        return replace(step, kept="its rebuild was asked for") if due else step
    nearest, changes = _nearest(step, store)
    reason = _reason(nearest, changes)
    if nearest is None or set(changes) != {"code"}:
        raise RunError(f"--keep {step.name}: not only its code changed ({reason})")
    return replace(step, key=nearest.key, kept=reason)


def _asked(steps: Sequence[Step], store: Store, rebuild: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return, by step that is to be made anew, the steps that --rebuild named, now or before an interruption.

    What was named before, and is made already, is not made a second time while some of what follows is still due.
    """
    due = {step.name: store.rebuild_asked(step.stage.name, step.key) for step in steps}
    begun = {name for names in due.values() for name in names or ()}
    found: dict[str, frozenset[str]] = {}
    for step in steps:
        own = frozenset({step.name} & {*rebuild} - begun)
        before = [found[read] for read in _read_by(step.stage) if read in found]
        if not step.kept and (own or before or due[step.name] is not None):
            found[step.name] = own.union(due[step.name] or (), *before)
    return found


def _decide(step: Step, store: Store) -> Step:
    stage, name = step.stage.name, step.name
    partial = store.partial(stage, step.key).exists()
    if step.kept:
        return replace(step, action="reuse", reason=f"kept although {step.kept}")
    if store.find(stage, step.key) is not None:
        return replace(step, reason="made anew, as asked") if step.anew else replace(step, action="reuse")
    nearest, changes = _nearest(step, store)
    reason = _reason(nearest, changes)
    only_code = nearest is not None and set(changes) == {"code"}
    if only_code and step.stage.costly and not step.anew and not partial:
        reason += (
            f"; add --keep {name} to use the artifact made by the earlier code, or --rebuild {name} to make it anew"
        )
        return replace(step, action="stop", reason=reason)
    return replace(step, reason="goes on with unfinished work" if partial else reason)


def _reason(nearest: Artifact | None, changes: Mapping[str, str]) -> str:
    if nearest is None:
        return "no earlier artifact"
    return "; ".join(f"{what} changed ({detail})" for what, detail in changes.items())


def _nearest(step: Step, store: Store) -> tuple[Artifact | None, dict[str, str]]:
    """Return the earlier artifact of this step that differs in the fewest respects, and these respects.

    Of those that differ in one, an artifact of other code alone comes first, since it can be kept; then the newest.
    """
    found = [(artifact, _changes(step, artifact.record)) for artifact in _earlier(step, store)]
    return min(found, key=lambda one: (len(one[1]), set(one[1]) != {"code"}), default=(None, {}))


def _earlier(step: Step, store: Store) -> list[Artifact]:
    """Return the artifacts of a step, newest first; those of other test sets are of the same stage."""
    return [one for one in store.all(step.stage.name) if one.record.get("step", one.stage) == step.name]


def _previous(step: Step, store: Store) -> Artifact | None:
    """Return the newest artifact that differs in nothing but sources that the stage takes in piecemeal, or None."""
    for artifact in _earlier(step, store) if step.stage.incremental and not step.anew else ():
        record = artifact.record
        sources = {*_different(record["sources"], step.sources)}
        if sources <= {*step.stage.incremental} and {*_changes(step, record)} <= {"source"}:
            return artifact
    return None


def _changes(step: Step, record: Mapping[str, Any]) -> dict[str, str]:
    before, now = flatten(record["settings"]), flatten(dict(step.settings))
    settings = [
        f"{k} {before.get(k, 'unset')} → {now.get(k, 'unset')}"
        for k in sorted(before | now)
        if before.get(k) != now.get(k)
    ]
    changes = {
        "settings": settings,
        "input": _different(record["inputs"], step.inputs),
        "source": _different(record["sources"], step.sources),
        "code": _different(record["code"], step.code),
    }
    return {what: ", ".join(names) for what, names in changes.items() if names}


def _different(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({**before, **now}) if before.get(name) != now.get(name)]


# ---------------------------------------------------------------- running


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
    from pipeline.store.tracking import Tracker, closing, comparison_fragment

    store = Store(config.store)
    planned = plan(config, card, secret, keep=keep, rebuild=rebuild)
    names = [step.name for step in planned]
    _check_names([only or until], names)
    steps = planned[: names.index(only or until) + 1]
    _check_choices(steps, only, keep, rebuild)
    for step in steps:
        say(step.line())
    _refuse(steps, store, only)
    _note_rebuilds(planned, store)
    tracker = Tracker(config.project, config.store, config.tracking.uri, config.tracking.pictures)
    wanted = [step for step in steps if only in (None, step.name)]
    if only is not None:
        artifacts = _make(wanted, steps, config, card, secret, store, tracker, deadline)
        _leave_rebuilds(planned, store)
        return _result(config, artifacts, comparison_fragment(tracker.experiment_id), None)
    name, key = f"{config.project} {steps[-1].key[:8]}", f"{steps[-1].stage.name}/{steps[-1].key}"
    if key in tracker.indexed("pipeline") and not any(step.anew for step in steps):
        artifacts = _make(wanted, steps, config, card, secret, store, tracker, deadline)
    else:
        run_id = tracker.open("pipeline", key, name)
        with closing(tracker, run_id):
            tracker.parameters(run_id, _parameters(config))
            artifacts = _make(wanted, steps, config, card, secret, store, tracker, deadline)
            index_pipeline(tracker, run_id, artifacts)
    _leave_rebuilds(planned, store)
    made = {step: (artifact.stage, artifact.key) for step, artifact in artifacts.items()}
    remember(store, RunRecord(config.project, key, name, _parameters(config), made))
    report = _deliver(config, artifacts.get("report"))
    return _result(config, artifacts, comparison_fragment(tracker.experiment_id), report)


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
        needed = _needed(steps, only)
        allowed = [name for name in allowed if name in needed]
    if beyond := [name for name in [*keep, *rebuild] if name not in allowed]:
        option = "--keep" if beyond[0] in keep else "--rebuild"
        raise ChoiceError(f"{option} {beyond[0]}: {last}, with which this command ends, does not need it")


def _needed(steps: Sequence[Step], name: str) -> set[str]:
    """Return a step and all that it rests on."""
    needed = {name}
    for step in reversed(steps):
        needed |= _read_by(step.stage) if step.name in needed else set()
    return needed


def _refuse(steps: Sequence[Step], store: Store, only: str | None) -> None:
    stopped = [step for step in steps if step.action == "stop" and only in (None, step.name)]
    if only is not None:
        needed = _needed(steps, only)
        missing = [s for s in steps[:-1] if s.name in needed and not _usable(s, store)]
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


def _make(
    wanted: Sequence[Step],
    steps: Sequence[Step],
    config: Config,
    card: Card,
    secret: bytes,
    store: Store,
    tracker: Any,
    deadline: float,
) -> dict[str, Artifact]:
    artifacts = {s.name: a for s in steps if (a := store.find(s.stage.name, s.key)) is not None}
    kept = {step.name: step.kept for step in steps if step.kept}
    datasets = _datasets(config, card)
    hashes = _hashes(config, secret)
    # A run that ended between an artifact and its line in the ledger left one that is not entered yet.
    Ledger(store.root).append(one for name in READERS for one in store.all(name))
    for step in wanted:
        stage = step.stage
        if time.monotonic() > deadline and (step.anew or step.name not in artifacts):
            raise KeyboardInterrupt(f"stopped before {step.name}: machine.max_minutes have passed")
        data, about = datasets[stage.external]
        inputs = Inputs(
            card=about,
            machine=config.machine,
            artifacts={read: artifacts[stage.source(read)] for read in stage.reads},
            readable=stage.reads,
            studies=tuple(data.studies),
            include=tuple(data.include),
            exclude=tuple(data.exclude),
            labels=data.labels,
            imported_weights=config.data.imported_weights,
            secret=secret,
            kept={read: kept[stage.source(read)] for read in stage.reads if stage.source(read) in kept},
            lookup=None if about.identifiers == "synthetic" else config.data.key_file.with_suffix(".lookup"),
            hashes=hashes,
            previous=_previous(step, store),
            deadline=deadline,
            test_only=bool(stage.external),
            external={name: its for name, (_, its) in datasets.items() if name and stage.of_external},
            ledger=Ledger(store.root),
            own_key=step.key,
        )
        settings = getattr(config, stage.name)
        artifacts[step.name] = _build(step, settings, inputs, config.project, store, tracker)
    return artifacts


def _build(step: Step, settings: Any, inputs: Inputs, project: str, store: Store, tracker: Any) -> Artifact:
    name, key = step.stage.name, step.key
    log = RunLog(step.name)
    with store.lock(name, key, waiting=lambda: log.info("another run is making this artifact; waiting for it")):
        # Another run may have finished the rebuild while this one waited.
        artifact = store.find(name, key) if store.rebuild_asked(name, key) is None else None
        if artifact is None:
            artifact = _execute(step, settings, inputs, project, store, tracker, log)
        index_stage(tracker, artifact)
    return artifact


def _execute(
    step: Step, settings: Any, inputs: Inputs, project: str, store: Store, tracker: Any, log: RunLog
) -> Artifact:
    from pipeline.store.tracking import closing

    name, key = step.stage.name, step.key
    run_id = tracker.open("stage", f"{name}/{key}", f"{step.name} {key[:8]}")
    log.sink = lambda values, at: tracker.metrics(run_id, values, at)
    function = getattr(importlib.import_module(f"pipeline.stages.{name}"), name)
    started = time.monotonic()
    with closing(tracker, run_id):
        work = store.begin(name, key)
        if step.stage.shared:
            announce(step)
        function(settings, inputs, work, log)
        seconds = time.monotonic() - started
        artifact = store.publish(
            name,
            key,
            {
                "stage": name,
                "step": step.name,
                "key": key,
                "project": project,
                "settings": step.settings,
                "inputs": step.inputs,
                "sources": step.sources,
                "code": step.code,
                "git_commit": git_commit(),
                "versions": {"maescreen": __version__, **runtime_versions(), **package_versions()},
                "device": _device(inputs.machine.device),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 1),
                "warnings": log.warnings,
                "mlflow_run_id": run_id,
            },
        )
    Ledger(store.root).append([artifact])
    log.info(f"done in {seconds:.0f} s")
    return artifact


def _device(wanted: str) -> str:
    torch = sys.modules.get("torch")
    if torch is None or wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name())


# ---------------------------------------------------------------- afterwards


def _parameters(config: Config) -> dict[str, Any]:
    return flatten({name: getattr(config, name).model_dump(mode="json") for name in NAMES})


def reindex(config: Config) -> tuple[int, int]:
    """Index every artifact and finished run of the store in MLflow again, as after a lost database.

    Returns how many artifacts and runs are indexed. A run is left out when an artifact of it is gone.
    """
    from pipeline.store.tracking import Tracker, closing

    store, tracker = (
        Store(config.store),
        Tracker(config.project, config.store, config.tracking.uri, config.tracking.pictures),
    )
    artifacts = [a for stage in STAGES for a in store.all(stage.name) if a.record["project"] == config.project]
    for artifact in artifacts:
        index_stage(tracker, artifact)
    done = tracker.indexed("pipeline")
    whole = [one for one in remembered(store, config.project) if {*one.found(store)} == {*one.artifacts}]
    for record in whole:
        if record.key not in done:
            run_id = tracker.open("pipeline", record.key, record.name)
            with closing(tracker, run_id):
                tracker.parameters(run_id, record.parameters)
                index_pipeline(tracker, run_id, record.found(store))
    return len(artifacts), len(whole)


def _deliver(config: Config, report: Artifact | None) -> Path | None:
    """Copy the finished report and its data beside the other reports of the project; return the PDF's path."""
    if report is None:
        return None
    folder = config.reports / f"{config.project}-{report.key[:8]}"
    for name in report.record["files"]:
        if name.startswith(("report.", "data/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(report.file(name), folder / name)
    return folder / "report.pdf"


def _result(config: Config, artifacts: Mapping[str, Artifact], comparison: str, report: Path | None) -> Result:
    return Result(artifacts, gate_failures(artifacts), report, comparison)
