"""Train the classifiers: the same patients, epochs, batches and augmentation for every arm.

Rules that hold for all arms alike:

- **Last epoch.** The weights after the last epoch are kept. The rate has come down to 0 by then, and with the few
  tuning patients of a small study the best of many epochs is picked by noise and its AUC is flattering. The tuning
  AUC is recorded after every epoch, for the reader.
- **Class imbalance.** The loss is plain binary cross-entropy and images are drawn as they come. Weighting or
  resampling would mainly shift the logits by a constant, which neither the ranking nor the threshold sees and which
  calibration undoes; the head starts at the training patients' log odds instead.
- **Layer decay** protects what pretraining found, so it applies to arm `mae` alone.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.augmentation import Augmentation
from pipeline.models.baseline import HogSpec, auc, fit_logistic
from pipeline.models.checkpoints import (
    Loaded,
    fit_positions,
    load_checkpoint,
    load_strict,
    read_weights,
    require_equal,
    save_checkpoint,
    save_weights,
)
from pipeline.models.classifier import Classifier, Head, branch_scales
from pipeline.models.images import Images, read_images
from pipeline.models.randomness import DROP_PATH, derived_seed, uniform
from pipeline.models.training import (
    Schedule,
    TrainingError,
    adamw,
    autocast,
    batches,
    parameter_groups,
    prepare,
    train_epoch,
    usable_precision,
)
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from pipeline.config import FinetuneSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

BETAS = (0.9, 0.999)
DESCRIPTIONS = {
    "mae": "encoder pretrained as a masked autoencoder, all layers trained",
    "scratch": "the same network, trained from random weights",
    "linear_probe": "logistic regression on the frozen pretrained encoder's features",
    "hog": "logistic regression on histograms of oriented gradients, no network",
}
SELECTION = {
    "mae": "weights after the last epoch",
    "scratch": "weights after the last epoch",
    "linear_probe": "regularisation with the highest AUC on the tuning images; one convex fit, so no seeds",
    "hog": "regularisation with the highest AUC on the tuning images; one convex fit, so no seeds",
}


@dataclass(frozen=True)
class Data:
    """What every arm is trained on."""

    train: Images
    tune: Images
    spec: EncoderSpec
    encoder: dict[str, Tensor]
    encoder_key: str
    device: torch.device
    precision: torch.dtype


def finetune(settings: FinetuneSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Train every arm and seed; leave each model in `<arm>/seed<k>/` and what came of it in summary.json.

    Raises TrainingError when a class has no training or tuning image or the loss stops being finite, WeightsError
    when the pretrained encoder does not fit.
    """
    data = _read(settings, inputs, log)
    arms: dict[str, Any] = {}
    for arm in settings.arms:
        # Logistic regression has one optimum: a second seed would give the same model again.
        seeds = settings.seeds if arm in ("mae", "scratch") else settings.seeds[:1]
        results = {str(seed): _result(arm, seed, settings, data, work / arm / f"seed{seed}", log) for seed in seeds}
        first = next(iter(results.values()))
        arms[arm] = {
            "description": DESCRIPTIONS[arm],
            "selection": SELECTION[arm],
            "parameters": first["parameters"],
            "trainable_parameters": first["trainable_parameters"],
            "epochs": settings.epochs if arm in ("mae", "scratch") else 0,
            "seeds": {seed: {key: result[key] for key in _PER_SEED} for seed, result in results.items()},
        }
    write_json(
        work / "summary.json",
        {
            "arms": arms,
            "encoder_sha256": sha256_file(inputs.file("pretrain", "encoder.safetensors")),
            **{f"{name}_{what}": n for name, part in (("train", data.train), ("tune", data.tune))
               for what, n in _counts(part).items()},
        },
    )  # fmt: skip


_PER_SEED = ("tune_auc", "best_epoch", "model_sha256", "encoder_tensors_loaded", "encoder_tensors")


def _read(settings: FinetuneSettings, inputs: Inputs, log: RunLog) -> Data:
    def images(split: str) -> Images:
        arrays = inputs.files("preprocess", f"{split}-*.npy")
        return read_images(inputs.files("preprocess", f"index_{split}.parquet"), arrays).labelled()

    device = prepare(inputs.machine.device, inputs.machine.threads)
    train, tune = images("train"), images("tune")
    for name, part in (("train", train), ("tune", tune)):
        missing = [word for value, word in ((1, "positive"), (0, "negative")) if value not in part.labels]
        if missing:
            raise TrainingError(f"split {name} has no {' and no '.join(missing)} image; check labels and fractions")
    if "hog" in settings.arms and len(train.shape) != 3:
        raise TrainingError("arm hog needs 2-D images; remove it from finetune.arms")
    pretrained = EncoderSpec.from_json(read_json(inputs.file("pretrain", "model.json")))
    spec = replace(pretrained, image_size=train.shape[1:])
    if spec.channels != train.shape[0]:
        raise TrainingError(f"the encoder takes {spec.channels} channels; the images have {train.shape[0]}")
    encoder = read_weights(inputs.file("pretrain", "encoder.safetensors"))
    encoder = fit_positions(encoder, pretrained.grid, spec.grid)
    precision = usable_precision(settings.precision, device, log.warn)
    return Data(train, tune, spec, encoder, inputs.key("pretrain"), device, precision)


