"""Attention rollout: where a network looked, on networks of which that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.models.attention import half_of, most_attended, on_pixels, rollout
from pipeline.models.classifier import Classifier
from pipeline.models.vit import EncoderSpec, attention_blocks, embed, normalise, patchify

SPEC = EncoderSpec((32, 32), (8, 8), 1, 24, 2, 2, (0.2,), (0.3,))


def spotted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise (n, 1, 32, 32), half of it with one striped patch, its labels, and the place of the stripes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.rand(count, 1, 32, 32, generator=generator)
    place, label = torch.randint(0, 16, (count,), generator=generator), torch.arange(count) % 2
    for image, at, positive in zip(pixels, place.tolist(), label.tolist(), strict=True):
        if positive:
            row, column = 8 * (at // 4), 8 * (at % 4)
            image[0, row : row + 8 : 2, column : column + 8] = 1.0
    return pixels, label.float(), place


@pytest.fixture(scope="module", params=[1, 2], ids=["one block", "two blocks"])
def trained(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(replace(SPEC, depth=request.param), "norm_linear")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 4e-3)
    for step in range(80):
        pixels, label, _ = spotted(24, step)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(pixels)[:, 0], label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_a_trained_network_is_said_to_have_looked_where_the_sign_is(trained: Classifier):
    pixels, label, place = spotted(64, 999)
    assert ((trained(pixels)[:, 0] > 0) == (label == 1)).float().mean() > 0.95, "the network has not learnt its task"
    shares = rollout(trained, pixels[label == 1]).reshape(32, -1)
    assert (shares.argmax(axis=1) == place[label == 1].numpy()).mean() > 0.95
    assert shares.max(axis=1).mean() > 3 / 16


def test_shares_add_up_and_the_network_is_left_as_it_was(trained: Classifier):
    pixels, *_ = spotted(3, 5)
    before = trained(pixels)
    shares = rollout(trained, pixels)
    assert shares.shape == (3, 4, 4)
    assert (shares > 0).all()
    assert np.allclose(shares.sum(axis=(1, 2)), 1)
    assert torch.equal(trained(pixels), before)
    for block in attention_blocks(trained.encoder):
        assert block.use_flash_attention
        assert not block.drop_weights._forward_hooks


def test_equal_attention_gives_equal_shares_and_a_volume_its_grid():
    model = Classifier(EncoderSpec((8, 16, 16), (4, 8, 8), 1, 12, 3, 2, (0.5,), (0.25,)), "linear").eval()
    for block in attention_blocks(model.encoder):
        torch.nn.init.zeros_(block.qkv.weight)
    shares = rollout(model, torch.rand(2, 1, 8, 16, 16))
    assert shares.shape == (2, 2, 2, 2)
    assert np.allclose(shares, 1 / 8)


def test_two_blocks_are_multiplied_as_in_the_paper():
    torch.manual_seed(3)
    model = Classifier(EncoderSpec((16, 16), (8, 8), 1, 16, 2, 2, (0.5,), (0.25,)), "linear").eval()
    pixels, mixed = torch.rand(1, 1, 16, 16), []
    tokens = embed(model.encoder, patchify(normalise(pixels, model.spec), (8, 8)))
    for block in model.encoder.blocks:
        q, k, _ = block.attn.input_rearrange(block.attn.qkv(block.norm1(tokens)))
        attention = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1)
        mixed.append(0.5 * attention.mean(dim=1)[0].double() + 0.5 * torch.eye(5, dtype=torch.float64))
        tokens = block(tokens)
    expected = (mixed[1] @ mixed[0])[1:, 1:].mean(dim=0)
    expected = (expected / expected.sum()).detach().numpy()
    assert np.allclose(rollout(model, pixels)[0].ravel(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([[0.6, 0.2], [0.1, 0.1]], [[1, 0], [0, 0]]),
        ([[0.3, 0.3], [0.2, 0.2]], [[1, 1], [0, 0]]),
        ([[0.4, 0.3], [0.2, 0.1]], [[1, 1], [0, 0]]),
        ([[0.25, 0.25], [0.25, 0.25]], [[1, 1], [1, 1]]),
    ],
)
def test_half_is_the_fewest_patches_that_hold_it(shares, expected):
    assert (half_of(np.array(shares)) == np.array(expected, bool)).all()


def test_patches_become_pixels_and_the_one_with_most_its_middle():
    area = on_pixels(np.array([[True, False]]), (2, 6))
    assert area.tolist() == [[True] * 3 + [False] * 3] * 2
    shares = np.full((4, 2, 2), 0.05)
    shares[2, 0, 1] = 0.25
    assert most_attended(shares, (12, 16, 12)) == (7, 4, 9)
