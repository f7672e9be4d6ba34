"""Training with fewer labelled patients: who they are, and how long the networks are trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.models.images import Images
from pipeline.models.randomness import derived_seed
from pipeline.models.training import TrainingError

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings


def labelled_subsets(images: Images, counts: Sequence[int], seed: int) -> dict[int, Images]:
    """Return, for each number of patients, smallest first, the images of as many; smaller subsets lie within larger.

    Raises TrainingError, naming every number of patients that leaves a class empty, of the main label or of a further
    one, or is not below that of all.
    """
    of_patient = images.index["patient_id"]
    positive = images.index["label"].groupby(of_patient).max() == 1
    order = patient_order(positive, seed)
    problems = []
    for count in sorted(counts):
        found = int(positive[order[:count]].sum())
        if count >= len(order):
            problems.append(f"{count} is not fewer than all {len(order)}, who are trained with anyway")
        elif found in (0, count):
            problems.append(f"{count} would be {found} positive and {count - found} negative patients")
        known = images.further[of_patient.isin(order[:count]).to_numpy()] if len(images.further) else images.further
        problems += [f"{count} would have one class of further label {name} alone"
                     for name in known if known[name].nunique() < 2]  # fmt: skip
    if problems:
        total = int(positive.sum())
        raise TrainingError(
            f"finetune.labelled_patients: {'; '.join(problems)}; split train has {total} positive and "
            f"{len(order) - total} negative patients; choose other numbers"
        )
    return {count: images.where(of_patient.isin(order[:count]).to_numpy()) for count in sorted(counts)}


def patient_order(positive: pd.Series, seed: int) -> list[str]:
    """Return the patients in an order whose every beginning has positives in the share of all, to within one patient.

    `positive` is bool by pseudonym. Each class is put in the order of a hash of seed and pseudonym, and spread evenly.
    """
    places = []
    for of_class in (True, False):
        own = [str(patient) for patient in positive.index[positive == of_class]]
        own.sort(key=lambda patient: (derived_seed(seed, "labelled patients", patient), patient))
        places += [((place + 0.5) / len(own), not of_class, patient) for place, patient in enumerate(own)]
    return [patient for _, _, patient in sorted(places)]


def same_steps(part: Images, whole: Images, settings: FinetuneSettings) -> tuple[Images, FinetuneSettings]:
    """Return `part` repeated to about the size of `whole`, and settings with as many steps as `whole` would get.

    The same number of steps, not of epochs: few patients in as many epochs would get a handful of steps, in which no
    network gets anywhere from random weights, and the curve would show the head start of pretraining rather than what
    labels are worth (He, Girshick and Dollár 2019). Repeats are whole, so that every image counts the same, and each
    has its own augmentation; what is missing to the same number of steps is made up by epochs.
    """
    repeats = len(whole) // len(part)
    epochs = round(settings.epochs * len(whole) / (repeats * len(part)))
    warmup_epochs = settings.warmup_epochs * epochs / settings.epochs
    repeated = part.at(np.tile(np.arange(len(part)), repeats))
    return repeated, settings.model_copy(update={"epochs": epochs, "warmup_epochs": warmup_epochs})
