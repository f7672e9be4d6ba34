"""The table of edge cases, row by row: metrics, calibration, threshold."""

import math

import numpy as np
import pytest

from pipeline.statistics.calibration import fit_calibrator
from pipeline.statistics.discrimination import average_precision, roc_auc
from pipeline.statistics.errors import NotEnoughData, ScreenWarning, collect_warnings
from pipeline.statistics.gate import assess_discrimination
from pipeline.statistics.metrics import Counts, at_prevalence, confusion, operating_metrics
from pipeline.statistics.reliability import brier, brier_skill, calibration_line, ece
from pipeline.statistics.threshold import certify_threshold, verify_threshold

POSITIVES_ONLY = (np.ones(80, int), np.arange(80.0))
NEGATIVES_ONLY = (np.zeros(80, int), np.arange(80.0))


def outcome(function, *arguments, **more):
    """Return the result and the codes of its warnings."""
    with collect_warnings() as warned:
        result = function(*arguments, **more)
    return result, {w.code for w in warned}


@pytest.mark.parametrize("cohort", [POSITIVES_ONLY, NEGATIVES_ONLY])
def test_one_class_has_no_discrimination_and_no_skill(cohort):
    y, s = cohort
    for function, scores in ((roc_auc, s), (average_precision, s), (brier_skill, s / 80)):
        result, codes = outcome(function, y, scores)
        assert math.isnan(getattr(result, "value", result))
        assert codes == {"single_class"}


def test_one_class_leaves_the_other_half_of_the_table_undefined():
    metrics, codes = outcome(operating_metrics, confusion(*POSITIVES_ONLY, 10))
    assert metrics["recall"].value == 70 / 80
    undefined = ("specificity", "youden", "balanced_accuracy", "lr_positive", "lr_negative")
    assert all(math.isnan(metrics[name].value) for name in undefined)
    assert "single_class" in codes
    metrics, codes = outcome(operating_metrics, confusion(*NEGATIVES_ONLY, 10))
    assert metrics["specificity"].value == 10 / 80
    assert math.isnan(metrics["recall"].value)
    row, codes = outcome(at_prevalence, confusion(*NEGATIVES_ONLY, 10), 0.1)
    assert math.isnan(row.ppv.value)
    assert codes == {"single_class"}


@pytest.mark.parametrize("cohort", [POSITIVES_ONLY, NEGATIVES_ONLY])
def test_one_class_cannot_be_calibrated(cohort):
    with pytest.raises(NotEnoughData):
        fit_calibrator(*cohort)


def test_no_positives_cannot_be_certified_or_verified_and_no_negatives_can():
    with pytest.raises(ValueError, match="no patient with the condition"):
        certify_threshold(*NEGATIVES_ONLY)
    with pytest.raises(ValueError, match="no patient with the condition"):
        verify_threshold(*NEGATIVES_ONLY, 10, 0.95, 0.95)
    certificate, codes = outcome(certify_threshold, *POSITIVES_ONLY)
    assert "single_class" in codes
    assert math.isnan(certificate.specificity.value)
    assert certificate.threshold == 0


@pytest.mark.parametrize("function", [roc_auc, average_precision, brier, ece, fit_calibrator, certify_threshold])
def test_nothing_at_all_is_refused(function):
    with pytest.raises(ValueError, match="there are no labels"):
        function([], [])
    with pytest.raises(ValueError, match="no patients"):
        operating_metrics(Counts(0, 0, 0, 0))


def test_equal_scores_rank_nobody_and_refer_everybody():
    y, s = np.repeat([1, 0], [80, 120]), np.full(200, 0.63)
    auc, codes = outcome(roc_auc, y, s)
    assert (auc.value, codes) == (0.5, {"constant_score"})
    assert math.isnan(auc.low)
    calibrator, codes = outcome(fit_calibrator, y, s)
    assert codes == {"constant_score"}
    assert calibrator.predict([0.63, 0.9]) == pytest.approx(81 / 202)
    certificate, codes = outcome(certify_threshold, y, s)
    assert certificate.threshold == 0.63
    assert codes == {"refers_everyone"}
    findings = assess_discrimination(y, s, calibrator.predict(s), certificate.threshold)
    assert {"refers_everyone", "no_discrimination", "ppv_no_lift"} <= {f.code for f in findings if f.level == "fail"}


