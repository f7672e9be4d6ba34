"""The smooth calibration curve: its definition, what it shows, and that its band covers."""

import numpy as np
import pytest
from scipy.special import expit, logit

from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.local_regression import calibration_curve, calibration_curves


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and the probabilities that they were drawn with."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(-0.5, 1.5, n))
    return (rng.random(n) < p).astype(int), p


def test_a_place_has_the_value_of_the_weighted_line_through_its_nearest_patients():
    y, p = drawn(200, 1)
    curve = calibration_curve(y, p, resamples=20)
    assert curve.predicted[[0, -1]] == pytest.approx([p.min(), p.max()])
    for at in (0, 17, 40):
        distance = np.abs(p - curve.predicted[at])
        weight = np.clip(1 - (distance / np.sort(distance)[150 - 1]) ** 3, 0, None) ** 3
        line = np.polyfit(p - curve.predicted[at], y, 1, w=np.sqrt(weight))
        assert curve.observed[at] == pytest.approx(np.clip(line[1], 0, 1), abs=1e-4)
    assert curve.with_condition.sum() == y.sum()
    assert curve.without.sum() == (1 - y).sum()


def test_probabilities_that_are_too_extreme_are_seen_beyond_their_band():
    y, p = drawn(1500, 2)
    curve = calibration_curve(y, expit(2 * logit(p)))
    high, low = curve.predicted > 0.8, curve.predicted < 0.2
    assert (curve.high[high][:-3] < curve.predicted[high][:-3]).all()
    assert (curve.low[low][3:] > curve.predicted[low][3:]).all()


def test_the_band_covers_perfect_probabilities_about_as_often_as_it_says():
    """Pointwise, away from the ends; a straight line is fitted to what is one, so that there is no bias to cover."""
    inside = []
    for seed in range(120):
        y, p = drawn(400, seed)
        curve = calibration_curve(y, p, resamples=200, seed=seed)
        middle = (curve.predicted > 0.15) & (curve.predicted < 0.85)
        inside.append(((curve.low <= curve.predicted) & (curve.predicted <= curve.high))[middle].mean())
    assert 0.91 <= np.mean(inside) <= 0.98


def test_too_few_patients_or_one_probability_have_no_curve():
    y = np.repeat([0, 1], [30, 9])
    with pytest.raises(NotEnoughData, match="there are 9 and 30") as refused:
        calibration_curve(y, np.linspace(0, 1, 39))
    assert (refused.value.positives, refused.value.needed) == (9, 10)
    with pytest.raises(NotEnoughData, match="more than one probability"):
        calibration_curve(np.repeat([0, 1], 30), np.full(60, 0.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration_curve(np.repeat([0, 1], 30), np.linspace(0, 1.5, 60))
    assert calibration_curves(y, np.linspace(0, 1, 39), np.full(39, 0.2), 0.95, 1) is None
    (only,) = set(calibration_curves(*drawn(100, 3), np.full(100, 0.4), 0.95, 1)["calibrated"])
    assert only == "before"


def test_ties_and_clumps_at_the_ends_give_shares_between_zero_and_one():
    p = np.repeat([0.0, 0.01, 1.0], [60, 20, 40])
    y = np.concatenate([np.zeros(70, int), np.ones(50, int)])
    curve = calibration_curve(y, p, resamples=50)
    for part in (curve.observed, curve.low, curve.high):
        assert np.isfinite(part).all()
        assert ((part >= 0) & (part <= 1)).all()
