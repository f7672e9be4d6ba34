"""The encoder: a real MONAI ViT, run on all patches of an image or on the visible ones alone.

Shapes: B images, C channels, L tokens of the grid, K of them visible, P values per patch (C x patch), D width, R
register tokens (none in our own encoders; Darcet et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import ViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PositionKind = Literal["sin_cos", "learned"]


@dataclass(frozen=True)
class EncoderSpec:
    """All that is needed to build the encoder and to feed it, as kept in model.json.

    Sizes are in pixels, slowest axis first; two axes make a 2-D encoder, three a 3-D one. `pixel_mean` and
    `pixel_std` are per channel, on pixels scaled to [0, 1].

    Raises ValueError, naming every impossible value.
    """

    image_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    channels: int
    width: int
    depth: int
    heads: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    # ViT weights in public use were trained with 1e-6; MONAI's own default of 1e-5 shifts their outputs.
    eps: float = 1e-6
    positions: PositionKind = "sin_cos"
    registers: int = 0

    def __post_init__(self) -> None:
        problems = []
        if len(self.image_size) not in (2, 3) or len(self.patch_size) != len(self.image_size):
            problems.append(f"image size {self.image_size} and patch size {self.patch_size} need 2 or 3 axes each")
        elif any(side % patch for side, patch in zip(self.image_size, self.patch_size, strict=True)):
            problems.append(f"image size {self.image_size} is not a multiple of patch size {self.patch_size}")
        if self.width % self.heads:
            problems.append(f"width {self.width} is not a multiple of heads {self.heads}")
        if len(self.pixel_mean) != self.channels or len(self.pixel_std) != self.channels:
            problems.append(f"pixel mean and spread are needed for each of {self.channels} channels")
        if any(not std > 0 for std in self.pixel_std):
            problems.append("all images are blank: the spread of their pixels is 0")
        if problems:
            raise ValueError("the encoder cannot be built: " + "; ".join(problems))

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches per axis."""
        return tuple(side // patch for side, patch in zip(self.image_size, self.patch_size, strict=True))

    @property
    def tokens(self) -> int:
        """Patches per image, L."""
        return math.prod(self.grid)

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches: the class token, and registers where there are any."""
        return 1 + self.registers

    @property
    def patch_values(self) -> int:
        """Values per patch, P."""
        return self.channels * math.prod(self.patch_size)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if not self.registers:  # came later than the first encoders, whose bytes stay
            del values["registers"]
        return values

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EncoderSpec:
        """Return the specification kept in model.json."""
        values: dict[str, Any] = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        for name in ("image_size", "patch_size", "pixel_mean", "pixel_std"):
            values[name] = tuple(values[name])
        return cls(**values)


# ---------------------------------------------------------------- patches and positions


def patchify(images: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cut (B, C, H, W) or (B, C, D, H, W) into patches (B, L, P), row by row; inside a patch channels come first.

    This is the order of a convolution with kernel = stride = patch, whose weights therefore apply to these patches.
    """
    axes = len(patch_size)
    batch, channels, *size = images.shape
    split = [n for side, patch in zip(size, patch_size, strict=True) for n in (side // patch, patch)]
    grid, inside = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return images.reshape(batch, channels, *split).permute(0, *grid, 1, *inside).flatten(1, axes).flatten(2)


def unpatchify(patches: Tensor, spec: EncoderSpec) -> Tensor:
    """Put patches (B, L, P) back together: the inverse of `patchify`."""
    axes = len(spec.patch_size)
    parts = patches.reshape(len(patches), *spec.grid, spec.channels, *spec.patch_size)
    woven = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    return parts.permute(0, 1 + axes, *woven).reshape(len(patches), spec.channels, *spec.image_size)


def position_table(grid: Sequence[int], width: int) -> Tensor:
    """Return fixed sine-cosine position embeddings (1, L, width) for a grid of 2 or 3 axes.

    Each axis gets an equal, even share of the width (Vaswani et al. 2017, per axis as in He et al. 2021); what is
    left over when the width is no multiple of twice the axes stays 0, so that any width works.
    """
    pairs = width // (2 * len(grid))
    frequency = 10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    waves = [wave(place.flatten()[:, None] * frequency) for place in places for wave in (torch.sin, torch.cos)]
    table = torch.zeros(1, math.prod(grid), width)
    table[0, :, : 2 * len(grid) * pairs] = torch.cat(waves, dim=1).float()
    return table


# ---------------------------------------------------------------- the encoder


def build_encoder(spec: EncoderSpec) -> ViT:
    """Build a MONAI ViT with a class token and Xavier-initialised weights.

    Positions are fixed sine-cosine waves (He et al. 2021) or start from small random numbers and are learned
    (Dosovitskiy et al. 2021).

    Weights that this pipeline never uses (MONAI's cross-attention norms and class-token head) are kept, so that the
    state dict loads strictly into a plain MONAI ViT, and frozen. `register_tokens` is what a MONAI ViT does not have.
    """
    encoder = ViT(
        in_channels=spec.channels,
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_size=spec.width,
        mlp_dim=4 * spec.width,
        num_layers=spec.depth,
        num_heads=spec.heads,
        classification=True,
        num_classes=1,
        spatial_dims=len(spec.image_size),
        post_activation="none",
        qkv_bias=True,
    )
    initialise(encoder)
    projection = _projection(encoder)
    nn.init.xavier_uniform_(projection.weight.data.view(spec.width, -1))
    nn.init.zeros_(cast(Tensor, projection.bias))
    nn.init.normal_(encoder.cls_token, std=0.02)
    nn.init.zeros_(cast(nn.Linear, encoder.classification_head).weight)
    if spec.positions == "sin_cos":
        positions = _embedding(encoder).position_embeddings
        positions.data.copy_(position_table(spec.grid, spec.width))
        positions.requires_grad_(False)
    if spec.registers:
        registers = nn.Parameter(torch.zeros(1, spec.registers, spec.width))
        encoder.register_tokens = nn.init.normal_(registers, std=0.02)
    encoder.classification_head.requires_grad_(False)
    for block in _blocks(encoder):
        block.norm_cross_attn.requires_grad_(False)
        # MONAI's blocks can use the fused attention kernel, but its ViT does not expose the choice.
        block.attn.use_flash_attention = True
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = spec.eps
    return encoder


def initialise(module: nn.Module) -> None:
    """Initialise every linear layer with Xavier-uniform weights and zero bias (He et al. 2021, appendix A)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def normalise(pixels: Tensor, spec: EncoderSpec) -> Tensor:
    """Subtract the pool's mean and divide by its spread, per channel; `pixels` are in [0, 1]."""
    return (pixels - per_channel(spec.pixel_mean, pixels)) / per_channel(spec.pixel_std, pixels)


def per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """Return one value per channel in a shape that fits `images` (B, C, ...), on their device.

    Filled there: copying numbers to a GPU would wait for all the work that it still has to do.
    """
    filled = [images.new_full((), value) for value in values]
    return torch.stack(filled).view((1, len(values)) + (1,) * (images.ndim - 2))


def embed(encoder: ViT, patches: Tensor, places: Tensor | None = None) -> Tensor:
    """Embed patches (B, K, P) that lie at `places` (B, K) of the grid; None means all patches, in order.

    Returns tokens (B, 1 + R + K, D): the class token, registers, patches. Embedding after selection costs only what is
    visible.
    """
    projection = _projection(encoder)
    tokens = F.linear(patches, projection.weight.flatten(1), projection.bias)
    positions = _embedding(encoder).position_embeddings
    tokens = tokens + (positions if places is None else positions[0][places])
    registers = getattr(encoder, "register_tokens", None)
    before = (encoder.cls_token,) if registers is None else (encoder.cls_token, registers)
    return torch.cat((*(one.expand(len(tokens), -1, -1) for one in before), tokens), dim=1)


def block_outputs(encoder: ViT, tokens: Tensor, branch_scale: Tensor | None = None) -> list[Tensor]:
    """Return tokens (B, 1 + R + K, D) before the first block and after each, without the final norm.

    `branch_scale` is that of `encode`.
    """
    outputs = [tokens]
    for index, block in enumerate(_blocks(encoder)):
        outputs.append(_after(block, outputs[-1], None if branch_scale is None else branch_scale[index]))
    return outputs


def encode(encoder: ViT, tokens: Tensor, branch_scale: Tensor | None = None) -> Tensor:
    """Run the encoder's blocks and final norm on tokens (B, 1 + R + K, D).

    `branch_scale` (depth, 2, B) multiplies each image's residual branches: stochastic depth (Huang et al. 2016).
    """
    for index, block in enumerate(_blocks(encoder)):
        tokens = _after(block, tokens, None if branch_scale is None else branch_scale[index])
    return encoder.norm(tokens)


def _after(block: TransformerBlock, tokens: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return through(block, tokens)
    return through(block, tokens, scale[:, :, None, None], function=partial(_scaled, block))


def _scaled(block: TransformerBlock, tokens: Tensor, scale: Tensor) -> Tensor:
    attention, mlp = scale
    tokens = tokens + attention * block.attn(block.norm1(tokens))
    return tokens + mlp * block.mlp(block.norm2(tokens))


def through(block: nn.Module, *inputs: Any, function: Callable[..., Tensor] | None = None) -> Tensor:
    """Return `function` (the block itself unless given) of `inputs`, the way `recompute_blocks` chose."""
    function = function or block
    if getattr(block, "recomputed", False) and torch.is_grad_enabled():
        # Nothing here draws random numbers, so none need be kept for the second pass.
        return cast(Tensor, checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False))
    return function(*inputs)


def recompute_blocks(model: nn.Module, chosen: bool) -> None:
    """Choose whether the inner values of transformer blocks are computed again on the way back (Chen et al. 2016).

    Takes memory for one block instead of all, and about a third more time. Results are the same, bit for bit.
    """
    for stack in [module for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]:
        for block in stack.children():
            block.recomputed = chosen  # type: ignore[assignment]


def attention_blocks(encoder: ViT) -> list[SABlock]:
    """Return the self-attention of each block, first to last."""
    return [cast(SABlock, block.attn) for block in _blocks(encoder)]


def _embedding(encoder: ViT) -> PatchEmbeddingBlock:
    return encoder.patch_embedding


def _projection(encoder: ViT) -> nn.Conv2d | nn.Conv3d:
    return cast("nn.Conv2d | nn.Conv3d", _embedding(encoder).patch_embeddings)


def _blocks(encoder: ViT) -> list[TransformerBlock]:
    return [cast(TransformerBlock, block) for block in encoder.blocks]