def _counts(images: Images) -> dict[str, int]:
    positive = images.index[images.labels == 1]
    return {
        "patients": images.index["patient_id"].nunique(),
        "images": len(images),
        "positive_patients": positive["patient_id"].nunique(),
        "positive_images": len(positive),
    }


def _result(arm: str, seed: int, settings: FinetuneSettings, data: Data, folder: Path, log: RunLog) -> dict[str, Any]:
    """Return the record of one training, done now or found finished."""
    if (folder / "model.json").is_file():
        log.info(f"{arm} seed {seed}: already trained")
    elif arm == "hog":
        _train_hog(settings, data, folder, log)
    elif arm == "linear_probe":
        _train_probe(settings, data, folder, log)
    else:
        _train_network(arm, seed, settings, data, folder, log)
    # A kill may fall between the last file and the clearing away of checkpoints.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    record = read_json(folder / "model.json")
    return {**record, "model_sha256": record["sha256"]}


# ---------------------------------------------------------------- networks


def load_pretrained(model: Classifier, encoder: dict[str, Tensor], key: str, log: RunLog) -> Loaded:
    """Load the pretrained encoder into `model`, all of it, and prove it tensor by tensor.

    Raises WeightsError naming every tensor that is missing, unexpected, mis-shaped or different afterwards.
    """
    loaded = load_strict(model.encoder, encoder)
    require_equal(model.encoder, encoder)
    log.info(f"encoder: {loaded} from pretraining {key}")
    return loaded


def _build(data: Data, head: Head, seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return Classifier(data.spec, head)


def _train_network(arm: str, seed: int, settings: FinetuneSettings, data: Data, folder: Path, log: RunLog) -> None:
    model = _build(data, "norm_linear", seed).to(data.device)
    loaded = load_pretrained(model, data.encoder, data.encoder_key, log) if arm == "mae" else None
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
    augment = Augmentation(settings.crop_min, settings.rotate_degrees, settings.intensity, settings.flip_horizontal)
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
    _finish(folder, arm, model.state_dict(), history, content, {
        "tune_auc": history[-1]["tune_auc"],
        "best_epoch": settings.epochs,
        "encoder_tensors_loaded": loaded.tensors if loaded else 0,
        "encoder_tensors": len(data.encoder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": sum(parameter.numel() for parameter in trained),
    })  # fmt: skip


def _dropped(settings: FinetuneSettings, data: Data, seed: int, epoch: int, rows: np.ndarray) -> Tensor | None:
    if not settings.drop_path:
        return None
    draws = uniform(seed, epoch, rows, DROP_PATH, 2 * data.spec.depth)
    return branch_scales(torch.from_numpy(draws).to(data.device), settings.drop_path, data.spec.depth)


@torch.no_grad()
def _logits(model: Classifier, images: Images, batch_size: int, device: torch.device) -> np.ndarray:
    model.eval()
    parts = [model(images.pixels(rows, device)).double().cpu() for rows in images.chunks(batch_size)]
    return torch.cat(parts).numpy()


# ---------------------------------------------------------------- convex fits


def _train_probe(settings: FinetuneSettings, data: Data, folder: Path, log: RunLog) -> None:
    """Fit a logistic regression on standardised features of images as they are; fold it into a linear head."""
    model = _build(data, "linear", 0).to(data.device)
    loaded = load_pretrained(model, data.encoder, data.encoder_key, log)
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
    _finish(folder, "linear_probe", model.state_dict(), _tried(aucs), content, {
        "tune_auc": max(aucs.values()),
        "best_epoch": None,
        "encoder_tensors_loaded": loaded.tensors,
        "encoder_tensors": len(data.encoder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable_parameters": len(weight) + 1,
    })  # fmt: skip


def _train_hog(settings: FinetuneSettings, data: Data, folder: Path, log: RunLog) -> None:
    height, width = settings.hog_image_size
    spec = HogSpec((height, width))

    def features(images: Images) -> np.ndarray:
        return np.concatenate([spec.features(images.pixels(rows, torch.device("cpu"))) for rows in images.chunks(256)])

    train, tune = features(data.train), features(data.tune)
    fitted, aucs = fit_logistic((train, data.train.labels), (tune, data.tune.labels))
    log.info(f"hog: tune AUC {max(aucs.values()):.4f}")
    _finish(folder, "hog", fitted.tensors(), _tried(aucs), {"hog": spec.to_json()}, {
        "tune_auc": max(aucs.values()),
        "best_epoch": None,
        "encoder_tensors_loaded": 0,
        "encoder_tensors": 0,
        "parameters": len(fitted.weight) + 1,
        "trainable_parameters": len(fitted.weight) + 1,
    })  # fmt: skip


def _tried(aucs: dict[str, float]) -> list[dict[str, float]]:
    return [{"regularisation": float(strength), "tune_auc": value} for strength, value in aucs.items()]


def _finish(
    folder: Path,
    arm: str,
    tensors: dict[str, Tensor],
    history: list[dict[str, float]],
    content: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """Write a model's files; model.json comes last and says that the others are whole."""
    save_weights(folder / "model.safetensors", tensors)
    write_json(folder / "history.json", history)
    sha256 = sha256_file(folder / "model.safetensors")
    write_json(folder / "model.json", {"kind": "classifier", "arm": arm, **content, **result, "sha256": sha256})
