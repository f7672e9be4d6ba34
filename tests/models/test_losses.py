"""The losses of fine-tuning: published values, what they reduce to, and where the head has to start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.models import losses
from pipeline.models.losses import LossKind, Objective, mean_targets, starting_logit

LABELS = np.repeat([0.0, 1.0], [30, 10])[:, None]


def objective(kind: LossKind, targets: np.ndarray, gamma: float, smoothing: float) -> Objective:
    return losses.objective(kind, targets, gamma, smoothing, torch.device("cpu"))


def with_gradient(loss: Objective, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("targets", ["labels", "mixtures"])
@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_plain_loss_and_focal_loss_without_focus_are_the_cross_entropy(kind, targets):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(40, 1, generator=generator)
    wanted = torch.from_numpy(LABELS).float() if targets == "labels" else torch.rand(40, 1, generator=generator)
    # Next to nothing of focus takes the path of the other losses.
    for gamma in (0.0, 1e-9):
        value, gradient = with_gradient(objective(kind, LABELS, gamma, 0.0), logits, wanted)
        assert value == pytest.approx(F.binary_cross_entropy_with_logits(logits, wanted).item(), rel=1e-6)
        assert torch.allclose(gradient, (logits.sigmoid() - wanted) / 40, atol=1e-7)
    assert objective("bce", LABELS, 2.0, 0.0) == objective("focal", LABELS, 0.0, 0.0)


def test_focal_loss_of_a_known_probability():
    """Lin et al. 2017: with gamma 2, an example at p = 0.9 counts 100 times less than in the cross-entropy."""
    logit = torch.tensor([[math.log(0.9 / 0.1)]], dtype=torch.float64)
    assert objective("focal", LABELS, 2.0, 0.0)(logit, torch.ones(1, 1)).item() == pytest.approx(-math.log(0.9) / 100)
    assert objective("focal", LABELS, 2.0, 0.0)(-logit, torch.zeros(1, 1)).item() == pytest.approx(-math.log(0.9) / 100)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_certain_logits_has_a_finite_gradient(gamma):
    logits, targets = torch.tensor([[-200.0], [200.0], [-200.0], [200.0]]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    value, gradient = with_gradient(objective("focal", LABELS, gamma, 0.0), logits, targets)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_weighted_classes_count_alike_and_the_mean_weight_is_one():
    loss = objective("weighted", LABELS, 2.0, 0.0)
    assert loss.weights is not None
    assert (loss.weights * torch.tensor([[30.0], [10.0]])).tolist() == [[pytest.approx(20.0)]] * 2
    logits, targets = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    expected = (40 / 60 * math.log(1 + math.e) + 40 / 20 * math.log(1 + 1 / math.e)) / 2
    assert loss(logits, targets).item() == pytest.approx(expected)


def test_a_smoothed_label_is_met_before_certainty():
    loss, best = objective("bce", LABELS, 2.0, 0.2), torch.tensor([[math.log(0.9 / 0.1)]])
    assert with_gradient(loss, best, torch.ones(1, 1))[1].item() == pytest.approx(0, abs=1e-7)
    assert with_gradient(loss, 2 * best, torch.ones(1, 1))[1].item() > 0


@pytest.mark.parametrize(("kind", "share"), [("bce", 0.25), ("weighted", 0.5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_head_that_starts_at_the_starting_logit_is_pulled_neither_way(kind, share, smoothing):
    logits = torch.full((40, 1), starting_logit(share, smoothing), dtype=torch.float64)
    _, gradient = with_gradient(objective(kind, LABELS, 2.0, smoothing), logits, torch.from_numpy(LABELS))
    assert gradient.sum().item() == pytest.approx(0, abs=1e-12)
    assert starting_logit(0.25, 0.0) == pytest.approx(math.log(1 / 3))


@pytest.mark.parametrize("kind", ["bce", "weighted", "focal"])
def test_the_loss_of_several_labels_is_the_mean_of_those_of_each(kind):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (40, 3), generator=generator).double()
    logits = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    together = objective(kind, targets.numpy(), 2.0, 0.1)(logits, targets)
    alone = [
        objective(kind, targets[:, [k]].numpy(), 2.0, 0.1)(logits[:, [k]], targets[:, [k]]).item() for k in range(3)
    ]
    assert together.item() == pytest.approx(np.mean(alone), rel=1e-6)


@pytest.mark.parametrize("kind", ["bce", "weighted", "focal"])
def test_a_missing_label_adds_nothing_and_leaves_the_others_their_weight(kind):
    targets = torch.tensor([[0.0, 1.0], [1.0, math.nan], [1.0, 0.0]])
    logits = torch.tensor([[0.3, -0.7], [1.1, 90.0], [-0.2, 0.4]])
    loss = objective(kind, targets.numpy(), 2.0, 0.1)
    value, gradient = with_gradient(loss, logits, targets)
    assert gradient[1, 1] == 0
    others = targets.clone()
    others[1, 1] = 1.0
    whole, of_whole = with_gradient(loss, logits, others)
    assert value.isfinite()
    assert value <= whole
    assert torch.equal(gradient[targets.isfinite()], of_whole[targets.isfinite()])


def test_one_label_gives_the_bytes_of_the_plain_cross_entropy():
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(37, generator=generator), torch.randint(0, 2, (37,), generator=generator).float()
    value, gradient = with_gradient(
        objective("bce", targets[:, None].numpy(), 2.0, 0.0), logits[:, None], targets[:, None]
    )
    logits.requires_grad_()
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    expected.backward()
    assert torch.equal(value, expected.detach())
    assert torch.equal(gradient[:, 0], logits.grad)


def test_mean_targets_are_those_of_the_images_drawn():
    targets = np.array([[1, 1], [1, 0], [0, 1], [0, 1], [0, 1], [0, np.nan]])
    assert mean_targets(targets, balanced=False).tolist() == pytest.approx([2 / 6, 4 / 5])
    # Three of either class of the first: 1.5 with the second among the positives, 2.25 of 2.25 known among the others.
    assert mean_targets(targets, balanced=True).tolist() == pytest.approx([0.5, (1.5 + 2.25) / (3 + 2.25)])
