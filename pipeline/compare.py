"""Finished runs side by side: which settings differ, and what came out, each number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import run
from pipeline.config import Card, Config
from pipeline.config_file import flatten
from pipeline.indexing import headline
from pipeline.store.artifacts import Store

MEASURES = ("test_auc", "certified_recall", "test_recall", "test_specificity", "test_referral_rate")


def compare(runs: Sequence[tuple[str, Config, Card, bytes]]) -> dict[str, Any]:
    """Return `{runs, settings, measures}`: one entry per run in each row, in the order given.

    Raises run.RunError naming every run that has not been finished.
    """
    numbers, settings, unfinished = [], [], []
    for name, config, card, secret in runs:
        store = Store(config.store)
        steps = {step.name: step for step in run.plan(config, card, secret)}
        found = {n: store.find(n, steps[n].key) for n in ("calibrate", "evaluate")}
        artifacts = {n: artifact for n, artifact in found.items() if artifact is not None}
        if len(artifacts) < len(found):
            unfinished.append(name)
            continue
        numbers.append(headline(artifacts))
        settings.append(flatten({stage: getattr(config, stage).model_dump(mode="json") for stage in run.NAMES}))
    if unfinished:
        raise run.RunError(f"not finished with the present code: {', '.join(unfinished)}; run: maescreen run CONFIG")
    names = sorted({name for one in settings for name in one})
    return {
        "runs": [name for name, *_ in runs],
        "settings": {
            name: values for name in names if len(set(map(str, values := [one.get(name) for one in settings]))) > 1
        },
        "measures": {measure: [_interval(one, measure) for one in numbers] for measure in MEASURES},
        "gate_failures": [int(one.get("gate_failures", 0)) for one in numbers],
    }


def _interval(numbers: dict[str, float], name: str) -> dict[str, float | None]:
    return {limit or "value": numbers.get(name + (f"_{limit}" if limit else "")) for limit in ("", "low", "high")}


def name_of(path: Path, overrides: Sequence[str]) -> str:
    """Return how a run is called in the table."""
    return " ".join([path.stem, *overrides])
