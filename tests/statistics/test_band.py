"""Limits of recall that hold at every threshold at once: exact law, published prices, and what pointwise ones do."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from pipeline.statistics.band import (
    joint_confidence,
    joint_probability,
    local_level,
    recall_band,
)
from pipeline.statistics.sweep import threshold_sweep
from pipeline.statistics.threshold import max_misses


def test_one_limit_alone_is_a_beta_tail():
    for k in (1, 4, 12):
        limits = np.r_[np.full(k - 1, 0.07), 0.07]
        # Those below the k-th lie under the same limit whenever it does.
        assert joint_probability(60, limits) == pytest.approx(beta.cdf(0.07, k, 61 - k))
    assert joint_probability(60, limits) == pytest.approx(binom.sf(11, 60, 0.07))


def test_the_joint_law_is_that_of_sorted_uniforms():
    limits = np.array([0.03, 0.05, 0.05, 0.11, 0.2])
    drawn = np.sort(np.random.default_rng(3).random((100_000, 40)), axis=1)[:, :5]
    assert joint_probability(40, limits) == pytest.approx((drawn <= limits).all(axis=1).mean(), abs=0.005)


@pytest.mark.parametrize("limits", [[0.2, 0.1], [0.1, 1.2], [0.1] * 4])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ValueError, match="non-decreasing"):
        joint_probability(3, np.array(limits))


def test_a_band_takes_a_positive_and_shares_inside_0_and_1():
    assert recall_band(1, 0.9) == pytest.approx([0.1])
    for wrong in ((0, 0.9, 0.1), (9, 0.0, 0.1), (9, 1.0, 0.1), (9, 0.9, 0.0), (9, 0.9, 1.0)):
        said = f"not {wrong[0]} patients, confidence {wrong[1]:g}, missed share {wrong[2]:g}"
        with pytest.raises(ValueError, match=said):
            recall_band(*wrong)


@pytest.mark.parametrize(
    ("n", "misses", "at_todays"), [(111, 0, 0.943), (200, 3, 0.943), (500, 13, 0.943), (1000, 32, 0.943)]
)
def test_the_price_of_a_band(n, misses, at_todays):
    band = recall_band(n, 0.95)
    assert (band >= 0.95).sum() - 1 == misses
    assert band[max_misses(n)] == pytest.approx(at_todays, abs=0.001)
    assert (np.diff(band) < 0).all()


def test_59_positives_have_no_row_at_95_percent():
    assert recall_band(59, 0.95)[0] == pytest.approx(0.933, abs=0.001)


def test_the_whole_band_holds_as_often_as_it_says_and_pointwise_limits_do_not():
    generator, n, runs = np.random.default_rng(11), 111, 2000
    missed = np.sort(generator.random((runs, n)), axis=1)
    k = np.arange(28)
    for share in (0.1, 0.25):
        band = recall_band(n, 0.95, share)
        held = (1 - missed[:, : len(band)] >= band).all(axis=1).mean()
        assert 0.94 <= held <= 0.96
    pointwise = beta.ppf(0.05, n - k, k + 1)
    assert (1 - missed[:, :28] >= pointwise).all(axis=1).mean() < 0.85


def test_the_sweep_has_the_band_beside_the_pointwise_limit():
    y = np.repeat([1, 0], [200, 100])
    s = np.random.default_rng(0).normal(size=300) + 2 * y
    sweep = threshold_sweep(y, s, confidence=0.95)
    low = sweep["false_negative"] <= 20
    assert (sweep.loc[low, "band_recall"] < sweep.loc[low, "certified_recall"]).all()
    assert sweep.loc[~low, "band_recall"].isna().all()
    assert list(sweep.columns)[-1] == "band_recall"


def test_how_probably_several_targets_hold_at_once_is_exact():
    targets = [0.95, 0.9]
    misses = [max_misses(200, target) for target in targets]
    assert joint_confidence(200, misses, targets) == pytest.approx(0.9506, abs=5e-4)
    # With 300, less than is asked of each alone, and more than Bonferroni says.
    assert joint_confidence(300, [max_misses(300, t) for t in targets], targets) == pytest.approx(0.9336, abs=5e-4)


def test_levels_are_never_below_bonferronis():
    assert local_level(111, 12, 0.95) > 0.05 / 12
