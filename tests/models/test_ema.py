"""The running mean of weights: computed by hand, and the same after an interruption."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.ema import RunningAverage

STEPS = (1.0, 4.0, -2.0, 7.0)


def averages(decay: float, steps=STEPS) -> list[float]:
    model = nn.Linear(1, 1)
    average = RunningAverage(model, decay)
    found = []
    for value in steps:
        nn.init.constant_(model.weight, value)
        average.update(model)
        found.append(average.model.weight.item())
    return found


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_each_step_has_the_share_that_its_age_gives_it(decay):
    expected = []
    for count in range(1, len(STEPS) + 1):
        shares = [decay ** (count - i) for i in range(1, count + 1)]
        expected.append(sum(s * w for s, w in zip(shares, STEPS, strict=False)) / sum(shares))
    assert averages(decay) == pytest.approx(expected, rel=1e-6)


def test_a_long_memory_is_the_plain_mean_and_not_held_at_the_start():
    assert averages(1 - 1e-9)[-1] == pytest.approx(sum(STEPS) / 4, rel=1e-5)


def test_weights_that_do_not_change_keep_their_bytes():
    model = nn.Linear(7, 3)
    average = RunningAverage(model, 0.9)
    for _ in range(20):
        average.update(model)
    assert all(torch.equal(average.model.state_dict()[name], value) for name, value in model.state_dict().items())


def test_it_goes_on_where_it_was_interrupted():
    model = nn.Linear(1, 1)
    first = RunningAverage(model, 0.9)
    nn.init.constant_(model.weight, STEPS[0])
    first.update(model)
    second = RunningAverage(nn.Linear(1, 1), 0.9)
    second.load_state_dict(first.state_dict())
    nn.init.constant_(model.weight, STEPS[1])
    second.update(model)
    assert second.model.weight.item() == averages(0.9)[1]
