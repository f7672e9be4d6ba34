"""The calibrator: Platt's fit, never 0 or 1, no pickle."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.statistics.calibration import LogisticCalibrator, shift_prior
from pipeline.statistics.discrimination import auc_value
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.reliability import brier_skill


def cohort(generator, n=400, prevalence=0.2, auc=0.9):
    """Binormal scores, and each patient's true probability."""
    y = (np.arange(n) < round(n * prevalence)).astype(int)
    distance = norm.ppf(auc) * np.sqrt(2)
    s = generator.normal(size=n) + y * distance
    return y, s, expit(distance * s - distance**2 / 2 + logit(prevalence))


def test_the_fit_minimises_platts_loss():
    y, s, _ = cohort(np.random.default_rng(1))
    calibrator = LogisticCalibrator.fit(y, s)
    target = np.where(y == 1, 81 / 82, 1 / 322)

    def loss(beta):
        z = beta[0] * s + beta[1]
        return (np.logaddexp(0, z) - target * z).sum()

    best = minimize(loss, [0.0, 0.0], tol=1e-10)
    assert (calibrator.slope, calibrator.intercept) == pytest.approx(best.x, abs=1e-4)
    assert (calibrator.n, calibrator.n_positive, calibrator.flat) == (400, 80, False)


def test_probabilities_are_close_to_the_truth_with_100_positives():
    errors = []
    for seed in range(10):
        y, s, truth = cohort(np.random.default_rng(seed), 500)
        errors.append(np.sqrt(np.mean((LogisticCalibrator.fit(y, 2.5 * s).predict(2.5 * s) - truth) ** 2)))
    assert np.mean(errors) < 0.03


def test_squeezed_but_good_scores_are_recovered():
    """Scores between 0.617 and 0.640 with AUC 0.90: a narrow range alone proves nothing."""
    y, s, truth = cohort(np.random.default_rng(0), 500)
    squeezed = 0.617 + 0.023 * expit(s - 1)
    raw = logit(squeezed)
    p = LogisticCalibrator.fit(y, raw).predict(raw)
    assert auc_value(y, p) == pytest.approx(auc_value(y, s))
    assert np.sqrt(np.mean((p - truth) ** 2)) < 0.08
    assert brier_skill(y, squeezed) < -0.5
    assert brier_skill(y, p) > 0.3
    assert p.max() - p.min() > 0.6


def test_no_patient_ever_gets_0_or_1():
    y, s = np.repeat([0, 1], 50), np.repeat([-1.0, 1.0], 50)
    extreme = LogisticCalibrator.fit(y, s).predict([-1e300, -1e6, 0, 1e6, 1e300])
    assert extreme.min() == pytest.approx(1 / 102)
    assert extreme.max() == pytest.approx(101 / 102)


def test_separated_classes_still_have_a_finite_slope():
    calibrator = LogisticCalibrator.fit(np.repeat([0, 1], 20), np.arange(40.0))
    assert 0 < calibrator.slope < 100


def test_scores_that_fall_with_the_condition_give_everyone_the_prevalence():
    y, s, _ = cohort(np.random.default_rng(2))
    with collect_warnings() as warned:
        calibrator = LogisticCalibrator.fit(y, -s)
    assert [w.code for w in warned] == ["calibration_reversed"]
    assert calibrator.flat
    assert calibrator.predict([-5.0, 5.0]) == pytest.approx(81 / 402)


def test_no_signal_ends_near_the_prevalence():
    generator = np.random.default_rng(4)
    y = generator.permutation(np.arange(500) < 100).astype(int)
    with collect_warnings():
        p = LogisticCalibrator.fit(y, generator.uniform(0.617, 0.640, 500)).predict([0.617, 0.640])
    assert p == pytest.approx(0.2, abs=0.06)


def test_the_calibrated_order_is_the_raw_order():
    y, s, _ = cohort(np.random.default_rng(3))
    p = LogisticCalibrator.fit(y, s).predict(np.sort(s))
    assert (np.diff(p) >= 0).all()


def test_order_of_rows_does_not_matter():
    y, s, _ = cohort(np.random.default_rng(5))
    order = np.random.default_rng(0).permutation(len(y))
    one, other = LogisticCalibrator.fit(y, s), LogisticCalibrator.fit(y[order], s[order])
    assert other.slope == pytest.approx(one.slope, rel=1e-9)


def test_weights_count_a_patient_that_often():
    y, s, _ = cohort(np.random.default_rng(6), 100)
    weight = np.random.default_rng(0).integers(1, 4, 100)
    weighted = LogisticCalibrator.fit(y, s, weight)
    repeated = LogisticCalibrator.fit(np.repeat(y, weight), np.repeat(s, weight))
    assert (weighted.slope, weighted.intercept) == pytest.approx((repeated.slope, repeated.intercept))


def test_it_survives_json_to_the_last_bit():
    y, s, _ = cohort(np.random.default_rng(7))
    calibrator = LogisticCalibrator.fit(y, s)
    again = LogisticCalibrator.from_dict(json.loads(json.dumps(calibrator.to_dict())))
    assert again == calibrator
    assert (again.predict(s) == calibrator.predict(s)).all()


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match="schema"):
        LogisticCalibrator.from_dict({"schema": "isotonic_calibrator/1", "slope": 1.0})


@pytest.mark.parametrize("positives", [0, 3, 9, 192])
def test_too_few_of_a_class_are_refused_in_plain_words(positives):
    y = (np.arange(200) < positives).astype(int)
    with pytest.raises(NotEnoughData, match=f"at least 10 patients with.*there are {positives} and {200 - positives}"):
        LogisticCalibrator.fit(y, np.arange(200.0))


def test_scores_that_are_not_finite_are_refused():
    y, s, _ = cohort(np.random.default_rng(8))
    with pytest.raises(ValueError, match="1 scores are missing or not finite"):
        LogisticCalibrator.fit(y, np.append(s[:-1], np.nan))
    with pytest.raises(ValueError, match="1 scores"):
        LogisticCalibrator.fit(y, s).predict([np.inf])


def test_a_shift_of_prevalence_there_and_back_changes_nothing():
    p = np.array([0.01, 0.2, 0.5, 0.99])
    local = shift_prior(p, 0.5, 0.05)
    assert (local < p).all()
    assert shift_prior(local, 0.05, 0.5) == pytest.approx(p, rel=1e-12)
    assert shift_prior(0.5, 0.5, 0.05) == pytest.approx(0.05)
