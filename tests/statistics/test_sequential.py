"""Alarms that may be looked at after every patient: false ones for life, delays, limits at all times."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from pipeline.statistics.sequential import (
    _prior,
    alarm_counts,
    alarm_probability,
    band_alarm_probability,
    confidence_sequence,
    log_e_band,
    log_e_value,
    outcomes_to_notice,
    people_to_notice,
    watching,
)


def test_the_bet_is_the_mean_of_likelihood_ratios():
    k, n, q = 4, 30, 0.05
    a, b = _prior(q)

    def ratio(r):
        return (r / q) ** k * ((1 - r) / (1 - q)) ** (n - k) * beta.pdf(r, a, b)

    assert np.exp(log_e_value(k, n, q)) == pytest.approx(quad(ratio, q, 1)[0] / beta.sf(q, a, b))


def test_one_more_outcome_is_a_fair_bet_at_the_limit():
    for k, n in ((0, 0), (2, 17), (9, 60)):
        now = np.exp(log_e_value(k, n, 0.05))
        after = 0.05 * np.exp(log_e_value(k + 1, n + 1, 0.05)) + 0.95 * np.exp(log_e_value(k, n + 1, 0.05))
        assert after == pytest.approx(now)


def test_false_alarms_stay_below_5_in_100_for_life_though_one_looks_daily():
    counts = alarm_counts(4000, 0.05)
    assert alarm_probability(counts, 0.05)[-1] < 0.05
    assert alarm_probability(counts, 0.02)[-1] < 0.002
    # A bound for one look, taken daily, cries wolf in every second life.
    daily = np.array([int(np.ceil(0.05 * n + 1.645 * np.sqrt(0.0475 * n) + 1)) for n in range(1, 4001)])
    assert alarm_probability(daily, 0.05)[-1] > 0.2


def test_the_exact_law_of_the_alarm_is_that_of_simulated_lives():
    counts = alarm_counts(300, 0.05)
    misses = np.random.default_rng(1).random((4000, 300)) < 0.1
    raised = (misses.cumsum(axis=1) >= counts).any(axis=1).mean()
    assert alarm_probability(counts, 0.1)[-1] == pytest.approx(raised, abs=0.025)


def test_a_fall_is_noticed_after_so_many_audited_positives():
    assert [outcomes_to_notice(rate, 0.05) for rate in (0.1, 0.15, 0.2)] == [153, 42, 22]
    assert outcomes_to_notice(0.055, 0.05, longest=500) is None


def test_referral_within_its_band_stays_silent_and_outside_is_noticed():
    for rate in (0.32, 0.43, 0.54):
        assert band_alarm_probability(rate, 0.32, 0.54, longest=1200)[-1] < 0.05
    assert [people_to_notice(rate, 0.32, 0.54) for rate in (0.65, 0.75, 0.25)] == [165, 40, 354]
    assert log_e_band(90, 100, 0.32, 0.54) > np.log(20)
    with pytest.raises(ValueError, match="0 < low < high < 1"):
        log_e_band(1, 2, 0.5, 0.5)


def test_limits_hold_at_all_times_together():
    generator, runs, left = np.random.default_rng(6), 300, 0
    times = np.unique(np.geomspace(5, 2000, 40).astype(int))
    for _ in range(runs):
        ones = np.cumsum(generator.random(2000) < 0.07)
        limits = [confidence_sequence(int(ones[n - 1]), int(n)) for n in times]
        left += any(not low <= 0.07 <= high for low, high in limits)
    assert left / runs <= 0.05


@pytest.mark.parametrize("band", [(0.41, 0.66), (0.01, 0.02), (0.05, 0.12), (0.9, 0.97), (0.3, 0.99), (0.004, 0.006)])
def test_the_changes_told_of_lie_outside_the_band_and_apart(band):
    """Two that round to much the same, as 82.5 and 83 % of a band from 41 to 66 %, would be one twice."""
    low, high = band
    shares = sorted(float(share) for share in watching(0.9, band).people_to_notice)
    assert shares
    assert all(0 < share < low or high < share < 1 for share in shares)
    beyond = [share for share in shares if share > high]
    assert all(second - first > 0.04 for first, second in pairwise(beyond))


def test_what_is_stated_beforehand():
    said = watching(0.95, (0.32, 0.54))
    assert said.audited_positives_to_notice == {"0.9": 153, "0.85": 42, "0.8": 22}
    assert said.audits_to_bound_missed == {"0.005": 598, "0.01": 299, "0.02": 149}
    assert set(said.people_to_notice) == {"0.16", "0.68", "0.77"}
    assert watching(0.95, None).referral_band is None
    with pytest.raises(ValueError, match="0 <= ones <= n"):
        log_e_value(3, 2, 0.05)
