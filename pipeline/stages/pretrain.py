"""Pretrain the encoder as a masked autoencoder on training and pretraining patients, without labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.imaging.planes import three_planes
from pipeline.models.augmentation import Augmentation
from pipeline.models.checkpoints import load_checkpoint, save_checkpoint, save_weights
from pipeline.models.checks import MIN_POSITION_SPREAD, self_test
from pipeline.models.decoders import DecoderSpec
from pipeline.models.images import Images, read_images
from pipeline.models.mae import MaskedAutoencoder, take
from pipeline.models.masking import Mask, make_mask, mask_draws
from pipeline.models.randomness import MASK, derived_seed, uniform
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
from pipeline.store.files import atomic, sha256_file, write_json

if TYPE_CHECKING:
    from pipeline.config import PretrainSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

HELD_OUT_SHARE = 0.05  # of the patients; watched, never trained on
HELD_OUT_EPOCH = -1  # the counter of the fixed masks of held-out images
BETAS = (0.9, 0.95)  # He et al. 2021
PICTURES = 4


def pretrain(settings: PretrainSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Fit a masked autoencoder to the pool's images; leave the encoder, its history and reconstructions in `work`.

    Raises TrainingError when the self-tests fail before the first step, when the loss stops being finite, when there
    are fewer than two patients, or when predictions turn out not to depend on position.
    """
    device = prepare(inputs.machine.device, inputs.machine.threads)
    pool = read_images(
        inputs.files("preprocess", "index_train.parquet") + inputs.files("preprocess", "index_pretrain.parquet"),
        inputs.files("preprocess", "train-*.npy") + inputs.files("preprocess", "pretrain-*.npy"),
    )
    held_out, training = _hold_out(pool, settings.seed)
    spec = _encoder_spec(settings, training)
    model = _build(settings, spec).to(device)
    log.info(
        f"{len(training)} images to learn from, {len(held_out)} of other patients to watch; "
        f"encoder of {_count(model.encoder.parameters()):,} parameters, {spec.tokens} patches, on {device}"
    )
    self_test(model, _mask(settings, spec, 0, np.arange(1), device))
    history = _train(settings, model, training, held_out, device, work / "checkpoints", log)

    save_weights(work / "encoder.safetensors", model.encoder.state_dict())
    last = _check(settings, model, held_out, device, log)
    _draw(model, held_out, settings, device, work / "reconstructions.png")
    write_json(work / "history.json", history)
    write_json(
        work / "model.json",
        {
            "kind": "encoder",
            **spec.to_json(),
            "parameters": _count(model.encoder.parameters()),
            "sha256": sha256_file(work / "encoder.safetensors"),
        },
    )
    write_json(
        work / "summary.json",
        {
            "training_images": len(training),
            "training_patients": training.index["patient_id"].nunique(),
            "held_out_images": len(held_out),
            "held_out_patients": held_out.index["patient_id"].nunique(),
            "epochs": settings.epochs,
            "peak_learning_rate": _peak_rate(settings),
            "train_loss": history[-1]["train_loss"],
            **last,
        },
    )
    shutil.rmtree(work / "checkpoints", ignore_errors=True)


def _hold_out(pool: Images, seed: int) -> tuple[Images, Images]:
    """Return (held out, training): the patients with the lowest keyed numbers are held out."""
    patients = sorted(pool.index["patient_id"].unique(), key=lambda patient: derived_seed(seed, patient))
    if len(patients) < 2:
        raise TrainingError(f"pretraining needs at least 2 patients; there are {len(patients)}")
    first = set(patients[: max(1, round(HELD_OUT_SHARE * len(patients)))])
    chosen = np.array([patient in first for patient in pool.index["patient_id"]])
    return pool.where(chosen), pool.where(~chosen)


def _encoder_spec(settings: PretrainSettings, training: Images) -> EncoderSpec:
    channels, *size = training.shape
    mean, std = training.statistics()
    return EncoderSpec(
        image_size=tuple(size),
        patch_size=tuple(settings.encoder.patch_size),
        channels=channels,
        width=settings.encoder.width,
        depth=settings.encoder.depth,
        heads=settings.encoder.heads,
        pixel_mean=mean,
        pixel_std=std,
        positions=settings.encoder.positions,
    )


def _build(settings: PretrainSettings, spec: EncoderSpec) -> MaskedAutoencoder:
    decoder = DecoderSpec(settings.decoder_width, settings.decoder_depth, settings.decoder_heads, settings.decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(settings.seed, "weights"))
        return MaskedAutoencoder(spec, decoder, settings.normalise_targets)


def _peak_rate(settings: PretrainSettings) -> float:
    return max(settings.base_learning_rate * settings.batch_size / 256, settings.min_learning_rate)


