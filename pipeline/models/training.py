"""The pieces of a plain training loop: device, schedule, parameter groups, one epoch.

The loops themselves stand in stages/pretrain.py and finetuning.py, to be read there. Order of images, augmentation,
masks and dropped branches are functions of (seed, epoch, image), so that a resume needs the weights, the optimiser and
the number of epochs done.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.randomness import order

GRADIENT_NORM_LIMIT = 1.0


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says at which step and what to change."""


# ---------------------------------------------------------------- machine


def prepare(device: str, threads: int | None) -> torch.device:
    """Choose the device ("auto", "cpu", "cuda"), set the number of CPU threads and ask for repeatable results.

    Raises TrainingError when a GPU is asked for and there is none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("machine.device is cuda, but torch finds no GPU; use auto or cpu")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    # cuBLAS repeats its results only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory only helps to find bugs, and costs time.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False
    return torch.device(chosen)


def usable_precision(precision: str, device: torch.device, warn: Callable[[str], None]) -> torch.dtype:
    """Return the type for the forward pass: bfloat16 where it is asked for and a GPU has it, float32 otherwise.

    A CPU gets float32 in any case: most have no bfloat16 units and would be tens of times slower.
    """
    if precision == "bf16":
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
        warn(f"precision bf16 was asked for, but this {device.type} device gets fp32")
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context for the forward pass in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


# ---------------------------------------------------------------- schedule and groups


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2017). `peak` is the highest rate."""

    peak: float
    warmup_epochs: float
    epochs: int

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a point in training, counted in epochs and fractions of them."""
        if epoch < self.warmup_epochs:
            return self.peak * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


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
        decay = 0.0 if parameter.ndim < 2 or name.endswith(("_token", "position_embeddings")) else weight_decay
        scale = layer_decay ** (depth + 1 - _layer(name, depth))
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, depth: int) -> int:
    """0: class token and patch embedding; 1 to depth: blocks; depth + 1: final norm and head."""
    parts = name.split(".")
    if "blocks" in parts:
        return int(parts[parts.index("blocks") + 1]) + 1
    return 0 if "cls_token" in parts or "patch_embedding" in parts else depth + 1


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return fused AdamW; the learning rate is set at every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


# ---------------------------------------------------------------- one epoch


def batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of each batch, a pure function of the arguments.

    Sizes differ by at most one, so that no epoch ends on a step driven by a handful of images.
    """
    return np.array_split(order(count, seed, epoch), math.ceil(count / batch_size))


def train_epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    epoch_batches: Iterable[np.ndarray],
    batch_loss: Callable[[np.ndarray], Tensor],
) -> tuple[float, float]:
    """Take one step per batch; return the epoch's mean loss per image and its last learning rate.

    `batch_loss(rows)` returns the mean loss of the images at `rows`. Gradients are clipped to norm 1.
    Raises TrainingError at the first loss that is not finite.
    """
    model.train()
    trainable = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    total, images, rate = 0.0, 0, 0.0
    listed = list(epoch_batches)
    for position, rows in enumerate(listed):
        rate = schedule.rate(epoch + (position + 1) / len(listed))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        loss = batch_loss(rows)
        value = loss.item()
        if not math.isfinite(value):
            step = epoch * len(listed) + position
            raise TrainingError(
                f"the loss is {value} at step {step} (epoch {epoch + 1}, batch {position + 1} of {len(listed)}); "
                "lower the learning rate, or look for damaged images in this split"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, GRADIENT_NORM_LIMIT)
        optimiser.step()
        total += value * len(rows)
        images += len(rows)
    return total / images, rate
