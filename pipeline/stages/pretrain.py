"""Pretrain the encoder as a masked autoencoder on training and pretraining patients, without labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.models.augmentation import Augmentation
from pipeline.models.checkpoints import WeightsError, load_strict, require_equal, save_weights
from pipeline.models.decoders import DecoderSpec
from pipeline.models.distributed import leads
from pipeline.models.engine import begin, epochs_left, record, save, train_epoch
from pipeline.models.images import Images, on_device, read_images
from pipeline.models.imported import imported_start
from pipeline.models.mae import MaskedAutoencoder, take
from pipeline.models.masking import Mask, make_mask, mask_draws
from pipeline.models.randomness import MASK, derived_seed, uniform
from pipeline.models.self_test import MIN_POSITION_SPREAD, self_test
from pipeline.models.training import (
    Hardware,
    Schedule,
    TrainingError,
    adamw,
    autocast,
    batches,
    hardware,
    parameter_groups,
    steps_per_epoch,
)
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import atomic, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from pipeline.settings.training import PretrainSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

HELD_OUT_SHARE = 0.05  # of the patients; watched, never trained on
HELD_OUT_EPOCH = -1  # the counter of the fixed masks of held-out images
BETAS = (0.9, 0.95)  # He et al. 2021
PICTURES = 4
UNLABELLED = "preprocess@unlabelled"


def pretrain(settings: PretrainSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Fit a masked autoencoder to the pool's images; leave the encoder, its history and reconstructions in `work`.

    Raises TrainingError when the self-tests fail before the first step, when the loss stops being finite, when there
    are fewer than two patients, or when predictions turn out not to depend on position or nothing was learnt; Stopped
    when asked to stop; WeightsError when weights to start from do not fit.
    """
    prepared = hardware(inputs.machine, settings.precision, inputs.deadline, log.warn)
    device = prepared.device
    pool = _pool(inputs)
    held_out, training = (part.cached(device) for part in hold_out(pool, settings.seed))
    spec = encoder_spec(settings, training)
    model = build(settings, spec).to(device)
    if settings.start == "imported":
        _start(model, inputs, log)
    if unlabelled := _unlabelled(inputs):
        left_out = sum(unlabelled["left_out"].values())
        log.info(f"{unlabelled['images']} of {len(pool)} images are of data.unlabelled; {left_out} others are left out")
    log.info(
        f"{len(training)} images to learn from, {len(held_out)} of other patients to watch; "
        f"encoder of {_count(model.encoder.parameters()):,} parameters, {spec.tokens} patches, on {device}"
    )
    self_test(model, _mask(settings, spec, 0, np.arange(1), device))
    history = _train(settings, model, training, held_out, prepared, work / "checkpoints", log)
    if not leads():
        return

    last = _check(settings, model, held_out, prepared, log)
    save_weights(work / "encoder.safetensors", model.encoder.state_dict())
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
            "epochs": len(history),
            "peak_learning_rate": peak_rate(settings),
            "train_loss": history[-1]["train_loss"],
            **last,
            **({"unlabelled": unlabelled} if unlabelled else {}),
        },
    )
    shutil.rmtree(work / "checkpoints", ignore_errors=True)


def _pool(inputs: Inputs) -> Images:
    """Return the images of the splits train and pretrain, and those of data.unlabelled."""
    own = read_images(
        inputs.files("preprocess", "index_train.parquet") + inputs.files("preprocess", "index_pretrain.parquet"),
        inputs.files("preprocess", "train-*.npy") + inputs.files("preprocess", "pretrain-*.npy"),
    )
    if UNLABELLED not in inputs.artifacts:
        return own
    more = read_images(inputs.files(UNLABELLED, "index_pretrain.parquet"), inputs.files(UNLABELLED, "pretrain-*.npy"))
    # Both have arrays of the same names.
    index = pd.concat([own.index, more.index.assign(shard=f"{UNLABELLED}/" + more.index["shard"])])
    arrays = own.arrays | {f"{UNLABELLED}/{name}": array for name, array in more.arrays.items()}
    return Images(index.sort_values("image_id", kind="stable", ignore_index=True), arrays)


