"""Fine-tuning: the network of one arm and seed, trained from pretrained weights, from public ones or from random ones.

What the settings do to the logit, which calibration turns into a probability later:

- The head starts at the log odds of the mean target, so that the first steps need not find the prevalence: that of the
  training images after label smoothing, or 1/2 where the weighted loss or balanced sampling makes the classes equal.
- A weighted loss and balanced sampling shift all logits by about a constant: towards log odds of 1/2. Ranking and
  threshold do not see it, and the intercept of the logistic calibrator takes it back.
- Label smoothing, focal loss and mixup keep logits from growing. The calibrator's slope takes the scale back; a bend
  that is left needs one of the other calibrators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.augmentation import Augmentation
from pipeline.models.averaging import RunningAverage
from pipeline.models.baseline import auc
from pipeline.models.checkpoints import load_checkpoint, save_checkpoint
from pipeline.models.classifier import Classifier, branch_scales, freeze_below
from pipeline.models.examples import Examples, draw
from pipeline.models.images import Images
from pipeline.models.losses import objective, starting_logit
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
History = list[dict[str, float]]


def train_network(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Train one of arms.NETWORKS and leave its files in `folder`; goes on from its checkpoints there.

    Raises TrainingError when the loss stops being finite, WeightsError when the weights to start from do not fit.
    """
    model = _build(arm, seed, settings, data, log)
    layer_decay = settings.layer_decay if arm in data.starts else 1.0
    groups = parameter_groups(model, settings.weight_decay, layer_decay, data.spec.depth)
    optimiser = adamw(groups, BETAS)
    average = RunningAverage(model, settings.ema_decay) if settings.ema_decay is not None else None
    judged: nn.Module = model
    if average is not None:
        judged = average.model
        optimiser.register_step_post_hook(lambda *_: average.update(model))
    history: History = []
    best: dict[str, Tensor] = {}
    checkpoints = folder / "checkpoints"
    if (state := load_checkpoint(checkpoints, data.device, log.warn)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average is not None:
            average.load_state_dict(state["average"])
        history, best = state["history"], state["best"]
        log.info(f"{arm} seed {seed}: goes on after epoch {len(history)} of {settings.epochs}")

    schedule = Schedule(settings.learning_rate, settings.warmup_epochs, settings.epochs)
    loss_of = objective(settings.loss, data.train.labels, settings.focal_gamma, settings.label_smoothing)
    augment = Augmentation(**settings.augmentation.model_dump())
    examples = Examples(data.train, augment, settings.mixup, seed, data.device)
    what = f"{arm} seed {seed}, epoch"
    for epoch in log.track(range(len(history), settings.epochs), what, settings.epochs, len(history)):
        if exhausted(history, settings.early_stopping_epochs):
            break
        drawn = draw(data.train.labels, settings.sampling, seed, epoch)

        def batch_loss(numbers: np.ndarray, epoch: int = epoch, drawn: np.ndarray = drawn) -> Tensor:
            pixels, targets = examples.prepared(numbers, drawn, epoch)
            with autocast(data.device, data.precision):
                logits = model(pixels, _dropped(settings, data, seed, epoch, numbers))
            return loss_of(logits.float(), targets)

        order = [drawn[places] for places in batches(len(drawn), settings.batch_size, seed, epoch)]
        loss, rate = train_epoch(model, optimiser, schedule, epoch, order, batch_loss)
        tune_auc = auc(data.tune.labels, _logits(judged, data.tune, settings.batch_size, data.device))
        values = {"train_loss": loss, "tune_auc": tune_auc, "learning_rate": rate}
        history.append({"epoch": epoch + 1, **values})
        log.metrics({f"{arm}.seed{seed}.{name}": value for name, value in values.items()}, epoch + 1)
        if settings.early_stopping_epochs is not None and best_epoch(history) == len(history):
            best = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
        save_checkpoint(checkpoints, len(history), {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.state_dict() if average is not None else {},
            "history": history,
            "best": best,
        })  # fmt: skip

    kept = len(history) if settings.early_stopping_epochs is None else best_epoch(history)
    tune_auc = history[kept - 1]["tune_auc"]
    log.info(f"{arm} seed {seed}: tune AUC {tune_auc:.4f} at epoch {kept}, kept; {len(history)} epochs trained")
    content = {"spec": data.spec.to_json(), "head": "norm_linear"}
    finish(folder, arm, best or judged.state_dict(), history, content, {
        "tune_auc": tune_auc,
        "best_epoch": kept,
        "epochs_trained": len(history),
        **_sizes(model, arm, data),
    })  # fmt: skip


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch, counted from 1, with the highest AUC on the tuning images; the earliest of equals."""
    return 1 + max(range(len(history)), key=lambda place: history[place]["tune_auc"])


def exhausted(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Return whether the last `patience` epochs brought no higher AUC on the tuning images; None never is."""
    return patience is not None and len(history) > 0 and len(history) - best_epoch(history) >= patience


def _build(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, log: RunLog) -> Classifier:
    """Return the network as it is before the first step."""
    model = build_classifier(data, "norm_linear", seed).to(data.device)
    if arm in data.starts:
        load_pretrained(model, data.starts[arm], log.info)
        # Random blocks that stay random would be no fair comparison: arm scratch is trained as a whole.
        if settings.trainable_blocks is not None:
            freeze_below(model, settings.trainable_blocks)
    equal = settings.loss == "weighted" or settings.sampling == "balanced"
    share = 0.5 if equal else float(data.train.labels.mean())
    model.head.bias.data.fill_(starting_logit(share, settings.label_smoothing))
    return model


def _sizes(model: Classifier, arm: str, data: ArmData) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "encoder_tensors_loaded": data.starts[arm].loaded if arm in data.starts else 0,
        "encoder_tensors": len(model.encoder.state_dict()),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def _dropped(settings: FinetuneSettings, data: ArmData, seed: int, epoch: int, numbers: np.ndarray) -> Tensor | None:
    if not settings.drop_path:
        return None
    draws = uniform(seed, epoch, numbers, DROP_PATH, 2 * data.spec.depth)
    return branch_scales(torch.from_numpy(draws).to(data.device), settings.drop_path, data.spec.depth)


@torch.no_grad()
def _logits(model: nn.Module, images: Images, batch_size: int, device: torch.device) -> np.ndarray:
    model.eval()
    parts = [model(images.pixels(rows, device)).double().cpu() for rows in images.chunks(batch_size)]
    return torch.cat(parts).numpy()
