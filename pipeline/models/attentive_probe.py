"""Arm attentive_probe: learned queries read the patches of the frozen pretrained encoder, and a linear head decides.

The encoder is run over each image once. What it makes of the patches is kept in a file beside the model while it is
trained, so that a hundred epochs take minutes on a CPU; images are seen as they are, without augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.models.arms import ArmData, build_classifier, finish, load_pretrained
from pipeline.models.baseline import auc
from pipeline.models.classifier import Classifier, pooling_content
from pipeline.models.examples import draw
from pipeline.models.finetuning import BETAS, sizes, start_at_the_odds
from pipeline.models.images import Images, on_device
from pipeline.models.losses import objective
from pipeline.models.training import Schedule, adamw, batches, parameter_groups, steps_per_epoch

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

EPOCHS, WARMUP_EPOCHS, PEAK_RATE = 60, 5.0, 3e-3
# Strengths of regularisation to choose from on the tune split, the weakest first.
WEIGHT_DECAYS = (0.01, 0.1, 1.0)


def train_attentive_probe(
    arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog
) -> None:
    """Train pooling and head on the frozen encoder's patch tokens; keep the weight decay with the highest tune AUC.

    Of equal ones the strongest. Batches, loss, smoothing and sampling are those of the settings, and `max_steps` where
    it is set; rate, epochs and weight decay are this arm's own. A training that was interrupted starts again.
    """
    model = build_classifier(data, "norm_linear", seed, "attention").to(data.device)
    start = data.starts[arm]
    load_pretrained(model, start, log.info)
    model.encoder.requires_grad_(False)
    start_at_the_odds(model, settings, data)
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (
        _patch_tokens(model, data.train, folder / "train_tokens.npy", settings.batch_size) as train,
        _patch_tokens(model, data.tune, folder / "tune_tokens.npy", settings.batch_size) as tune,
    ):
        log.info(f"{arm}: the encoder was run once over {len(train):,} training and {len(tune):,} tuning images")
        best, best_auc, history = {}, -1.0, []
        for decay in WEIGHT_DECAYS:
            model.load_state_dict(untrained)
            _fit(model, train, decay, seed, settings, data)
            found = auc(data.tune.labels, _logits(model, tune, settings.batch_size))
            history.append({"weight_decay": decay, "tune_auc": found})
            if found >= best_auc:
                best, best_auc = {name: tensor.clone() for name, tensor in model.state_dict().items()}, found
    log.info(f"{arm}: tune AUC {best_auc:.4f}")
    content = {"spec": model.spec.to_json(), "head": "norm_linear", **pooling_content(model)}
    finish(folder, arm, best, history, content | {"further_labels": data.further}, {
        "tune_auc": best_auc,
        "selection": f"weight decay with the highest AUC on the tuning images, of {len(WEIGHT_DECAYS)}; one model, "
                     "from the first seed",
        "best_epoch": None,
        "encoder_tensors_loaded": start.loaded,
        "encoder_tensors": len(start.tensors),
        **sizes(model),
    })  # fmt: skip


@contextmanager
@torch.no_grad()
def _patch_tokens(model: Classifier, images: Images, path: Path, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the encoder's patch tokens of all images, (N, L, D) float32, in a file that is removed afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shape = (len(images), model.spec.tokens, model.spec.width)
        found = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        model.eval()
        for rows in images.chunks(batch_size):
            tokens = model.tokens(images.pixels(rows, model.head.weight.device))[:, model.spec.prefix :]
            found[rows[0] : rows[-1] + 1] = tokens.cpu().numpy()
        yield found
    finally:
        path.unlink(missing_ok=True)


def _fit(
    model: Classifier, tokens: np.ndarray, decay: float, seed: int, settings: FinetuneSettings, data: ArmData
) -> None:
    """Train pooling and head on patch tokens (N, L, D) until the rate has come down to 0."""
    optimiser = adamw(parameter_groups(model, decay), BETAS)
    loss_of = objective(settings.loss, data.train.targets, settings.focal_gamma, settings.label_smoothing, data.device)
    drawn = draw(data.train.labels, settings.sampling, seed, 0)
    steps = steps_per_epoch(len(drawn), settings.batch_size)
    schedule = Schedule(PEAK_RATE, WARMUP_EPOCHS, EPOCHS).within(settings.max_steps, steps)
    targets = torch.from_numpy(data.train.targets).float()
    for epoch in range(schedule.begun_epochs):
        drawn = draw(data.train.labels, settings.sampling, seed, epoch)
        order = batches(len(drawn), settings.batch_size, seed, epoch)[: schedule.steps_in(epoch, steps)]
        for position, places in enumerate(order):
            rows = drawn[places] % len(tokens)
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(epoch + (position + 1) / steps)
            loss = loss_of(_of_tokens(model, tokens[rows]), on_device(targets[rows], data.device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _of_tokens(model: Classifier, tokens: np.ndarray) -> Tensor:
    """Return logits (B, L) of patch tokens (B, L, D)."""
    patches = on_device(torch.from_numpy(tokens), model.head.weight.device)
    return model.head(model.head_norm(model.pooled_patches(patches)))


@torch.no_grad()
def _logits(model: Classifier, tokens: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the main label's logits (N,)."""
    parts = [_of_tokens(model, tokens[at : at + batch_size])[:, 0] for at in range(0, len(tokens), batch_size)]
    return torch.cat(parts).double().cpu().numpy()
