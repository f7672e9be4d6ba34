"""Weights in the layouts of DINOv2 and RAD-DINO: equal tokens, LayerScale folded, registers kept, the rest refused.

The reference forward pass is written from the published definition, Oquab et al. 2024 and Darcet et al. 2024: patches
of 14 pixels, the class token and its position, registers without positions behind it, pre-norm blocks whose branches
are multiplied by LayerScale (Touvron et al. 2021).
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.checkpoints import WeightsError, load_strict, save_weights
from pipeline.models.classifier import Classifier
from pipeline.models.formats import import_encoder, read_foreign
from pipeline.models.vit import EncoderSpec, build_encoder, embed, encode, patchify

SPEC = EncoderSpec((42, 42), (14, 14), 3, 24, 2, 3, (0.5,) * 3, (0.25,) * 3)


def dinov2_weights(spec: EncoderSpec = SPEC, registers: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of facebookresearch/dinov2."""
    d = spec.width
    named = {"cls_token": (1, 1, d), "mask_token": (1, d), "pos_embed": (1, 1 + spec.tokens, d), "norm.weight": (d,),
             "norm.bias": (d,), "patch_embed.proj.weight": (d, spec.channels, *spec.patch_size),
             "patch_embed.proj.bias": (d,)}  # fmt: skip
    block = {"norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
             "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "ls1.gamma": (d,), "norm2.weight": (d,),
             "norm2.bias": (d,), "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d),
             "mlp.fc2.bias": (d,), "ls2.gamma": (d,)}  # fmt: skip
    if registers:
        named["register_tokens"] = (1, registers, d)
    named |= {f"blocks.{at}.{name}": shape for at in range(spec.depth) for name, shape in block.items()}
    generator = torch.Generator().manual_seed(7)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in named.items()}


