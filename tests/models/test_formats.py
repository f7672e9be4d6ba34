"""Weights of other projects: equal outputs, and every tensor accounted for.

The reference forward passes are written from the published architecture (Dosovitskiy et al. 2021), on names alone.
"""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from models.timm_layout import shapes, timm_weights
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

from pipeline.models.checkpoints import WeightsError, load_strict, save_weights
from pipeline.models.formats import import_encoder, read_foreign
from pipeline.models.vit import EncoderSpec, build_encoder, embed, encode, patchify

SPEC = EncoderSpec((24, 24), (8, 8), 3, 24, 2, 3, (0.5,) * 3, (0.25,) * 3)
GREY = dataclasses.replace(SPEC, channels=1, pixel_mean=(0.5,), pixel_std=(0.25,))
WIDE = dataclasses.replace(SPEC, image_size=(16, 40))
HF_SPEC = dataclasses.replace(SPEC, eps=1e-12)


V4 = {
    "attn.q": "attention.attention.query", "attn.k": "attention.attention.key", "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    "norm1": "layernorm_before", "norm2": "layernorm_after", "block": "encoder.layer",
}  # fmt: skip
V5 = {
    "attn.q": "attention.q_proj", "attn.k": "attention.k_proj", "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "norm1": "layernorm_before", "norm2": "layernorm_after", "block": "layers",
}  # fmt: skip
REST = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
}  # fmt: skip


def hugging_face_weights(names: dict[str, str], prefix: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of transformers 4 (files of the hub) or 5."""
    result = {}
    for name, tensor in timm_weights(HF_SPEC, seed).items():
        if not name.startswith("blocks."):
            stem, _, kind = name.rpartition(".")
            result[prefix + (REST[name] if name in REST else f"{REST[stem]}.{kind}")] = tensor
            continue
        _, number, part = name.split(".", 2)
        stem, _, kind = part.rpartition(".")
        parts = (
            {stem: tensor}
            if stem != "attn.qkv"
            else dict(zip(("attn.q", "attn.k", "attn.v"), tensor.chunk(3), strict=True))
        )
        for stem, piece in parts.items():
            result[f"{prefix}{names['block']}.{number}.{names[stem]}.{kind}"] = piece.clone()
    return result


def layer_norm(x, weights, name, eps):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attend(query, key, value, heads):
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    score = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (score @ value).transpose(1, 2).flatten(2)


def timm_forward(weights, pixels, spec):
    """Tokens (B, 1 + L, D) of a vision transformer, from timm's names."""
    x = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=spec.patch_size)
    x = torch.cat((weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), dim=1)
    x = x + weights["pos_embed"]
    for i in range(spec.depth):
        block = f"blocks.{i}"
        parts = linear(layer_norm(x, weights, f"{block}.norm1", spec.eps), weights, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(*parts, spec.heads), weights, f"{block}.attn.proj")
        inner = F.gelu(linear(layer_norm(x, weights, f"{block}.norm2", spec.eps), weights, f"{block}.mlp.fc1"))
        x = x + linear(inner, weights, f"{block}.mlp.fc2")
    return layer_norm(x, weights, "norm", spec.eps)


def hugging_face_forward(weights, pixels, spec, names, prefix):
    """The same from Hugging Face's names, with queries, keys and values apart."""
    projection = f"{prefix}embeddings.patch_embeddings.projection"
    x = F.conv2d(pixels, weights[f"{projection}.weight"], weights[f"{projection}.bias"], stride=spec.patch_size)
    token = weights[f"{prefix}embeddings.cls_token"].expand(len(x), -1, -1)
    x = torch.cat((token, x.flatten(2).transpose(1, 2)), dim=1) + weights[f"{prefix}embeddings.position_embeddings"]
    for i in range(spec.depth):
        block = f"{prefix}{names['block']}.{i}."
        normed = layer_norm(x, weights, block + names["norm1"], spec.eps)
        parts = [linear(normed, weights, block + names[f"attn.{part}"]) for part in "qkv"]
        x = x + linear(attend(*parts, spec.heads), weights, block + names["attn.proj"])
        normed = layer_norm(x, weights, block + names["norm2"], spec.eps)
        x = x + linear(F.gelu(linear(normed, weights, block + names["mlp.fc1"])), weights, block + names["mlp.fc2"])
    return layer_norm(x, weights, f"{prefix}layernorm", spec.eps)


