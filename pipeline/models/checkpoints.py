"""Weights and training state on disk: safetensors for weights, hash-named files for what a resume needs.

Loading is strict: a tensor that is missing, left over or of another shape stops the run with its name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.store.files import atomic, sha256_bytes, write_bytes

POSITIONS = "patch_embedding.position_embeddings"
_CHECKPOINTS_KEPT = 2


class WeightsError(ValueError):
    """Weights do not fit the model; the message names every tensor at fault."""


@dataclass(frozen=True)
class Loaded:
    """How much of a module came from a file."""

    tensors: int
    tensors_expected: int
    parameters: int

    def __str__(self) -> str:
        return f"{self.tensors} of {self.tensors_expected} tensors ({self.parameters:,} parameters)"


# ---------------------------------------------------------------- weights


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically; the same tensors give the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        safetensors.torch.save_file(plain, temporary)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises WeightsError when it is not one.
    """
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} cannot be read as safetensors: {error}") from error


def tensor_problems(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...] | None]) -> list[str]:
    """Return every name that is missing, unexpected, or of another shape than is wanted of it; None wants any."""
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in wanted]
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return problems + [
        f"{name} has shape {given[name]} instead of {shape}"
        for name, shape in wanted.items()
        if shape is not None and given.get(name, shape) != shape
    ]


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor]) -> Loaded:
    """Load `tensors` into `module`, all of them into all of it.

    Raises WeightsError, naming every missing, unexpected and mis-shaped tensor and every one that is not finite.
    """
    own = module.state_dict()
    problems = tensor_problems(tensors, {name: tuple(tensor.shape) for name, tensor in own.items()})
    problems += [
        f"{name} holds values that are not finite"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape == tensor.shape and not torch.isfinite(tensors[name]).all()
    ]
    if problems:
        raise WeightsError(f"weights do not fit {type(module).__name__}: " + "; ".join(problems))
    module.load_state_dict(dict(tensors), strict=True)
    return Loaded(len(tensors), len(own), sum(tensor.numel() for tensor in tensors.values()))


def fit_positions(tensors: Mapping[str, Tensor], grid_from: Sequence[int], grid_to: Sequence[int]) -> dict[str, Tensor]:
    """Return encoder tensors whose position embeddings are resampled (linearly) from one patch grid to another.

    Raises WeightsError when the embeddings do not belong to `grid_from`, or when the number of axes differs.
    """
    if len(grid_from) != len(grid_to):
        raise WeightsError(f"{POSITIONS} cannot go from {len(grid_from)} axes to {len(grid_to)}")
    positions = tensors.get(POSITIONS)
    if positions is None or tuple(grid_from) == tuple(grid_to):
        return dict(tensors)
    if positions.ndim != 3 or positions.shape[1] != math.prod(grid_from):
        raise WeightsError(f"{POSITIONS} has shape {tuple(positions.shape)}, which is not a grid of {tuple(grid_from)}")
    width = positions.shape[2]
    grid = positions.transpose(1, 2).reshape(1, width, *grid_from)
    mode = "bilinear" if len(grid_to) == 2 else "trilinear"
    resized = F.interpolate(grid, size=tuple(grid_to), mode=mode, align_corners=False)
    return {**tensors, POSITIONS: resized.flatten(2).transpose(1, 2).contiguous()}


def require_equal(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that the state of `module` is exactly `tensors`, bit for bit.

    Raises WeightsError, naming every tensor that differs.
    """
    own = module.state_dict()
    names = sorted(own.keys() | tensors.keys())
    wrong = [n for n in names if n not in own or n not in tensors or not torch.equal(own[n].cpu(), tensors[n].cpu())]
    if wrong:
        raise WeightsError(f"{len(wrong)} of {len(names)} tensors are not those of pretraining: {', '.join(wrong)}")


# ---------------------------------------------------------------- training state


def save_checkpoint(folder: Path, epochs_done: int, state: Mapping[str, Any], steps_done: int = 0) -> None:
    """Save what a resume needs as `<epochs done>-<steps done since>.<SHA-256>.pt`, atomically; the two newest are kept.

    `state` may hold tensors, numbers, text, lists and dicts, nothing that needs pickle to run code.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_bytes(folder / f"{epochs_done:06d}-{steps_done:06d}.{sha256_bytes(content)}.pt", content)
    for old in _checkpoints(folder)[_CHECKPOINTS_KEPT:]:
        old.unlink()


def load_checkpoint(folder: Path, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the newest intact training state, or None; damaged ones are reported through `warn` and passed over."""
    for path in _checkpoints(folder):
        content = path.read_bytes()
        if sha256_bytes(content) != path.name.split(".")[1]:
            warn(f"checkpoint after epoch {int(path.name[:6])} is damaged (SHA-256 differs); using the one before it")
            continue
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.*.pt"), reverse=True)
