"""Fine-tuning: the network of one arm and seed, trained from the pretrained encoder or from random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.augmentation import Augmentation
from pipeline.models.baseline import auc
from pipeline.models.checkpoints import load_checkpoint, save_checkpoint
from pipeline.models.classifier import Classifier, branch_scales
from pipeline.models.images import Images
from pipeline.models.randomness import DROP_PATH, uniform
from pipeline.models.training import (
    Schedule,
    adamw,
    autocast,
    batches,
    parameter_groups,
    train_epoch,
)

if TYPE_CHECKING:
    from pipeline.config import FinetuneSettings
    from pipeline.store.runlog import RunLog

BETAS = (0.9, 0.999)


def train_network(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Train arm `mae` or `scratch` and leave its files in `folder`; goes on from its checkpoints there.

    Raises TrainingError when the loss stops being finite, WeightsError when the pretrained encoder does not fit.
    """
    model = build_classifier(data, "norm_linear", seed).to(data.device)
    loaded = load_pretrained(model, data.encoder, data.encoder_key, log.info) if arm == "mae" else None
    share = data.train.labels.mean()
    model.head.bias.data.fill_(math.log(share / (1 - share)))
    layer_decay = settings.layer_decay if arm == "mae" else 1.0
    groups = parameter_groups(model, settings.weight_decay, layer_decay, data.spec.depth)
    optimiser = adamw(groups, BETAS)
    history: list[dict[str, float]] = []
    checkpoints = folder / "checkpoints"
    if (state := load_checkpoint(checkpoints, data.device, log.warn)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
        log.info(f"{arm} seed {seed}: goes on after epoch {len(history)} of {settings.epochs}")

    schedule = Schedule(settings.learning_rate, settings.warmup_epochs, settings.epochs)
    labels = torch.from_numpy(data.train.labels).float().to(data.device)
    augment = Augmentation(**settings.augmentation.model_dump())
    what = f"{arm} seed {seed}, epoch"
    for epoch in log.track(range(len(history), settings.epochs), what, settings.epochs, len(history)):

        def batch_loss(rows: np.ndarray, epoch: int = epoch) -> Tensor:
            pixels = augment(data.train.pixels(rows, data.device), seed, epoch, rows)
            with autocast(data.device, data.precision):
                logits = model(pixels, _dropped(settings, data, seed, epoch, rows))
            return F.binary_cross_entropy_with_logits(logits.float(), labels[rows])

        order = batches(len(data.train), settings.batch_size, seed, epoch)
        loss, rate = train_epoch(model, optimiser, schedule, epoch, order, batch_loss)
        tune_auc = auc(data.tune.labels, _logits(model, data.tune, settings.batch_size, data.device))
        values = {"train_loss": loss, "tune_auc": tune_auc, "learning_rate": rate}
        history.append({"epoch": epoch + 1, **values})
        log.metrics({f"{arm}.seed{seed}.{name}": value for name, value in values.items()}, epoch + 1)
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
        save_checkpoint(checkpoints, len(history), state)

    log.info(f"{arm} seed {seed}: tune AUC {history[-1]['tune_auc']:.4f} after {settings.epochs} epochs")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    content = {"spec": data.spec.to_json(), "head": "norm_linear"}
    finish(folder, arm, model.state_dict(), history, content, {
        "tune_auc": history[-1]["tune_auc"],
        "best_epoch": settings.epochs,
        "encoder_tensors_loaded": loaded.tensors if loaded else 0,
        "encoder_tensors": len(data.encoder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trained),
    })  # fmt: skip


def _dropped(settings: FinetuneSettings, data: ArmData, seed: int, epoch: int, rows: np.ndarray) -> Tensor | None:
    if not settings.drop_path:
        return None
    draws = uniform(seed, epoch, rows, DROP_PATH, 2 * data.spec.depth)
    return branch_scales(torch.from_numpy(draws).to(data.device), settings.drop_path, data.spec.depth)


@torch.no_grad()
def _logits(model: Classifier, images: Images, batch_size: int, device: torch.device) -> np.ndarray:
    model.eval()
    parts = [model(images.pixels(rows, device)).double().cpu() for rows in images.chunks(batch_size)]
    return torch.cat(parts).numpy()
