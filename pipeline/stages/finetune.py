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

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.arms import ArmData
from pipeline.models.checkpoints import fit_positions, read_weights
from pipeline.models.convex import train_hog, train_probe
from pipeline.models.finetuning import train_network
from pipeline.models.images import Images, read_images
from pipeline.models.training import TrainingError, prepare, usable_precision
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from pipeline.config import FinetuneSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

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


def _read(settings: FinetuneSettings, inputs: Inputs, log: RunLog) -> ArmData:
    def images(split: str) -> Images:
        arrays = inputs.files("preprocess", f"{split}-*.npy")
        return read_images(inputs.files("preprocess", f"index_{split}.parquet"), arrays).labelled()

    device = prepare(inputs.machine.device, inputs.machine.threads)
    train, tune = images("train"), images("tune")
    for name, part in (("train", train), ("tune", tune)):
        missing = [word for value, word in ((1, "positive"), (0, "negative")) if value not in part.labels]
        if missing:
            raise TrainingError(f"split {name} has no {' and no '.join(missing)} image; check labels and fractions")
    pretrained = EncoderSpec.from_json(read_json(inputs.file("pretrain", "model.json")))
    spec = replace(pretrained, image_size=train.shape[1:])
    if spec.channels != train.shape[0]:
        raise TrainingError(f"the encoder takes {spec.channels} channels; the images have {train.shape[0]}")
    encoder = read_weights(inputs.file("pretrain", "encoder.safetensors"))
    encoder = fit_positions(encoder, pretrained.grid, spec.grid)
    precision = usable_precision(settings.precision, device, log.warn)
    return ArmData(train, tune, spec, encoder, inputs.key("pretrain"), device, precision)


def _counts(images: Images) -> dict[str, int]:
    positive = images.index[images.labels == 1]
    return {
        "patients": images.index["patient_id"].nunique(),
        "images": len(images),
        "positive_patients": positive["patient_id"].nunique(),
        "positive_images": len(positive),
    }


def _result(
    arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog
) -> dict[str, Any]:
    """Return the record of one training, done now or found finished."""
    if (folder / "model.json").is_file():
        log.info(f"{arm} seed {seed}: already trained")
    elif arm == "hog":
        train_hog(settings, data, folder, log)
    elif arm == "linear_probe":
        train_probe(settings, data, folder, log)
    else:
        train_network(arm, seed, settings, data, folder, log)
    # A kill may fall between the last file and the clearing away of checkpoints.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    record = read_json(folder / "model.json")
    return {**record, "model_sha256": record["sha256"]}