@torch.no_grad()
def our_forward(tensors, pixels, spec):
    encoder = build_encoder(spec).eval()
    load_strict(encoder, tensors)
    return encode(encoder, embed(encoder, patchify(pixels, spec.patch_size)))


def images(spec: EncoderSpec) -> torch.Tensor:
    return torch.randn(2, spec.channels, *spec.image_size, generator=torch.Generator().manual_seed(5))


# ---------------------------------------------------------------- in


def test_timm_weights_give_equal_outputs():
    weights = timm_weights(SPEC)
    ours = our_forward(import_encoder(weights, SPEC).tensors, images(SPEC), SPEC)
    assert (ours - timm_forward(weights, images(SPEC), SPEC)).abs().max() < 1e-5
    # The reference is not deaf to what the conversion has to get right.
    for name in ("pos_embed", "cls_token", "blocks.1.attn.qkv.bias", "norm.bias"):
        changed = {**weights, name: weights[name] + torch.randn(weights[name].shape)}
        assert (ours - timm_forward(changed, images(SPEC), SPEC)).abs().max() > 1e-3


@pytest.mark.parametrize("names", [V4, V5], ids=["hub", "transformers 5"])
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hugging_face_weights_give_equal_outputs(names, prefix):
    weights = hugging_face_weights(names, prefix)
    imported = import_encoder(weights, HF_SPEC)
    ours = our_forward(imported.tensors, images(SPEC), HF_SPEC)
    theirs = hugging_face_forward(weights, images(SPEC), HF_SPEC, names, prefix)
    assert (ours - theirs).abs().max() < 1e-5
    assert imported.account.notes == []
    assert {*imported.account.taken, *imported.account.converted} == set(weights)


def test_summed_patch_weights_see_a_grey_image_as_the_original_sees_three_equal_channels():
    weights, grey = timm_weights(SPEC), images(GREY)
    imported = import_encoder(weights, GREY)
    theirs = timm_forward(weights, grey.expand(-1, 3, -1, -1), SPEC)
    assert (our_forward(imported.tensors, grey, GREY) - theirs).abs().max() < 1e-5
    assert "3 channels summed to one" in imported.account.converted["patch_embed.proj.weight"]


def test_positions_move_to_another_grid_and_the_class_token_keeps_its_own():
    weights = timm_weights(SPEC)
    # Linear in the place: resampling is exact away from the borders.
    weights["pos_embed"][0, 1:] = torch.arange(3.0)[:, None, None].expand(3, 3, 24).reshape(9, 24)
    imported = import_encoder(weights, dataclasses.replace(SPEC, image_size=(48, 24)))
    positions = imported.tensors["patch_embedding.position_embeddings"].reshape(6, 3, 24)
    assert torch.allclose(positions[1:-1, 0, 0], torch.arange(0.25, 2, 0.5))
    assert torch.equal(imported.tensors["cls_token"], weights["cls_token"] + weights["pos_embed"][:, :1])
    assert "resampled from 3 by 3 to 6 by 3" in imported.account.converted["pos_embed"]


def test_a_table_without_a_row_for_the_class_token():
    weights = timm_weights(SPEC)
    weights["pos_embed"] = weights["pos_embed"][:, 1:].clone()
    imported = import_encoder(weights, SPEC)
    assert torch.equal(imported.tensors["cls_token"], weights["cls_token"])
    assert "pos_embed" in imported.account.taken


def test_a_grid_that_is_not_square_must_be_given():
    weights = timm_weights(WIDE)
    with pytest.raises(WeightsError, match="no square grid; give its patches per axis"):
        import_encoder(weights, WIDE)
    ours = our_forward(import_encoder(weights, WIDE, grid_from=(2, 5)).tensors, images(WIDE), WIDE)
    assert (ours - timm_forward(weights, images(WIDE), WIDE)).abs().max() < 1e-5


DECODER = {
    "mask_token": (1, 1, 8), "decoder_pos_embed": (1, 10, 8), "decoder_embed.weight": (8, 24),
    "decoder_blocks.0.attn.qkv.weight": (24, 8), "decoder_pred.bias": (192,),
}  # fmt: skip


