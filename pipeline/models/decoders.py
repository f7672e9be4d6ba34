"""Two decoders of a masked autoencoder: from the encoder's tokens and the masked places to one token per masked place.

Shapes: B images, K visible patches, M masked ones to predict, D encoder width, E decoder width, N = 1 + K encoder
tokens, the class token first. Both decoders are thrown away after pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.vit import EncoderSpec, through

DecoderKind = Literal["self_attention", "cross_attention"]


@dataclass(frozen=True)
class DecoderSpec:
    """Kind and size of the decoder."""

    width: int
    depth: int
    heads: int
    kind: DecoderKind = "self_attention"


class DecoderBlock(nn.Module):
    """A pre-norm transformer block that can answer for the last tokens only."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, eps=eps)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=eps)
        self.mlp = _mlp(width)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Return the tokens (B, T - first, E) from place `first` on; all T tokens are attended to."""
        normed = self.norm_attention(tokens)
        attended = _attention(self.query(normed[:, first:]), self.key_value(normed), self.heads)
        tokens = tokens[:, first:] + self.projection(attended)
        return tokens + self.mlp(self.norm_mlp(tokens))


class SelfAttentionDecoder(nn.Module):
    """The decoder of He et al. 2021: class, visible and masked tokens attend to each other."""

    def __init__(self, encoder: EncoderSpec, decoder: DecoderSpec) -> None:
        super().__init__()
        self.project = nn.Linear(encoder.width, decoder.width)
        self.blocks = nn.ModuleList(
            DecoderBlock(decoder.width, decoder.heads, encoder.eps) for _ in range(decoder.depth)
        )

    def sources(self, outputs: list[Tensor]) -> Tensor:
        """Return what is read of the encoder's block outputs (B, N, D): the last, as (1, B, N, D)."""
        return outputs[-1][None]

    def forward(self, latent: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        """Return tokens (B, M, E) for the masked places.

        `latent` (1, B, N, D) are the normalised sources, `seen` (B, K, E) the positions of the visible patches and
        `hidden` (B, M, E) the mask token with the positions of the masked ones.
        """
        tokens = self.project(latent[0])
        tokens = torch.cat((tokens[:, :1], tokens[:, 1:] + seen, hidden), dim=1)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            # Nothing reads the last block's visible tokens; leaving them out is exact.
            tokens = through(block, tokens, 1 + seen.shape[1] if index == last else 0)
        return tokens


class CrossAttentionBlock(nn.Module):
    """A pre-norm block in which each query attends to the encoder's tokens and to nothing else."""

    def __init__(self, encoder: EncoderSpec, decoder: DecoderSpec) -> None:
        super().__init__()
        self.heads = decoder.heads
        self.norm_attention = nn.LayerNorm(decoder.width, eps=encoder.eps)
        self.query = nn.Linear(decoder.width, decoder.width)
        self.key_value = nn.Linear(encoder.width, 2 * decoder.width)
        self.projection = nn.Linear(decoder.width, decoder.width)
        self.norm_mlp = nn.LayerNorm(decoder.width, eps=encoder.eps)
        self.mlp = _mlp(decoder.width)

    def forward(self, tokens: Tensor, latent: Tensor) -> Tensor:
        """Return the queries (B, M, E) after a look at the latent tokens (B, N, D)."""
        attended = _attention(self.query(self.norm_attention(tokens)), self.key_value(latent), self.heads)
        tokens = tokens + self.projection(attended)
        return tokens + self.mlp(self.norm_mlp(tokens))


class CrossAttentionDecoder(nn.Module):
    """CrossMAE (Fu et al. 2024, arXiv 2401.14391): masked places attend to the encoder's tokens, never to each other.

    A prediction therefore does not depend on which other places are predicted, and predicting a share of them is
    exact. Inter-block attention: each decoder block reads its own learned mixture of the encoder's block outputs, that
    before the first block included. The paper normalises each mixture with a LayerNorm of its own; here the encoder's
    final norm does it, so that all of the encoder is trained. Nothing is lost: scale and shift of a norm per block
    would only multiply into that block's key and value weights.
    """

    def __init__(self, encoder: EncoderSpec, decoder: DecoderSpec) -> None:
        super().__init__()
        outputs = encoder.depth + 1
        self.mixture = nn.Parameter(torch.empty(decoder.depth, outputs))
        self.blocks = nn.ModuleList(CrossAttentionBlock(encoder, decoder) for _ in range(decoder.depth))
        nn.init.normal_(self.mixture, std=outputs**-0.5)

    def sources(self, outputs: list[Tensor]) -> Tensor:
        """Return one mixture of the encoder's block outputs (B, N, D) per decoder block, (depth, B, N, D)."""
        return torch.tensordot(self.mixture, torch.stack(outputs), dims=1)

    def forward(self, latent: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        """Return tokens (B, M, E) for the masked places.

        `latent` (depth, B, N, D) are the normalised sources and `hidden` (B, M, E) the mask token with the positions of
        the masked places. `seen` is not needed: latent tokens carry the encoder's positions.
        """
        for block, source in zip(self.blocks, latent, strict=True):
            hidden = through(block, hidden, source)
        return hidden


DECODERS: dict[DecoderKind, type[SelfAttentionDecoder] | type[CrossAttentionDecoder]] = {
    "self_attention": SelfAttentionDecoder,
    "cross_attention": CrossAttentionDecoder,
}


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _attention(query: Tensor, key_value: Tensor, heads: int) -> Tensor:
    """Attend with queries (B, Q, E) to keys and values (B, T, 2 E), in `heads` heads; return (B, Q, E)."""
    parts = (query, *key_value.chunk(2, dim=-1))
    split_query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(split_query, key, value).transpose(1, 2).flatten(2)
