"""What a task is to the stages: what it needs, how it trains an arm, and by what its training is watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def nothing(_arm: str, _results: Mapping[str, Any]) -> list[str]:
    """Return no remark."""
    return []


@dataclass(frozen=True)
class Task:
    """A task by the name that `finetune.task` gives it.

    `train` is called with (arm, seed, settings, data, folder, log) and leaves the model's files, see `arms.finish`: it
    puts the task's head on the arm's network and trains it with a `finetuning.Learning`, which holds targets, loss and
    tuning measure. `measured` is what a reader calls that measure. With `masks`, the targets are masks beside the
    labels. `remarks` is called with an arm and its records by seed, and says what their reader has to know.

    Whatever the task, a model scores an image by logits, so that the stages behind need not know it. What else it says
    of an image is in `finished.Finished`, and stage score writes it down.
    """

    name: str
    measured: str
    train: Callable[..., None]
    masks: bool = False
    remarks: Callable[[str, Mapping[str, Any]], list[str]] = nothing
