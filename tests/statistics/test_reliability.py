"""Calibration measures against hand-worked values, scikit-learn and simulation."""

import math

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.logistic import fit_logistic
from pipeline.statistics.reliability import (
    brier,
    brier_skill,
    calibration_line,
    calibration_summary,
    ece,
    log_loss,
    log_loss_change,
    reliability_bins,
)


@pytest.fixture
def predictions():
    generator = np.random.default_rng(7)
    x = generator.normal(-1, 1.5, 600)
    return (generator.random(600) < expit(x)).astype(int), x


def test_brier_and_log_loss_are_scikit_learns(predictions):
    y, x = predictions
    assert brier(y, expit(x)) == pytest.approx(sklearn.metrics.brier_score_loss(y, expit(x)))
    assert log_loss(y, expit(x)) == pytest.approx(sklearn.metrics.log_loss(y, expit(x)))


def test_log_loss_of_a_certain_error_is_finite():
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(1e-7))


def test_stating_the_prevalence_has_no_skill_and_the_truth_has_all():
    y = np.array([1, 0, 0, 0, 1])
    assert brier_skill(y, np.full(5, 0.4)) == pytest.approx(0)
    assert brier_skill(y, y) == 1


def test_weights_count_a_patient_that_often():
    y, p, weight = np.array([1, 0, 0]), np.array([0.7, 0.2, 0.9]), np.array([3, 1, 2])
    repeated = np.repeat(y, weight), np.repeat(p, weight)
    assert brier(y, p, weight) == pytest.approx(brier(*repeated))
    assert brier_skill(y, p, weight) == pytest.approx(brier_skill(*repeated))
    assert ece(y, p, 10, "width", weight) == pytest.approx(ece(*repeated, 10, "width"))


def test_ece_worked_by_hand():
    y = [0, 0, 1, 1]
    p = [0.1, 0.3, 0.6, 1.0]
    assert ece(y, p, bins=2) == pytest.approx((2 * 0.2 + 2 * 0.2) / 4)
    assert ece(y, p, bins=2, scheme="width") == pytest.approx(0.2)
    assert ece(y, [0.5] * 4) == 0


def test_equal_probabilities_share_a_bin():
    p = np.array([0.1] * 7 + [0.5] * 2 + [0.9])
    y = np.array([1, 0, 0, 0, 0, 0, 0, 1, 0, 1])
    bins = reliability_bins(y, p, bins=5)
    assert [(b.predicted, b.observed.n) for b in bins] == [(pytest.approx(0.1), 7), (0.5, 2), (0.9, 1)]
    assert ece(y, p, bins=5) == pytest.approx((abs(1 - 0.7) + 0 + 0.1) / 10)


def test_bins_hold_equal_numbers_where_nothing_is_tied(predictions):
    y, x = predictions
    bins = reliability_bins(y, expit(x), bins=10)
    assert [b.observed.n for b in bins] == [60] * 10
    assert all(b.observed.low <= b.observed.value <= b.observed.high for b in bins)
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)


def test_a_2x2_table_gives_the_log_odds_ratio_and_its_standard_error():
    """Slope = log(ad/bc), variance = 1/a + 1/b + 1/c + 1/d: the oldest result on logistic regression."""
    a, b, c, d = 20, 10, 30, 90
    y = np.repeat([1, 0, 1, 0], [a, b, c, d])
    x = np.repeat([1.0, 1.0, 0.0, 0.0], [a, b, c, d])
    beta, covariance = fit_logistic(np.column_stack([np.ones(150), x]), y)
    assert beta == pytest.approx([math.log(c / d), math.log(a * d / (b * c))])
    assert covariance[1, 1] == pytest.approx(1 / a + 1 / b + 1 / c + 1 / d)


def test_the_calibration_line_is_unpenalised_logistic_regression(predictions):
    y, x = predictions
    line = calibration_line(y, expit(2 * x + 1))
    model = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit((2 * x + 1)[:, None], y)
    assert line.slope.value == pytest.approx(model.coef_[0, 0], rel=1e-5)
    assert line.intercept.value == pytest.approx(model.intercept_[0], rel=1e-4)
    assert line.slope.high < 1


