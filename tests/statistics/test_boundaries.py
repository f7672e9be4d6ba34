"""At the very edge of each rule: a score at the threshold, the last group that is large enough, a bound that is met."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, binom

from pipeline.statistics.calibration import shift_prior
from pipeline.statistics.discrimination import average_precision
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.gate import assess_discrimination, compare_tables
from pipeline.statistics.intervals import Interval, proportion_ci, ratio_ci
from pipeline.statistics.metrics import Counts, at_prevalence
from pipeline.statistics.patients import Patients, aggregate_scores, patient_table
from pipeline.statistics.shift import GroupShift, Promise, ScoreShift, Stability, assess_shift, group_shift
from pipeline.statistics.subgroups import subgroup_table
from pipeline.statistics.threshold import certify_threshold, max_misses, min_positives, verify_threshold


def codes(findings):
    return {finding.code for finding in findings}


def test_a_certificate_field_by_field():
    # 100 positives with scores 1 to 100, one miss allowed at 0.95 with 95 %: the threshold is the second lowest.
    y = np.r_[np.ones(100, int), np.zeros(40, int)]
    s = np.r_[np.arange(1.0, 101), np.linspace(-5, 3, 40)]
    negatives_referred = int((s[100:] >= 2).sum())
    certificate = certify_threshold(y, s, 0.95, 0.95)
    assert certificate.to_dict() == {
        "threshold": 2.0,
        "recall_target": 0.95,
        "confidence": 0.95,
        "confidence_used": 0.95,
        "models_compared": 1,
        "labels_certified": 1,
        "positives": 100,
        "negatives": 40,
        "misses_allowed": 1,
        "misses_seen": 1,
        "recall": proportion_ci(99, 100).to_dict(),
        "specificity": proportion_ci(40 - negatives_referred, 40).to_dict(),
        "referral_rate": proportion_ci(99 + negatives_referred, 140).to_dict(),
        "certified_recall": pytest.approx(beta.ppf(0.05, 99, 2)),
        "certifiable_recall": pytest.approx(0.05 ** (1 / 100)),
        "positives_needed": 59,
        "threshold_hex": (2.0).hex(),
    }


def test_too_few_positives_say_how_many_there_are_and_what_they_can_certify():
    with pytest.raises(NotEnoughData) as few:
        certify_threshold(np.r_[np.ones(40, int), 0], np.arange(41.0))
    assert (few.value.positives, few.value.needed) == (40, 59)
    assert few.value.certifiable_recall == pytest.approx(0.05 ** (1 / 40))
    with pytest.raises(NotEnoughData) as none:
        certify_threshold(np.zeros(9, int), np.arange(9.0))
    assert (none.value.positives, none.value.needed, none.value.certifiable_recall) == (0, 59, 0.0)


def test_without_negatives_the_certificate_has_no_specificity():
    with collect_warnings() as warned:
        certificate = certify_threshold(np.ones(100, int), np.arange(100.0))
    assert math.isnan(certificate.specificity.value)
    assert certificate.specificity.method == "wilson"
    assert [warning.code for warning in warned] == ["single_class"]


@pytest.mark.parametrize(("recall", "confidence"), [(0.9, 0.95), (0.95, 0.9), (0.8, 0.99)])
@pytest.mark.parametrize("misses", range(6))
def test_the_needed_positives_are_the_fewest(recall, confidence, misses):
    needed = min_positives(recall, confidence, misses)
    assert binom.cdf(misses, needed, 1 - recall) <= 1 - confidence < binom.cdf(misses, needed - 1, 1 - recall)
    assert max_misses(needed, recall, confidence) == misses
    assert max_misses(needed - 1, recall, confidence) == (misses - 1 if misses else None)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1])
def test_a_target_and_a_confidence_lie_between_0_and_1(share):
    for call in (lambda: max_misses(100, share, 0.95), lambda: max_misses(100, 0.95, share)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            call()
    for call in (lambda: min_positives(share, 0.95), lambda: min_positives(0.95, share)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            call()


def test_a_bound_that_equals_the_target_confirms_it():
    y, s = np.ones(60, int), np.ones(60)
    lower = 0.05 ** (1 / 60)
    assert verify_threshold(y, s, 1.0, lower - 1e-9, 0.95) == "confirmed"
    assert verify_threshold(y, s, 1.0, lower + 1e-9, 0.95) == "not_confirmed"
    missed = verify_threshold(y, s, 2.0, 1 - lower + 1e-9, 0.95)
    assert missed == "contradicted"
    assert verify_threshold(y, s, 2.0, 1 - lower - 1e-9, 0.95) == "not_confirmed"


def test_subgroups_count_a_score_at_the_threshold_as_referred():
    frame = pd.DataFrame({"label": [1, 0, 1, 0], "score": [0.5, 0.5, 0.4, 0.6], "sex": "F"})
    assert subgroup_table(frame, ["sex"], 0.5, 2)["referred"].tolist() == [3]


@pytest.mark.parametrize(("positives", "judged"), [(9, False), (10, True)])
def test_a_subgroup_of_just_enough_positives_is_judged(positives, judged):
    label = np.r_[np.ones(positives, int), np.zeros(20, int)]
    frame = pd.DataFrame({"label": label, "score": np.random.default_rng(0).normal(label), "sex": "F"})
    assert subgroup_table(frame, ["sex"], 0.0, 10)["recall"].notna().item() is judged


@pytest.mark.parametrize(("positives", "judged"), [(9, False), (10, True)])
def test_a_group_of_just_enough_positives_has_a_calibration_line(positives, judged):
    y = np.r_[np.ones(positives, int), np.zeros(30, int)]
    s = np.random.default_rng(0).normal(y)
    members = Patients(np.arange(len(y)).astype(str), y, s, len(y), 0, (1,))
    shift = group_shift("A", members, members, 1 / (1 + np.exp(-s)), Promise(None, 0.95, 0.95))
    assert math.isfinite(shift.in_the_large.value) is judged
    assert (shift.in_the_large.level, shift.in_the_large.method, shift.in_the_large.n) == (0.95, "wald", len(y))
    assert (shift.recall, shift.verification) == (None, None)


@pytest.mark.parametrize(("referred", "found"), [(18, False), (19, True), (20, True)])
@pytest.mark.parametrize("positives", [0, 5])
def test_referring_19_of_20_without_the_condition_does_not_screen(referred, found, positives):
    y, s = np.r_[np.zeros(20, int), np.ones(positives, int)], np.r_[np.arange(20.0), np.full(positives, 19.5)]
    assert ("refers_everyone" in codes(assess_discrimination(y, s, s / 20, 20.0 - referred))) is found
    # Without anybody healthy, all of them are counted.
    sick = codes(assess_discrimination(np.ones(20, int), np.arange(20.0), np.full(20, 0.5), 20.0 - referred))
    assert ("refers_everyone" in sick) is found


@pytest.mark.parametrize("threshold", [0.0, 19.0])
def test_a_threshold_at_an_extreme_score_is_not_outside(threshold):
    y, s = np.arange(20) % 2, np.arange(20.0)
    assert "threshold_outside_scores" not in codes(assess_discrimination(y, s, s / 20, threshold))
    outside = -1.0 if threshold == 0 else 20.0
    assert "threshold_outside_scores" in codes(assess_discrimination(y, s, s / 20, outside))


@pytest.mark.parametrize(("n", "demonstrated"), [(6, False), (8, True)])
def test_a_perfect_order_is_a_demonstration_from_a_certain_number_on(n, demonstrated):
    # 1/C(6, 3) = 1/20 and 1/C(8, 4) = 1/70, beside the tail of 1/40 that a 95 % interval leaves.
    y, s = np.repeat([0, 1], n // 2), np.arange(float(n))
    assert ("no_discrimination" not in codes(assess_discrimination(y, s, y * 0.8 + 0.1))) is demonstrated


@pytest.mark.parametrize(("values", "found"), [(9, True), (10, False)])
def test_ten_distinct_scores_are_enough(values, found):
    y, s = np.arange(40) % 2, np.arange(40.0) % values
    assert ("few_values" in codes(assess_discrimination(y, s, np.linspace(0.1, 0.9, 40)))) is found


def test_a_table_of_thresholds_is_compared_number_by_number():
    table = pd.DataFrame({"threshold": [0.1, 0.2, 0.3], "recall": [1.0, np.nan, 0.5]})
    off = table.assign(recall=[1.0, np.nan, 0.5 + 1e-6], threshold=[0.1, 0.2, 0.3 - 1e-6])
    assert compare_tables(table, table.copy()) == []
    (finding,) = compare_tables(off, table)
    assert (finding.code, finding.level) == ("table_inconsistent", "fail")
    assert "1 of 3 rows" in finding.message
    assert compare_tables(table.head(2), table)[0].level == "fail"


def shift_with(drift):
    nothing, stability = proportion_ci(1, 2), Stability(0.0, 0.1, 10)
    return GroupShift("A", 2, 1, 0, nothing, ScoreShift(0.0, 1.0), stability, drift, drift, None, None, ())


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.1, 0.9, "too low"), (-0.9, -0.1, "too high"), (-0.1, 0.9, None), (0.0, 0.9, None), (-0.9, 0.0, None)],
)
def test_drift_is_said_in_its_direction_and_only_when_its_interval_leaves_0(low, high, says):
    findings = assess_shift(shift_with(Interval((low + high) / 2, low, high, 0.95, "wald", 2)), "test")
    assert [finding.code for finding in findings] == (["calibration_drift"] if says else [])
    assert all(says in finding.message for finding in findings)


def test_consequences_are_drawn_from_jeffreys_betas():
    # With nothing seen but 3 of 4 and 1 of 5, the draws' parameters show: Beta(3.5, 1.5) and Beta(1.5, 4.5).
    row = at_prevalence(Counts(tp=3, fp=1, tn=4, fn=1), 0.5, 1000, 0.9, seed=5, draws=200_000)
    generator = np.random.default_rng(99)
    recall, false_rate = generator.beta(3.5, 1.5, 200_000), generator.beta(1.5, 4.5, 200_000)
    assert (row.prevalence, row.per) == (0.5, 1000)
    low, high = np.quantile(500 * (recall + false_rate), [0.05, 0.95])
    assert (row.referred.low, row.referred.high) == (pytest.approx(low, rel=0.01), pytest.approx(high, rel=0.01))
    low, high = np.quantile(recall / (recall + false_rate), [0.05, 0.95])
    assert (row.ppv.low, row.ppv.high) == (pytest.approx(low, rel=0.01), pytest.approx(high, rel=0.01))


@pytest.mark.parametrize(("first", "second"), [((1, 1), (3, 10)), ((3, 10), (1, 1))])
def test_a_ratio_exists_for_samples_of_one_patient_and_for_none_it_does_not(first, second):
    assert ratio_ci(*first, *second).value == pytest.approx(first[0] / first[1] / (second[0] / second[1]))
    with collect_warnings() as warned:
        nothing = ratio_ci(0, 0, *second)
    assert math.isnan(nothing.value)
    assert nothing.n == second[1]
    assert [warning.code for warning in warned] == ["empty_denominator"]
    with collect_warnings() as warned:
        assert math.isnan(ratio_ci(*first, 0, 0).value)
    assert [warning.code for warning in warned] == ["empty_denominator"]


def test_average_precision_resamples_patients_not_images():
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(30) % 2, 10)
    s = np.repeat(generator.normal(np.arange(30) % 2), 10) + generator.normal(0, 0.01, 300)
    patients = np.repeat(np.arange(30), 10)
    by_patient = average_precision(y, s, patient_id=patients, resamples=400)
    by_image = average_precision(y, s, resamples=400)
    assert (by_patient.n, by_image.n) == (30, 300)
    assert by_patient.high - by_patient.low > 2 * (by_image.high - by_image.low)


@pytest.mark.parametrize(("before", "after"), [(0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1), (1.5, 0.5), (0.5, 1.5)])
def test_a_prevalence_to_shift_from_or_to_lies_strictly_between_0_and_1(before, after):
    with pytest.raises(ValueError, match="between 0 and 1"):
        shift_prior(np.array([0.5]), before, after)


def test_noisy_or_takes_probabilities_up_to_both_ends():
    ids = np.array(["a", "a", "b"])
    assert aggregate_scores(np.array([0.0, 0.5, 1.0]), ids, "noisy_or")[1].tolist() == [0.5, 1.0]
    for beyond in (-0.01, 1.01):
        with pytest.raises(ValueError, match="outside 0 to 1"):
            aggregate_scores(np.array([0.5, 0.5, beyond]), ids, "noisy_or")


def test_a_row_per_patient_holds_what_was_given():
    patients = Patients(np.array(["a", "b"]), np.array([1, 0]), np.array([0.3, 0.7]), 2, 0, (1,))
    given = patient_table("mae", patients, np.array([0.2, 0.9]), 0.7)
    assert given.to_dict("list") == {
        "patient_id": ["a", "b"],
        "arm": ["mae", "mae"],
        "score": [0.3, 0.7],
        "probability": [0.2, 0.9],
        "label": [1, 0],
        "referred": [False, True],
    }
    missing = patient_table("mae", patients, None, None)
    assert missing[["probability", "referred"]].isna().all(axis=None)
