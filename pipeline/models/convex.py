"""Arms with one optimum: logistic regression on the frozen encoder's features, and on gradient histograms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.baseline import HogSpec, fit_logistic
from pipeline.models.images import Images

if TYPE_CHECKING:
    from pipeline.config import FinetuneSettings
    from pipeline.store.runlog import RunLog


def train_probe(settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Fit a logistic regression on standardised features of images as they are; fold it into a linear head."""
    model = build_classifier(data, "linear", 0).to(data.device)
    start = data.starts["linear_probe"]
    load_pretrained(model, start, log.info)
    model.eval()

    @torch.no_grad()
    def features(images: Images) -> np.ndarray:
        parts = [model.features(images.pixels(r, data.device)) for r in images.chunks(settings.batch_size)]
        return torch.cat(parts).double().cpu().numpy()

    train, tune = features(data.train), features(data.tune)
    fitted, aucs = fit_logistic((train, data.train.labels), (tune, data.tune.labels))
    weight, bias = fitted.linear()
    model.head.weight.data.copy_(torch.from_numpy(weight)[None])
    model.head.bias.data.fill_(bias)
    log.info(f"linear_probe: tune AUC {max(aucs.values()):.4f}")
    content = {"spec": data.spec.to_json(), "head": "linear"}
    finish(folder, "linear_probe", model.state_dict(), _tried(aucs), content, {
        "tune_auc": max(aucs.values()),
        "best_epoch": None,
        "encoder_tensors_loaded": start.loaded,
        "encoder_tensors": len(start.tensors),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": len(weight) + 1,
    })  # fmt: skip


def train_hog(settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Fit a logistic regression on histograms of oriented gradients."""
    height, width = settings.hog_image_size
    spec = HogSpec((height, width))

    def features(images: Images) -> np.ndarray:
        return np.concatenate([spec.features(images.pixels(rows, torch.device("cpu"))) for rows in images.chunks(256)])

    train, tune = features(data.train), features(data.tune)
    fitted, aucs = fit_logistic((train, data.train.labels), (tune, data.tune.labels))
    log.info(f"hog: tune AUC {max(aucs.values()):.4f}")
    finish(folder, "hog", fitted.tensors(), _tried(aucs), {"hog": spec.to_json()}, {
        "tune_auc": max(aucs.values()),
        "best_epoch": None,
        "encoder_tensors_loaded": 0,
        "encoder_tensors": 0,
        "parameters": len(fitted.weight) + 1,
        "trainable_parameters": len(fitted.weight) + 1,
    })  # fmt: skip


def _tried(aucs: dict[str, float]) -> list[dict[str, float]]:
    return [{"regularisation": float(strength), "tune_auc": value} for strength, value in aucs.items()]