def test_calibration_in_the_large_balances_expected_and_observed(predictions):
    y, x = predictions
    shift = calibration_line(y, expit(x + 0.8)).in_the_large.value
    assert expit(x + 0.8 + shift).sum() == pytest.approx(y.sum())


def test_true_probabilities_have_slope_1_within_the_limits_as_often_as_they_say():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        x = generator.normal(-1, 1.5, 300)
        line = calibration_line(generator.random(300) < expit(x), expit(x))
        held += line.slope.low <= 1 <= line.slope.high
    assert 365 <= held <= 392


@pytest.mark.parametrize(
    ("y", "p", "code"),
    [
        ([1, 1, 1], [0.2, 0.3, 0.4], "single_class"),
        ([1, 0, 1], [0.3, 0.3, 0.3], "constant_score"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], "separated"),
    ],
)
def test_a_line_that_does_not_exist_is_nan_with_a_code(y, p, code):
    with collect_warnings() as warned:
        line = calibration_line(y, p)
    assert [w.code for w in warned] == [code]
    assert math.isnan(line.slope.value)


def test_the_summary_has_every_measure_inside_its_interval(predictions):
    y, x = predictions
    p = expit(1.8 * x)
    summary = calibration_summary(y, p, resamples=400)
    assert summary["brier"].value == pytest.approx(brier(y, p))
    assert summary["brier_skill"].value == pytest.approx(brier_skill(y, p))
    assert summary["ece"].value == pytest.approx(ece(y, p))
    assert summary["log_loss"].value == pytest.approx(log_loss(y, p))
    for name, interval in summary.items():
        assert interval.low <= interval.value <= interval.high, name


def coverage_of_brier(prevalence, auc, patients, runs=120):
    """Return how often the interval of a perfect binormal model's Brier score holds the expected one."""
    generator = np.random.default_rng(12)
    distance = norm.ppf(auc) * np.sqrt(2)

    def perfect(n):
        y = (generator.random(n) < prevalence).astype(int)
        x = generator.normal(size=n) + distance * y
        return y, expit(distance * x - distance**2 / 2 + logit(prevalence))

    y, p = perfect(1_000_000)
    truth = brier(y, p)
    held = 0
    for run in range(runs):
        with collect_warnings():
            interval = calibration_summary(*perfect(patients), resamples=120, seed=run)["brier"]
        held += interval.low <= truth <= interval.high
    return held / runs


def test_the_brier_score_is_covered_where_few_have_the_condition():
    """Drawn within labels, as for the AUC, the limits hold the truth in 71 of 100 runs here."""
    assert coverage_of_brier(0.05, 0.90, 400) >= 0.87


def test_calibration_that_changes_nothing_is_called_worse_as_rarely_as_the_limits_say():
    generator, worse, runs = np.random.default_rng(5), 0, 150
    for run in range(runs):
        x = generator.normal(-2, 1.5, 300)
        y = (generator.random(300) < expit(x)).astype(int)
        # Both are wrong by as much, to either side of the truth on the logit scale.
        change = log_loss_change(y, expit(x - 0.2), expit(x + 0.1997), seed=run, resamples=200)
        worse += change.low > 0
    assert worse / runs <= 0.06
    x = generator.normal(-2, 1.5, 600)
    y = (generator.random(600) < expit(x)).astype(int)
    change = log_loss_change(y, expit(x), expit(3 * x))
    assert change.value == pytest.approx(log_loss(y, expit(3 * x)) - log_loss(y, expit(x)))
    assert change.low > 0


def test_the_interval_of_a_perfect_models_ece_reaches_0():
    """Noise alone makes ECE positive; a percentile interval would then exclude the truth, 0, nearly always."""
    generator = np.random.default_rng(3)
    reached = 0
    for _ in range(40):
        x = generator.normal(-1, 1.5, 160)
        reached += calibration_summary(generator.random(160) < expit(x), expit(x), resamples=200)["ece"].low == 0
    assert reached >= 36


def test_probabilities_lie_between_0_and_1():
    with pytest.raises(ValueError, match="between 0 and 1"):
        brier([0, 1], [0.5, 1.1])
