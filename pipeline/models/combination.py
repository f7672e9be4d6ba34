"""Several arms as one: the mean of their logits, each first brought to one scale on the tuning images.

The arms are named beforehand, weights are equal, and nothing is fitted but a mean and a spread per arm, so that there
is hardly anything to choose by chance. The mean is brought back to the members' mean scale, which changes no rank.

Shapes: B images, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData, finish
from pipeline.models.baseline import auc
from pipeline.models.checkpoints import WeightsError, read_weights, tensor_problems
from pipeline.models.finished import Finished, Look, Weighted, further_labels, weighted_mean
from pipeline.models.training import TrainingError
from pipeline.store.files import read_json

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

CENTRE, SPREAD = "centre", "spread"
LEAST_SPREAD = 1e-9  # of a logit; rounding alone gives less


@dataclass(frozen=True)
class Member:
    """An arm of the combination: the model.json and the tensors of each seed."""

    arm: str
    records: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, dict[str, Tensor]]

    def read(self, device: torch.device) -> list[Finished]:
        """Return the models of all seeds. Raises WeightsError when tensors do not fit."""
        return [ARMS[self.arm].read(self.records[seed], self.tensors[seed], device) for seed in self.records]


def train_ensemble(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Combine the arms of `settings.ensemble`, which lie beside `folder`; leave all their weights in one file.

    Raises TrainingError when an arm gives all tuning images one logit.
    """
    members = [_finished(name, folder.parent.parent / name) for name in settings.ensemble]
    tensors: dict[str, Tensor] = {}
    logits = []
    for member in members:
        models = member.read(data.device)
        parts = [_mean_logits(models, data.tune.pixels(rows, data.device)) for rows in data.tune.chunks(256)]
        logits.append(np.concatenate(parts))
        spread = logits[-1].std(axis=0)
        if not (spread > LEAST_SPREAD).all():
            raise TrainingError(
                f"arm {member.arm} gives all tuning images one logit; leave it out of finetune.ensemble"
            )
        scales = {CENTRE: logits[-1].mean(axis=0), SPREAD: spread}
        tensors |= {f"{member.arm}.{name}": torch.from_numpy(values) for name, values in scales.items()}
        tensors |= {f"{member.arm}.{seed}.{name}": t for seed, own in member.tensors.items() for name, t in own.items()}
    combined = _combined(logits, *_scales(members, tensors))
    tune_auc = auc(data.tune.labels, combined[:, 0])
    named = " and ".join(settings.ensemble)
    log.info(f"{arm} of {named}: tune AUC {tune_auc:.4f}")
    records = [record for member in members for record in member.records.values()]
    content = {
        "ensemble": [{"arm": member.arm, "seeds": member.records} for member in members],
        "further_labels": data.further,
    }
    finish(folder, arm, tensors, [{"tune_auc": tune_auc}], content, {
        "tune_auc": tune_auc,
        "title": f"ensemble of {named}",
        "compared_as": f"the ensemble of arms {named}",
        "description": f"the mean of the logits of arms {named}, each standardised on the tuning images",
        "selection": "arms named beforehand, equal weights; mean and spread of each arm's logits on the tuning images",
        "best_epoch": None,
        "encoder_tensors_loaded": 0,
        "encoder_tensors": 0,
        **{name: sum(record[name] for record in records) for name in ("parameters", "trainable_parameters")},
    })  # fmt: skip


def read_ensemble(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return a finished ensemble from its model.json and its tensors; its networks are those of the first arm with any.

    Raises WeightsError when tensors are missing, unexpected or do not fit.
    """
    members = [_within(one["arm"], one["seeds"], tensors) for one in content["ensemble"]]
    _refuse_others(members, tensors, 1 + len(further_labels(content)))
    models = [member.read(device) for member in members]
    centres, spreads = _scales(members, tensors)
    networks = next((found for own in models if (found := [n for one in own for n in one.networks])), [])
    first = next(((one, one.look) for own in models for one in own if one.look), None)

    def logits(pixels: Tensor) -> np.ndarray:
        return _combined([_mean_logits(own, pixels) for own in models], centres, spreads)

    if first is None:
        return Finished(logits)
    watched, watch = first

    def look(pixels: Tensor) -> Look:
        found, depths = watch(pixels)
        each = [[found if one is watched else one.logits(pixels) for one in own] for own in models]
        return _combined([np.mean(own, axis=0) for own in each], centres, spreads), depths

    return Finished(logits, tuple(networks), look=look, weighted=_weighted(models, centres, spreads))


def _weighted(models: Sequence[list[Finished]], centres: np.ndarray, spreads: np.ndarray) -> Weighted:
    """Return the combination as a sum over all networks; one of none where an arm is made of something else."""
    sums = [weighted_mean(own) for own in models]
    scales = spreads.mean(axis=0) / (len(models) * spreads)
    known = [one for one in sums if one is not None]
    if len(known) < len(sums):
        return Weighted((), np.empty((0, spreads.shape[1])), np.zeros(spreads.shape[1]))
    offsets = [scale * (one.offset - centre) for one, scale, centre in zip(known, scales, centres, strict=True)]
    return Weighted(
        tuple(network for one in known for network in one.networks),
        np.concatenate([one.weights * scale for one, scale in zip(known, scales, strict=True)]),
        np.sum(offsets, axis=0) + centres.mean(axis=0),
    )


def _finished(arm: str, folder: Path) -> Member:
    seeds = sorted(path.name for path in folder.glob("seed*"))
    records = {seed: read_json(folder / seed / "model.json") for seed in seeds}
    return Member(arm, records, {seed: read_weights(folder / seed / "model.safetensors") for seed in seeds})


def _within(arm: str, records: Mapping[str, dict[str, Any]], tensors: Mapping[str, Tensor]) -> Member:
    """Return an arm whose tensors carry its name and seed in front of theirs."""

    def own(seed: str) -> dict[str, Tensor]:
        prefix = f"{arm}.{seed}."
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return Member(arm, records, {seed: own(seed) for seed in records})


def _refuse_others(members: Sequence[Member], tensors: Mapping[str, Tensor], labels: int) -> None:
    scales = [f"{member.arm}.{name}" for member in members for name in (CENTRE, SPREAD)]
    others = [f"{m.arm}.{seed}.{name}" for m in members for seed in m.tensors for name in m.tensors[seed]]
    if problems := tensor_problems(tensors, dict.fromkeys(scales, (labels,)) | dict.fromkeys(others)):
        raise WeightsError(f"weights do not fit the ensemble: {'; '.join(problems)}")


def _scales(members: Sequence[Member], tensors: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the spread of each arm's logits on the tuning images, each (arms, L)."""
    centres, spreads = (np.stack([tensors[f"{m.arm}.{name}"].numpy() for m in members]) for name in (CENTRE, SPREAD))
    return centres, spreads


def _mean_logits(models: Sequence[Finished], pixels: Tensor) -> np.ndarray:
    return np.mean([model.logits(pixels) for model in models], axis=0)


def _combined(logits: Sequence[np.ndarray], centres: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Return the mean of the arms' standardised logits (B, L), on the mean of their scales."""
    standard = np.mean([(one - c) / s for one, c, s in zip(logits, centres, spreads, strict=True)], axis=0)
    return standard * spreads.mean(axis=0) + centres.mean(axis=0)
