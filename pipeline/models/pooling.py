"""Attentive pooling: learned queries read the patch tokens, each its own part of what is kept.

Efficient probing (Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency", ICLR
2026): cross-attention of M queries in which the queries are learned as they are and the tokens are their own keys, so
that of the usual four projections only that of the values is left. With tokens x_l of width D, queries q_m and W cut
into M blocks of D / M rows,

    a_ml = softmax over l of (q_m . x_l / sqrt(D)),    z_m = W_m (sum over l of a_ml x_l),

and what is kept is z_1 ... z_M behind each other, D values. The sum is taken before the projection, which is linear:
that costs L / M times less than projecting each token.

Shapes: B images, L patches, M queries, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "attention", "class_token"]
# At most. The authors' code takes 32 for 1,000 classes; here are two.
MOST_QUERIES = 8


def queries_for(width: int) -> int:
    """Return how many queries an encoder of this width gets: 8, or as many as divide it."""
    return math.gcd(width, MOST_QUERIES)


class AttentivePooling(nn.Module):
    """Patch tokens (B, L, D) to features (B, D). Raises ValueError when `queries` do not divide `width`."""

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        if width % queries:
            raise ValueError(f"{queries} queries do not divide a width of {width}")
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.values = nn.Linear(width, width, bias=False)
        nn.init.trunc_normal_(self.queries, std=0.02)
        nn.init.xavier_uniform_(self.values.weight)

    def attention(self, tokens: Tensor) -> Tensor:
        """Return the share of each patch in what each query reads, (B, M, L), each query's adding to 1."""
        return (self.queries @ tokens.transpose(1, 2) * self.queries.shape[1] ** -0.5).softmax(dim=2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the features (B, D) of patch tokens (B, L, D)."""
        read = self.attention(tokens) @ tokens
        blocks = self.values.weight.unflatten(0, (len(self.queries), -1))
        return torch.einsum("bmd,med->bme", read, blocks).flatten(1)
