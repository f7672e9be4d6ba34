"""DeLong against its definition and published areas; average precision against scikit-learn."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.statistics.discrimination import (
    _average_precision,
    average_precision,
    newcombe_auc,
    placements,
    roc_auc,
)
from pipeline.statistics.errors import collect_warnings


def brute_force(y, s):
    """DeLong, DeLong & Clarke-Pearson (1988) as written: every positive against every negative."""
    pos, neg = s[y == 1], s[y == 0]
    psi = (pos[:, None] > neg[None, :]) + 0.5 * (pos[:, None] == neg[None, :])
    v10, v01 = psi.mean(axis=1), psi.mean(axis=0)
    return psi.mean(), v10.var(ddof=1) / len(pos) + v01.var(ddof=1) / len(neg)


def binormal(generator, n1, n0, auc):
    y = np.repeat([1, 0], [n1, n0])
    return y, generator.normal(size=n1 + n0) + y * norm.ppf(auc) * math.sqrt(2)


@pytest.mark.parametrize("levels", [3, 8, 1000])
@pytest.mark.parametrize(("n1", "n0"), [(2, 2), (7, 31), (60, 41)])
def test_delong_is_its_definition_with_and_without_ties(n1, n0, levels):
    generator = np.random.default_rng(n1 * levels)
    y, s = binormal(generator, n1, n0, 0.7)
    s = np.round(s * levels / 6)
    area, variance = brute_force(y, s)
    v10, v01 = placements(y, s)
    assert v10.mean() == pytest.approx(area, abs=1e-12)
    assert v01.mean() == pytest.approx(area, abs=1e-12)
    assert v10.var(ddof=1) / n1 + v01.var(ddof=1) / n0 == pytest.approx(variance, abs=1e-14)
    if 0 < area < 1:
        interval = roc_auc(y, s, ci="delong")
        assert interval.high - interval.low == pytest.approx(2 * norm.ppf(0.975) * math.sqrt(variance), abs=1e-12)


def test_area_of_hanley_and_mcneils_ct_readings():
    """Radiology 143 (1982) 29-36, table I: 58 normal, 51 abnormal, five ratings; area 0.893, SE 0.032 by theirs."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    y = np.repeat([0, 1], [58, 51])
    s = np.concatenate([np.repeat(range(5), normal), np.repeat(range(5), abnormal)])
    interval = roc_auc(y, s, ci="delong")
    assert interval.value == pytest.approx(0.893, abs=5e-4)
    assert (interval.high - interval.low) / 2 / norm.ppf(0.975) == pytest.approx(0.032, abs=2e-3)


def test_the_logit_interval_stays_below_1_and_covers_where_the_plain_one_fails():
    """50 positives, 200 negatives, AUC 0.95; at 0.99 with 20 and 100 the plain one covers three times in four."""
    generator = np.random.default_rng(11)
    covered = {"delong_logit": 0, "delong": 0}
    for _ in range(600):
        y, s = binormal(generator, 20, 100, 0.95)
        for ci in covered:
            interval = roc_auc(y, s, ci=ci) if roc_auc_score(y, s) < 1 else None
            covered[ci] += interval is not None and interval.low <= 0.95 <= interval.high
            assert interval is None or ci == "delong" or interval.high < 1
    assert covered["delong_logit"] > 540
    assert covered["delong"] < 530


def test_order_of_rows_and_monotone_transforms_change_nothing():
    generator = np.random.default_rng(2)
    y, s = binormal(generator, 30, 50, 0.8)
    order = generator.permutation(80)
    expected = roc_auc(y, s)
    shuffled, cubed = roc_auc(y[order], s[order]), roc_auc(y, s**3 * 7 - 2)
    for other in (shuffled, cubed):
        assert (other.value, other.low) == pytest.approx((expected.value, expected.low), abs=1e-12)


def test_several_images_of_a_patient_are_not_independent():
    y = np.tile([0, 1], 20)
    s = np.random.default_rng(0).normal(size=40)
    patients = np.repeat(np.arange(20), 2)
    with pytest.raises(ValueError, match="aggregate"):
        roc_auc(y, s, patient_id=patients)
    assert roc_auc(y, s, ci="bootstrap", patient_id=patients).n == 20


def test_weights_are_for_the_bootstrap_alone_and_give_the_weighted_area():
    generator = np.random.default_rng(8)
    y, s = binormal(generator, 25, 25, 0.8)
    weight = generator.uniform(0.5, 2, 50)
    with pytest.raises(ValueError, match="weights"):
        roc_auc(y, s, weight=weight)
    interval = roc_auc(y, s, ci="bootstrap", weight=weight)
    assert interval.value == pytest.approx(roc_auc_score(y, s, sample_weight=weight))
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("levels", [4, 1000])
def test_average_precision_is_scikit_learns(levels):
    generator = np.random.default_rng(levels)
    y, s = binormal(generator, 20, 60, 0.75)
    s = np.round(s * levels / 6)
    expected = average_precision_score(y, s)
    assert _average_precision(y, s) == pytest.approx(expected, abs=1e-12)
    interval = average_precision(y, s, resamples=300)
    assert interval.value == expected
    assert interval.low < expected < interval.high


def test_average_precision_of_positives_alone_is_undefined_and_not_1():
    assert average_precision_score([1, 1], [0.2, 0.9]) == 1.0
    with collect_warnings() as warned:
        assert math.isnan(average_precision([1, 1], [0.2, 0.9]).value)
    assert [w.code for w in warned] == ["single_class"]


@pytest.mark.parametrize(("n1", "n0", "low"), [(42, 19, 0.923), (20, 20, 0.899), (50, 50, 0.960), (100, 66, 0.975)])
def test_newcombes_fifth_method_at_an_auc_of_1(n1, n0, low):
    interval = newcombe_auc(1.0, n1, n0)
    assert round(interval.low, 3) == low
    assert interval.high == 1
    # The limit solves the quadratic form of the method as it is published: N = (m + n)/2.
    t, n = interval.low, (n1 + n0) / 2
    variance = t * (1 - t) / (n1 * n0) * (2 * n - 1 - (3 * n - 3) / ((2 - t) * (1 + t)))
    assert (1 - t) == pytest.approx(norm.ppf(0.975) * math.sqrt(variance), abs=1e-9)
    mirrored = newcombe_auc(0.0, n0, n1)
    assert (mirrored.low, mirrored.high) == (0, pytest.approx(1 - interval.low))


def test_where_the_auc_seen_is_1_the_truth_is_still_covered():
    """Without an interval there, a fifth of these samples told nothing about the lower limit."""
    generator, held, ones, runs, auc = np.random.default_rng(9), 0, 0, 400, 0.99
    for _ in range(runs):
        with collect_warnings():
            interval = roc_auc(*binormal(generator, 20, 20, auc))
        held += interval.low <= auc <= interval.high
        ones += interval.value == 1
    assert ones > 0.2 * runs
    assert held / runs >= 0.94
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        newcombe_auc(0.99, 20, 20)
