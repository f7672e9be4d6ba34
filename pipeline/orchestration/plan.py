"""What has to run, and why: each step's key, the artifact that comes nearest, and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.models.arm_registry import pretrained
from pipeline.orchestration.graph import NAMES, UNLABELLED, Stage, following, stages_of, step_name
from pipeline.orchestration.sources import datasets, externals, sources
from pipeline.settings.card import Card
from pipeline.settings.common import UsageError
from pipeline.settings.config import Config
from pipeline.settings.load import flatten
from pipeline.store.artifacts import Artifact, Store
from pipeline.store.files import sha256_json
from pipeline.store.lineage import Code, artifact_key, code_digests


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


def plan(
    config: Config, card: Card, secret: bytes | None, *, keep: Sequence[str] = (), rebuild: Sequence[str] = ()
) -> list[Step]:
    """Return each step in order, its key and whether it is reused or must run, with the reason.

    Nothing is made with `secret`: empty, there is no key yet; None, it is the one of the newest ingest in the store.
    A rebuild that was interrupted goes on, whether it is asked for again or not, but for the steps in `keep`.

    Raises RunError when a step cannot be kept, ChoiceError when `keep` and `rebuild` contradict each other or name what
    is no step.
    """
    store, code_now = Store(config.store), Code(config.store / "code_digests.json")
    available = {name: sources(config, data, secret, code_now) for name, data in datasets(config, card).items()}
    external = externals(available)
    stages = stages_of(external, pretrained=pretrained(config.finetune.arms), unlabelled=UNLABELLED in available)
    check_names([*keep, *rebuild], [stage.step for stage in stages])
    if both := [name for name in keep if name in rebuild]:
        raise ChoiceError(f"--keep {both[0]} and --rebuild {both[0]} contradict each other; choose one")
    follows = following(stages, rebuild)
    keys: dict[str, str] = {}
    kept: dict[str, str] = {}
    steps = []
    for stage in stages:
        found = available[stage.external]
        used = {name: found[name] for name in stage.sources if name in found}
        if stage.name == "report":
            used |= {step_name("card", name): available[name]["card"] for name in external}
            used |= {f"kept.{name}": reason for name, reason in kept.items()}
        settings = getattr(config, stage.name).model_dump(mode="json")
        inputs = {read: keys[stage.source(read)] for read in stage.reads}
        code = code_digests(f"pipeline.stages.{stage.works}", code_now)
        key = artifact_key(stage.name, settings, inputs, used, sha256_json(code))
        step = Step(stage, key, "run", "", settings, inputs, used, code)
        if step.name in keep:
            step = _keep(step, store, step.name in follows)
        keys[step.name] = step.key
        if step.kept:
            kept[step.name] = step.kept
        steps.append(step)
    code_now.remember()
    asked = _asked(steps, store, rebuild)
    return [_decide(replace(step, asked=asked.get(step.name)), store) for step in steps]


def check_names(wanted: Sequence[str], steps: Sequence[str]) -> None:
    """Raise ChoiceError when one of the names is no step of the run."""
    if unknown := [name for name in wanted if name not in steps]:
        why = ""
        if left_out := [name for name in unknown if name in NAMES]:
            why = f" ({', '.join(left_out)}: no arm of finetune.arms needs it)"
        raise ChoiceError(f"there is no step {', '.join(unknown)}{why}; this run has {', '.join(steps)}")


def _keep(step: Step, store: Store, asked: bool) -> Step:
    """Return the step with the artifact that is there, although its code has changed or its rebuild was asked for."""
    if store.find(step.stage.name, step.key) is not None:
        due = asked or store.rebuild_asked(step.stage.name, step.key) is not None
        return replace(step, kept="its rebuild was asked for") if due else step
    nearest, changes = _nearest(step, store)
    reason = _reason(nearest, changes)
    if nearest is None or set(changes) != {"code"}:
        raise RunError(f"--keep {step.name}: not only its code changed ({reason}); leave this --keep out")
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
        before = [found[read] for read in step.stage.needs if read in found]
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


def previous(step: Step, store: Store) -> Artifact | None:
    """Return the newest artifact that differs in nothing but what the stage takes in piecemeal, or None."""
    for artifact in _earlier(step, store) if step.stage.incremental and not step.anew else ():
        record = artifact.record
        changed = {*_different(record["sources"], step.sources), *_different(record["inputs"], step.inputs)}
        if changed <= {*step.stage.incremental} and {*_changes(step, record)} <= {"source", "input"}:
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
