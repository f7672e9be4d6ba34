"""Pretrain MONAI's MaskedAutoEncoderViT as a config says, so that its downstream AUC can be set beside ours.

    maescreen run configs/chest_xray_cpu.yaml --until preprocess ...
    python tests/benchmarks/monai_pretraining.py configs/chest_xray_cpu.yaml STORE/preprocess/KEY monai.safetensors
    maescreen run configs/chest_xray_cpu.yaml data.imported_weights=monai.safetensors 'finetune.arms=[mae,imported]' ...

Both learn from the same images of the same patients, with the same crops, batches, schedule, optimiser, sizes, mask
ratio and normalised targets. MONAI's has its own initial weights, position tables and masks, and decodes all patches.
The second run compares the arms: same head, patients and seeds, paired on the same test patients. The file holds the
whole model as MONAI names it; its import says what became of each tensor. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measuring import machine
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

from pipeline.models.augmentation import Augmentation
from pipeline.models.checkpoints import save_weights
from pipeline.models.engine import begin, epochs_left, record, train_epoch
from pipeline.models.images import Images, read_images
from pipeline.models.mae import MaskedAutoencoder
from pipeline.models.training import (
    Hardware,
    Schedule,
    adamw,
    autocast,
    batches,
    hardware,
    parameter_groups,
    steps_per_epoch,
)
from pipeline.models.vit import EncoderSpec, normalise
from pipeline.settings.load import load
from pipeline.settings.training import PretrainSettings
from pipeline.stages.pretrain import BETAS, build, encoder_spec, hold_out, peak_rate
from pipeline.store.runlog import RunLog

PARTS = ("train", "pretrain")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("preprocess", type=Path, help="folder of a finished preprocess artifact")
    parser.add_argument("weights", type=Path, help="file to write, .safetensors")
    parser.add_argument("overrides", nargs="*", help="settings, as for maescreen run")
    return parser.parse_args()


def monai_model(settings: PretrainSettings, spec: EncoderSpec) -> MaskedAutoEncoderViT:
    return MaskedAutoEncoderViT(
        in_channels=spec.channels, img_size=spec.image_size, patch_size=spec.patch_size, hidden_size=spec.width,
        mlp_dim=4 * spec.width, num_layers=spec.depth, num_heads=spec.heads, masking_ratio=settings.mask_ratio,
        decoder_hidden_size=settings.decoder_width, decoder_mlp_dim=4 * settings.decoder_width,
        decoder_num_layers=settings.decoder_depth, decoder_num_heads=settings.decoder_heads,
        pos_embed_type="sincos", decoder_pos_embed_type="sincos", spatial_dims=len(spec.grid), qkv_bias=True,
    )  # fmt: skip


def masked_loss(
    model: MaskedAutoEncoderViT, ours: MaskedAutoencoder, pixels: torch.Tensor, precision: torch.dtype
) -> torch.Tensor:
    """Return the mean squared error on masked patches, of the targets that our model has."""
    with autocast(pixels.device, precision):
        predicted, mask = model(normalise(pixels, ours.spec))
    hidden = mask.bool()
    return (predicted[hidden].float() - ours.targets(ours.patches(pixels))[hidden]).square().mean()


def train(
    settings: PretrainSettings, model: MaskedAutoEncoderViT, ours: MaskedAutoencoder, images: Images, prepared: Hardware
) -> list[float]:
    """Return the mean loss of each epoch."""
    optimiser = adamw(parameter_groups(model, settings.weight_decay), BETAS)
    steps, device = steps_per_epoch(len(images), settings.batch_size), prepared.device
    schedule = Schedule(peak_rate(settings), settings.warmup_epochs, settings.epochs).within(settings.max_steps, steps)
    augment = Augmentation(**settings.augmentation.model_dump())
    with (
        TemporaryDirectory() as folder,
        begin(model, optimiser, schedule, prepared, images, Path(folder), RunLog("monai"), "training") as training,
    ):
        for epoch in epochs_left(training, "epoch"):

            def batch_loss(rows: np.ndarray, epoch: int = epoch) -> torch.Tensor:
                pixels = augment(images.pixels(rows, device), settings.seed, epoch, rows)
                return masked_loss(model, ours, pixels, prepared.precision)

            chosen = batches(len(images), settings.batch_size, settings.seed, epoch)
            record(training, {"loss": train_epoch(training, chosen, batch_loss).loss})
    return [epoch["loss"] for epoch in training.history]


def main() -> None:
    options = arguments()
    config, _ = load(options.config, options.overrides)
    settings = config.pretrain
    prepared = hardware(config.machine, settings.precision, math.inf, lambda message: print(message, file=sys.stderr))
    pool = read_images(
        [path for part in PARTS for path in options.preprocess.glob(f"index_{part}.parquet")],
        [path for part in PARTS for path in options.preprocess.glob(f"{part}-*.npy")],
    )
    images = hold_out(pool, settings.seed)[1].cached(prepared.device)
    spec = encoder_spec(settings, images)
    ours = build(settings, spec).to(prepared.device)
    torch.manual_seed(settings.seed)
    model = monai_model(settings, spec).to(prepared.device)
    # In half precision MONAI's forward pass puts these tokens among float32 ones, which torch refuses.
    model.decoder_embed.register_forward_hook(lambda module, inputs, tokens: tokens.float())
    started = time.perf_counter()
    history = train(settings, model, ours, images, prepared)
    minutes = (time.perf_counter() - started) / 60
    save_weights(options.weights, model.state_dict())
    found = {"machine": machine(prepared.device.type), "images": len(images), "epochs": len(history)}
    print(json.dumps({**found, "minutes": round(minutes, 2), "loss": [history[0], history[-1]]}, indent=2))


if __name__ == "__main__":
    main()
