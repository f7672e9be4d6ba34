"""A run under torchrun: process 0 runs the pipeline, the others take part where stages are shared.

Process 0 tells the others which stage it works on, and from which artifacts. They do the same with a silent log, take
their part of every batch, and write nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.orchestration.graph import call_stage
from pipeline.store.artifacts import Inputs, Store, StoreError
from pipeline.store.lineage import code_digests
from pipeline.store.runlog import RunLog

if TYPE_CHECKING:
    from pipeline.orchestration.plan import Step
    from pipeline.settings.config import Config


def under_torchrun() -> bool:
    """Return whether this process is one of several that torchrun started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Return whether this process takes part in what another one runs."""
    return under_torchrun() and os.environ["RANK"] != "0"


@contextmanager
def leading(config: Config) -> Iterator[None]:
    """Meet the processes that follow, if there are any, and send them home at the end.

    Raises PeerError when one of them ends early.
    """
    if not under_torchrun():
        yield
        return
    from pipeline.models import distributed

    with distributed.joined(config.machine.device):
        yield
        distributed.from_leader(None)


def announce(step: Step) -> None:
    """Tell the processes that follow which stage comes next."""
    if not under_torchrun():
        return
    from pipeline.models import distributed

    word = {"stage": step.stage.name, "reads": step.stage.reads, "key": step.key}
    used = {"inputs": step.inputs, "sources": step.sources, "settings": step.settings, "code": step.code}
    distributed.from_leader({**word, **used})


def follow(config: Config) -> None:
    """Take part in what process 0 runs, until it ends. Of the files that the config names, only the store is needed,
    and the imported weights where an arm starts from them.

    Raises StoreError when settings, code or store are not those of process 0, PeerError when another process fails.
    """
    from pipeline.models import distributed

    with distributed.joined(config.machine.device):
        while (word := distributed.from_leader(None)) is not None:
            _take_part(config, word)


def _take_part(config: Config, word: Mapping[str, Any]) -> None:
    name, store = word["stage"], Store(config.store)
    settings = getattr(config, name)
    mine = {"settings": settings.model_dump(mode="json"), "code": code_digests(f"pipeline.stages.{name}")}
    if wrong := [what for what, value in mine.items() if value != word[what]]:
        raise StoreError(f"{name}: this process has other {' and other '.join(wrong)} than process 0")
    found = {earlier: store.find(earlier.partition("@")[0], key) for earlier, key in word["inputs"].items()}
    artifacts = {earlier: artifact for earlier, artifact in found.items() if artifact is not None}
    if missing := sorted(found.keys() - artifacts.keys()):
        raise StoreError(f"{name}: {', '.join(missing)} is not in this machine's store; all machines must see the same")
    weights = config.data.imported_weights if {"imported_weights", "start_weights"} & set(word["sources"]) else None
    if weights is not None and not weights.is_file():
        raise StoreError(
            f"{name}: data.imported_weights is not on this machine; all machines must see the same weights"
        )
    # Card, key, studies and labels are not read by what is shared.
    inputs = Inputs(None, config.machine, artifacts, word["reads"], imported_weights=weights)  # type: ignore[arg-type]
    call_stage(name, settings, inputs, store.partial(name, word["key"]), RunLog(name, quiet=True))
