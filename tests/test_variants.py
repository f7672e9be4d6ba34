"""The networks and batches that benchmarks put in the product's place, and that they leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import variants
from torch import Tensor, nn

from pipeline.models import vit
from pipeline.models.vit import EncoderSpec, patchify

SPEC = EncoderSpec((32, 32), (8, 8), 3, 32, 2, 2, (0.5,) * 3, (0.2,) * 3)
SCRIPT = Path(__file__).parent / "benchmarks" / "variants.py"


@pytest.fixture(params=[variants.PatchwiseStem, variants.OverlappingStem])
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return variants.build_encoder_with(request.param, vit.build_encoder)(SPEC)


@pytest.fixture
def patches() -> Tensor:
    return patchify(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), SPEC.patch_size)


def test_a_stem_embeds_each_patch_at_its_own_place(encoder, patches):
    places = torch.tensor([[5, 0, 9], [2, 15, 3]])
    tokens = variants.embed(encoder, patches)
    assert tokens.shape == (2, 1 + 16, 32)
    moved = patches.clone()
    moved[:, 5] += 1
    changed = (variants.embed(encoder, moved) - tokens).abs().sum(2)[0, 1:].reshape(4, 4)
    assert changed[1, 1] > 0
    changed[0:3, 0:3] = 0
    assert changed.max() == 0
    chosen = variants.embed(encoder, patches.gather(1, places[:, :, None].expand(-1, -1, 192)), places)
    turned = places.flip(1)
    again = variants.embed(encoder, patches.gather(1, turned[:, :, None].expand(-1, -1, 192)), turned)
    assert torch.allclose(chosen[:, 1:], again[:, 1:].flip(1), atol=1e-6)


def test_a_patchwise_stem_sees_nothing_but_the_patch(patches):
    encoder = variants.build_encoder_with(variants.PatchwiseStem, vit.build_encoder)(SPEC)
    places = torch.tensor([[5, 0], [2, 15]])
    own = patches.gather(1, places[:, :, None].expand(-1, -1, 192))
    whole = variants.embed(encoder, patches)[:, 1:]
    assert torch.allclose(
        variants.embed(encoder, own, places)[:, 1:],
        whole.gather(1, places[:, :, None].expand(-1, -1, 32)),
        atol=1e-6,
    )


def test_the_linear_embedding_is_not_trained_and_the_stem_is(encoder, patches):
    variants.embed(encoder, patches).square().sum().backward()
    assert encoder.patch_embedding.patch_embeddings.weight.grad is None
    assert all(parameter.grad is not None for parameter in encoder.patch_embedding.stem.parameters())


def test_an_epoch_of_repeated_augmentation_keeps_its_steps_and_the_copies_of_an_image_together():
    labels = np.tile([0, 1], 50)
    drawn = variants.repeated_draw(labels, "natural", 3, 0)
    assert len(set(drawn.tolist())) == len(drawn) == 99
    order = variants.repeated_batches(len(drawn), 32, 3, 0)
    assert sorted(np.concatenate(order).tolist()) == list(range(99))
    assert len(order) == 4
    for places in order:
        images, times = np.unique(drawn[places] % 100, return_counts=True)
        assert set(times.tolist()) == {3}
        assert len(images) == len(places) // 3
    other = variants.repeated_draw(labels, "natural", 3, 1)
    assert set(other.tolist()) != set(drawn.tolist())


def test_what_is_changed_is_in_the_key_of_the_stages_that_it_changes():
    def key_of(stage: str, *rest: str) -> str:
        return f"{stage}-0123456789"

    stem, repeated = (variants.key_with(name, key_of) for name in ("patchwise stem", "repeated augmentation"))
    assert stem("split") == repeated("split") == key_of("split")
    assert repeated("pretrain") == key_of("pretrain") != stem("pretrain")
    assert len({key_of("finetune"), stem("finetune"), repeated("finetune")}) == 3
    assert len(stem("pretrain")) == len(key_of("pretrain"))


def test_a_variant_that_is_none_is_named_with_those_that_there_are():
    done = subprocess.run([sys.executable, SCRIPT, "bigger", "run"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "VARIANT is one of: patchwise stem, overlapping stem, repeated augmentation" in done.stderr
