"""The classifier: logits that a file gives back, dropped branches that keep the expectation."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from pipeline.models.checkpoints import WeightsError, save_weights
from pipeline.models.classifier import Classifier, branch_scales, freeze_below
from pipeline.models.reading import read_model
from pipeline.models.vit import EncoderSpec, embed, encode, normalise, patchify
from pipeline.store.files import sha256_file, write_json

SPEC = EncoderSpec((8, 16, 16), (4, 4, 8), 2, 24, 2, 2, (0.5, 0.4), (0.25, 0.3))


def saved(tmp_path, model: Classifier, head: str) -> tuple:
    save_weights(tmp_path / "model.safetensors", model.state_dict())
    sha256 = sha256_file(tmp_path / "model.safetensors")
    record = {"arm": "mae", "spec": SPEC.to_json(), "head": head, "sha256": sha256}
    write_json(tmp_path / "model.json", record)
    return tmp_path / "model.json", tmp_path / "model.safetensors", torch.device("cpu")


@pytest.mark.parametrize("head", ["norm_linear", "linear"])
def test_a_finished_model_gives_the_same_logits(tmp_path, head):
    torch.manual_seed(0)
    model, pixels = Classifier(SPEC, head).eval(), torch.rand(3, 2, 8, 16, 16)
    logits = read_model(*saved(tmp_path, model, head)).logits(pixels)
    assert logits.dtype == np.float64
    # Whole blocks of rows are multiplied, so that the last bits may differ from those of these rows alone.
    np.testing.assert_allclose(logits, model(pixels).detach().double().numpy(), atol=1e-6)
    assert logits.shape == (3, 1)
    assert len(set(logits[:, 0])) == 3


def test_features_are_the_mean_of_normalised_patch_tokens_without_the_class_token():
    model, pixels = Classifier(SPEC, "linear").eval(), torch.rand(2, 2, 8, 16, 16)
    tokens = encode(model.encoder, embed(model.encoder, patchify(normalise(pixels, SPEC), SPEC.patch_size)))
    assert tokens.shape == (2, 1 + SPEC.tokens, SPEC.width)
    assert torch.allclose(model.features(pixels), tokens[:, 1:].mean(dim=1))


def test_weights_that_are_not_those_of_the_record_are_refused(tmp_path):
    record, weights, device = saved(tmp_path, Classifier(SPEC, "linear"), "linear")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match="not the file named in"):
        read_model(record, weights, device)


@pytest.mark.parametrize(
    ("blocks", "trained"),
    [
        (0, {"head_norm", "head"}),
        (1, {"encoder.blocks.1", "encoder.norm", "head_norm", "head"}),
        (2, {"encoder.blocks.0", "encoder.blocks.1", "encoder.norm", "head_norm", "head"}),
    ],
)
def test_what_is_trained_is_the_last_blocks_the_final_norm_and_the_head(blocks, trained):
    model = Classifier(SPEC, "norm_linear")
    freeze_below(model, blocks)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {re.match(r"(encoder\.)?(blocks\.)?\w+", name)[0] for name in names} == trained
    model(torch.rand(2, 2, 8, 16, 16)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_dropped_branches_grow_with_depth_and_keep_the_expectation():
    uniform = torch.from_numpy(np.random.default_rng(0).random((20000, 6)))
    scale = branch_scales(uniform, drop_path=0.3, depth=3)
    assert scale.shape == (3, 2, 20000)
    assert ((scale == 0).float().mean(dim=(1, 2)) - torch.tensor([0.0, 0.15, 0.3])).abs().max() < 0.01
    assert (scale.mean(dim=(1, 2)) - 1).abs().max() < 0.01
