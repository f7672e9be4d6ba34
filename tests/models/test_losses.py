"""The losses of fine-tuning: published values, what they reduce to, and where the head has to start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.models.losses import Objective, objective, starting_logit

LABELS = np.repeat([0.0, 1.0], [30, 10])


def with_gradient(loss: Objective, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("targets", ["labels", "mixtures"])
@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_plain_loss_and_focal_loss_without_focus_are_the_cross_entropy(kind, targets):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(40, generator=generator)
    wanted = torch.from_numpy(LABELS).float() if targets == "labels" else torch.rand(40, generator=generator)
    # Next to nothing of focus takes the path of the other losses.
    for gamma in (0.0, 1e-9):
        value, gradient = with_gradient(objective(kind, LABELS, gamma, 0.0), logits, wanted)
        assert value == pytest.approx(F.binary_cross_entropy_with_logits(logits, wanted).item(), rel=1e-6)
        assert torch.allclose(gradient, (logits.sigmoid() - wanted) / 40, atol=1e-7)
    assert objective("bce", LABELS, 2.0, 0.0) == objective("focal", LABELS, 0.0, 0.0)


def test_focal_loss_of_a_known_probability():
    """Lin et al. 2017: with gamma 2, an example at p = 0.9 counts 100 times less than in the cross-entropy."""
    logit = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64)
    assert objective("focal", LABELS, 2.0, 0.0)(logit, torch.ones(1)).item() == pytest.approx(-math.log(0.9) / 100)
    assert objective("focal", LABELS, 2.0, 0.0)(-logit, torch.zeros(1)).item() == pytest.approx(-math.log(0.9) / 100)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_certain_logits_has_a_finite_gradient(gamma):
    logits, targets = torch.tensor([-200.0, 200.0, -200.0, 200.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    value, gradient = with_gradient(objective("focal", LABELS, gamma, 0.0), logits, targets)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_weighted_classes_count_alike_and_the_mean_weight_is_one():
    loss = objective("weighted", LABELS, 2.0, 0.0)
    of_class = [n * weight for n, weight in zip((30, 10), loss.weights, strict=True)]
    assert of_class == pytest.approx([20.0, 20.0])
    logits, targets = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])
    expected = (40 / 60 * math.log(1 + math.e) + 40 / 20 * math.log(1 + 1 / math.e)) / 2
    assert loss(logits, targets).item() == pytest.approx(expected)


def test_a_smoothed_label_is_met_before_certainty():
    loss, best = objective("bce", LABELS, 2.0, 0.2), torch.tensor([math.log(0.9 / 0.1)])
    assert with_gradient(loss, best, torch.ones(1))[1].item() == pytest.approx(0, abs=1e-7)
    assert with_gradient(loss, 2 * best, torch.ones(1))[1].item() > 0


@pytest.mark.parametrize(("kind", "share"), [("bce", 0.25), ("weighted", 0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_head_that_starts_at_the_starting_logit_is_pulled_neither_way(kind, share, smoothing):
    logits = torch.full((40,), starting_logit(share, smoothing), dtype=torch.float64)
    _, gradient = with_gradient(objective(kind, LABELS, 2.0, smoothing), logits, torch.from_numpy(LABELS))
    assert gradient.sum().item() == pytest.approx(0, abs=1e-12)
    assert starting_logit(0.25, 0.0) == pytest.approx(math.log(1 / 3))
