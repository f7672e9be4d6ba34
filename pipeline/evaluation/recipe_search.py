"""The search for a recipe: each is trained on `train`, judged on `tune`, and one is handed on.

What a recipe is worth is the AUC of one arm and seed on the tuning images, its standard error that of a bootstrap over
patients; the choice is the simplest within one standard error of the best. Nothing else is looked at: no image of the
calibration or test patients can be opened here, since the stage is given none.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.models.arms import ArmData
from pipeline.models.distributed import from_leader, leads
from pipeline.models.images import Images
from pipeline.models.reading import read_model
from pipeline.models.recipes import Recipe, recipes_for
from pipeline.statistics.one_standard_error import auc_standard_error, simplest_within
from pipeline.store.files import read_json, write_json

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

FOLDER, TRIAL, HISTORY = "search", "trial.json", "history.json"
# Trains an arm and a seed by settings into a folder, or finds it trained.
Train = Callable[[str, int, "FinetuneSettings", Path], object]


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried: what it is, and what came of it on the tuning images."""

    recipe: str
    words: str
    arm: str
    seed: int
    epochs: int
    tune_auc: float
    standard_error: float
    seconds: float


@dataclass(frozen=True)
class Found:
    """The settings that are handed on, and what the summary says of the search."""

    settings: FinetuneSettings
    summary: dict[str, Any]


def search(
    settings: FinetuneSettings, arm: str, transformer: bool, data: ArmData, work: Path, log: RunLog, train: Train
) -> Found:
    """Try recipes with `arm` and the first seed as long as the budget lasts; return the one that is handed on.

    The first recipe, the settings as they were written, is always tried. A further one is begun when it would end
    within the budget, by the time that an epoch of those before took. Trials that an interrupted run finished are found
    again, with their time. The chosen trial is the model of this arm and seed; the weights of the others are removed.
    """
    minutes = settings.search.budget_minutes if settings.search else 0.0
    seed, budget_s = settings.seeds[0], 60 * minutes
    tried: dict[Recipe, Trial] = {}
    left_out: list[str] = []
    candidates = recipes_for(settings, transformer=transformer)
    for recipe, own in candidates.items():
        folder = work / FOLDER / recipe.name
        known = from_leader((folder / TRIAL).is_file())
        if not known and tried and from_leader(_expected_s(tried, own) > budget_s):
            left_out.append(recipe.name)
            continue
        if not known:
            started = monotonic()
            train(arm, seed, own, folder / "trained")
            _judge(recipe, arm, seed, own, data, folder, started)
        trial = Trial(**from_leader(read_json(folder / TRIAL) if leads() else None))
        tried[recipe] = trial
        log.info(f"recipe {recipe.name}: tune AUC {trial.tune_auc:.4f}, standard error {trial.standard_error:.4f}")
        measured = {"tune_auc": trial.tune_auc, "standard_error": trial.standard_error, "seconds": trial.seconds}
        log.metrics({f"search.{recipe.name}.{name}": value for name, value in measured.items()}, 1)
    trials = list(tried.values())
    place = simplest_within([one.tune_auc for one in trials], [one.standard_error for one in trials])
    chosen = list(tried)[place]
    log.info(f"recipe {chosen.name} is handed on: the simplest of {len(trials)} within one standard error of the best")
    if leads():
        _hand_on(work, chosen, arm, seed)
    return Found(candidates[chosen], {
        "arm": arm,
        "seed": seed,
        "budget_minutes": minutes,
        "tried": [asdict(one) for one in trials],
        "not_tried": left_out,
        "chosen": chosen.name,
        "words": chosen.words,
        "rule": "the simplest whose AUC on the tuning images is within one standard error (bootstrap over patients) of "
                "the highest",
        "settings": candidates[chosen].model_dump(mode="json"),
    })  # fmt: skip


def selection(found: Found | None) -> str:
    """Return what is added to how an arm's model was chosen; nothing without a search."""
    if found is None:
        return ""
    tried, words = len(found.summary["tried"]), found.summary["words"]
    if tried == 1:
        return f"; one recipe was tried ({words}), since the budget of the search allowed no other"
    return (
        f"; recipe: {words}, the simplest of {tried} tried whose AUC on the tuning images (arm {found.summary['arm']}) "
        "is within one standard error of the highest"
    )


def _expected_s(tried: dict[Recipe, Trial], own: FinetuneSettings) -> float:
    """Return the time of all trials so far and of one more, in seconds."""
    used = sum(one.seconds for one in tried.values())
    return used + used / sum(one.epochs for one in tried.values()) * own.epochs


def _judge(
    recipe: Recipe, arm: str, seed: int, own: FinetuneSettings, data: ArmData, folder: Path, started: float
) -> None:
    """Write what came of a trial; trial.json comes last and says that it is whole."""
    if not leads():
        return
    trained = folder / "trained" / arm / f"seed{seed}"
    logits = _logits(trained, data.tune, data)
    record = read_json(trained / "model.json")
    error = auc_standard_error(data.tune.labels, logits, data.tune.index["patient_id"], seed)
    shutil.copyfile(trained / HISTORY, folder / HISTORY)
    seconds = round(monotonic() - started, 1)
    trial = Trial(recipe.name, recipe.words, arm, seed, own.epochs, record["tune_auc"], error, seconds)
    write_json(folder / TRIAL, asdict(trial))


def _logits(trained: Path, images: Images, data: ArmData) -> np.ndarray:
    model = read_model(trained / "model.json", trained / "model.safetensors", data.device)
    return np.concatenate([model.logits(images.pixels(rows, data.device))[:, 0] for rows in images.chunks(64)])


def _hand_on(work: Path, chosen: Recipe, arm: str, seed: int) -> None:
    """Make the chosen trial the model of its arm and seed, which it is; remove the weights of all trials."""
    trained, final = work / FOLDER / chosen.name / "trained" / arm / f"seed{seed}", work / arm / f"seed{seed}"
    if trained.is_dir() and not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        trained.rename(final)
    for folder in (work / FOLDER).iterdir():
        shutil.rmtree(folder / "trained", ignore_errors=True)
