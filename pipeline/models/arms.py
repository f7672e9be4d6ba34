"""What every arm of the comparison shares: its patients, its encoder, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models.checkpoints import load_strict, require_equal, save_weights
from pipeline.models.classifier import Classifier, Head
from pipeline.models.images import Images
from pipeline.models.masks import Masks
from pipeline.models.pooling import Pooling
from pipeline.models.randomness import derived_seed
from pipeline.models.training import Hardware, TrainingError
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import sha256_file, write_json


@dataclass(frozen=True)
class Start:
    """Encoder weights to start from: `loaded` of the `tensors` are those of `origin`, the rest is never used.

    `registers` are the register tokens that the network needs for them.
    """

    tensors: Mapping[str, Tensor]
    origin: str
    loaded: int
    registers: int = 0


@dataclass(frozen=True)
class ArmData:
    """What every arm is trained on; an arm that is not in `starts` has no trained encoder to start from.

    `encoder` says which network stage pretrain trained; None when no arm needs it and nothing was pretrained. `masks`
    are those of both splits, for a task that learns from masks.
    """

    train: Images
    tune: Images
    encoder: EncoderSpec | None
    starts: Mapping[str, Start]
    hardware: Hardware
    masks: Masks | None = None

    @property
    def spec(self) -> EncoderSpec:
        """The network that stage pretrain trained. Raises TrainingError when nothing was pretrained."""
        if self.encoder is None:
            raise TrainingError("this arm needs the pretrained encoder; its entry in arm_registry.py must say so")
        return self.encoder

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.hardware.device

    @property
    def further(self) -> list[str]:
        """Further labels, in the order of a model's outputs after the first."""
        return [str(name) for name in self.train.further]


def build_classifier(data: ArmData, head: Head, seed: int, pooling: Pooling = "mean", registers: int = 0) -> Classifier:
    """Return a network with fresh weights, a pure function of `seed`; `registers` are those of imported weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return Classifier(replace(data.spec, registers=registers), head, 1 + len(data.further), pooling)


def load_pretrained(model: Classifier, start: Start, say: Callable[[str], None]) -> None:
    """Load the encoder weights of `start` into `model`, all of them, and prove it tensor by tensor.

    Raises WeightsError naming every tensor that is missing, unexpected, mis-shaped or different afterwards.
    """
    loaded = load_strict(model.encoder, start.tensors)
    require_equal(model.encoder, start.tensors)
    say(f"encoder: {loaded} from {start.origin}")


def finish(
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
