"""Arms with one optimum: logistic regression on the frozen encoder's features, and on gradient histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.baseline import HogSpec, Logistic, all_logits, fit_each, logistic_tensors, logistics
from pipeline.models.finished import Finished, further_labels, whole_blocks
from pipeline.models.images import Images

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog


def train_probe(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Fit a logistic regression on standardised features of images as they are; fold it into a linear head."""
    model = build_classifier(data, "linear", 0).to(data.device)
    start = data.starts[arm]
    load_pretrained(model, start, log.info)
    model.eval()

    @torch.no_grad()
    def features(images: Images) -> np.ndarray:
        parts = [model.features(images.pixels(r, data.device)) for r in images.chunks(settings.batch_size)]
        return torch.cat(parts).double().cpu().numpy()

    train, tune = features(data.train), features(data.tune)
    fitted, aucs = fit_each((train, data.train.targets), (tune, data.tune.targets))
    weights, biases = zip(*(one.linear() for one in fitted), strict=True)
    model.head.weight.data.copy_(torch.from_numpy(np.stack(weights)))
    model.head.bias.data.copy_(torch.tensor(biases))
    log.info(f"{arm}: tune AUC {max(aucs.values()):.4f}")
    content = {"spec": data.spec.to_json(), "head": "linear", "further_labels": data.further}
    finish(folder, arm, model.state_dict(), tried(aucs), content, {
        "tune_auc": max(aucs.values()),
        "best_epoch": None,
        "encoder_tensors_loaded": start.loaded,
        "encoder_tensors": len(start.tensors),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(len(weight) + 1 for weight in weights),
    })  # fmt: skip


def train_hog(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Fit a logistic regression on histograms of oriented gradients."""
    height, width = settings.hog_image_size
    spec = HogSpec((height, width))

    def features(images: Images) -> np.ndarray:
        return np.concatenate([spec.features(images.pixels(rows, torch.device("cpu"))) for rows in images.chunks(256)])

    train, tune = features(data.train), features(data.tune)
    fitted, aucs = fit_each((train, data.train.targets), (tune, data.tune.targets))
    log.info(f"{arm}: tune AUC {max(aucs.values()):.4f}")
    content = {"hog": spec.to_json(), "further_labels": data.further, "tune_auc": max(aucs.values())}
    finish_logistic(folder, arm, fitted, data, tried(aucs), content)


def read_hog(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return a finished arm hog from its model.json and its tensors."""
    spec, fitted = HogSpec.from_json(content["hog"]), logistics(tensors, further_labels(content))
    return Finished(lambda pixels: all_logits(fitted, whole_blocks(spec.features(pixels)))[: len(pixels)])


def finish_logistic(
    folder: Path,
    arm: str,
    fitted: Sequence[Logistic],
    data: ArmData,
    history: list[dict[str, float]],
    content: dict[str, Any],
) -> None:
    """Write the files of logistic regressions, one of each label, on features that rest on no encoder."""
    parameters = sum(len(one.weight) + 1 for one in fitted)
    finish(folder, arm, logistic_tensors(fitted, data.further), history, content, {
        "best_epoch": None,
        "encoder_tensors_loaded": 0,
        "encoder_tensors": 0,
        "parameters": parameters,
        "trainable_parameters": parameters,
    })  # fmt: skip


def tried(aucs: Mapping[str, float]) -> list[dict[str, float]]:
    """Return the history of a fit: each strength of the regularisation with its AUC on the tuning images."""
    return [{"regularisation": float(strength), "tune_auc": value} for strength, value in aucs.items()]
