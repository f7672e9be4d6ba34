"""Fine-tuning: the network of one arm and seed, trained from pretrained weights, from public ones or from random ones.

What the settings do to the logit, which calibration turns into a probability later:

- The head starts at the log odds of each label's mean target, so that the first steps need not find the prevalence:
  that of the images drawn after label smoothing, or 1/2 where the weighted loss or balanced sampling makes the classes
  equal. Balanced sampling, early stopping and the tuning AUC go by the main label.
- A weighted loss and balanced sampling shift all logits by about a constant: towards log odds of 1/2. Ranking and
  threshold do not see it, and the intercept of the logistic calibrator takes it back.
- Label smoothing, focal loss and mixup keep logits from growing. The calibrator's slope takes the scale back; a bend
  that is left needs one of the other calibrators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.augmentation import Augmentation
from pipeline.models.baseline import auc
from pipeline.models.classifier import branch_scales, freeze_below, pooling_content
from pipeline.models.distributed import leads
from pipeline.models.ema import RunningAverage
from pipeline.models.engine import begin, epochs_left, record, save, train_epoch
from pipeline.models.examples import Examples, draw
from pipeline.models.finished import Network
from pipeline.models.images import Images, on_device
from pipeline.models.losses import mean_targets, objective, starting_logit
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
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

BETAS = (0.9, 0.999)


def train_transformer(
    arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog
) -> None:
    """Train a vision transformer from the weights of `data.starts`, or from random ones, and leave its files.

    Raises what `train_network` raises, and WeightsError when the weights to start from do not fit.
    """
    registers = data.starts[arm].registers if arm in data.starts else 0
    model = build_classifier(data, "norm_linear", seed, settings.pooling, registers).to(data.device)
    layer_decay, loaded = 1.0, 0
    if arm in data.starts:
        layer_decay, loaded = settings.layer_decay, data.starts[arm].loaded
        load_pretrained(model, data.starts[arm], log.info)
        # Random blocks that stay random would be no fair comparison: arm scratch is trained as a whole.
        if settings.trainable_blocks is not None:
            freeze_below(model, settings.trainable_blocks)
    content = {"spec": model.spec.to_json(), "head": "norm_linear", **pooling_content(model)}
    tensors = {"encoder_tensors_loaded": loaded, "encoder_tensors": len(model.encoder.state_dict())}
    train_network(arm, seed, Untrained(model, content, tensors, layer_decay), settings, data, folder, log)


@dataclass(frozen=True)
class Untrained:
    """A network before its first step.

    `content` is what model.json needs to build it again, `tensors` says how many of an encoder's were trained before,
    `layer_decay` is the rate multiplier per block.
    """

    model: Network
    content: dict[str, Any]
    tensors: dict[str, int]
    layer_decay: float = 1.0


def train_network(
    arm: str,
    seed: int,
    untrained: Untrained,
    settings: FinetuneSettings,
    data: ArmData,
    folder: Path,
    log: RunLog,
) -> None:
    """Train a network and leave its files in `folder`; goes on from its checkpoints there.

    Raises TrainingError when the loss stops being finite, Stopped when asked to stop.
    """
    model = untrained.model
    start_at_the_odds(model, settings, data)
    groups = parameter_groups(model, settings.weight_decay, untrained.layer_decay, model.depth)
    optimiser = adamw(groups, BETAS)
    average = RunningAverage(model, settings.ema_decay) if settings.ema_decay is not None else None
    judged: Network = model
    if average is not None:
        judged = average.model
        optimiser.register_step_post_hook(lambda *_: average.update(model))
    best: dict[str, Tensor] = {}

    def further_state() -> dict[str, Any]:
        return {"average": average.state_dict() if average is not None else {}, "best": best}

    images = len(draw(data.train.labels, settings.sampling, seed, 0))
    schedule = Schedule(settings.learning_rate, settings.warmup_epochs, settings.epochs)
    schedule = schedule.within(settings.max_steps, steps_per_epoch(images, settings.batch_size))
    loss_of = objective(settings.loss, data.train.targets, settings.focal_gamma, settings.label_smoothing, data.device)
    augment = Augmentation(**settings.augmentation.model_dump())
    examples = Examples(data.train, augment, settings.mixup, seed, data.device)
    what, checkpoints = f"{arm} seed {seed}", folder / "checkpoints"
    with begin(
        model, optimiser, schedule, data.hardware, data.train, checkpoints, log, what, further_state
    ) as training:
        if training.restored:
            best.update(training.restored["best"])
            if average is not None:
                average.load_state_dict(training.restored["average"])
        history = training.history
        for epoch in epochs_left(training, f"{what}, epoch"):
            if exhausted(history, settings.early_stopping_epochs):
                break
            drawn = draw(data.train.labels, settings.sampling, seed, epoch)

            def batch_loss(numbers: np.ndarray, epoch: int = epoch, drawn: np.ndarray = drawn) -> Tensor:
                pixels, targets = examples.prepared(numbers, drawn, epoch)
                with autocast(data.device, data.hardware.precision):
                    logits = model(pixels, _dropped(settings, model.depth, data, seed, epoch, numbers))
                return loss_of(logits.float(), targets)

            order = [drawn[places] for places in batches(len(drawn), settings.batch_size, seed, epoch)]
            done = train_epoch(training, order, batch_loss)
            tune_auc = auc(data.tune.labels, _logits(judged, data.tune, settings.batch_size, data.hardware))
            values = {"train_loss": done.loss, "tune_auc": tune_auc, "learning_rate": done.learning_rate}
            tracked = values | done.measured
            log.metrics({f"{arm}.seed{seed}.{name}": value for name, value in tracked.items()}, epoch + 1)
            record(training, values)
            if settings.early_stopping_epochs is not None and best_epoch(history) == len(history):
                best.update({name: tensor.clone() for name, tensor in judged.state_dict().items()})
            save(training)

    if not leads():
        return
    kept = len(history) if settings.early_stopping_epochs is None else best_epoch(history)
    tune_auc = history[kept - 1]["tune_auc"]
    log.info(f"{what}: tune AUC {tune_auc:.4f} at epoch {kept}, kept; {len(history)} epochs trained")
    content = {**untrained.content, "further_labels": data.further}
    finish(folder, arm, best or judged.state_dict(), history, content, {
        "tune_auc": tune_auc,
        "best_epoch": kept,
        "epochs_trained": len(history),
        **untrained.tensors,
        **_sizes(model),
    })  # fmt: skip


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch, counted from 1, with the highest AUC on the tuning images; the earliest of equals."""
    return 1 + max(range(len(history)), key=lambda place: history[place]["tune_auc"])


