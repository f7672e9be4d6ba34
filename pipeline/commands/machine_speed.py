"""How fast this machine is: cores, memory, GPU, and a step of two networks, timed as the stages take them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.ladder import residual_width
from pipeline.orchestration.estimate import BUSY, SPEED_FILE, busyness, cores, memory_gb
from pipeline.orchestration.work import Items, Job, forward_flops, resnet_seconds, step_seconds
from pipeline.settings.training import FinetuneSettings, PretrainSettings
from pipeline.store.files import write_json

NO_ITEMS = Items(0, 0.0, 0, 0, 0, 0, 0)
# The first pass sets up memory and threads; of the others the fastest counts, since other programs only slow one down.
TIMED_PASSES = 3
MOST_S = 4.0


@dataclass(frozen=True)
class TimedStep:
    """A step of pretraining, of fine-tuning and of the residual network that goes with it, in ms per image; `pretrain`
    is what it is of the reference machine's, `finetune` what both others together are."""

    image_size: Sequence[int]
    width: int
    depth: int
    forward_flops: float
    pretrain_ms: float
    finetune_ms: float
    residual_ms: float
    pretrain: float
    finetune: float


@dataclass(frozen=True)
class MachineSpeed:
    """What was measured; `factors` are of stages timed as a whole, by what the reference machine takes.

    Steps and factors are those of the machine without other programs; `busy` is how many times longer it takes beside
    those that there were.
    """

    cores: int
    memory_gb: float
    gpu: str
    busy: float
    steps: Sequence[TimedStep]
    factors: dict[str, float]

    def lines(self) -> list[str]:
        """Return what was measured, for people."""
        device = self.gpu or "no GPU"
        timed = [
            f"a step of {' × '.join(map(str, one.image_size))} pixels, width {one.width}, depth {one.depth}: "
            f"{one.pretrain_ms:.2g} ms per image to pretrain, {one.finetune_ms:.2g} ms to fine-tune, "
            f"{one.residual_ms:.2g} ms to train a residual network"
            for one in self.steps
        ]
        said = [f"machine: {self.cores} CPU cores, {self.memory_gb:.0f} GB of memory, {device}", *timed]
        if self.busy >= BUSY:
            said.append(
                f"other programs keep the machine busy: the plan allows {self.busy:.1f} times as long for everything; "
                "run init again when it is idle for a larger one"
            )
        return said


def measure(candidates: Sequence[tuple[Sequence[int], PretrainSettings]], factors: dict[str, float]) -> MachineSpeed:
    """Time one training step of each candidate, image size and settings; takes some seconds and imports torch."""
    import torch

    gpu = str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    steps = [_timed(size, settings, "cuda" if gpu else "cpu") for size, settings in candidates]
    return MachineSpeed(cores(), round(memory_gb(), 1), gpu, round(busyness(), 2), steps, factors)


def remember(speed: MachineSpeed, store: Path) -> None:
    """Leave the measurements in the store, where the plan finds them."""
    write_json(store / SPEED_FILE, asdict(speed))


def _timed(image_size: Sequence[int], settings: PretrainSettings, device: str) -> TimedStep:
    import numpy as np
    import torch
    import torch.nn.functional as F

    from pipeline.models.augmentation import Augmentation
    from pipeline.models.classifier import Classifier
    from pipeline.models.masking import make_mask, mask_draws
    from pipeline.models.resnet import ResNetClassifier, ResNetSpec
    from pipeline.models.training import adamw, parameter_groups
    from pipeline.models.vit import EncoderSpec
    from pipeline.stages.pretrain import BETAS, build

    tuning, encoder, rows = FinetuneSettings(), settings.encoder, np.arange(settings.batch_size)
    job = Job(NO_ITEMS, image_size, settings, tuning, threads=torch.get_num_threads())
    width = residual_width(job)
    residual = ResNetSpec(tuple(image_size), 1, tuning.cnn.depth, width, (0.5,), (0.25,))
    spec = EncoderSpec(
        tuple(image_size), tuple(encoder.patch_size), 1, encoder.width, encoder.depth, encoder.heads, (0.5,), (0.25,)
    )
    pixels = torch.rand(len(rows), 1, *image_size, device=device)
    crop, change = Augmentation(**settings.augmentation.model_dump()), Augmentation(**tuning.augmentation.model_dump())
    draws = mask_draws(settings.mask, spec.grid)

    def masked(model: Any) -> Any:
        noise = torch.rand(len(rows), draws, device=device)
        mask = make_mask(settings.mask, noise, spec.grid, settings.mask_ratio, settings.decoded_share)
        return model(crop(pixels, 0, 0, rows), mask)

    def labelled(model: Any) -> Any:
        logits = model(change(pixels, 0, 0, rows))
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    def ms_per_image(model: Any, loss_of: Callable[[Any], Any]) -> float:
        model = model.to(device)
        optimiser = adamw(parameter_groups(model, settings.weight_decay), BETAS)

        def step() -> None:
            loss_of(model).backward()
            optimiser.step()
            optimiser.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()

        return 1000 * _fastest(step, 0 if device == "cuda" else torch.get_num_threads()) / len(rows)

    with torch.random.fork_rng(devices=[]):
        pretrain_ms = ms_per_image(build(settings, spec), masked)
        finetune_ms = ms_per_image(Classifier(spec, "norm_linear"), labelled)
        residual_ms = ms_per_image(ResNetClassifier(residual), labelled)
    pretraining, fine_tuning = step_seconds(job)
    return TimedStep(
        list(image_size),
        encoder.width,
        encoder.depth,
        forward_flops(job),
        pretrain_ms,
        finetune_ms,
        residual_ms,
        pretrain_ms / (1000 * pretraining),
        (finetune_ms + residual_ms) / (1000 * (fine_tuning + resnet_seconds(job, width))),
    )


def _fastest(step: Callable[[], None], threads: int) -> float:
    """Return the seconds of the fastest of a few passes, fewer where one takes long, without the wait for a core.

    On a busy machine the processor time tells what a pass takes by itself; on an idle one, threads that wait for each
    other count, too.
    """
    step()
    taken: list[float] = []
    busy, begun = busyness(), time.perf_counter()
    while len(taken) < TIMED_PASSES and time.perf_counter() - begun < MOST_S:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        taken.append(min(wall, max(processor / threads, wall / busy)) if threads else wall)
    return min(taken)
