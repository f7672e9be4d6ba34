"""Intervals against published numbers, and by how often they hold."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats.contingency import relative_risk

from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.intervals import Interval, bootstrap, newcombe, proportion_ci, ratio_ci


# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I.
@pytest.mark.parametrize(
    ("k", "n", "wilson", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_proportions_have_newcombes_published_limits(k, n, wilson, exact):
    for method, limits in (("wilson", wilson), ("exact", exact)):
        interval = proportion_ci(k, n, 0.95, method)
        assert (interval.low, interval.high) == pytest.approx(limits, abs=5e-5)
        assert interval.value == k / n


def test_all_or_none_reach_the_boundary_exactly():
    assert proportion_ci(0, 50, method="exact").low == 0
    assert proportion_ci(50, 50, method="exact").high == 1


def test_no_patients_give_nan_and_a_code():
    with collect_warnings() as warned:
        interval = proportion_ci(0, 0)
    assert math.isnan(interval.value)
    assert [w.code for w in warned] == ["empty_denominator"]


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 5)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        proportion_ci(k, n)


# Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10.
@pytest.mark.parametrize(
    ("first", "second", "limits"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((10, 10), (0, 10), (0.6075, 1.0000)),
    ],
)
def test_differences_have_newcombes_published_limits(first, second, limits):
    interval = newcombe(*first, *second)
    assert (interval.low, interval.high) == pytest.approx(limits, abs=5e-5)


def test_a_difference_is_of_both_samples_at_the_level_asked_for():
    found, wider = newcombe(56, 70, 48, 80, 0.8), newcombe(56, 70, 48, 80)
    first, second = proportion_ci(56, 70, 0.8), proportion_ci(48, 80, 0.8)
    assert found.low == pytest.approx(0.2 - math.hypot(0.8 - first.low, second.high - 0.6))
    assert found.high == pytest.approx(0.2 + math.hypot(first.high - 0.8, 0.6 - second.low))
    assert wider.low < found.low
    assert (found.value, found.level, found.method, found.n) == (pytest.approx(0.2), 0.8, "newcombe", 150)


def test_ratio_agrees_with_the_log_method_on_many_patients():
    ours = ratio_ci(4500, 5000, 1500, 5000)
    oracle = relative_risk(4500, 5000, 1500, 5000).confidence_interval(0.95)
    assert ours.value == pytest.approx(3.0)
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), rel=2e-3)


def test_ratio_of_none_still_has_an_upper_limit():
    interval = ratio_ci(0, 60, 55, 100)
    assert interval.value == interval.low == 0
    assert 0 < interval.high < 0.2


def test_a_ratio_over_or_of_no_patients_is_undefined_and_one_patient_is_enough():
    for k1, n1, k2, n2 in ((0, 0, 1, 4), (1, 4, 0, 0)):
        with collect_warnings() as warned:
            found = ratio_ci(k1, n1, k2, n2, 0.9)
        assert [one.code for one in warned] == ["empty_denominator"]
        assert math.isnan(found.value)
        assert math.isnan(found.high)
        assert (found.level, found.method, found.n) == (0.9, "mover_wilson", 4)
    with collect_warnings() as warned:
        assert ratio_ci(1, 1, 1, 1).value == ratio_ci(1, 1, 4, 4).value == 1.0
    assert not list(warned)


def test_ratio_over_none_has_a_lower_limit_only():
    with collect_warnings() as warned:
        interval = ratio_ci(57, 60, 0, 100)
    assert [w.code for w in warned] == ["zero_denominator"]
    assert math.isnan(interval.value)
    assert math.isnan(interval.high)
    assert interval.low > 10


def test_ratio_limits_hold_as_often_as_they_say():
    generator = np.random.default_rng(4)
    held = 0
    for k1, k2 in zip(generator.binomial(80, 0.05, 1000), generator.binomial(120, 0.6, 1000), strict=True):
        interval = ratio_ci(int(k1), 80, int(k2), 120)
        held += interval.low <= 0.05 / 0.6 <= interval.high
    assert 930 <= held <= 990


def test_bootstrap_of_a_mean_is_its_normal_interval():
    generator = np.random.default_rng(0)
    values = generator.normal(10, 2, 400)
    interval = bootstrap(lambda y, s: s.mean(), np.zeros(400), values, stratify=False)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.value == values.mean()
    assert (interval.low, interval.high) == pytest.approx((interval.value - half, interval.value + half), abs=0.03)


def test_bootstrap_keeps_the_number_of_patients_with_the_condition_when_stratified():
    y = np.array([1] * 7 + [0] * 13)
    interval = bootstrap(lambda y, s: y.mean(), y, np.zeros(20), resamples=200)
    assert interval.low == interval.high == 7 / 20


def test_bootstrap_hands_on_the_weights_of_the_patients_drawn():
    y, s, weight = np.tile([0.0, 1.0], 50), np.arange(100.0), np.repeat([1.0, 3.0], 50)

    def mean(y, s, weight):
        return float((weight * s).sum() / weight.sum())

    found = bootstrap(mean, y, s, weight=weight, resamples=50)
    assert found.value == pytest.approx(np.average(s, weights=weight))
    assert found.low < found.value < found.high
    assert (found.method, found.n) == ("patient_bootstrap", 100)


def test_bootstrap_draws_patients_by_whether_any_of_their_images_is_positive():
    patient = np.repeat(np.arange(30), 2)
    y = np.where(patient < 10, np.tile([0.0, 1.0], 30), 0.0)  # ten patients, one of two images each
    found = bootstrap(lambda y, s: float(y.sum()), y, y, patient, resamples=30)
    assert (found.low, found.value, found.high, found.n) == (10, 10, 10, 30)


def test_bootstrap_takes_all_images_of_a_drawn_patient():
    patients = np.repeat(np.arange(40), 5)
    sizes = bootstrap(lambda y, s: len(y) / 5, np.zeros(200), np.zeros(200), patients, resamples=100)
    assert sizes.low == sizes.high == 40 == sizes.n
    values = np.repeat(np.random.default_rng(1).normal(size=40), 5)
    clustered = bootstrap(lambda y, s: s.mean(), np.zeros(200), values, patients)
    as_if_independent = bootstrap(lambda y, s: s.mean(), np.zeros(200), values)
    assert clustered.high - clustered.low > 1.8 * (as_if_independent.high - as_if_independent.low)


def test_bootstrap_counts_the_resamples_it_could_not_use():
    y = np.array([1, 0, 0, 0, 0, 0])
    with collect_warnings() as warned:
        bootstrap(lambda y, s: 1.0 if y.any() else math.nan, y, np.zeros(6), stratify=False, resamples=300)
    assert [w.code for w in warned] == ["bootstrap_undefined"]
    assert 60 < int(str(warned[0]).split(" in ")[1].split(" of ")[0]) < 150


def test_bootstrap_is_a_pure_function_of_its_seed():
    y, s = np.tile([0, 1], 30), np.arange(60.0)
    one, same, other = (bootstrap(lambda y, s: s.mean(), y, s, seed=k) for k in (1, 1, 2))
    assert one == same != other


def test_an_interval_becomes_json():
    content = Interval(0.5, 0.4, 0.6, 0.95, "wilson", 100).to_dict()
    assert content == {"value": 0.5, "low": 0.4, "high": 0.6, "level": 0.95, "method": "wilson", "n": 100}


@pytest.mark.parametrize("method", ["wilson", "exact"])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (2, 7), (0, 30), (30, 30), (37, 111), (4999, 5000)])
def test_limits_of_a_proportion_are_scipys(k, n, method):
    for level in (0.9, 0.95, 0.99):
        limits = binomtest(k, n).proportion_ci(level, method)
        found = proportion_ci(k, n, level, method)
        assert (found.low, found.high) == pytest.approx((limits.low, limits.high), abs=1e-11)
