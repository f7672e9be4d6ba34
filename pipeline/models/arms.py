"""What every arm of the comparison shares: its patients, its encoder, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models.checkpoints import Loaded, load_strict, require_equal, save_weights
from pipeline.models.classifier import Classifier, Head
from pipeline.models.images import Images
from pipeline.models.randomness import derived_seed
from pipeline.models.training import Hardware
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import sha256_file, write_json


@dataclass(frozen=True)
class ArmData:
    """What every arm is trained on."""

    train: Images
    tune: Images
    spec: EncoderSpec
    encoder: dict[str, Tensor]
    encoder_key: str
    hardware: Hardware

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.hardware.device


def build_classifier(data: ArmData, head: Head, seed: int) -> Classifier:
    """Return a network with fresh weights, a pure function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        return Classifier(data.spec, head)


def load_pretrained(model: Classifier, encoder: dict[str, Tensor], key: str, say: Callable[[str], None]) -> Loaded:
    """Load the pretrained encoder into `model`, all of it, and prove it tensor by tensor.

    Raises WeightsError naming every tensor that is missing, unexpected, mis-shaped or different afterwards.
    """
    loaded = load_strict(model.encoder, encoder)
    require_equal(model.encoder, encoder)
    say(f"encoder: {loaded} from pretraining {key}")
    return loaded


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
