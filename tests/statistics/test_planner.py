"""How many patients it takes: against simulation, and the figures of the review that asked for it."""

import numpy as np
import pytest
from scipy.stats import norm

from pipeline.statistics.planner import (
    best_division,
    chance_of_confirmation,
    confirming_positives,
    divisions,
    equal_sets_for,
    expected_referral,
    ideal_referral,
    misses_at_least,
    subgroup_needs,
)
from pipeline.statistics.threshold import max_misses, min_positives, verify_threshold


@pytest.mark.parametrize(("n", "m", "chance"), [(111, 116, 0.48), (200, 200, 0.50), (500, 500, 0.50), (500, 116, 0.12)])
def test_confirmation_is_a_coin_toss_and_falls_with_the_calibration_set(n, m, chance):
    assert chance_of_confirmation(n, max_misses(n), m) == pytest.approx(chance, abs=0.005)


def test_the_chance_is_that_of_calibrations_and_tests():
    generator, confirmed, runs = np.random.default_rng(4), 0, 1500
    for _ in range(runs):
        threshold = np.sort(generator.normal(size=111))[1]
        confirmed += (
            verify_threshold(np.ones(116, int), generator.normal(size=116), threshold, 0.95, 0.95) == "confirmed"
        )
    assert confirmed / runs == pytest.approx(chance_of_confirmation(111, 1, 116), abs=0.04)


def test_too_few_to_confirm_have_no_chance():
    assert chance_of_confirmation(111, 1, 58) == 0
    assert chance_of_confirmation(111, 1, 0) == 0
    assert chance_of_confirmation(111, 1, 59) > 0


def test_the_law_of_misses_is_a_distribution():
    tail = [misses_at_least(x, 40, 111, 1) for x in range(42)]
    assert tail[0] == 1
    assert (np.diff(tail) <= 0).all()
    assert tail[41] == pytest.approx(0, abs=1e-12)
    assert sum(tail[1:]) == pytest.approx(40 * 2 / 112)


@pytest.mark.parametrize(
    ("n", "for_80", "for_90"), [(111, 260, 624), (200, 530, 1415), (300, 991, 3062), (500, 1701, 5287)]
)
def test_test_patients_for_a_confirmation(n, for_80, for_90):
    asked = n, max_misses(n)
    assert [confirming_positives(chance, *asked) for chance in (0.8, 0.9)] == [for_80, for_90]
    assert chance_of_confirmation(*asked, for_80) >= 0.8 > chance_of_confirmation(*asked, for_80 - 1)


def test_equal_sets_confirm_only_what_was_certified_higher():
    assert [equal_sets_for(0.9, certify) for certify in (0.97, 0.98)] == [153, 153]
    assert equal_sets_for(0.8, 0.98) == 149
    assert equal_sets_for(0.6, 0.95, most=400) is None


@pytest.mark.parametrize(
    ("auc", "referral", "ideal"), [(0.8, 0.751, 0.689), (0.9, 0.531, 0.459), (0.95, 0.347, 0.283), (0.98, 0.185, 0.146)]
)
def test_expected_referral_with_500_positives(auc, referral, ideal):
    """Figures of 2,000 simulated calibrations in the plan of the statistics."""
    assert expected_referral(auc, 500, 16) == pytest.approx(referral, abs=0.002)
    assert ideal_referral(auc) == pytest.approx(ideal, abs=0.0005)


def test_expected_referral_is_the_mean_over_calibrations():
    generator = np.random.default_rng(7)
    distance = norm.ppf(0.95) * np.sqrt(2)
    thresholds = np.sort(generator.normal(size=(4000, 111)) + distance, axis=1)[:, 1]
    referred = 0.05 * norm.sf(thresholds - distance) + 0.95 * norm.sf(thresholds)
    assert expected_referral(0.95, 111, 1) == pytest.approx(referred.mean(), abs=0.006)
    with pytest.raises(ValueError, match="AUC"):
        expected_referral(1.0, 111, 1)


def test_the_division_that_can_confirm_is_preferred_and_among_those_the_one_that_refers_least():
    found = divisions(600, 0.95, certify=0.97)
    best = best_division(found)
    assert best.chance >= 0.8
    assert all(one.referral >= best.referral for one in found if one.chance >= 0.8)
    assert best.calibration_positives + best.test_positives == 600
    # Certified at what is to be confirmed, no division reaches 80 %: the likeliest is given.
    hopeless = divisions(227, 0.95)
    assert best_division(hopeless).chance == max(one.chance for one in hopeless) < 0.8
    assert best_division(divisions(50, 0.95)) is None


def test_groups_share_the_confidence():
    assert subgroup_needs(0.95, 0.95, 1) == 59
    assert subgroup_needs(0.95, 0.95, 5) == min_positives(0.95, 0.99)
