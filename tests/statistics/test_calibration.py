"""The calibrators: known fits, never 0 or 1, monotone, no pickle; the choice among them; the shift of prevalence."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from pipeline.statistics.calibration import (
    choose_calibrator,
    displayed_probability,
    fit_calibrator,
    shift_prior,
    uncalibrated,
)
from pipeline.statistics.calibrators import KINDS, BetaCalibrator, PrevalenceCalibrator, calibrator_from_dict
from pipeline.statistics.discrimination import auc_value
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.reliability import brier_skill, log_loss

METHODS = ("logistic", "beta", "isotonic", "temperature", "venn_abers")


def cohort(generator, n=400, prevalence=0.2, auc=0.9):
    """Binormal scores, and each patient's true probability."""
    y = (np.arange(n) < round(n * prevalence)).astype(int)
    distance = norm.ppf(auc) * np.sqrt(2)
    s = generator.normal(size=n) + y * distance
    return y, s, expit(distance * s - distance**2 / 2 + logit(prevalence))


def test_the_fit_minimises_platts_loss():
    y, s, _ = cohort(np.random.default_rng(1))
    calibrator = fit_calibrator(y, s)
    target = np.where(y == 1, 81 / 82, 1 / 322)

    def loss(beta):
        z = beta[0] * s + beta[1]
        return (np.logaddexp(0, z) - target * z).sum()

    best = minimize(loss, [0.0, 0.0], tol=1e-10)
    assert (calibrator.slope, calibrator.intercept) == pytest.approx(best.x, abs=1e-4)
    assert (calibrator.method, calibrator.n, calibrator.n_positive, calibrator.prevalence) == ("logistic", 400, 80, 0.2)


def test_probabilities_are_close_to_the_truth_with_100_positives():
    errors = []
    for seed in range(10):
        y, s, truth = cohort(np.random.default_rng(seed), 500)
        errors.append(np.sqrt(np.mean((fit_calibrator(y, 2.5 * s).predict(2.5 * s) - truth) ** 2)))
    assert np.mean(errors) < 0.03


def test_squeezed_but_good_scores_are_recovered():
    """Scores between 0.617 and 0.640 with AUC 0.90: a narrow range alone proves nothing."""
    y, s, truth = cohort(np.random.default_rng(0), 500)
    squeezed = 0.617 + 0.023 * expit(s - 1)
    raw = logit(squeezed)
    p = fit_calibrator(y, raw).predict(raw)
    assert auc_value(y, p) == pytest.approx(auc_value(y, s))
    assert np.sqrt(np.mean((p - truth) ** 2)) < 0.08
    assert brier_skill(y, squeezed) < -0.5
    assert brier_skill(y, p) > 0.3
    assert p.max() - p.min() > 0.6


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def fitted(y, s, method):
    """A calibrator, without the warning that a non-parametric one would like more patients."""
    with collect_warnings() as warned:
        calibrator = fit_calibrator(y, s, method)
    assert {w.code for w in warned} <= {"few_for_isotonic"}
    return calibrator


def test_no_patient_ever_gets_0_or_1(method):
    y, s = np.repeat([0, 1], 50), np.repeat([-1.0, 1.0], 50)
    extreme = fitted(y, s, method).predict([-1e300, -1e6, -1, 0, 1, 1e6, 1e300])
    assert extreme.min() >= 1 / 102
    assert extreme.max() <= 101 / 102
    if method != "venn_abers":
        assert (extreme[0], extreme[-1]) == pytest.approx((1 / 102, 101 / 102))


def test_separated_classes_still_have_a_finite_slope():
    calibrator = fit_calibrator(np.repeat([0, 1], 20), np.arange(40.0))
    assert 0 < calibrator.slope < 100


def test_scores_that_fall_with_the_condition_give_everyone_the_prevalence(method):
    y, s, _ = cohort(np.random.default_rng(2))
    with collect_warnings() as warned:
        calibrator = fit_calibrator(y, -s, method)
    assert [w.code for w in warned] == ["calibration_reversed"]
    assert (calibrator.method, calibrator.reason) == ("prevalence", "calibration_reversed")
    assert calibrator.predict([-5.0, 5.0]) == pytest.approx(81 / 402)