def test_the_account_names_every_tensor_of_a_public_mae_checkpoint():
    weights = timm_weights(SPEC) | {name: torch.zeros(shape) for name, shape in DECODER.items()}
    weights |= {"head.weight": torch.zeros(10, 24), "head.bias": torch.zeros(10)}
    account = import_encoder(weights, GREY).account
    assert set(account.left_out) == {*DECODER, "head.weight", "head.bias"}
    assert set(account.converted) == {"cls_token", "pos_embed", "patch_embed.proj.weight"}
    assert {*account.taken, *account.converted, *account.left_out} == set(weights)
    assert len(account.taken) + len(account.converted) + len(account.left_out) == len(weights)
    text = str(account)
    assert all(name in text for name in weights)
    assert "decoder of pretraining" in text
    assert "facebookresearch/mae" in text


def test_hugging_face_heads_decoders_and_mask_tokens_are_left_out_by_name():
    weights = hugging_face_weights(V4, "vit.")
    others = {
        "decoder.decoder_embed.weight": torch.zeros(8, 24), "vit.embeddings.mask_token": torch.zeros(1, 1, 24),
        "vit.pooler.dense.bias": torch.zeros(24), "classifier.weight": torch.zeros(2, 24),
    }  # fmt: skip
    account = import_encoder(weights | others, SPEC).account
    assert set(account.left_out) == set(others)
    assert account.notes == ["LayerNorm eps is 1e-06 here and 1e-12 by default there: outputs differ a little"]


def test_every_missing_unknown_and_mis_shaped_tensor_is_named():
    weights = timm_weights(SPEC)
    del weights["blocks.1.attn.qkv.bias"], weights["norm.weight"], weights["cls_token"]
    weights["blocks.0.ls1.gamma"] = torch.ones(24)
    weights["blocks.2.norm1.bias"] = torch.ones(24)
    weights["fc_norm.weight"] = torch.ones(24)
    weights["patch_embed.proj.weight"] = torch.zeros(24, 3, 16, 16)
    weights["norm.bias"] = torch.full((24,), torch.inf)
    with pytest.raises(WeightsError) as error:
        import_encoder(weights, SPEC)
    for words in (
        "blocks.1.attn.qkv.bias is missing", "norm.weight is missing", "cls_token is missing",
        "blocks.0.ls1.gamma is unknown", "blocks.2.norm1.bias is unknown", "fc_norm.weight is unknown",
        "patch_embed.proj.weight has shape (24, 3, 16, 16) instead of (24, 3, 8, 8)",
        "norm.bias holds values that are not finite",
    ):  # fmt: skip
        assert words in str(error.value)


def test_a_lone_query_matrix_is_unknown_and_the_joined_one_missing():
    weights = hugging_face_weights(V4, "")
    del weights["encoder.layer.0.attention.attention.key.weight"]
    with pytest.raises(WeightsError) as error:
        import_encoder(weights, SPEC)
    assert "blocks.0.attn.qkv.weight is missing" in str(error.value)
    assert "encoder.layer.0.attention.attention.query.weight is unknown" in str(error.value)


def test_half_precision_weights_become_single_and_it_is_noted():
    weights = timm_weights(SPEC)
    imported = import_encoder({name: tensor.half() for name, tensor in weights.items()}, SPEC)
    assert {tensor.dtype for tensor in imported.tensors.values()} == {torch.float32}
    assert imported.account.notes == ["float16 became float32"]


def test_importing_draws_no_random_numbers():
    before = torch.get_rng_state()
    import_encoder(timm_weights(SPEC), SPEC)
    assert torch.equal(before, torch.get_rng_state())


def test_another_network_is_refused_with_what_was_expected():
    with pytest.raises(WeightsError, match=r"expected patch_embed\.proj\.weight .*; found conv1\.weight"):
        import_encoder({"conv1.weight": torch.zeros(1)}, SPEC)


def monai_model(**changed):
    torch.manual_seed(1)
    return MaskedAutoEncoderViT(**{
        "in_channels": 1, "img_size": 24, "patch_size": 8, "hidden_size": 24, "mlp_dim": 96, "num_layers": 2,
        "num_heads": 3, "masking_ratio": 0.5, "decoder_hidden_size": 8, "decoder_mlp_dim": 16, "decoder_num_layers": 1,
        "decoder_num_heads": 2, "spatial_dims": 2, "qkv_bias": True, **changed,
    }).eval()  # fmt: skip


