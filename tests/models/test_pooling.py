"""Attentive pooling: known answers, and the formula as it is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models.attention import rollout
from pipeline.models.classifier import Classifier, pooling_content
from pipeline.models.pooling import AttentivePooling, queries_for
from pipeline.models.vit import EncoderSpec

SPEC = EncoderSpec((16, 16), (4, 4), 1, 24, 2, 2, (0.5,), (0.25,))
VOLUME = EncoderSpec((8, 16, 16), (4, 8, 8), 1, 24, 1, 2, (0.5,), (0.25,))


def test_it_is_efficient_probing_with_each_token_projected_first():
    """Psomas et al. 2026: tokens are their own keys, values are projected and cut into a part for each query."""
    torch.manual_seed(0)
    pool, tokens = AttentivePooling(24, 4), torch.randn(3, 10, 24)
    torch.nn.init.normal_(pool.queries)
    values = (tokens @ pool.values.weight.T).reshape(3, 10, 4, 6)
    expected = torch.empty(3, 4, 6)
    for query in range(4):
        weights = torch.softmax(tokens @ pool.queries[query] / 24**0.5, dim=1)
        expected[:, query] = (weights[:, :, None] * values[:, :, query]).sum(dim=1)
    assert torch.allclose(pool(tokens), expected.flatten(1), atol=1e-5)


def test_queries_of_zeros_give_the_projected_mean_and_a_long_one_the_token_it_points_to():
    pool, tokens = AttentivePooling(8, 2), torch.eye(8)[None, :5]
    torch.nn.init.zeros_(pool.queries)
    torch.nn.init.eye_(pool.values.weight)
    assert torch.allclose(pool(tokens), tokens.mean(dim=1))
    with torch.no_grad():
        pool.queries[1, 4] = 1000
    assert torch.allclose(pool.attention(tokens)[0, 1], torch.eye(5)[4])
    # The second query keeps the second half of what it reads: token 4, a one in place 4.
    assert torch.allclose(pool(tokens)[0, 4:], torch.tensor([1.0, 0, 0, 0]))


@pytest.mark.parametrize(("width", "queries"), [(384, 8), (96, 8), (100, 4), (27, 1)])
def test_queries_divide_any_width(width, queries):
    assert queries_for(width) == queries
    assert AttentivePooling(width, queries)(torch.rand(1, 3, width)).shape == (1, width)


def test_queries_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="5 queries do not divide a width of 24"):
        AttentivePooling(24, 5)


@pytest.mark.parametrize("spec", [SPEC, VOLUME], ids=["2-D", "3-D"])
def test_the_outline_is_the_attention_of_the_queries(spec):
    torch.manual_seed(0)
    model = Classifier(spec, "norm_linear", pooling="attention").eval()
    torch.nn.init.normal_(model.pool.queries, std=3)
    pixels = torch.rand(2, 1, *spec.image_size)
    shares = model.shares(pixels)
    assert model.outline == "queries"
    assert shares.shape == (2, *spec.grid)
    expected = model.pool.attention(model.tokens(pixels)[:, 1:]).mean(dim=1).detach()
    assert np.allclose(shares.reshape(2, -1), expected, atol=1e-6)
    assert shares.max() > 1.5 / spec.tokens


def test_a_class_token_is_what_the_head_reads_and_what_rollout_starts_from():
    torch.manual_seed(0)
    model = Classifier(SPEC, "linear", pooling="class_token").eval()
    pixels = torch.rand(2, 1, 16, 16)
    assert torch.equal(model.features(pixels), model.tokens(pixels)[:, 0])
    assert not np.allclose(rollout(model, pixels), rollout(mean_of(model), pixels))
    assert model.outline == "attention"


def mean_of(model: Classifier) -> Classifier:
    other = Classifier(SPEC, "linear").eval()
    other.load_state_dict(model.state_dict())
    return other


def test_the_mean_adds_nothing_to_file_or_record():
    model = Classifier(SPEC, "norm_linear")
    assert pooling_content(model) == {}
    assert not any("pool" in name for name in model.state_dict())
    assert "registers" not in SPEC.to_json()
    assert pooling_content(Classifier(SPEC, "linear", pooling="class_token")) == {"pooling": "class_token"}
    attentive = Classifier(SPEC, "linear", pooling="attention")
    assert pooling_content(attentive) == {"pooling": "attention", "queries": 8}


def test_registers_stand_before_the_patches_and_are_read_by_no_mean():
    spec = EncoderSpec((16, 16), (4, 4), 1, 24, 2, 2, (0.5,), (0.25,), registers=4)
    assert EncoderSpec.from_json(spec.to_json()) == spec
    torch.manual_seed(0)
    model = Classifier(spec, "linear").eval()
    pixels = torch.rand(2, 1, 16, 16)
    tokens = model.tokens(pixels)
    assert tokens.shape == (2, 1 + 4 + 16, 24)
    assert torch.equal(model.features(pixels), tokens[:, 5:].mean(dim=1))
    shares = model.shares(pixels)
    assert shares.shape == (2, 4, 4)
    assert np.allclose(shares.sum(axis=(1, 2)), 1)
    assert [one.shape for one in model.depths(pixels)] == [(2, 24), (2, 24)]