def test_no_signal_ends_near_the_prevalence():
    generator = np.random.default_rng(4)
    y = generator.permutation(np.arange(500) < 100).astype(int)
    with collect_warnings():
        p = fit_calibrator(y, generator.uniform(0.617, 0.640, 500)).predict([0.617, 0.640])
    assert p == pytest.approx(0.2, abs=0.06)


def test_the_calibrated_order_is_the_raw_order(method):
    y, s, _ = cohort(np.random.default_rng(3))
    scores = np.sort(np.concatenate([s, np.linspace(-20, 20, 500)]))
    assert (np.diff(fitted(y, s, method).predict(scores)) >= -1e-15).all()


def test_order_of_rows_does_not_matter(method):
    y, s, _ = cohort(np.random.default_rng(5))
    order = np.random.default_rng(0).permutation(len(y))
    one, other = fitted(y, s, method), fitted(y[order], s[order], method)
    assert other.predict(s) == pytest.approx(one.predict(s), rel=1e-9)


def test_weights_count_a_patient_that_often(method):
    y, s, _ = cohort(np.random.default_rng(6), 100)
    weight = np.random.default_rng(0).integers(1, 4, 100)
    with collect_warnings():
        weighted = fit_calibrator(y, s, method, weight)
        repeated = fit_calibrator(np.repeat(y, weight), np.repeat(s, weight), method)
    assert weighted.prevalence == pytest.approx(repeated.prevalence)
    # The clip to [1/(n+2), 1-1/(n+2)] counts patients, not weights.
    inside = (weighted.predict(s) > 0.05) & (weighted.predict(s) < 0.95)
    assert weighted.predict(s[inside]) == pytest.approx(repeated.predict(s[inside]))


def test_it_survives_json_to_the_last_bit(method):
    y, s, _ = cohort(np.random.default_rng(7))
    calibrator = fitted(y, s, method)
    content = json.loads(json.dumps(calibrator.to_dict(), allow_nan=False))
    assert (content["schema"], content["method"]) == ("calibrator/2", method)
    again = calibrator_from_dict(content)
    assert again == calibrator
    scores = np.concatenate([s, np.nextafter(s, np.inf), [-50, 50]])
    assert (again.predict(scores) == calibrator.predict(scores)).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"schema": "logistic_calibrator/1", "slope": 1.0}, "schema calibrator/2"),
        ({"schema": "calibrator/2", "method": "pickle"}, "unknown calibrator pickle"),
        ({"schema": "calibrator/2", "method": "logistic", "slope": 1.0}, "other numbers than its schema says: slope"),
    ],
)
def test_what_is_no_calibrator_is_refused(content, words):
    with pytest.raises(ValueError, match=words):
        calibrator_from_dict(content)


# ---------------------------------------------------------------- the other methods


def test_temperature_minimises_platts_loss_without_an_intercept():
    y, _, truth = cohort(np.random.default_rng(1), prevalence=0.5)
    raw = 2.5 * logit(truth)
    calibrator = fitted(y, raw, "temperature")
    target = np.where(y == 1, 201 / 202, 1 / 202)
    best = minimize(lambda beta: (np.logaddexp(0, beta[0] * raw) - target * beta[0] * raw).sum(), [1.0], tol=1e-12)
    assert 1 / calibrator.temperature == pytest.approx(best.x[0], abs=1e-4)
    assert calibrator.predict([0.0]) == 0.5
    assert np.sqrt(np.mean((calibrator.predict(raw) - truth) ** 2)) < 0.03


def test_temperature_collapses_on_scores_off_by_a_constant_and_says_so():
    y, s, _ = cohort(np.random.default_rng(1))
    with collect_warnings() as warned:
        calibrator = fit_calibrator(y, s + 5, "temperature")
    assert [w.code for w in warned] == ["temperature_collapsed"]
    assert calibrator.predict([-3.0, 9.0]) == pytest.approx(81 / 402)