@pytest.mark.parametrize("qkv_bias", [True, False])
@torch.no_grad()
def test_the_encoder_of_monais_masked_autoencoder_gives_equal_outputs(qkv_bias):
    spec = dataclasses.replace(GREY, eps=1e-5)
    model = monai_model(qkv_bias=qkv_bias)
    for name, parameter in model.named_parameters():
        # Biases and norms that start as 0 and 1 would hide that they were not carried over.
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    imported = import_encoder(model.state_dict(), spec)
    patches = model.patch_embedding(images(spec))
    theirs = model.blocks(torch.cat((model.cls_token.expand(2, -1, -1), patches), dim=1))
    assert (our_forward(imported.tensors, images(spec), spec) - theirs).abs().max() < 1e-5
    account = imported.account
    assert account.layout == "MONAI"
    assert {*account.taken, *account.converted, *account.left_out} == set(model.state_dict())
    assert {"blocks.2.weight", "blocks.2.bias"} < set(account.taken)
    assert ("blocks.0.attn.qkv.bias" in account.made) != qkv_bias


def test_an_encoder_of_ours_comes_back_as_it_was():
    tensors = build_encoder(GREY).state_dict()
    imported = import_encoder(tensors, GREY)
    for name in set(tensors) - set(imported.account.made):
        assert torch.equal(imported.tensors[name], tensors[name])


def test_a_model_that_lacks_some_biases_is_refused():
    weights = monai_model().state_dict()
    del weights["blocks.1.attn.qkv.bias"]
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.bias is missing"):
        import_encoder(weights, GREY)


# ---------------------------------------------------------------- files


def test_a_published_checkpoint_with_its_command_line_is_read_without_running_code(tmp_path):
    weights = timm_weights(SPEC)
    content = {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=1e-3, name="run")}
    torch.save(content, tmp_path / "mae.pth")
    assert list(read_foreign(tmp_path / "mae.pth")) == list(weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_names_is_removed(tmp_path, prefix):
    weights = timm_weights(SPEC)
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in weights.items()}}, tmp_path / "w.bin")
    read = read_foreign(tmp_path / "w.bin")
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_safetensors_are_read(tmp_path):
    save_weights(tmp_path / "w.safetensors", timm_weights(SPEC))
    assert set(read_foreign(tmp_path / "w.safetensors")) == set(shapes(SPEC))


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", {"model": Trap()}, r"w\.pth cannot be read as plain tensors"),
        ("w.pth", {"epoch": 3}, "holds no tensors by name"),
        ("w.pth", torch.zeros(3), "holds a Tensor"),
        ("w.ckpt", {"a": torch.zeros(1)}, r"of no known kind; expected \.safetensors"),
    ],
)
def test_files_that_hold_no_plain_tensors_are_refused(tmp_path, capsys, name, content, message):
    torch.save(content, tmp_path / name)
    with pytest.raises(WeightsError, match=message):
        read_foreign(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


# ---------------------------------------------------------------- against the libraries, where they are installed


def timm_model(spec: EncoderSpec):
    timm = pytest.importorskip("timm.models.vision_transformer")
    return timm.VisionTransformer(
        img_size=spec.image_size, patch_size=spec.patch_size, in_chans=spec.channels, embed_dim=spec.width,
        depth=spec.depth, num_heads=spec.heads, num_classes=0,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["square", "rectangular"])
@torch.no_grad()
def test_timm_itself_agrees(spec):
    model, pixels = timm_model(spec), images(spec)
    model.load_state_dict(timm_weights(spec), strict=True)
    imported = import_encoder(model.state_dict(), spec, grid_from=spec.grid)
    assert (our_forward(imported.tensors, pixels, spec) - model.forward_features(pixels)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["ViT", "ViTMAE"])
@torch.no_grad()
def test_hugging_face_itself_agrees(kind):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=24, patch_size=8
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    pixels, noise = images(SPEC), torch.arange(9.0).expand(2, -1)
    if kind == "ViTMAE":
        # No masking, and noise in order: all patches in place.
        model.config.mask_ratio = 0.0
        theirs = model(pixels, noise=noise).last_hidden_state
    else:
        theirs = model(pixels).last_hidden_state
    ours = our_forward(import_encoder(model.state_dict(), HF_SPEC).tensors, pixels, HF_SPEC)
    assert (ours - theirs).abs().max() < 1e-5