def _unlabelled(inputs: Inputs) -> dict[str, Any]:
    """Return what the summary says of data.unlabelled; nothing without it."""
    if UNLABELLED not in inputs.artifacts:
        return {}
    counts = read_json(inputs.file("split@unlabelled", "summary.json"))
    return {name: value for name, value in counts.items() if name != "splits"}


def _start(model: MaskedAutoencoder, inputs: Inputs, log: RunLog) -> None:
    """Load the weights of `data.imported_weights` into the encoder, all of them, and prove it tensor by tensor."""
    path = inputs.imported_weights
    if path is None:
        raise TrainingError("pretrain.start imported needs data.imported_weights: the file with the weights")
    start = imported_start(path, inputs.hashes.as_planned(path), model.spec, log.info)
    if start.registers:
        raise WeightsError(
            f"{path.name} has register tokens, which pretraining does not start from; take weights without them, or "
            "arm imported, which keeps them"
        )
    loaded = load_strict(model.encoder, start.tensors)
    require_equal(model.encoder, start.tensors)
    log.info(f"encoder: {loaded} from {start.origin}")


def hold_out(pool: Images, seed: int) -> tuple[Images, Images]:
    """Return (held out, training): the patients with the lowest keyed numbers are held out."""
    patients = sorted(pool.index["patient_id"].unique(), key=lambda patient: derived_seed(seed, patient))
    if len(patients) < 2:
        raise TrainingError(f"pretraining needs at least 2 patients; there are {len(patients)}")
    first = set(patients[: max(1, round(HELD_OUT_SHARE * len(patients)))])
    chosen = np.array([patient in first for patient in pool.index["patient_id"]])
    return pool.where(chosen), pool.where(~chosen)


def encoder_spec(settings: PretrainSettings, training: Images) -> EncoderSpec:
    """Return the encoder that is trained on these images: their size, their pixels' mean and spread."""
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


def build(settings: PretrainSettings, spec: EncoderSpec) -> MaskedAutoencoder:
    """Return a model with fresh weights, a pure function of the settings."""
    decoder = DecoderSpec(settings.decoder_width, settings.decoder_depth, settings.decoder_heads, settings.decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(settings.seed, "weights"))
        return MaskedAutoencoder(spec, decoder, settings.normalise_targets)


def peak_rate(settings: PretrainSettings) -> float:
    """Return the highest learning rate: it grows with the batch (He et al. 2021, appendix A)."""
    return max(settings.base_learning_rate * settings.batch_size / 256, settings.min_learning_rate)


