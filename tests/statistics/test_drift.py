"""Drift without labels: the urn is exact, bets are fair, a change is seen soon whenever it comes."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.drift import (
    band_bets,
    first_look,
    likeliest_start,
    p_value_bins,
    p_value_gaps,
    rate_bets,
    restarting,
    since,
    urn_bets,
)
from pipeline.statistics.score_bins import LEAST_GAPS, score_bins
from pipeline.statistics.sequential import log_e_band, log_e_value


def of_normals(generator: np.random.Generator, patients: int, weekly: int, shifts: np.ndarray) -> np.ndarray:
    """Return weekly counts (T, K) of conformal p-values of normal values, shifted by so much in each week."""
    calibration = np.sort(generator.normal(size=patients))
    new = generator.normal(size=(len(shifts), weekly)) + shifts[:, None]
    p_values = (1 + patients - np.searchsorted(calibration, new)) / (patients + 1)
    bins = p_value_bins(p_values.ravel(), patients).reshape(p_values.shape)
    return np.stack([(bins == k).sum(axis=1) for k in range(len(p_value_gaps(patients)))], axis=1)


def test_new_values_fall_into_bins_as_an_urn_says_whatever_their_distribution():
    generator, pairs = np.random.default_rng(0), np.zeros((2, 2))
    for _ in range(20_000):
        drawn = generator.exponential(size=6)
        edge = np.sort(drawn[:4])[1]  # two of five gaps below
        pairs[tuple((drawn[4:] > edge).astype(int))] += 1
    urn = {(0, 0): 2 * 3, (0, 1): 2 * 3, (1, 0): 3 * 2, (1, 1): 3 * 4}
    for which, weight in urn.items():
        assert pairs[which] / 20_000 == pytest.approx(weight / 30, abs=0.012)


def test_every_bet_is_fair():
    gaps = np.array([1, 3, 4])
    mean = 0.0
    for sequence in product(range(3), repeat=3):
        counts = np.array([[k == drawn for k in range(3)] for drawn in sequence], int)
        seen, probability = np.zeros(3), 1.0
        for drawn in sequence:
            probability *= (gaps[drawn] + seen[drawn]) / (gaps.sum() + seen.sum())
            seen[drawn] += 1
        mean += probability * np.exp(restarting(urn_bets(counts, gaps))[-1])
    assert mean == pytest.approx(1.0)


def test_bets_on_rates_are_those_of_sequential_from_every_look_on():
    ones, n = np.array([1, 0, 4]), np.array([9, 5, 20])
    assert np.exp(rate_bets(ones, n, 0.05)[0, 2]) == pytest.approx(np.exp(log_e_value(5, 34, 0.05)))
    assert np.exp(rate_bets(ones, n, 0.05)[1, 2]) == pytest.approx(np.exp(log_e_value(4, 25, 0.05)))
    assert band_bets(ones, n, 0.1, 0.3)[0, 1] == pytest.approx(log_e_band(1, 14, 0.1, 0.3))
    assert since(ones)[1].tolist() == [0, 0, 4]


def test_what_is_not_bet_yet_is_worth_what_it_was():
    assert restarting(np.zeros((7, 7))) == pytest.approx(np.zeros(7))


def test_drift_raises_few_false_alarms_in_two_years_and_finds_a_change_in_the_second():
    generator, weeks = np.random.default_rng(1), 104
    gaps, alarms, late = p_value_gaps(80), 0, []
    for _ in range(120):
        alarms += first_look(restarting(urn_bets(of_normals(generator, 80, 20, np.zeros(weeks)), gaps)), 20) is not None
    for _ in range(20):
        bets = urn_bets(of_normals(generator, 80, 50, np.repeat([0.0, 1.0], weeks // 2)), gaps)
        found = first_look(restarting(bets), 20)
        assert found is not None
        late.append(found - weeks // 2 + 1)
        assert abs(likeliest_start(bets, found) - weeks // 2) <= 2
    assert alarms / 120 <= 0.05
    assert 1 <= np.median(late) <= 3


def test_a_small_calibration_set_never_condemns_for_what_it_could_not_have_shown():
    counts = np.tile([30, 30], (500, 1))
    assert restarting(urn_bets(counts, np.array([2, 3]))).max() < np.log(20)
    assert restarting(urn_bets(counts, np.array([800, 1200]))).max() > np.log(20)


@given(st.integers(1, 3000))
def test_bins_of_p_values_hold_every_rank_once(patients):
    gaps = p_value_gaps(patients)
    assert gaps.sum() == patients + 1
    assert (gaps > 0).all()
    bins = p_value_bins(np.arange(1, patients + 2) / (patients + 1), patients)
    assert np.bincount(bins).tolist() == gaps.tolist()


@given(st.integers(0, 400), st.integers(0, 9))
def test_bins_of_scores_are_about_several_patients_each(n, seed):
    scores = np.random.default_rng(seed).normal(size=n)
    edges, gaps = score_bins(scores)
    assert len(gaps) == len(edges) + 1
    assert gaps.sum() == n + 1
    assert len(gaps) == 1 or gaps.min() >= LEAST_GAPS
    assert (np.diff(edges) > 0).all()


def test_equal_scores_share_a_bin():
    edges, gaps = score_bins(np.r_[np.zeros(30), np.ones(10)])
    assert edges.tolist() == [0.0, 1.0]
    assert gaps.sum() == 41