def exhausted(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Return whether the last `patience` epochs brought no higher AUC on the tuning images; None never is."""
    return patience is not None and len(history) > 0 and len(history) - best_epoch(history) >= patience


def start_at_the_odds(model: Network, settings: FinetuneSettings, data: ArmData) -> None:
    """Let the head start at the log odds of each label."""
    shares = mean_targets(data.train.targets, settings.sampling == "balanced")
    if settings.loss == "weighted":
        shares = np.full_like(shares, 0.5)
    starts = [starting_logit(share, settings.label_smoothing) for share in shares.tolist()]
    model.head.bias.data.copy_(torch.tensor(starts))


def _sizes(model: Network) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def _dropped(
    settings: FinetuneSettings, depth: int, data: ArmData, seed: int, epoch: int, numbers: np.ndarray
) -> Tensor | None:
    if not settings.drop_path or not depth:
        return None
    draws = uniform(seed, epoch, numbers, DROP_PATH, 2 * depth)
    return branch_scales(on_device(torch.from_numpy(draws), data.device), settings.drop_path, depth)


@torch.no_grad()
def _logits(model: Network, images: Images, batch_size: int, hardware: Hardware) -> np.ndarray:
    model.eval()
    with autocast(hardware.device, hardware.precision):
        # Not the compiled call, which would be compiled once more for this use.
        parts = [
            model.forward(images.pixels(rows, hardware.device))[:, 0].double()
            for rows in images.chunks(min(batch_size, hardware.images_per_pass or batch_size))
        ]
    return torch.cat(parts).cpu().numpy()
