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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.augmentation import Augmentation
from pipeline.models.baseline import auc
from pipeline.models.classifier import Classifier, branch_scales, freeze_below, pooling_content
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
    content = {"spec": model.spec.to_json(), "head": "norm_linear", **pooling_content(model)}
    train_network(arm, seed, begun(arm, model, content, settings, data, log), settings, data, folder, log)


def begun(
    arm: str, model: Classifier, content: dict[str, Any], settings: FinetuneSettings, data: ArmData, log: RunLog
) -> Untrained:
    """Return a transformer before its first step, its encoder loaded from what the arm starts from, or left random.

    Raises WeightsError when the weights to start from do not fit.
    """
    layer_decay, loaded = 1.0, 0
    if arm in data.starts:
        layer_decay, loaded = settings.layer_decay, data.starts[arm].loaded
        load_pretrained(model, data.starts[arm], log.info)
        # Random blocks that stay random would be no fair comparison: arm scratch is trained as a whole.
        if settings.trainable_blocks is not None:
            freeze_below(model, settings.trainable_blocks)
    tensors = {"encoder_tensors_loaded": loaded, "encoder_tensors": len(model.encoder.state_dict())}
    return Untrained(model, content, tensors, layer_decay)


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


@dataclass(frozen=True)
class Learning:
    """What a training asks of its task, for one seed.

    `start` sets the head before the first step. `examples(numbers, drawn, epoch)` gives pixels (B, C, ...) and targets
    of drawn images, `loss(model, pixels, branch_scale, targets)` the mean over images of a loss that depends on nothing
    but each image. `judge` measures the network on the tuning images; of its numbers, `measure` decides which epoch is
    best, and is called `measured` in messages. `finish` says more of the finished network, for its model.json.
    """

    start: Callable[[Network], None]
    examples: Callable[[np.ndarray, np.ndarray, int], tuple[Tensor, Any]]
    loss: Callable[[Network, Tensor, Tensor | None, Any], Tensor]
    judge: Callable[[Network], dict[str, float]]
    measure: str = "tune_auc"
    measured: str = "AUC"
    finish: Callable[[Network], dict[str, Any]] = lambda _: {}


def of_labels(seed: int, settings: FinetuneSettings, data: ArmData) -> Learning:
    """Return how labels are learnt: an image's logits against its label and further ones, judged by the AUC."""
    loss_of = objective(settings.loss, data.train.targets, settings.focal_gamma, settings.label_smoothing, data.device)
    augment = Augmentation(**settings.augmentation.model_dump())

    def loss(model: Network, pixels: Tensor, branch_scale: Tensor | None, targets: Tensor) -> Tensor:
        with autocast(data.device, data.hardware.precision):
            logits = model(pixels, branch_scale)
        return loss_of(logits.float(), targets)

    def judge(model: Network) -> dict[str, float]:
        return {"tune_auc": auc(data.tune.labels, _logits(model, data.tune, settings.batch_size, data.hardware))}

    examples = Examples(data.train, augment, settings.mixup, seed, data.device)
    return Learning(lambda model: start_at_the_odds(model, settings, data), examples.prepared, loss, judge)


def train_network(
    arm: str,
    seed: int,
    untrained: Untrained,
    settings: FinetuneSettings,
    data: ArmData,
    folder: Path,
    log: RunLog,
    learning: Learning | None = None,
) -> None:
    """Train a network and leave its files in `folder`; goes on from its checkpoints there. It learns labels
    unless `learning` says otherwise.

    Raises TrainingError when the loss stops being finite, Stopped when asked to stop.
    """
    model, learning = untrained.model, learning or of_labels(seed, settings, data)
    learning.start(model)
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
            if exhausted(history, settings.early_stopping_epochs, learning.measure):
                break
            drawn = draw(data.train.labels, settings.sampling, seed, epoch)

            def batch_loss(numbers: np.ndarray, epoch: int = epoch, drawn: np.ndarray = drawn) -> Tensor:
                pixels, targets = learning.examples(numbers, drawn, epoch)
                scale = _dropped(settings, model.depth, data, seed, epoch, numbers)
                return learning.loss(model, pixels, scale, targets)

            order = [drawn[places] for places in batches(len(drawn), settings.batch_size, seed, epoch)]
            done = train_epoch(training, order, batch_loss)
            values = {"train_loss": done.loss, **learning.judge(judged), "learning_rate": done.learning_rate}
            tracked = values | done.measured
            log.metrics({f"{arm}.seed{seed}.{name}": value for name, value in tracked.items()}, epoch + 1)
            record(training, values)
            if settings.early_stopping_epochs is not None and best_epoch(history, learning.measure) == len(history):
                best.update({name: tensor.clone() for name, tensor in judged.state_dict().items()})
            save(training)

    if not leads():
        return
    kept = len(history) if settings.early_stopping_epochs is None else best_epoch(history, learning.measure)
    measures = {name: value for name, value in history[kept - 1].items() if name.startswith("tune_")}
    log.info(
        f"{what}: tune {learning.measured} {measures[learning.measure]:.4f} at epoch {kept}, kept; "
        f"{len(history)} epochs trained"
    )
    if best:
        judged.load_state_dict(best)
    content = {**untrained.content, "further_labels": data.further}
    finish(folder, arm, judged.state_dict(), history, content, {
        **measures,
        "best_epoch": kept,
        "epochs_trained": len(history),
        **untrained.tensors,
        **sizes(model),
        **learning.finish(judged),
    })  # fmt: skip


def best_epoch(history: Sequence[Mapping[str, float]], measure: str = "tune_auc") -> int:
    """Return the epoch, counted from 1, with the highest `measure` of the tuning images; the earliest of equals."""
    return 1 + max(range(len(history)), key=lambda place: history[place][measure])


def exhausted(history: Sequence[Mapping[str, float]], patience: int | None, measure: str = "tune_auc") -> bool:
    """Return whether the last `patience` epochs brought no higher `measure` of the tuning images; None never is."""
    return patience is not None and len(history) > 0 and len(history) - best_epoch(history, measure) >= patience


def start_at_the_odds(model: Network, settings: FinetuneSettings, data: ArmData) -> None:
    """Let the head start at the log odds of each label."""
    shares = mean_targets(data.train.targets, settings.sampling == "balanced")
    if settings.loss == "weighted":
        shares = np.full_like(shares, 0.5)
    starts = [starting_logit(share, settings.label_smoothing) for share in shares.tolist()]
    # A head may be that of further labels alone.
    model.head.bias.data.copy_(torch.tensor(starts[-model.head.out_features :]))


def sizes(model: Network) -> dict[str, int]:
    """Return how many numbers a network has, and how many of them are trained."""
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
