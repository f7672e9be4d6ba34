"""The classifier built on the encoder, and any finished model as a function from pixels to logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.baseline import HogSpec, all_logits, logistics
from pipeline.models.checkpoints import WeightsError, load_strict, read_weights
from pipeline.models.vit import EncoderSpec, build_encoder, embed, encode, normalise, patchify
from pipeline.store.files import read_json, sha256_file

Head = Literal["norm_linear", "linear"]
# A matrix product rounds the last rows of a batch otherwise, and the head has one column: with whole blocks of so many
# rows, an image's logit does not depend, in any bit, on which images stand beside it. A test compares.
ROWS_PER_BLOCK = 16


class Classifier(nn.Module):
    """Encoder, mean over its patch tokens, and a linear head with one output per label: its logit.

    Head `norm_linear` normalises the mean first (fine-tuning); `linear` does not (linear probe, whose
    standardisation is folded into the weights).
    """

    def __init__(self, spec: EncoderSpec, head: Head, labels: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = build_encoder(spec)
        self.head_norm = nn.LayerNorm(spec.width, eps=spec.eps) if head == "norm_linear" else nn.Identity()
        self.head = nn.Linear(spec.width, labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, pixels: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        """Return the mean of the normalised patch tokens, (B, D), for pixels (B, C, ...) in [0, 1]."""
        patches = patchify(normalise(pixels, self.spec), self.spec.patch_size)
        return encode(self.encoder, embed(self.encoder, patches), branch_scale)[:, 1:].mean(dim=1)

    def forward(self, pixels: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        """Return logits (B, L), the main label's first, for pixels (B, C, ...) in [0, 1]."""
        return self.head(self.head_norm(self.features(pixels, branch_scale)))


def freeze_below(model: Classifier, trainable_blocks: int) -> None:
    """Leave the last blocks, the encoder's final norm and the head to be trained; 0 leaves the head and its norm."""
    if trainable_blocks == 0:
        model.encoder.requires_grad_(False)
        return
    model.encoder.cls_token.requires_grad_(False)
    model.encoder.patch_embedding.requires_grad_(False)
    model.encoder.blocks[: model.spec.depth - trainable_blocks].requires_grad_(False)


def branch_scales(uniform: Tensor, drop_path: float, depth: int) -> Tensor:
    """Return (depth, 2, B) factors of the residual branches from uniform numbers (B, 2 * depth).

    The share dropped grows linearly from 0 in the first block to `drop_path` in the last; kept branches are
    scaled up so that the expectation stays.
    """
    share = torch.linspace(0, drop_path, depth, device=uniform.device).repeat_interleave(2)
    return ((uniform >= share) / (1 - share)).float().T.reshape(depth, 2, -1)


def read_model(record: Path, weights: Path, device: torch.device) -> Callable[[Tensor], np.ndarray]:
    """Return a finished model as a function from pixels (B, C, ...) in [0, 1] to logits (B, L) float64.

    The first column is the main label's, the others those of `further_labels` in the record. `record` is the model's
    model.json, `weights` its model.safetensors. Raises WeightsError when the weights are not those that the record
    names by SHA-256, or do not fit.
    """
    content, tensors = _recorded(record, weights)
    if "hog" in content:
        spec, fitted = HogSpec.from_json(content["hog"]), logistics(tensors, _further(content))
        return lambda pixels: all_logits(fitted, _whole_blocks(spec.features(pixels)))[: len(pixels)]
    model = _network(content, tensors, device)

    @torch.no_grad()
    def logits(pixels: Tensor) -> np.ndarray:
        features = model.features(pixels.to(device))
        blocks = torch.cat([features, features.new_zeros(-len(features) % ROWS_PER_BLOCK, features.shape[1])])
        return model.head(model.head_norm(blocks))[: len(pixels)].double().cpu().numpy()

    return logits


def _whole_blocks(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.zeros((-len(features) % ROWS_PER_BLOCK, features.shape[1]))])


def read_network(record: Path, weights: Path, device: torch.device) -> Classifier | None:
    """Return a finished model as the network that it is, or None for the baseline, which is none; see `read_model`."""
    content, tensors = _recorded(record, weights)
    return None if "hog" in content else _network(content, tensors, device)


def _recorded(record: Path, weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content: dict[str, Any] = read_json(record)
    if sha256_file(weights) != content["sha256"]:
        raise WeightsError(f"{weights.name} of arm {content['arm']} is not the file named in model.json (SHA-256)")
    return content, read_weights(weights)


def _network(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Classifier:
    model = Classifier(EncoderSpec.from_json(content["spec"]), content["head"], 1 + len(_further(content)))
    load_strict(model, tensors)
    return model.to(device).eval()


def _further(content: dict[str, Any]) -> list[str]:
    return content.get("further_labels", [])  # a model made before there were any does not name them
