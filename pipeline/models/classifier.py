"""The classifier built on the encoder."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.attention import rollout
from pipeline.models.checkpoints import load_strict
from pipeline.models.finished import ROWS_PER_BLOCK, Finished, Look, Network, further_labels, whole_tensor_blocks
from pipeline.models.pooling import AttentivePooling, Pooling, queries_for
from pipeline.models.vit import EncoderSpec, build_encoder, embed, encode, normalise, patchify, through

Head = Literal["norm_linear", "linear"]


class Classifier(Network):
    """Encoder, one vector made of its tokens, and a linear head with one output per label: its logit.

    `pooling`: that vector is the mean over the patch tokens, what learned queries read of them (`queries` of them, or
    as many as suit the width), or the class token. Head `norm_linear` normalises it first (fine-tuning); `linear` does
    not (linear probe, whose standardisation is folded into the weights).
    """

    def __init__(
        self, spec: EncoderSpec, head: Head, labels: int = 1, pooling: Pooling = "mean", queries: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.depth = spec.depth
        self.channels = spec.channels
        self.encoder = build_encoder(spec)
        self.head_norm = nn.LayerNorm(spec.width, eps=spec.eps) if head == "norm_linear" else nn.Identity()
        self.head = nn.Linear(spec.width, labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.pooling = pooling
        self.pool = AttentivePooling(spec.width, queries or queries_for(spec.width)) if pooling == "attention" else None
        self.outline = "attention" if self.pool is None else "queries"

    def tokens(self, pixels: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        """Return the normalised tokens (B, 1 + R + L, D) of pixels (B, C, ...) in [0, 1]."""
        patches = patchify(normalise(pixels, self.spec), self.spec.patch_size)
        return encode(self.encoder, embed(self.encoder, patches), branch_scale)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the one vector, (B, D), that the head is given of tokens (B, 1 + R + L, D)."""
        if self.pooling == "class_token":
            return tokens[:, 0]
        return self.pooled_patches(tokens[:, self.spec.prefix :])

    def pooled_patches(self, patches: Tensor) -> Tensor:
        """Return the mean of patch tokens (B, L, D), or what learned queries read of them, (B, D)."""
        return patches.mean(dim=1) if self.pool is None else self.pool(patches)

    def features(self, pixels: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        """Return what the head is given, (B, D), for pixels (B, C, ...) in [0, 1]; see `pooling`."""
        return self.pooled(self.tokens(pixels, branch_scale))

    def forward(self, pixels: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        """Return logits (B, L), the main label's first, for pixels (B, C, ...) in [0, 1]."""
        return self.head(self.head_norm(self.features(pixels, branch_scale)))

    def shares(self, pixels: Tensor) -> np.ndarray:
        """Return the share of each patch in what the head reads, (B, *grid); see `attention.rollout`.

        With learned queries, the mean of their attention, as in the paper's figures.
        """
        if self.pool is None:
            return rollout(self, pixels)
        with torch.no_grad():
            patches = self.tokens(pixels.to(self.head.weight.device))[:, self.spec.prefix :]
            shares = self.pool.attention(patches).double().mean(dim=1)
        return (shares / shares.sum(dim=1, keepdim=True)).reshape(-1, *self.spec.grid).cpu().numpy()

    @torch.no_grad()
    def depths(self, pixels: Tensor) -> list[Tensor]:
        """Return the mean patch token after each block, (B, D) float64 each, the last one after the final norm."""
        return self.tokens_and_depths(pixels.to(self.encoder.cls_token.device))[1]

    def tokens_and_depths(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what `tokens` and `depths` do, of one pass."""
        tokens = embed(self.encoder, patchify(normalise(pixels, self.spec), self.spec.patch_size))
        depths = []
        for block in self.encoder.blocks:
            tokens = through(block, tokens)
            depths.append(self.mean_patch(tokens))
        tokens = self.encoder.norm(tokens)
        return tokens, [*depths[:-1], self.mean_patch(tokens)]

    def mean_patch(self, tokens: Tensor) -> Tensor:
        """Return the mean patch token, (B, D) float64, of tokens (B, 1 + R + L, D)."""
        return tokens[:, self.spec.prefix :].double().mean(dim=1)


def pooling_content(model: Classifier) -> dict[str, Any]:
    """Return what model.json needs to know of the pooling; nothing where it is the mean."""
    if model.pool is None:
        return {} if model.pooling == "mean" else {"pooling": model.pooling}
    return {"pooling": model.pooling, "queries": len(model.pool.queries)}


def freeze_below(model: Classifier, trainable_blocks: int) -> None:
    """Leave the last blocks, the encoder's final norm and the head to be trained; 0 leaves the head and its norm."""
    if trainable_blocks == 0:
        model.encoder.requires_grad_(False)
        return
    for name, parameter in model.encoder.named_parameters():
        if name in ("cls_token", "register_tokens"):
            parameter.requires_grad_(False)
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
    spec, labels = EncoderSpec.from_json(content["spec"]), 1 + len(further_labels(content))
    model = Classifier(spec, content["head"], labels, content.get("pooling", "mean"), content.get("queries"))
    load_strict(model, tensors)
    model = model.to(device).eval()

    def of_tokens(tokens: Tensor) -> np.ndarray:
        # The product of queries and their blocks rounds by the number of images; of one at a time it cannot.
        features = torch.cat([model.pooled(one) for one in (tokens.split(1) if model.pool else (tokens,))])
        blocks = whole_tensor_blocks(features)
        return model.head(model.head_norm(blocks))[: len(tokens)].double().cpu().numpy()

    def enough(pixels: Tensor) -> Tensor:
        """Return the images, and blank ones behind them where their patches alone would not fill a block of rows."""
        least = math.ceil(ROWS_PER_BLOCK / spec.tokens)
        return torch.cat([pixels, pixels.new_zeros(max(0, least - len(pixels)), *pixels.shape[1:])]).to(device)

    @torch.no_grad()
    def logits(pixels: Tensor) -> np.ndarray:
        return of_tokens(model.tokens(enough(pixels))[: len(pixels)])

    @torch.no_grad()
    def look(pixels: Tensor) -> Look:
        tokens, depths = model.tokens_and_depths(enough(pixels))
        return of_tokens(tokens[: len(pixels)]), [depth[: len(pixels)] for depth in depths]

    return Finished(logits, (model,), look=look)
