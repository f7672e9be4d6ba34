"""Schedule, parameter groups, batches, and a step that must not be taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models.classifier import Classifier
from pipeline.models.training import (
    Schedule,
    TrainingError,
    adamw,
    autocast,
    batches,
    parameter_groups,
    prepare,
    train_epoch,
    usable_precision,
)
from pipeline.models.vit import EncoderSpec

SPEC = EncoderSpec((16, 16), (4, 4), 1, 16, 3, 2, (0.5,), (0.25,))


def test_rate_warms_up_in_a_line_and_falls_as_half_a_cosine():
    schedule = Schedule(peak=2.0, warmup_epochs=4, epochs=12)
    assert [schedule.rate(e) for e in (1, 2, 4, 8, 12)] == pytest.approx([0.5, 1.0, 2.0, 1.0, 0.0])


def test_rate_without_warm_up_starts_at_its_peak():
    assert Schedule(2.0, 0, 10).rate(0) == 2.0


def test_rate_falls_by_the_layer_decay_from_head_to_patches():
    model = Classifier(SPEC, "norm_linear")
    groups = parameter_groups(model, 0.05, 0.5, SPEC.depth)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    expected = {
        "head.weight": 1.0,
        "head_norm.bias": 1.0,
        "encoder.norm.weight": 1.0,
        "encoder.blocks.2.mlp.linear1.weight": 0.5,
        "encoder.blocks.1.attn.qkv.bias": 0.25,
        "encoder.blocks.0.norm1.weight": 0.125,
        "encoder.patch_embedding.patch_embeddings.weight": 0.0625,
        "encoder.cls_token": 0.0625,
    }
    assert {name: scale[id(named[name])] for name in expected} == expected


def test_only_matrices_decay_and_every_trainable_parameter_is_in_one_group():
    model = Classifier(SPEC, "norm_linear")
    groups = parameter_groups(model, 0.05)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(decay) == sorted(map(id, trainable.values()))
    assert sum(len(group["params"]) for group in groups) == len(trainable)
    for name, parameter in trainable.items():
        matrix = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.05 if matrix else 0.0), name


def test_batches_hold_every_image_once_and_differ_by_at_most_one_in_size():
    parts = batches(65, 32, seed=1, epoch=0)
    assert sorted(np.concatenate(parts)) == list(range(65))
    assert [len(part) for part in parts] == [22, 22, 21]


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_it():
    model = torch.nn.Linear(1, 1)
    optimiser = adamw(parameter_groups(model, 0.0), (0.9, 0.999))
    steps = iter([model(torch.ones(1, 1)).sum(), torch.tensor(float("nan"), requires_grad=True)])
    with pytest.raises(TrainingError, match=r"nan at step 5 \(epoch 2, batch 2 of 4\)"):
        train_epoch(model, optimiser, Schedule(1e-3, 0, 5), 1, [np.arange(2)] * 4, lambda rows: next(steps))
    assert torch.isfinite(model.weight).all()


def test_gradients_are_clipped_and_mean_loss_is_per_image():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimiser = torch.optim.SGD([{"params": [model.weight], "scale": 0.5}], lr=0)
    losses = {1: 4.0, 3: 8.0}
    loss, rate = train_epoch(
        model, optimiser, Schedule(0.1, 0, 10**9), 0, [np.arange(1), np.arange(3)],
        lambda rows: (1000 * model.weight).sum() - (1000 * model.weight).sum().detach() + losses[len(rows)],
    )  # fmt: skip
    assert loss == pytest.approx((4 + 3 * 8) / 4)
    assert rate == pytest.approx(0.1)
    # Two steps of rate 0.1 and scale 0.5 along a gradient of 1000 clipped to 1.
    assert model.weight.item() == pytest.approx(-2 * 0.05, rel=1e-4)


def test_a_cpu_never_computes_in_half_precision():
    warnings: list[str] = []
    precision = usable_precision("bf16", torch.device("cpu"), warnings.append)
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert warnings == ["precision bf16 was asked for, but this cpu device gets fp32"]
    assert usable_precision("fp32", torch.device("cpu"), pytest.fail) == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(TrainingError, match="finds no GPU"):
        prepare("cuda", None)
    assert prepare("auto", None).type == "cpu"
