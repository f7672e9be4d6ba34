"""How much work each stage is: seconds, memory and disk from settings and numbers of images, by a simple model.

The seconds are those of a reference machine: one core of a slow x86 server, whose products of matrices were timed at
70 GFLOP/s (single precision) for networks of width 96, rising with the fifth root of the width. What another machine
takes is a factor, which `estimate` learns from earlier artifacts, or from the step that `maescreen init` timed.

- A network costs its products of matrices: per token and block 24 w^2 for projections and MLP, 4 T w for attention (w
  width, T tokens), each multiply-add counted as two. A training step costs three times the forward pass.
- A residual network costs its convolutions, of which the library makes more per second.
- Pretraining encodes the visible patches alone; its decoder sees what `decoder` and `decoded_share` say.
- Reading costs a time per file and per megabyte; the other stages a time each, and a little per image.

Memory is that of the largest thing held at once: weights, gradients and AdamW's moments (16 bytes per parameter), and
18 numbers of the width per token and block that a step keeps; it is not learnt, since records do not hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.models.arm_registry import ARMS
from pipeline.models.recipes import RECIPES
from pipeline.models.resnet_layers import Convolution, convolutions
from pipeline.settings.training import FinetuneSettings, PretrainSettings

FLOPS_PER_S = 70e9
REFERENCE_WIDTH, WIDTH_EXPONENT = 96, 0.2
# A second thread is worth less than the first: synchronisation, memory bandwidth.
THREADS_EXPONENT = 0.85
STEP_PASSES = 3  # forward, and twice as much backward
# Operations per second of convolutions of 24 channels, by those of a transformer's products; rising with the width.
CONVOLUTION_SHARE, CONVOLUTION_WIDTH, CONVOLUTION_EXPONENT = 1.4, 24, 0.25
AUGMENTED_VALUES_PER_S = 1e8
EPOCH_S = 0.03  # measures, checkpoint; 0.01 to 0.02 where networks are small
TORCH_S = 3.0
# HOG, or frozen features, and a path of regularised logistic regressions.
CLASSICAL_S, CLASSICAL_IMAGE_S = 3.0, 0.004
# Learned queries on frozen features: three trainings of 60 epochs, of so many values of a token per second.
PROBE_EPOCHS, PROBE_STEP_S, PROBE_VALUES_PER_S = 3 * 60, 0.004, 1.5e8
HELD_OUT_SHARE = 0.05
INGEST_S, FILE_S, MEGABYTE_S, COMPARED_IMAGES_PER_S = 4.0, 0.010, 0.06, 5000
PREPROCESS_S, IMAGE_S = 6.0, 0.004
FIXED_S = {"split": 1.0, "calibrate": 1.0, "evaluate": 4.0, "package": 2.0, "report": 5.0}
OTHER_S, OTHER_IMAGE_S = 2.0, 1e-3  # of a stage that nobody has timed
PER_IMAGE_S = {"split": 5e-4, "calibrate": 2e-4, "evaluate": 3e-3, "package": 1e-3, "report": 1e-3}
BYTES_PER_TRAINED, BYTES_PER_CHECKPOINT, BYTES_PER_VALUE = 16, 12, 4
KEPT_PER_TOKEN, KEPT_PER_CONVOLUTION = 18, 3
TORCH_MB, PANDAS_MB, WORKER_MB = 500.0, 250.0, 180.0
MB = 1e6


@dataclass(frozen=True)
class Items:
    """What there is to do: files and their megabytes, images, and labelled images by split (`pretrain`: unlabelled)."""

    files: int
    megabytes: float
    images: int
    train: int
    tune: int
    calibration: int
    test: int
    pretrain: int = 0

    @property
    def prepared(self) -> int:
        """Images that become arrays."""
        return self.train + self.tune + self.calibration + self.test + self.pretrain


@dataclass(frozen=True)
class Job:
    """The settings that decide how much work a stage is; `threads` and `workers` are those that will be at it."""

    items: Items
    image_size: Sequence[int]
    pretrain: PretrainSettings
    finetune: FinetuneSettings
    threads: int = 1
    workers: int = 2

    @property
    def grid_tokens(self) -> int:
        """Patches of an image."""
        patch = self.pretrain.encoder.patch_size
        return math.prod(side // own for side, own in zip(self.image_size, patch, strict=True))

    @property
    def networks(self) -> list[str]:
        """Trainings of a network: the arm of each, arms times seeds."""
        return [arm for arm in self.finetune.arms if ARMS[arm].network for _ in self.finetune.seeds]

    @property
    def parameters(self) -> int:
        """Parameters of the encoder."""
        encoder = self.pretrain.encoder
        return 12 * encoder.width**2 * encoder.depth + math.prod(encoder.patch_size) * encoder.width


# ---------------------------------------------------------------- networks


def forward_flops(job: Job) -> float:
    """Return the operations of the encoder on one image with all its patches."""
    return _encoder(job, job.grid_tokens)


def pretrain_flops(job: Job) -> float:
    """Return the operations of the masked autoencoder's forward pass on one image."""
    own, patch_values = job.pretrain, math.prod(job.pretrain.encoder.patch_size)
    visible = max(1, round(job.grid_tokens * (1 - own.mask_ratio)))
    decoded = max(1, round((job.grid_tokens - visible) * own.decoded_share))
    width = own.decoder_width
    if own.decoder == "self_attention":
        tokens = visible + decoded
        layer = tokens * (24 * width**2 + 4 * tokens * width)
    else:
        layer = decoded * (20 * width**2 + 4 * visible * width) + visible * 4 * own.encoder.width * width
    return _encoder(job, visible) + own.decoder_depth * layer + 2 * decoded * width * patch_values


