"""The classifier built on the encoder."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.attention import rollout
from pipeline.models.checkpoints import load_strict
from pipeline.models.finished import Finished, Network, further_labels, whole_tensor_blocks
from pipeline.models.vit import EncoderSpec, block_outputs, build_encoder, embed, encode, normalise, patchify

Head = Literal["norm_linear", "linear"]


class Classifier(Network):
    """Encoder, mean over its patch tokens, and a linear head with one output per label: its logit.

    Head `norm_linear` normalises the mean first (fine-tuning); `linear` does not (linear probe, whose
    standardisation is folded into the weights).
    """

    outline = "attention"

    def __init__(self, spec: EncoderSpec, head: Head, labels: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.depth = spec.depth
        self.channels = spec.channels
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

    def shares(self, pixels: Tensor) -> np.ndarray:
        """Return the share of each patch in what the head reads, (B, *grid); see `attention.rollout`."""
        return rollout(self, pixels)

    @torch.no_grad()
    def depths(self, pixels: Tensor) -> list[Tensor]:
        """Return the mean patch token after each block, (B, D) float64 each, the last one after the final norm."""
        patches = patchify(normalise(pixels.to(self.encoder.cls_token.device), self.spec), self.spec.patch_size)
        outputs = block_outputs(self.encoder, embed(self.encoder, patches))
        outputs[-1] = self.encoder.norm(outputs[-1])
        return [tokens[:, 1:].double().mean(dim=1) for tokens in outputs[1:]]


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


def read_classifier(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return a finished classifier from its model.json and its tensors. Raises WeightsError when they do not fit."""
    model = Classifier(EncoderSpec.from_json(content["spec"]), content["head"], 1 + len(further_labels(content)))
    load_strict(model, tensors)
    model = model.to(device).eval()

    @torch.no_grad()
    def logits(pixels: Tensor) -> np.ndarray:
        blocks = whole_tensor_blocks(model.features(pixels.to(device)))
        return model.head(model.head_norm(blocks))[: len(pixels)].double().cpu().numpy()

    return Finished(logits, (model,))
