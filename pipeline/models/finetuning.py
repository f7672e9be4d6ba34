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
from pipeline.models.classifier import Classifier, branch_scales
from pipeline.models.distributed import leads
from pipeline.models.engine import begin, epochs_left, record, save, train_epoch
from pipeline.models.images import Images, on_device
from pipeline.models.randomness import DROP_PATH, uniform
from pipeline.models.training import (
    Hardware,
    Schedule,
    adamw,
    autocast,
    batches,
    parameter_groups,
    steps_per_epoch,
)

if TYPE_CHECKING:
    from pipeline.config import FinetuneSettings
    from pipeline.store.runlog import RunLog

BETAS = (0.9, 0.999)


def train_network(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Train arm `mae` or `scratch` and leave its files in `folder`; goes on from its checkpoints there.

    Raises TrainingError when the loss stops being finite, WeightsError when the pretrained encoder does not fit,
    Stopped when asked to stop.
    """
    model = build_classifier(data, "norm_linear", seed).to(data.device)
    loaded = load_pretrained(model, data.encoder, data.encoder_key, log.info) if arm == "mae" else None
    share = data.train.labels.mean()
    model.head.bias.data.fill_(math.log(share / (1 - share)))
    layer_decay = settings.layer_decay if arm == "mae" else 1.0
    groups = parameter_groups(model, settings.weight_decay, layer_decay, data.spec.depth)
    optimiser = adamw(groups, BETAS)
    schedule = Schedule(settings.learning_rate, settings.warmup_epochs, settings.epochs)
    schedule = schedule.within(settings.max_steps, steps_per_epoch(len(data.train), settings.batch_size))
    labels = torch.from_numpy(data.train.labels).float().to(data.device)
    augment = Augmentation(settings.crop_min, settings.rotate_degrees, settings.intensity, settings.flip_horizontal)
    what, checkpoints = f"{arm} seed {seed}", folder / "checkpoints"
    with begin(model, optimiser, schedule, data.hardware, data.train, checkpoints, log, what) as training:
        for epoch in epochs_left(training, f"{what}, epoch"):

            def batch_loss(rows: np.ndarray, epoch: int = epoch) -> Tensor:
                pixels = augment(data.train.pixels(rows, data.device), seed, epoch, rows)
                with autocast(data.device, data.hardware.precision):
                    logits = model(pixels, _dropped(settings, data, seed, epoch, rows))
                wanted = labels[on_device(torch.from_numpy(rows), data.device)]
                return F.binary_cross_entropy_with_logits(logits.float(), wanted)

            done = train_epoch(training, batches(len(data.train), settings.batch_size, seed, epoch), batch_loss)
            tune_auc = auc(data.tune.labels, _logits(model, data.tune, settings.batch_size, data.hardware))
            values = {"train_loss": done.loss, "tune_auc": tune_auc, "learning_rate": done.learning_rate}
            tracked = values | done.measured
            log.metrics({f"{arm}.seed{seed}.{name}": value for name, value in tracked.items()}, epoch + 1)
            record(training, values)
            save(training)

    if not leads():
        return
    history = training.history
    log.info(f"{what}: tune AUC {history[-1]['tune_auc']:.4f} after {len(history)} epochs")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    content = {"spec": data.spec.to_json(), "head": "norm_linear"}
    finish(folder, arm, model.state_dict(), history, content, {
        "tune_auc": history[-1]["tune_auc"],
        "best_epoch": len(history),
        "encoder_tensors_loaded": loaded.tensors if loaded else 0,
        "encoder_tensors": len(data.encoder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trained),
    })  # fmt: skip


def _dropped(settings: FinetuneSettings, data: ArmData, seed: int, epoch: int, rows: np.ndarray) -> Tensor | None:
    if not settings.drop_path:
        return None
    draws = uniform(seed, epoch, rows, DROP_PATH, 2 * data.spec.depth)
    return branch_scales(on_device(torch.from_numpy(draws), data.device), settings.drop_path, data.spec.depth)


@torch.no_grad()
def _logits(model: Classifier, images: Images, batch_size: int, hardware: Hardware) -> np.ndarray:
    model.eval()
    with autocast(hardware.device, hardware.precision):
        # Not the compiled call, which would be compiled once more for this use.
        parts = [
            model.forward(images.pixels(rows, hardware.device)).double()
            for rows in images.chunks(min(batch_size, hardware.images_per_pass or batch_size))
        ]
    return torch.cat(parts).cpu().numpy()