@pytest.mark.parametrize(("y", "s"), [([1, 0, 0, 0], [3, 1, 4, 2]), ([1, 1, 1, 0], [3, 1, 4, 2])])
def test_one_patient_in_a_class_has_an_auc_without_interval(y, s):
    auc, codes = outcome(roc_auc, y, s)
    assert 0 < auc.value < 1
    assert math.isnan(auc.low)
    assert codes == {"tiny_n"}


@pytest.mark.parametrize(("s", "value"), [([3, 4, 1, 2], 1), ([1, 2, 3, 4], 0)])
def test_an_auc_of_exactly_0_or_1_has_a_score_interval_and_none_by_bootstrap(s, value):
    auc, codes = outcome(roc_auc, [1, 1, 0, 0], s)
    assert (auc.value, auc.method, auc.n) == (value, "newcombe_score", 4)
    assert auc.low < auc.high == 1 if value else 0 == auc.low < auc.high
    assert codes == {"auc_boundary"}
    drawn, codes = outcome(roc_auc, [1, 1, 0, 0], s, ci="bootstrap")
    assert math.isnan(drawn.low)
    assert codes == {"auc_boundary"}


def test_an_average_precision_that_no_resample_changes_has_no_interval():
    for s, value, code in (([1, 2, 3, 4], 1.0, "auc_boundary"), ([2, 2, 2, 2], 0.5, "constant_score")):
        interval, codes = outcome(average_precision, [0, 0, 1, 1], s)
        assert interval.value == value
        assert math.isnan(interval.low)
        assert codes == {code}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [roc_auc, average_precision, fit_calibrator, certify_threshold, brier])
def test_scores_that_are_not_finite_are_refused(function, bad):
    y, s = np.repeat([1, 0], 80), np.linspace(0, 1, 160)
    with pytest.raises(ValueError, match="1 scores are missing or not finite"):
        function(y, np.append(s[:-1], bad))


@pytest.mark.parametrize("function", [roc_auc, fit_calibrator, certify_threshold, brier])
def test_a_missing_label_is_refused_and_never_a_negative(function):
    y = [1.0] * 80 + [0.0] * 79 + [np.nan]
    with pytest.raises(ValueError, match="1 labels are missing"):
        function(y, np.linspace(0, 1, 160))


@pytest.mark.parametrize("function", [roc_auc, fit_calibrator, certify_threshold, brier])
def test_other_labels_are_named(function):
    with pytest.raises(ValueError, match="labels must be 0 or 1, not 2"):
        function([0, 1, 2], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("function", [brier, brier_skill, ece, calibration_line])
def test_probabilities_outside_0_and_1_are_refused(function):
    with pytest.raises(ValueError, match="between 0 and 1"):
        function([0, 1], [0.5, 1.5])


def test_nothing_or_everything_referred_leaves_one_predictive_value():
    metrics, codes = outcome(operating_metrics, Counts(tp=0, fp=0, tn=90, fn=10))
    assert math.isnan(metrics["ppv"].value)
    assert metrics["npv"].value == 0.9
    assert metrics["f1"].value == 0
    assert "nothing_referred" in codes
    metrics, codes = outcome(operating_metrics, Counts(tp=10, fp=90, tn=0, fn=0))
    assert math.isnan(metrics["npv"].value)
    assert metrics["ppv"].value == 0.1
    assert "everything_referred" in codes


def test_a_warning_is_collected_once_and_other_warnings_pass_through():
    def noisy():
        with collect_warnings() as warned:
            np.float64(1) / np.float64(0)
            roc_auc([1, 0], [1, 1])
            roc_auc([1, 0], [1, 1])
        return warned

    with pytest.warns(RuntimeWarning, match="divide"):
        warned = noisy()
    assert [w.code for w in warned] == ["constant_score"]
    assert isinstance(warned[0], ScreenWarning)