def _encoder(job: Job, patches: int) -> float:
    encoder, tokens = job.pretrain.encoder, patches + 1
    per_block = tokens * (24 * encoder.width**2 + 4 * tokens * encoder.width)
    return encoder.depth * per_block + 2 * patches * encoder.width * math.prod(encoder.patch_size)


def residual_layers(job: Job, width: int) -> list[Convolution]:
    """Return the convolutions of arm cnn, its first stage so wide, for images of one channel."""
    return convolutions(job.image_size, 1, job.finetune.cnn.depth, width)


def resnet_seconds(job: Job, width: int) -> float:
    """Return what a training step of arm cnn costs per image, in reference seconds, its first stage so wide."""
    flops = sum(one.flops for one in residual_layers(job, width))
    rate = FLOPS_PER_S * job.threads**THREADS_EXPONENT
    rate *= CONVOLUTION_SHARE * (width / CONVOLUTION_WIDTH) ** CONVOLUTION_EXPONENT
    return STEP_PASSES * flops / rate + math.prod(job.image_size) / AUGMENTED_VALUES_PER_S


def flops_per_s(job: Job) -> float:
    """Return the operations per second of the reference machine with the job's threads, for a network so wide."""
    width = job.pretrain.encoder.width / REFERENCE_WIDTH
    return FLOPS_PER_S * width**WIDTH_EXPONENT * job.threads**THREADS_EXPONENT


def step_seconds(job: Job) -> tuple[float, float]:
    """Return what a step of pretraining and one of fine-tuning the transformer cost per image, in reference seconds."""
    changed, rate = math.prod(job.image_size) / AUGMENTED_VALUES_PER_S, flops_per_s(job)
    return STEP_PASSES * pretrain_flops(job) / rate + changed, STEP_PASSES * forward_flops(job) / rate + changed


# ---------------------------------------------------------------- seconds


def seconds(stage: str, job: Job) -> float:
    """Return the reference seconds of a stage."""
    own = {
        "ingest": _ingest, "preprocess": _preprocess, "pretrain": _pretrain, "finetune": _finetune, "score": _score,
    }  # fmt: skip
    if stage in own:
        return own[stage](job)
    return FIXED_S.get(stage, OTHER_S) + PER_IMAGE_S.get(stage, OTHER_IMAGE_S) * job.items.images


def _ingest(job: Job) -> float:
    items = job.items
    compared = (items.images / COMPARED_IMAGES_PER_S) ** 2
    return INGEST_S + (FILE_S * items.files + MEGABYTE_S * items.megabytes) / job.workers + compared


def _preprocess(job: Job) -> float:
    items = job.items
    share = items.prepared / max(items.images, 1)
    return PREPROCESS_S + (IMAGE_S * items.prepared + share * MEGABYTE_S * items.megabytes) / job.workers


def _pretrain(job: Job) -> float:
    pool, own = job.items.train + job.items.pretrain, job.pretrain
    epochs = _epochs(own.epochs, own.max_steps, pool, own.batch_size)
    step, _ = step_seconds(job)
    return TORCH_S + epochs * (EPOCH_S + step * pool * (1 - HELD_OUT_SHARE + HELD_OUT_SHARE / STEP_PASSES))


def wall_seconds(stage: str, job: Job) -> float:
    """Return the seconds of a stage that are a budget, the same on every machine: at most those of the search."""
    own = job.finetune.search
    return 60 * own.budget_minutes if stage == "finetune" and own else 0.0


def _finetune(job: Job) -> float:
    own, items = job.finetune, job.items
    if own.search:  # the longest recipe may be handed on
        own = max((one.applied(own) for one in RECIPES), key=lambda one: one.epochs)
    epochs = _epochs(own.epochs, own.max_steps, items.train, own.batch_size)
    _, step = step_seconds(job)
    images = items.train + items.tune / STEP_PASSES
    epoch_of_all = sum(EPOCH_S + _step(job, arm) * images for arm in job.networks)
    runs = 1 + len(own.labelled_patients)  # fewer patients train for as many steps
    classical = sum(not (ARMS[arm].network or ARMS[arm].of_others) for arm in own.arms)
    features = CLASSICAL_S + (items.train + items.tune) * (CLASSICAL_IMAGE_S + step / STEP_PASSES)
    probe = _attentive_probe(job) if "attentive_probe" in own.arms else 0.0
    return TORCH_S + runs * (epochs * epoch_of_all + classical * features + probe)


