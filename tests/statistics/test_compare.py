"""Two models on the same patients."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from pipeline.statistics.compare import delong_covariance, delong_test
from pipeline.statistics.errors import collect_warnings


def brute_force_covariance(y, *scores):
    structural = []
    for s in scores:
        pos, neg = s[y == 1], s[y == 0]
        psi = (pos[:, None] > neg[None, :]) + 0.5 * (pos[:, None] == neg[None, :])
        structural.append((psi.mean(axis=1), psi.mean(axis=0)))
    v10, v01 = zip(*structural, strict=True)
    return np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


@pytest.fixture
def patients():
    generator = np.random.default_rng(21)
    y = np.repeat([1, 0], [40, 70])
    shared = generator.normal(size=110)
    good = shared + 1.6 * y + 0.5 * generator.normal(size=110)
    poor = np.round(2 * (shared + 0.8 * y + 0.5 * generator.normal(size=110)))
    return y, good, poor


def test_covariance_is_its_definition_with_ties(patients):
    y, good, poor = patients
    assert delong_covariance(y, good, poor) == pytest.approx(brute_force_covariance(y, good, poor), abs=1e-14)


def test_difference_z_and_p_follow_from_it(patients):
    y, good, poor = patients
    result = delong_test(y, good, poor)
    covariance = brute_force_covariance(y, good, poor)
    se = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert result.z == pytest.approx(result.diff / se)
    assert result.p == pytest.approx(2 * norm.sf(abs(result.z)))
    assert (result.low, result.high) == pytest.approx((result.diff - 1.959964 * se, result.diff + 1.959964 * se))
    assert result.low > 0


def test_swapping_the_models_changes_the_sign_alone(patients):
    y, good, poor = patients
    one, other = delong_test(y, good, poor), delong_test(y, poor, good)
    assert (other.diff, other.low, other.z, other.p) == pytest.approx((-one.diff, -one.high, -one.z, one.p))


def test_identical_ranks_differ_by_nothing_for_sure(patients):
    y, good, _ = patients
    assert delong_test(y, good, np.exp(good)) == delong_test(y, good, good)
    assert delong_test(y, good, good).to_dict() == {"diff": 0, "low": 0, "high": 0, "z": 0, "p": 1}


@pytest.mark.parametrize(
    ("y", "s1", "s2", "code"),
    [
        ([1, 1, 1], [1, 2, 3], [3, 2, 1], "single_class"),
        ([1, 0, 0], [1, 2, 3], [3, 2, 1], "tiny_n"),
        ([1, 1, 0, 0], [3, 4, 1, 2], [1, 1, 1, 1], "auc_boundary"),
        ([1, 1, 0, 0], [3, 4, 1, 2], [4, 3, 1, 2], "auc_boundary"),
    ],
)
def test_where_no_variance_exists_no_interval_is_given(y, s1, s2, code):
    with collect_warnings() as warned:
        result = delong_test(y, s1, s2)
    assert [w.code for w in warned] == [code]
    assert math.isnan(result.low)
    assert math.isnan(result.p)


def test_two_equally_good_models_are_told_apart_in_one_of_twenty():
    generator = np.random.default_rng(5)
    y = np.repeat([1, 0], [50, 80])
    differ = 0
    for _ in range(400):
        shared = generator.normal(size=130) + 1.2 * y
        one, other = (shared + 0.7 * generator.normal(size=130) for _ in range(2))
        differ += delong_test(y, one, other).p < 0.05
    assert 6 <= differ <= 34