def beta_loss(y, s, a, b, c):
    n1 = y.sum()
    target = np.where(y == 1, (n1 + 1) / (n1 + 2), 1 / (len(y) - n1 + 2))
    z = -a * np.logaddexp(0, -s) + b * np.logaddexp(0, s) + c
    return (np.logaddexp(0, z) - target * z).sum()


@pytest.mark.parametrize(
    ("extra", "score", "label", "edge"),
    [(0, 0.0, 0, None), (40, 6.0, 0, "b"), (40, -6.0, 1, "a")],
    ids=["inside", "false alarms far up", "misses far down"],
)
def test_beta_minimises_its_loss_among_monotone_maps(extra, score, label, edge):
    """Outliers on the wrong side would bend the map down at one end: there its slope is held at 0."""
    y, s, _ = cohort(np.random.default_rng(1), prevalence=0.5)
    y, s = np.append(y, [label] * extra), np.append(s, [score] * extra)
    calibrator = fitted(y, s, "beta")
    allowed = [(0, None), (0, None), (None, None)]
    best = minimize(lambda x: beta_loss(y, s, *x), [1.0, 1.0, 0.0], bounds=allowed, tol=1e-12)
    assert isinstance(calibrator, BetaCalibrator)
    assert {name for name in "ab" if getattr(calibrator, name) == 0} == ({edge} if edge else set())
    assert beta_loss(y, s, calibrator.a, calibrator.b, calibrator.c) <= best.fun + 1e-5


def test_beta_with_equal_coefficients_is_the_logistic_map():
    y, s, _ = cohort(np.random.default_rng(9))
    straight = fitted(y, s, "logistic")
    content = {"schema": "calibrator/2", "method": "beta", "n": 400, "n_positive": 80, "prevalence": 0.2}
    beta = calibrator_from_dict(content | {"a": straight.slope, "b": straight.slope, "c": straight.intercept})
    assert beta.predict(s) == pytest.approx(straight.predict(s))


def test_isotonic_is_scikit_learns_and_clipped():
    y, s, _ = cohort(np.random.default_rng(10))
    expected = IsotonicRegression(out_of_bounds="clip").fit(s, y).predict(s)
    assert ((expected == 0) | (expected == 1)).mean() > 0.1
    assert fitted(y, s, "isotonic").predict(s) == pytest.approx(np.clip(expected, 1 / 402, 401 / 402))


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_venn_abers_is_its_definition(decimals):
    """Isotonic regression on the calibration patients and the new one, as negative and as positive."""
    generator = np.random.default_rng(11)
    y, s, _ = cohort(generator, 80, prevalence=0.4)
    s = np.round(s, decimals)
    known = np.unique(s)
    scores = np.concatenate([known, (known[1:] + known[:-1]) / 2])
    for score, probability in zip(scores, fitted(y, s, "venn_abers").predict(scores), strict=True):
        p0, p1 = (
            IsotonicRegression().fit(np.append(s, score), np.append(y, label).astype(float)).predict([score])[0]
            for label in (0, 1)
        )
        assert p0 <= p1
        assert probability == pytest.approx(np.clip(p1 / (1 - p0 + p1), 1 / 82, 81 / 82), abs=1e-12)


def test_venn_abers_stays_inside_the_scores_it_knows():
    y, s, _ = cohort(np.random.default_rng(12))
    calibrator = fitted(y, s, "venn_abers")
    assert (calibrator.predict([-99.0, 99.0]) == calibrator.predict([s.min(), s.max()])).all()


@pytest.mark.parametrize("method", ["isotonic", "venn_abers"])
def test_non_parametric_maps_warn_below_500_patients_in_a_class(method):
    y, s, _ = cohort(np.random.default_rng(13))
    with collect_warnings() as warned:
        fit_calibrator(y, s, method)
    assert [w.code for w in warned] == ["few_for_isotonic"]
    with collect_warnings() as warned:
        fit_calibrator(np.tile(y, 7), np.tile(s, 7) + np.repeat(np.arange(7), 400) / 1000, method)
    assert warned == []