def _train(
    settings: PretrainSettings,
    model: MaskedAutoencoder,
    images: Images,
    held_out: Images,
    prepared: Hardware,
    folder: Path,
    log: RunLog,
) -> list[dict[str, float]]:
    """Run the epochs that are left; return the history of all."""
    optimiser = adamw(parameter_groups(model, settings.weight_decay), BETAS)
    schedule = Schedule(peak_rate(settings), settings.warmup_epochs, settings.epochs)
    schedule = schedule.within(settings.max_steps, steps_per_epoch(len(images), settings.batch_size))
    augment = Augmentation(**settings.augmentation.model_dump())
    device, total = prepared.device, schedule.begun_epochs
    with begin(model, optimiser, schedule, prepared, images, folder, log, "training") as training:
        for epoch in epochs_left(training, "epoch"):

            def batch_loss(rows: np.ndarray, epoch: int = epoch) -> Tensor:
                pixels = augment(images.pixels(rows, device), settings.seed, epoch, rows)
                mask = _mask(settings, model.spec, epoch, rows, device, settings.decoded_share)
                with autocast(device, prepared.precision):
                    return model(pixels, mask)

            done = train_epoch(training, batches(len(images), settings.batch_size, settings.seed, epoch), batch_loss)
            values = {
                "train_loss": done.loss,
                "held_out_loss": _held_out_loss(settings, model, held_out, prepared)[0],
                "learning_rate": done.learning_rate,
            }
            log.metrics(values | done.measured, epoch + 1)
            record(training, values)
            if (epoch + 1) % settings.checkpoint_every_epochs == 0 or epoch + 1 == total:
                save(training)
            if (epoch + 1) % max(1, total // 10) == 0:
                log.info(f"epoch {epoch + 1}: loss {done.loss:.4f}, held out {values['held_out_loss']:.4f}")
    return training.history


def _mask(
    settings: PretrainSettings,
    spec: EncoderSpec,
    epoch: int,
    rows: np.ndarray,
    device: torch.device,
    decoded_share: float = 1.0,
) -> Mask:
    draws = uniform(settings.seed, epoch, rows, MASK, mask_draws(settings.mask, spec.grid))
    noise = on_device(torch.from_numpy(draws), device)
    return make_mask(settings.mask, noise, spec.grid, settings.mask_ratio, decoded_share)


@torch.no_grad()
def _held_out_loss(
    settings: PretrainSettings, model: MaskedAutoencoder, held_out: Images, prepared: Hardware
) -> tuple[float, float, float]:
    """Return on the held-out images, with masks that never change: the loss, the loss of predicting 0 everywhere,
    and the mean spread of the predictions across the places of an image."""
    model.eval()
    device = prepared.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for rows in held_out.chunks(min(settings.batch_size, prepared.images_per_pass or settings.batch_size)):
        mask = _mask(settings, model.spec, HELD_OUT_EPOCH, rows, device)
        patches = model.patches(held_out.pixels(rows, device))
        wanted = model.targets(take(patches, mask.masked))
        with autocast(device, prepared.precision):
            predicted = model.predict(patches, mask)
        predicted = predicted.float()
        spread = predicted.std(dim=1, correction=0).mean()
        values = torch.stack([(predicted - wanted).square().mean(), wanted.square().mean(), spread])
        sums += len(rows) * values.double()
    loss, zero, spread = (sums / len(held_out)).tolist()
    return loss, zero, spread


def _check(
    settings: PretrainSettings, model: MaskedAutoencoder, held_out: Images, prepared: Hardware, log: RunLog
) -> dict[str, Any]:
    """Stop when predictions ignore where a patch lies, or when nothing was learnt; warn of that after a cut schedule.

    An encoder that has learnt nothing must not go on as a pretrained one; who limits the steps may only be trying.
    """
    loss, zero, spread = _held_out_loss(settings, model, held_out, prepared)
    if model.spec.tokens > 2 and spread < MIN_POSITION_SPREAD:
        raise TrainingError(
            f"predictions for masked patches do not depend on their position (spread {spread:.1e}); "
            "the encoder has learnt nothing usable: raise pretrain.epochs or the learning rate"
        )
    if loss >= zero:
        nothing = (
            f"pretraining learnt nothing: held-out loss {loss:.4f}, predicting zero everywhere {zero:.4f}; "
            "raise pretrain.epochs or the learning rate"
        )
        if settings.max_steps is None:
            raise TrainingError(f"{nothing}. To try the later stages with such an encoder, set pretrain.max_steps")
        log.warn(nothing)
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
    """Return an image (C, ...) as uint8 with a black margin: three channels of a picture in colour (h, w, 3), else the
    first (h, w)."""
    pixels = (image.cpu().numpy() * 255).round().astype(np.uint8)
    if pixels.ndim == 3 and len(pixels) == 3:
        return np.pad(np.moveaxis(pixels, 0, -1), ((2, 2), (2, 2), (0, 0)))
    return np.pad(pixels[0] if pixels.ndim == 3 else three_planes(pixels[0]), 2)


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
