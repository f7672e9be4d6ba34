"""Random weights under the names of timm's VisionTransformer, which are also those of facebookresearch/mae."""

from __future__ import annotations

import torch

from pipeline.models.vit import EncoderSpec


def shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a plain vision transformer in timm's layout."""
    d = spec.width
    block = {
        "norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
        "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
    }  # fmt: skip
    named = {
        "cls_token": (1, 1, d), "pos_embed": (1, 1 + spec.tokens, d), "norm.weight": (d,), "norm.bias": (d,),
        "patch_embed.proj.weight": (d, spec.channels, *spec.patch_size), "patch_embed.proj.bias": (d,),
    }  # fmt: skip
    return named | {f"blocks.{i}.{name}": shape for i in range(spec.depth) for name, shape in block.items()}


def timm_weights(spec: EncoderSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes(spec).items()}
