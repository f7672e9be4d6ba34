"""Variation between sites: what another site shows lies within the limits, and few sites promise nothing."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.statistics.between_sites import FEWEST, between_sites, uneven
from pipeline.statistics.patients import Patients


def at_sites(found, n):
    """Return patients with the condition, n at each site, of whom so many are found at 0.5; and their sites."""
    s = np.concatenate([np.arange(n) < k for k in found]).astype(float)
    ids = np.arange(len(s)).astype(str)
    return Patients(ids, np.ones(len(s), int), s, len(s), 0, (1,)), np.repeat(np.arange(len(found)), n).astype(str)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_true_recall_of_another_site_lies_within_its_limits(spread):
    """Taking the sites' differences for chance, limits miss every second site when the spread is 1."""
    generator, runs, held, plain = np.random.default_rng(31), 60 if spread else 12, 0, 0
    for _ in range(runs):
        theta = logit(0.95) + spread * generator.normal(size=11)
        found = generator.binomial(60, expit(theta[:10]))
        made = between_sites(*at_sites(found, 60), "recall", 0.5, 10)
        assert made is not None
        assert made.another is not None
        held += made.another[0] <= expit(theta[10]) <= made.another[1]
        common, half = found.mean() / 60, 1.96 * np.sqrt(found.mean() / 60 * (1 - found.mean() / 60) / 600)
        plain += abs(expit(theta[10]) - common) <= half
    assert held / runs >= 0.9
    if spread:
        assert plain / runs < 0.5


def test_limits_widen_with_the_differences_seen_and_narrow_with_sites():
    alike, apart = (between_sites(*at_sites(found, 60), "recall", 0.5, 10) for found in ([57] * 8, [60, 40] * 4))
    many = between_sites(*at_sites([57] * 24, 60), "recall", 0.5, 10)
    width = [one.another[1] - one.another[0] for one in (apart, alike, many)]
    assert width == sorted(width, reverse=True)
    assert apart.spread[1] > 0.5 > alike.spread[0]
    assert apart.chance < 0.001 < 0.05 < alike.chance


def test_few_sites_say_nothing_of_another():
    made = between_sites(*at_sites([57] * (FEWEST - 1), 60), "recall", 0.5, 10)
    assert (made.sites, made.another, made.spread) == (FEWEST - 1, None, None)
    assert (made.lowest, made.highest) == (0.95, 0.95)
    assert between_sites(*at_sites([57], 60), "recall", 0.5, 10) is None
    assert between_sites(*at_sites([57] * 6, 60), "recall", None, 10) is None


def test_sites_with_too_few_patients_are_left_out_and_counted():
    patients, sites = at_sites([9] * 7, 10)
    sites[:5] = "small"
    made = between_sites(patients, sites, "recall", 0.5, 10)
    assert (made.sites, made.left_out) == (6, 2)


def test_perfect_sites_have_a_lower_limit_and_nothing_uneven():
    made = between_sites(*at_sites([40] * 6, 40), "recall", 0.5, 10)
    assert made.chance is None
    assert 0.8 < made.another[0] < 0.98
    assert made.another[1] > 0.99


def test_the_chance_of_uneven_counts_is_pearsons_given_the_totals():
    """Two sites of 10: 9 and 5 found. Fisher's law of the first count given 14 in all, by hand."""
    law = {k: _choose(10, k) * _choose(10, 14 - k) / _choose(20, 14) for k in range(4, 11)}
    expected = sum(p for k, p in law.items() if abs(k - 7) >= 2)
    assert uneven([9, 5], [10, 10]) == pytest.approx(expected, abs=0.02)


def _choose(n, k):
    return float(np.prod(np.arange(n - k + 1, n + 1) / np.arange(1, k + 1)))


def test_the_true_auc_of_another_site_lies_within_its_limits_even_where_some_show_an_auc_of_1():
    generator, runs, held, ones = np.random.default_rng(32), 40, 0, 0
    for _ in range(runs):
        area = expit(logit(0.96) + 0.5 * generator.normal(size=9))
        y = np.tile(np.repeat([1, 0], [30, 30]), 8)
        shift = np.sqrt(2) * norm.ppf(np.repeat(area[:8], 60))
        patients = Patients(np.arange(480).astype(str), y, generator.normal(size=480) + shift * y, 480, 0, (1,))
        made = between_sites(patients, np.repeat(np.arange(8), 60).astype(str), "auc", None, 10)
        assert made.sites == 8
        ones += made.highest == 1
        held += made.another[0] <= area[8] <= made.another[1]
    assert ones
    assert held / runs >= 0.9
