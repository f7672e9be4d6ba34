"""Networks and batches that the product does not have, to measure whether it should: they run in its place.

    python tests/benchmarks/variants.py VARIANT run CONFIG …

Does what `maescreen run CONFIG …` does with one thing changed; `small_sets.py` compares the results.

- `patchwise stem`: a patch is embedded by a convolution of half its side, a norm, GELU and a convolution over the two
  by two that are left, in the place of one linear layer (hMLP, Touvron et al. 2022, "Three things everyone should know
  about vision transformers"). Patches do not touch, so that nothing hidden can be seen.
- `overlapping stem`: 3 × 3 convolutions of stride 2, as many as halve a patch to one place, over the whole image (Xiao
  et al. 2021, "Early convolutions help transformers see better"). Hidden patches are 0 before the first of them, so
  that neighbours let nothing through. The self-test that a visible patch enters alike whatever else is seen is left
  out, since it does not hold.
- `repeated augmentation`: a batch holds each of its images three times, augmented in three ways (Hoffer et al. 2020);
  an epoch takes as many steps as before and sees a third of the images.

An encoder with a stem is no MONAI ViT: its first layer has no place there. 2-D alone, patches of a power of two.
What is changed is part of each artifact's key, so that nothing is mistaken for the product's own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models import vit
from pipeline.models.randomness import derived_seed, order
from pipeline.orchestration import plan
from pipeline.store.files import sha256_json

STEMS = ("patchwise stem", "overlapping stem")
REPEATS = 3
VARIANTS = (*STEMS, "repeated augmentation")
TRAINING = ("pretrain", "finetune", "score")


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of (B, C, H, W)."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised values."""
        return super().forward(values.movedim(1, -1)).movedim(-1, 1)


class PatchwiseStem(nn.Module):
    """Embeds each patch (B, K, P) by itself."""

    def __init__(self, spec: vit.EncoderSpec) -> None:
        super().__init__()
        self.shape = (spec.channels, *spec.patch_size)
        half, first = spec.patch_size[0] // 2, spec.width // 2
        self.layers = nn.Sequential(
            nn.Conv2d(spec.channels, first, half, half),
            ChannelNorm(first, spec.eps),
            nn.GELU(),
            nn.Conv2d(first, spec.width, 2, 2),
        )

    def forward(self, patches: Tensor, places: Tensor | None) -> Tensor:
        """Return tokens (B, K, D); `places` do not matter."""
        del places
        return self.layers(patches.reshape(-1, *self.shape)).flatten(1).unflatten(0, patches.shape[:2])


class OverlappingStem(nn.Module):
    """Embeds the patches (B, K, P) of an image whose other patches are blank."""

    def __init__(self, spec: vit.EncoderSpec) -> None:
        super().__init__()
        self.spec, halvings = spec, round(math.log2(spec.patch_size[0]))
        widths = [spec.channels, *(spec.width // 2 ** (halvings - at) for at in range(1, halvings + 1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), ChannelNorm(after, spec.eps), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(spec.width, spec.width, 1))

    def forward(self, patches: Tensor, places: Tensor | None) -> Tensor:
        """Return tokens (B, K, D) of the patches that lie at `places` (B, K), None for all in order."""
        where = None if places is None else places[:, :, None]
        if where is not None:
            blank = patches.new_zeros(len(patches), self.spec.tokens, patches.shape[2])
            patches = blank.scatter(1, where.expand(-1, -1, patches.shape[2]), patches)
        tokens = self.layers(vit.unpatchify(patches, self.spec)).flatten(2).mT
        return tokens if where is None else tokens.gather(1, where.expand(-1, -1, tokens.shape[2]))


def build_encoder_with(stem: type[nn.Module], build: Callable[[vit.EncoderSpec], Any]) -> Callable[..., Any]:
    """Return `build` with a stem in the place of the linear embedding, which stays, unused and frozen."""

    def build_encoder(spec: vit.EncoderSpec) -> Any:
        encoder = build(spec)
        encoder.patch_embedding.patch_embeddings.requires_grad_(False)
        encoder.patch_embedding.stem = stem(spec)
        return encoder

    return build_encoder


def embed(encoder: Any, patches: Tensor, places: Tensor | None = None) -> Tensor:
    """Embed as `vit.embed` does, by the stem."""
    embedding = encoder.patch_embedding
    tokens = embedding.stem(patches, places)
    tokens = tokens + (embedding.position_embeddings if places is None else embedding.position_embeddings[0][places])
    return torch.cat((encoder.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)


def repeated_draw(labels: np.ndarray, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers that an epoch draws, the copies of an image side by side."""
    assert sampling == "natural"
    rows = order(len(labels), derived_seed(seed, "repeated"), epoch)[: len(labels) // REPEATS]
    return (rows[:, None] + np.arange(REPEATS) * len(labels)).reshape(-1)


def repeated_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the places of each batch among those drawn, copies together."""
    groups = np.array_split(order(count // REPEATS, seed, epoch), math.ceil(count / batch_size))
    return [(group[:, None] * REPEATS + np.arange(REPEATS)).reshape(-1) for group in groups]


def change(variant: str) -> None:
    """Put the variant in the product's place, in this process. Call it before anything else of the product is used."""
    if variant in STEMS:
        users = ("mae", "classifier", "self_test")
        if imported := [name for name in users if f"pipeline.models.{name}" in sys.modules]:
            raise RuntimeError(f"{', '.join(imported)}: imported before the change, which they would not see")
        stem = PatchwiseStem if variant == "patchwise stem" else OverlappingStem
        vit.build_encoder, vit.embed = build_encoder_with(stem, vit.build_encoder), embed
        if stem is OverlappingStem:
            from pipeline.models import self_test

            self_test.encoder_faults = lambda *_: []
    else:
        from pipeline.models import finetuning

        finetuning.draw, finetuning.batches = repeated_draw, repeated_batches
    plan.artifact_key = key_with(variant, plan.artifact_key)


def key_with(variant: str, key_of: Callable[..., str]) -> Callable[..., str]:
    """Return `key_of` with the variant, as it is written here, in the keys of the stages that it changes."""
    stages: Sequence[str] = TRAINING if variant in STEMS else TRAINING[1:]
    text = Path(__file__).read_text(encoding="utf-8")

    def artifact_key(stage: str, *rest: Any) -> str:
        key = key_of(stage, *rest)
        return sha256_json([key, variant, text])[: len(key)] if stage in stages else key

    return artifact_key


def main() -> None:
    """Change what is named first, and run the rest."""
    if len(sys.argv) < 2 or sys.argv[1] not in VARIANTS:
        raise SystemExit(f"{__doc__}\nVARIANT is one of: {', '.join(VARIANTS)}")
    variant = sys.argv.pop(1)
    change(variant)
    from pipeline.cli import main as product

    product()


if __name__ == "__main__":
    main()
