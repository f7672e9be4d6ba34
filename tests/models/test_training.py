"""Schedule, parameter groups, batches, precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models.classifier import Classifier
from pipeline.models.training import (
    Schedule,
    TrainingError,
    autocast,
    batches,
    parameter_groups,
    prepare,
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


@pytest.mark.parametrize(
    ("max_steps", "epochs", "warm_up"), [(None, 10, 4.0), (70, 10, 4.0), (35, 5.0, 2.0), (3, 3 / 7, 6 / 35)]
)
def test_a_budget_of_steps_shortens_the_schedule_and_still_ends_at_zero(max_steps, epochs, warm_up):
    schedule = Schedule(2.0, 4.0, 10).within(max_steps, 7)
    assert (schedule.epochs, schedule.warmup_epochs) == (pytest.approx(epochs), pytest.approx(warm_up))
    steps = [schedule.steps_in(epoch, 7) for epoch in range(schedule.begun_epochs)]
    assert sum(steps) == min(max_steps or 70, 70)
    assert schedule.rate(sum(steps) / 7) == pytest.approx(0, abs=1e-12)


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