def hugging_face(weights: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """The same weights under the names of Hugging Face's Dinov2Model, as microsoft/rad-dino has them."""
    rest = {"cls_token": "cls_token", "mask_token": "mask_token", "pos_embed": "position_embeddings",
            "register_tokens": "register_tokens"}  # fmt: skip
    parts = {"attn.proj": "attention.output.dense", "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2", "ls1": "layer_scale1", "ls2": "layer_scale2"}  # fmt: skip
    renamed = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if name in rest:
            renamed[f"embeddings.{rest[name]}"] = tensor
        elif name.startswith("patch_embed"):
            renamed[f"embeddings.patch_embeddings.projection.{kind}"] = tensor
        elif name.startswith("norm"):
            renamed[f"layernorm.{kind}"] = tensor
        else:
            _, at, part = stem.split(".", 2)
            if part == "attn.qkv":
                for which, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    renamed[f"encoder.layer.{at}.attention.attention.{which}.{kind}"] = piece.clone()
            else:
                renamed[f"encoder.layer.{at}.{parts[part]}.{kind.replace('gamma', 'lambda1')}"] = tensor
    return {prefix + name: tensor for name, tensor in renamed.items()}


def reference(weights: dict[str, torch.Tensor], pixels: torch.Tensor, spec: EncoderSpec = SPEC) -> torch.Tensor:
    """Tokens (B, 1 + R + L, D) after the final norm."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (spec.width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=spec.patch_size)
    x = torch.cat((weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), dim=1)
    x = x + weights["pos_embed"]
    if "register_tokens" in weights:
        x = torch.cat((x[:, :1], weights["register_tokens"].expand(len(x), -1, -1), x[:, 1:]), dim=1)
    for at in range(spec.depth):
        block = f"blocks.{at}"
        batch, count, width = x.shape
        mixed = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        query, key, value = mixed.reshape(batch, count, 3, spec.heads, width // spec.heads).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-2, -1) * (width // spec.heads) ** -0.5).softmax(dim=-1)
        joined = (attention @ value).transpose(1, 2).reshape(batch, count, width)
        x = x + weights[f"{block}.ls1.gamma"] * linear(joined, f"{block}.attn.proj")
        inner = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + weights[f"{block}.ls2.gamma"] * linear(inner, f"{block}.mlp.fc2")
    return norm(x, "norm")


@torch.no_grad()
def ours(tensors: dict[str, torch.Tensor], pixels: torch.Tensor, spec: EncoderSpec) -> torch.Tensor:
    encoder = build_encoder(spec).eval()
    load_strict(encoder, tensors)
    return encode(encoder, embed(encoder, patchify(pixels, spec.patch_size)))


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("layout", ["facebookresearch", "hub", "hub with a head"])
def test_every_token_is_that_of_the_published_network(registers, layout):
    weights = dinov2_weights(registers=registers)
    prefix = "dinov2_with_registers." if registers else "dinov2."
    given = {
        "facebookresearch": lambda: weights,
        "hub": lambda: hugging_face(weights),
        "hub with a head": lambda: hugging_face(weights, prefix) | {"classifier.weight": torch.zeros(2, 48)},
    }[layout]()
    imported = import_encoder(given, SPEC)
    assert imported.registers == registers
    found = ours(imported.tensors, pictures(), dataclasses.replace(SPEC, registers=registers))
    expected = reference(weights, pictures())
    assert found.shape == expected.shape == (2, 1 + registers + 9, 24)
    assert (found - expected).abs().max() < 1e-5
    account = imported.account
    assert "dinov2" in account.layout
    assert account.notes == []
    assert sorted([*account.taken, *account.converted, *account.left_out]) == sorted(given)
    assert "Apache 2.0" in str(account)
    # The reference is not deaf to what folding and registers have to get right.
    for name in ("blocks.0.ls1.gamma", "blocks.1.ls2.gamma", "blocks.1.attn.proj.bias", "register_tokens"):
        if name in weights:
            assert (found - reference({**weights, name: weights[name].flip(-1)}, pictures())).abs().max() > 1e-3, name


def test_the_account_says_what_was_folded():
    account = import_encoder(dinov2_weights(registers=2), SPEC).account
    assert "LayerScale, multiplied into the layer before it" in account.converted["blocks.1.ls2.gamma"]
    for name in ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias"):
        assert account.converted[f"blocks.0.{name}"] == "multiplied by LayerScale"
    assert "register_tokens" in account.taken
    assert account.left_out == {"mask_token": "decoder of pretraining; the encoder does not use it"}


def test_positions_are_resampled_only_for_another_grid_and_it_is_said():
    larger = dataclasses.replace(SPEC, image_size=(56, 42))
    account = import_encoder(hugging_face(dinov2_weights()), larger).account
    assert "resampled from 3 by 3 to 4 by 3 patches" in account.converted["embeddings.position_embeddings"]
    assert account.notes == ["positions are resampled linearly; DINOv2's own code does so bicubically"]
    same = import_encoder(dinov2_weights(), SPEC).account
    assert "resampled" not in same.converted["pos_embed"]


def test_timms_name_for_registers_is_known():
    weights = dinov2_weights(registers=4)
    theirs = {("reg_token" if name == "register_tokens" else name): tensor for name, tensor in weights.items()}
    # timm adds the class token's position to it beforehand, and keeps a table of patches alone.
    theirs["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    theirs["pos_embed"] = weights["pos_embed"][:, 1:].clone()
    imported = import_encoder(theirs, SPEC)
    found = ours(imported.tensors, pictures(), dataclasses.replace(SPEC, registers=4))
    assert (found - reference(weights, pictures())).abs().max() < 1e-5


@pytest.mark.parametrize(("one", "other"), [("w12", "w3"), ("weights_in", "weights_out")])
def test_gated_perceptrons_are_refused_by_name(one, other):
    weights = {name: tensor for name, tensor in dinov2_weights().items() if ".mlp." not in name}
    weights |= {f"blocks.{at}.mlp.{part}.weight": torch.zeros(8, 24) for at in (0, 1) for part in (one, other)}
    with pytest.raises(WeightsError, match=rf"gated MLP \(SwiGLU\).* blocks\.0\.mlp\.{one}\.weight, .*{other}"):
        import_encoder(weights, SPEC)


def test_a_block_without_its_factors_is_refused_with_the_names_of_the_others():
    weights = dinov2_weights()
    del weights["blocks.1.ls2.gamma"]
    with pytest.raises(WeightsError) as error:
        import_encoder(weights, SPEC)
    assert "blocks.0.ls1.gamma is unknown" in str(error.value)


def test_a_file_with_registers_is_read_back(tmp_path):
    weights = hugging_face(dinov2_weights(registers=2))
    save_weights(tmp_path / "rad-dino.safetensors", weights)
    imported = import_encoder(read_foreign(tmp_path / "rad-dino.safetensors"), SPEC)
    spec = dataclasses.replace(SPEC, registers=2)
    model = Classifier(spec, "linear").eval()
    load_strict(model.encoder, imported.tensors)
    assert torch.equal(model.features(pictures()), model.tokens(pictures())[:, 3:].mean(dim=1))