def _attentive_probe(job: Job) -> float:
    images = job.items.train
    steps = math.ceil(images / job.finetune.batch_size) * PROBE_STEP_S
    return PROBE_EPOCHS * (steps + images * job.grid_tokens * job.pretrain.encoder.width / PROBE_VALUES_PER_S)


def _epochs(epochs: int, max_steps: int | None, images: int, batch_size: int) -> float:
    return epochs if max_steps is None else min(epochs, max_steps / max(1, math.ceil(images / batch_size)))


def _step(job: Job, arm: str) -> float:
    return resnet_seconds(job, job.finetune.cnn.width) if arm == "cnn" else step_seconds(job)[1]


def _again(job: Job) -> Sequence[str]:
    """Return the arms that arm ensemble judges and keeps a second time."""
    return job.finetune.ensemble if "ensemble" in job.finetune.arms else []


def _score(job: Job) -> float:
    items, arms = job.items, job.finetune.arms
    models = [arm for arm in [*arms, *_again(job)] for _ in (job.finetune.seeds if ARMS[arm].network else [0])]
    judged = items.tune + items.calibration + items.test
    return TORCH_S + judged * sum(_step(job, arm) for arm in models if not ARMS[arm].of_others) / STEP_PASSES


# ---------------------------------------------------------------- memory and disk


def memory_mb(stage: str, job: Job) -> float:
    """Return about how much memory a stage takes, all its processes together, in MB."""
    items = job.items
    if stage in ("ingest", "preprocess"):
        mean = items.megabytes / max(items.files, 1)
        return PANDAS_MB + job.workers * (WORKER_MB + 8 * mean)
    if stage in ("pretrain", "finetune"):
        tokens = job.grid_tokens + 1
        if stage == "pretrain":
            tokens = round(tokens * (1 - job.pretrain.mask_ratio)) + 1
        encoder, batch = job.pretrain.encoder, getattr(job, stage).batch_size
        kept = batch * tokens * encoder.depth * encoder.width * KEPT_PER_TOKEN * BYTES_PER_VALUE
        pixels = 2 * batch * math.prod(job.image_size) * BYTES_PER_VALUE
        transformer = BYTES_PER_TRAINED * job.parameters + kept
        residual = _residual_bytes(job) if stage == "finetune" and "cnn" in job.finetune.arms else 0
        return TORCH_MB + (max(transformer, residual) + pixels) / MB
    if stage in ("score", "package", "report"):
        return TORCH_MB + BYTES_PER_VALUE * job.parameters / MB
    return PANDAS_MB


def _residual_bytes(job: Job) -> float:
    layers = residual_layers(job, job.finetune.cnn.width)
    kept = job.finetune.batch_size * sum(one.values for one in layers) * KEPT_PER_CONVOLUTION
    return BYTES_PER_TRAINED * sum(one.weights for one in layers) + BYTES_PER_VALUE * kept


def _networks_mb(job: Job) -> float:
    """Return the weights of all networks, those of an ensemble's members kept a second time."""
    residual = sum(one.weights for one in residual_layers(job, job.finetune.cnn.width))
    kept = [*job.networks, *(arm for arm in _again(job) if ARMS[arm].network for _ in job.finetune.seeds)]
    return BYTES_PER_VALUE * sum(residual if arm == "cnn" else job.parameters for arm in kept) / MB


def disk_mb(stage: str, job: Job) -> float:
    """Return about how much disk an artifact of the stage takes, in MB, with the checkpoints while it is made."""
    items, pixels = job.items, math.prod(job.image_size)
    weights = BYTES_PER_VALUE * job.parameters / MB
    checkpoints = 2 * BYTES_PER_CHECKPOINT * job.parameters / MB
    features = (items.train + items.tune) * job.grid_tokens * job.pretrain.encoder.width * BYTES_PER_VALUE / MB
    kept = features if "attentive_probe" in job.finetune.arms else 0.0
    by_stage: dict[str, Callable[[], float]] = {
        "ingest": lambda: 1 + 0.003 * items.files,
        "preprocess": lambda: items.prepared * (pixels + 200) / MB,
        "pretrain": lambda: 1 + weights + checkpoints,
        "finetune": lambda: (1 + len(job.finetune.labelled_patients)) * _networks_mb(job) + checkpoints + kept,
        "package": lambda: 1 + _networks_mb(job),
        "report": lambda: 8.0,
    }
    return by_stage[stage]() if stage in by_stage else 0.2 + 0.0005 * items.images
