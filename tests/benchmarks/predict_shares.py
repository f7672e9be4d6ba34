"""Where the time of predict goes: looking, decoding, rendering, network, typicality, attention, pages. Prints JSON.

    PYTHONPATH=.:tests python tests/benchmarks/predict_shares.py               100 studies: about two minutes of a core
    PYTHONPATH=.:tests python tests/benchmarks/predict_shares.py --seeds 1     an arm of one network
    PYTHONPATH=.:tests python tests/benchmarks/predict_shares.py --given MODEL IMAGES

MODEL is a packaged model, IMAGES a folder of images that it takes; each file is a study. Without them, a usable model
is made that judges typicality: three networks of the size ViT-S/16 at 224 pixels, with weights as they are drawn, since
a network takes as long whatever it has learned, and a reference fitted to made-up films; the studies are more of them,
as DICOM files of 512 x 512 pixels.

One process and one thread do what predict does, in the same pieces (the network takes 64 images at a time); what is
measured is its processor time. predict itself spreads looking, decoding and rendering over --workers.
`share_of_network` is the time of the network alone over that of predict without pages. The network alone is
`Ensemble.logits` of the same arrays, ready in memory, measured beside each pass; typicality is no part of it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imaging.files import make_dicom
from small_model import picture, small_model

from pipeline.delivery import pages
from pipeline.imaging.archive.sources import find_sources
from pipeline.inference import batch, model
from pipeline.inference.batch import Group
from pipeline.inference.description import describe
from pipeline.inference.ensemble import Ensemble, member_files, to_pixels
from pipeline.inference.grouping import glance
from pipeline.inference.model import IMAGES_PER_BATCH, Model, Predictions
from pipeline.inference.model_folder import GOLDEN, MEMBERS, TYPICALITY, seal, write_golden
from pipeline.inference.typicality import Cohort, fit
from pipeline.models.arms import finish
from pipeline.models.classifier import Classifier
from pipeline.models.vit import EncoderSpec

SIDE, FILM_SIDE = 224, 512
SPEC = EncoderSpec((SIDE, SIDE), (16, 16), 1, 384, 12, 6, (0.5,), (0.25,))  # ViT-S/16
COHORTS = {"train": 20, "tune": 10, "calibration": 120}  # patients; 99 are needed to flag 1 in 100
PAGES, ALONE = ("attention", "pages"), "the network alone"
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


def usable_model(folder: Path, seeds: int) -> Path:
    """Return a model folder as `package` leaves it: so many networks of SPEC, and a reference that can flag."""
    torch.set_num_threads(1)
    small_model(folder, size=SPEC.image_size)
    for seed in range(1, seeds + 1):
        torch.manual_seed(seed)
        member = folder / MEMBERS / f"seed{seed}"
        member.mkdir(exist_ok=True)
        content = {"spec": SPEC.to_json(), "head": "norm_linear", "further_labels": []}
        finish(member, "mae", Classifier(SPEC, "norm_linear").state_dict(), [], content, {})
    ensemble = Ensemble.load(member_files(folder / MEMBERS), torch.device("cpu"))
    shutil.rmtree(folder / GOLDEN)  # of the small network
    write_golden(folder, np.random.default_rng(0).integers(0, 256, (2, 1, SIDE, SIDE), dtype=np.uint8), ensemble)
    cohorts, first = [], 0
    for patients in COHORTS.values():
        own = np.arange(first, first + patients)
        films = np.stack([picture(10_000 + number, SIDE)[None] // 16 for number in own]).clip(0, 255).astype(np.uint8)
        cohorts.append(Cohort(describe(ensemble.networks[0], to_pixels(films)), own))
        first += patients
    fit(*cohorts).save(folder / TYPICALITY)
    seal(folder)
    return folder


def films(folder: Path, number: int) -> Path:
    """Return a folder of so many made-up films as DICOM files."""
    folder.mkdir()
    for study in range(1, number + 1):
        uids = {name: f"2.25.{study}{digit}" for digit, name in enumerate(("StudyInstanceUID", "SOPInstanceUID"))}
        (folder / f"{study:05d}.dcm").write_bytes(make_dicom(picture(study, FILM_SIDE), **uids))
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", type=Path, nargs=2, metavar=("MODEL", "IMAGES"))
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="networks of the model that is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        given = options.given or (usable_model(made / "model", options.seeds), films(made / "films", options.studies))
        measure(*given, options.studies)


def measure(folder: Path, images: Path, studies: int) -> None:
    """Measure predict, and the network alone beside it."""
    loaded = timed("loading the model", Model.load)(folder, device="cpu", threads=1)
    loading = spent.pop("loading the model")
    batch.read_study, batch.render = timed("decoding", batch.read_study), timed("rendering", batch.render)
    model.attention = timed("attention", model.attention)
    alone = timed(ALONE, loaded.ensemble.logits)
    look, draw = timed("looking", glance), timed("pages", pages.page)
    sources = sorted(random.Random(0).sample(find_sources([images]), studies), key=lambda one: one.path)
    predictions, waiting, at = Predictions(loaded, sources, {}, None, 1, True, model.nothing), [], pages.now()
    for name, what in {"network": predictions._look, "typicality": predictions._typicality}.items():
        object.__setattr__(predictions, what.__name__, timed(name, what))
    begun = time.process_time()
    for number, source in enumerate(sources, 1):
        look(source, loaded.task.policy, {})
        group = Group(source.path, "", "", (source,), source.path)
        waiting.append((group, batch._see(loaded.task, group)))
        if len(waiting) == IMAGES_PER_BATCH or number == len(sources):
            alone(np.concatenate([seen.arrays for _, seen in waiting]))
            for result in predictions._judged(waiting):
                draw(result, predictions, at)
            waiting = []
    reference = spent.pop(ALONE)
    whole = time.process_time() - begun - reference
    spent["the rest"] = whole - sum(spent.values())
    without = {name: taken for name, taken in spent.items() if name not in PAGES}
    found = {
        "studies": len(sources),
        "usable": loaded.usable,
        "typicality_judged": predictions._reference is not None,
        "loading_the_model_s": round(loading, 2),
        "ms_per_study": {name: round(1000 * taken / len(sources), 2) for name, taken in spent.items()},
        "network_alone_ms_per_study": round(1000 * reference / len(sources), 2),
        "share_of_network": round(reference / sum(without.values()), 3),
        "share": {name: round(taken / whole, 3) for name, taken in spent.items()},
        "share_without_pages": {name: round(t / sum(without.values()), 3) for name, t in without.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
