"""What a training is set up with: hardware, schedule, parameter groups, batches. The steps are in engine.py."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.models import distributed
from pipeline.models.randomness import order

if TYPE_CHECKING:
    from pipeline.settings.where import Machine


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says at which step and what to change."""


# ---------------------------------------------------------------- machine


@dataclass(frozen=True)
class Hardware:
    """Where and how fast a training runs; what comes of it stays the same, but for rounding.

    `images_per_pass`: most images in memory at once, None for a whole batch. `gradient_checkpointing`: inner values of
    a block are computed again on the way back instead of kept (Chen et al. 2016). `deadline`: the time.monotonic()
    after which training saves and stops.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    images_per_pass: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    halve_when_out_of_memory: bool = False
    deadline: float = math.inf


def hardware(machine: Machine, precision: str, deadline: float, warn: Callable[[str], None]) -> Hardware:
    """Prepare this process for training as `machine` says.

    Raises TrainingError when a GPU is asked for and there is none, or fewer than processes.
    """
    device = prepare(machine.device, machine.threads)
    return Hardware(
        device,
        usable_precision(precision, device, warn),
        machine.images_per_pass,
        machine.gradient_checkpointing,
        machine.compile,
        machine.on_out_of_memory == "halve",
        deadline,
    )


def prepare(device: str, threads: int | None) -> torch.device:
    """Choose the device ("auto", "cpu", "cuda"), set the number of CPU threads and ask for repeatable results.

    Under torchrun each process of a machine takes the GPU of its own number.
    Raises TrainingError when a GPU is asked for and there is none, or fewer than processes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda was asked for, but torch finds no GPU; use auto or cpu")
    # cuBLAS repeats its results only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What use_deterministic_algorithms(True, warn_only=True) does, but for the compiler: it takes seconds to import.
    torch.set_deterministic_debug_mode("warn")
    # Filling fresh memory only helps to find bugs, and costs time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    # fp32 means fp32: some container images switch on TF32, with 10 bits of mantissa, through the environment.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number = distributed.local_rank()
    if number >= torch.cuda.device_count():
        raise TrainingError(
            f"there are more processes on this machine than its {torch.cuda.device_count()} GPUs; "
            "lower --nproc-per-node, or set machine.device to cpu"
        )
    chosen = torch.device("cuda", number)
    torch.cuda.set_device(chosen)
    return chosen


def usable_precision(precision: str, device: torch.device, warn: Callable[[str], None]) -> torch.dtype:
    """Return the type for the forward pass: bfloat16 or float16 where asked for and a GPU has it, float32 otherwise.

    A CPU gets float32 in any case: most have no such units and would be tens of times slower.
    """
    if precision == "fp32":
        return torch.float32
    if device.type == "cuda" and (precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)):
        return torch.bfloat16 if precision == "bf16" else torch.float16
    warn(f"precision {precision} was asked for, but this {device.type} device gets fp32")
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context for the forward pass in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


# ---------------------------------------------------------------- schedule and groups


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2017). `peak` is the highest rate.

    `epochs` need not be whole: a budget of steps may end inside the last one.
    """

    peak: float
    warmup_epochs: float
    epochs: float

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a point in training, counted in epochs and fractions of them."""
        if epoch < self.warmup_epochs:
            return self.peak * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def within(self, max_steps: int | None, steps_per_epoch: int) -> Schedule:
        """Return the schedule shortened to `max_steps`, warm-up in proportion, so that it still ends at 0."""
        if max_steps is None or max_steps >= self.epochs * steps_per_epoch:
            return self
        epochs = max_steps / steps_per_epoch
        return replace(self, warmup_epochs=self.warmup_epochs * epochs / self.epochs, epochs=epochs)

    @property
    def begun_epochs(self) -> int:
        """Epochs, the last of which may be cut short."""
        return math.ceil(self.epochs)

    def steps_in(self, epoch: int, steps_per_epoch: int) -> int:
        """Return how many of an epoch's steps are taken."""
        return min(steps_per_epoch, round((self.epochs - epoch) * steps_per_epoch))


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, depth: int = 0
) -> list[dict[str, Any]]:
    """Group trainable parameters for AdamW by weight decay and by their share `scale` of the learning rate.

    No decay on biases, norms, class and mask tokens and positions. With `layer_decay` below 1 the rate falls by this
    factor per block, from the head down to the patch embedding (Clark et al. 2020; He et al. 2021), in an encoder of
    `depth`.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = (
            0.0 if parameter.ndim < 2 or name.endswith(("_token", "_tokens", "position_embeddings")) else weight_decay
        )
        scale = layer_decay ** (depth + 1 - _layer(name, depth))
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, depth: int) -> int:
    """0: class token, registers and patch embedding; 1 to depth: blocks; depth + 1: final norm and head."""
    parts = name.split(".")
    if "blocks" in parts:
        return int(parts[parts.index("blocks") + 1]) + 1
    return 0 if {"cls_token", "register_tokens", "patch_embedding"} & set(parts) else depth + 1


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return fused AdamW; the learning rate is set at every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


# ---------------------------------------------------------------- batches


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return how many batches `count` images make."""
    return math.ceil(count / batch_size)


def batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of each batch, a pure function of the arguments.

    Sizes differ by at most one, so that no epoch ends on a step driven by a handful of images.
    """
    return np.array_split(order(count, seed, epoch), steps_per_epoch(count, batch_size))