# ---------------------------------------------------------------- the rule that chooses


def bent_cohort(seed, n):
    y, _, truth = cohort(np.random.default_rng(seed), n, prevalence=0.5)
    x = logit(truth)
    return y, np.sign(x) * np.abs(x) ** 3


def test_below_500_patients_in_a_class_logistic_is_chosen_unseen():
    assert choose_calibrator(*bent_cohort(1, 998)) == "logistic"


def test_with_many_patients_a_bent_map_is_chosen_when_it_clearly_wins():
    y, raw = bent_cohort(1, 3000)
    chosen = choose_calibrator(y, raw)
    assert chosen == choose_calibrator(y, raw) == "isotonic"
    assert log_loss(y, fit_calibrator(y, raw, chosen).predict(raw)) < log_loss(y, fit_calibrator(y, raw).predict(raw))


def test_a_straight_map_stays_logistic_however_many_patients():
    y, _, truth = cohort(np.random.default_rng(2), 3000, prevalence=0.5)
    assert choose_calibrator(y, logit(truth)) == "logistic"


# ---------------------------------------------------------------- what cannot be calibrated


@pytest.mark.parametrize("positives", [0, 3, 9, 192])
def test_too_few_of_a_class_are_refused_in_plain_words(positives):
    y = (np.arange(200) < positives).astype(int)
    with pytest.raises(NotEnoughData, match=f"at least 10 patients with.*there are {positives} and {200 - positives}"):
        fit_calibrator(y, np.arange(200.0))
    left = uncalibrated(y)
    assert left == PrevalenceCalibrator(200, positives, (positives + 1) / 202, "not_calibrated")
    assert left.predict([-9.0, 9.0]) == pytest.approx((positives + 1) / 202)
    assert calibrator_from_dict(json.loads(json.dumps(left.to_dict()))) == left


def test_an_unknown_method_is_refused():
    y, s, _ = cohort(np.random.default_rng(8))
    with pytest.raises(ValueError, match="unknown calibrator magic; known: logistic, beta"):
        fit_calibrator(y, s, "magic")
    assert set(METHODS) < set(KINDS)


def test_scores_that_are_not_finite_are_refused():
    y, s, _ = cohort(np.random.default_rng(8))
    with pytest.raises(ValueError, match="1 scores are missing or not finite"):
        fit_calibrator(y, np.append(s[:-1], np.nan))
    with pytest.raises(ValueError, match="1 scores"):
        fit_calibrator(y, s).predict([np.inf])


def test_a_shift_of_prevalence_there_and_back_changes_nothing():
    p = np.array([0.01, 0.2, 0.5, 0.99])
    local = shift_prior(p, 0.5, 0.05)
    assert (local < p).all()
    assert shift_prior(local, 0.05, 0.5) == pytest.approx(p, rel=1e-12)
    assert shift_prior(0.5, 0.5, 0.05) == pytest.approx(0.05)


def test_displayed_probabilities_are_those_of_the_local_prevalence(method):
    """Calibrated on half positives, shown where one in twenty is: close to the truth there."""
    y, s, truth = cohort(np.random.default_rng(14), 2000, prevalence=0.5)
    calibrator = fitted(y, logit(truth), method)
    assert (displayed_probability(calibrator, logit(truth)) == calibrator.predict(logit(truth))).all()
    local = displayed_probability(calibrator, logit(truth), 0.05)
    distance = norm.ppf(0.9) * np.sqrt(2)
    local_truth = expit(distance * s - distance**2 / 2 + logit(0.05))
    assert np.sqrt(np.mean((local - local_truth) ** 2)) < 0.08
    order = np.argsort(s)
    assert (np.diff(local[order]) >= -1e-15).all()
    assert ((local > 0) & (local < 1)).all()


def test_without_a_calibrator_the_local_prevalence_is_what_is_shown():
    assert displayed_probability(uncalibrated([1] * 6 + [0] * 6), [-3.0, 3.0], 0.05) == pytest.approx(0.05)