def _train(
    settings: PretrainSettings,
    model: MaskedAutoencoder,
    training: Images,
    held_out: Images,
    device: torch.device,
    folder: Path,
    log: RunLog,
) -> list[dict[str, float]]:
    """Run the epochs that are left; return the history of all."""
    optimiser = adamw(parameter_groups(model, settings.weight_decay), BETAS)
    precision = usable_precision(settings.precision, device, log.warn)
    schedule = Schedule(_peak_rate(settings), settings.warmup_epochs, settings.epochs)
    augment = Augmentation(crop_min=settings.crop_min, flip_horizontal=settings.flip_horizontal)
    history: list[dict[str, float]] = []
    if (state := load_checkpoint(folder, device, log.warn)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
        log.info(f"goes on after epoch {len(history)} of {settings.epochs}")

    for epoch in log.track(range(len(history), settings.epochs), "epoch", settings.epochs, len(history)):

        def batch_loss(rows: np.ndarray, epoch: int = epoch) -> Tensor:
            pixels = augment(training.pixels(rows, device), settings.seed, epoch, rows)
            mask = _mask(settings, model.spec, epoch, rows, device, settings.decoded_share)
            with autocast(device, precision):
                return model(pixels, mask)

        order = batches(len(training), settings.batch_size, settings.seed, epoch)
        loss, rate = train_epoch(model, optimiser, schedule, epoch, order, batch_loss)
        values = {
            "train_loss": loss,
            "held_out_loss": _held_out_loss(settings, model, held_out, device)[0],
            "learning_rate": rate,
        }
        history.append({"epoch": epoch + 1, **values})
        log.metrics(values, epoch + 1)
        if len(history) % settings.checkpoint_every_epochs == 0:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
            save_checkpoint(folder, len(history), state)
        if len(history) % max(1, settings.epochs // 10) == 0:
            log.info(f"epoch {epoch + 1}: loss {loss:.4f}, held out {values['held_out_loss']:.4f}")
    return history


def _mask(
    settings: PretrainSettings,
    spec: EncoderSpec,
    epoch: int,
    rows: np.ndarray,
    device: torch.device,
    decoded_share: float = 1.0,
) -> Mask:
    draws = uniform(settings.seed, epoch, rows, MASK, mask_draws(settings.mask, spec.grid))
    return make_mask(settings.mask, torch.from_numpy(draws).to(device), spec.grid, settings.mask_ratio, decoded_share)


@torch.no_grad()
def _held_out_loss(
    settings: PretrainSettings, model: MaskedAutoencoder, held_out: Images, device: torch.device
) -> tuple[float, float, float]:
    """Return on the held-out images, with masks that never change: the loss, the loss of predicting 0 everywhere,
    and the mean spread of the predictions across the places of an image."""
    model.eval()
    sums = np.zeros(3)
    for rows in held_out.chunks(settings.batch_size):
        mask = _mask(settings, model.spec, HELD_OUT_EPOCH, rows, device)
        patches = model.patches(held_out.pixels(rows, device))
        wanted = model.targets(take(patches, mask.masked))
        predicted = model.predict(patches, mask)
        spread = predicted.std(dim=1, correction=0).mean()
        values = [(predicted - wanted).square().mean(), wanted.square().mean(), spread]
        sums += len(rows) * np.array([value.item() for value in values])
    loss, zero, spread = (sums / len(held_out)).tolist()
    return loss, zero, spread


def _check(
    settings: PretrainSettings, model: MaskedAutoencoder, held_out: Images, device: torch.device, log: RunLog
) -> dict[str, Any]:
    """Warn when nothing was learnt; stop when predictions ignore where a patch lies."""
    loss, zero, spread = _held_out_loss(settings, model, held_out, device)
    if model.spec.tokens > 2 and spread < MIN_POSITION_SPREAD:
        raise TrainingError(
            f"predictions for masked patches do not depend on their position (spread {spread:.1e}); "
            "the encoder has learnt nothing usable: raise pretrain.epochs or the learning rate"
        )
    if loss >= zero:
        log.warn(
            f"pretraining learnt nothing: held-out loss {loss:.4f}, predicting zero everywhere {zero:.4f}; "
            "raise pretrain.epochs or the learning rate"
        )
    else:
        log.info(f"held-out loss {loss:.4f}; predicting zero everywhere would give {zero:.4f}")
    return {"held_out_loss": loss, "predict_zero_loss": zero, "position_spread": spread}


@torch.no_grad()
def _draw(
    model: MaskedAutoencoder, held_out: Images, settings: PretrainSettings, device: torch.device, path: Path
) -> None:
    """Write a picture: a row per held-out image with original, masked and reconstructed; volumes by three planes."""
    model.eval()
    rows = np.arange(min(PICTURES, len(held_out)))
    pixels = held_out.pixels(rows, device)
    masked, reconstructed = model.reconstruct(pixels, _mask(settings, model.spec, HELD_OUT_EPOCH, rows, device))
    pictures = zip(pixels, masked, reconstructed, strict=True)
    strips = [np.concatenate([_picture(image) for image in row], axis=1) for row in pictures]
    with atomic(path) as temporary:
        Image.fromarray(np.concatenate(strips)).save(temporary)


def _picture(image: Tensor) -> np.ndarray:
    """Return the first channel as uint8, with a black margin."""
    pixels = (image[0].cpu().numpy() * 255).round().astype(np.uint8)
    return np.pad(pixels if pixels.ndim == 2 else three_planes(pixels), 2)


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
