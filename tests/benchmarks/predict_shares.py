"""Where the time of predict goes: looking, decoding, rendering, network, typicality, attention, pages. Prints JSON.

    python tests/benchmarks/predict_shares.py MODEL IMAGES                     300 studies: about two minutes of a core
    python tests/benchmarks/predict_shares.py MODEL IMAGES --studies 50        a look

MODEL is a packaged model, IMAGES a folder of images that it takes; each file is a study. One process and one thread do
what predict does, in the same pieces (the network takes 64 images at a time); what is measured is its processor time,
which other work on the machine does not change. predict itself spreads looking, decoding and rendering over --workers.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.delivery import pages
from pipeline.imaging.archive.sources import find_sources
from pipeline.inference import batch, model
from pipeline.inference.batch import Group
from pipeline.inference.grouping import glance
from pipeline.inference.model import IMAGES_PER_BATCH, Model, Predictions

spent: dict[str, float] = defaultdict(float)


def timed(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that adds its processor time to what was spent on `name`."""

    def measured(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return run(*given, **named)
        finally:
            spent[name] += time.process_time() - start

    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--studies", type=int, default=300)
    options = parser.parse_args()
    loaded = timed("loading the model", Model.load)(options.model, device="cpu", threads=1)
    loading = spent.pop("loading the model")
    batch.read_study, batch.render = timed("decoding", batch.read_study), timed("rendering", batch.render)
    model.describe, model.attention = timed("typicality", model.describe), timed("attention", model.attention)
    object.__setattr__(loaded.ensemble, "logits", timed("network", loaded.ensemble.logits))
    look, draw = timed("looking", glance), timed("pages", pages.page)
    sources = sorted(random.Random(0).sample(find_sources([options.images]), options.studies), key=lambda one: one.path)
    predictions, waiting, at = Predictions(loaded, sources, {}, None, 1, True, model.nothing), [], pages.now()
    begun = time.process_time()
    for number, source in enumerate(sources, 1):
        look(source, loaded.task.policy, {})
        group = Group(source.path, "", "", (source,), source.path)
        waiting.append((group, batch._see(loaded.task, group)))
        if len(waiting) == IMAGES_PER_BATCH or number == len(sources):
            for result in predictions._judged(waiting):
                draw(result, predictions, at)
            waiting = []
    whole = time.process_time() - begun
    spent["the rest"] = whole - sum(spent.values())
    without = {name: taken for name, taken in spent.items() if name not in ("attention", "pages")}
    found = {
        "studies": len(sources),
        "loading_the_model_s": round(loading, 2),
        "ms_per_study": {name: round(1000 * taken / len(sources), 2) for name, taken in spent.items()},
        "share": {name: round(taken / whole, 3) for name, taken in spent.items()},
        "share_without_pages": {name: round(t / sum(without.values()), 3) for name, t in without.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
