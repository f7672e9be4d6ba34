"""The encoder is a MONAI ViT, and the specification rebuilds it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from monai.networks.nets import ViT

from pipeline.models.training import parameter_groups
from pipeline.models.vit import (
    EncoderSpec,
    build_encoder,
    embed,
    encode,
    normalise,
    patchify,
    position_table,
)

FLAT = EncoderSpec((16, 24), (4, 8), 2, 24, 2, 2, (0.5, 0.4), (0.25, 0.2))
VOLUME = EncoderSpec((8, 12, 16), (4, 6, 4), 1, 24, 2, 3, (0.5,), (0.25,))
BOTH = pytest.mark.parametrize("spec", [FLAT, VOLUME], ids=["2-D", "3-D"])


def plain_monai(spec: EncoderSpec) -> ViT:
    """The public class, built as its documentation says."""
    vit = ViT(
        in_channels=spec.channels, img_size=spec.image_size, patch_size=spec.patch_size, hidden_size=spec.width,
        mlp_dim=4 * spec.width, num_layers=spec.depth, num_heads=spec.heads, classification=True, num_classes=1,
        spatial_dims=len(spec.image_size), post_activation="none", qkv_bias=True,
    )  # fmt: skip
    for module in vit.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = spec.eps
    return vit


@BOTH
def test_state_loads_strictly_into_a_plain_monai_vit_with_equal_output(spec):
    torch.manual_seed(0)
    encoder = build_encoder(spec).eval()
    torch.nn.init.normal_(encoder.classification_head.weight)
    plain = plain_monai(spec).eval()
    plain.load_state_dict(encoder.state_dict(), strict=True)
    pixels = torch.rand(2, spec.channels, *spec.image_size)
    with torch.no_grad():
        logit, hidden = plain(pixels)
        ours = encode(encoder, embed(encoder, patchify(pixels, spec.patch_size)))
        assert torch.allclose(ours, plain.norm(hidden[-1]), atol=1e-5)
        assert torch.allclose(encoder.classification_head(ours[:, 0]), logit, atol=1e-5)


@BOTH
def test_embedding_a_selection_equals_selecting_from_all_embeddings(spec):
    encoder = build_encoder(spec)
    patches = patchify(torch.rand(2, spec.channels, *spec.image_size), spec.patch_size)
    places = torch.stack([torch.randperm(spec.tokens)[:3] for _ in range(2)])
    chosen = patches.gather(1, places[:, :, None].expand(-1, -1, spec.patch_values))
    every = embed(encoder, patches)[:, 1:]
    expected = every.gather(1, places[:, :, None].expand(-1, -1, spec.width))
    assert torch.allclose(embed(encoder, chosen, places)[:, 1:], expected, atol=1e-6)


def test_branches_that_are_kept_at_scale_1_change_nothing_and_dropped_ones_leave_the_tokens():
    encoder = build_encoder(FLAT)
    tokens = embed(encoder, patchify(torch.rand(2, 2, 16, 24), FLAT.patch_size))
    assert torch.allclose(encode(encoder, tokens), encode(encoder, tokens, torch.ones(2, 2, 2)), atol=1e-6)
    assert torch.allclose(encode(encoder, tokens, torch.zeros(2, 2, 2)), encoder.norm(tokens), atol=1e-6)


def test_weights_that_are_never_used_are_kept_but_not_trained():
    encoder = build_encoder(FLAT)
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    dead = {f"blocks.{i}.norm_cross_attn.{part}" for i in range(2) for part in ("weight", "bias")}
    head = {"classification_head.weight", "classification_head.bias"}
    assert frozen == dead | head | {"patch_embedding.position_embeddings"}
    encode(encoder, embed(encoder, torch.rand(1, 12, FLAT.patch_values))).sum().backward()
    unused = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == set()


def test_learned_positions_start_small_and_are_trained_without_weight_decay():
    torch.manual_seed(0)
    spec = dataclasses.replace(FLAT, positions="learned")
    encoder = build_encoder(spec)
    positions = encoder.patch_embedding.position_embeddings
    assert positions.requires_grad
    assert positions.std().item() == pytest.approx(0.02, rel=0.2)
    decay = {id(p): group["weight_decay"] for group in parameter_groups(encoder, 0.05) for p in group["params"]}
    assert decay[id(positions)] == 0
    plain_monai(spec).load_state_dict(encoder.state_dict(), strict=True)


def test_a_specification_written_before_positions_were_a_choice_means_sine_and_cosine():
    content = {name: value for name, value in FLAT.to_json().items() if name != "positions"}
    assert EncoderSpec.from_json(content) == FLAT


@pytest.mark.parametrize(("grid", "width"), [((4, 3), 24), ((2, 2, 4), 24)])
def test_positions_hold_the_same_waves_as_monais_table(grid, width):
    """MONAI orders the axes differently; the columns are the same."""
    ours = position_table(grid, width)[0]
    theirs = build_sincos_position_embedding(list(grid), width, len(grid)).data[0]
    assert torch.allclose(ours.T.sort(dim=0).values.sum(), theirs.T.sort(dim=0).values.sum(), atol=1e-3)
    for column in theirs.T:
        assert (ours.T - column).abs().sum(dim=1).min() < 1e-4


@pytest.mark.parametrize(("grid", "width"), [((5, 5), 30), ((3, 4, 5), 32)])
def test_positions_differ_at_every_place_whatever_the_width(grid, width):
    table = position_table(grid, width)[0]
    assert table.shape[1] == width
    assert torch.cdist(table, table).add(torch.eye(len(table)) * 9).min() > 0.1


def test_specification_survives_json():
    assert EncoderSpec.from_json(json.loads(json.dumps(FLAT.to_json()))) == FLAT


def test_pixels_are_normalised_per_channel():
    pixels = torch.tensor([0.5, 0.6]).view(1, 2, 1, 1).expand(1, 2, 16, 24)
    expected = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 24)
    assert torch.allclose(normalise(pixels, FLAT), expected, atol=1e-6)


def test_every_impossible_value_is_named_at_once():
    with pytest.raises(ValueError, match=r"not a multiple of patch size.*not a multiple of heads.*blank"):
        dataclasses.replace(FLAT, patch_size=(5, 8), heads=7, pixel_std=(0.0, 0.2))
