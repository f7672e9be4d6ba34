"""The certificate: its tables, its guarantee by simulation, and what it refuses."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.metrics import confusion
from pipeline.statistics.threshold import (
    certifiable_recall,
    certify_threshold,
    max_misses,
    min_positives,
    recall_bounds,
    shared_confidence,
    verify_threshold,
)


@pytest.mark.parametrize(
    ("positives", "misses", "confidence"),
    [
        (50, None, None),
        (58, None, None),
        (59, 0, 0.952),
        (92, 0, None),
        (93, 1, 0.950),
        (100, 1, 0.963),
        (200, 4, 0.974),
        (500, 16, 0.966),
        (1000, 38, 0.957),
        (2000, 83, 0.958),
    ],
)
def test_allowed_misses_at_recall_95(positives, misses, confidence):
    assert max_misses(positives) == misses
    if confidence:
        assert 1 - binom.cdf(misses, positives, 0.05) == pytest.approx(confidence, abs=5e-4)


@pytest.mark.parametrize(
    ("recall", "needed"),
    [(0.90, [29, 46, 61, 76]), (0.95, [59, 93, 124, 153]), (0.98, [149, 236, 313, 386]), (0.99, [299, 473, 628, 773])],
)
def test_positives_needed_for_0_to_3_misses(recall, needed):
    assert [min_positives(recall, 0.95, misses) for misses in range(4)] == needed


@pytest.mark.parametrize(
    ("positives", "recall"), [(20, 0.861), (30, 0.905), (50, 0.942), (100, 0.970), (200, 0.985), (500, 0.994)]
)
def test_the_largest_recall_that_can_be_certified(positives, recall):
    assert certifiable_recall(positives, 0, 0.95) == pytest.approx(0.05 ** (1 / positives))
    assert certifiable_recall(positives, 0, 0.95) == pytest.approx(recall, abs=6e-4)


def test_the_three_functions_are_one_rule():
    for positives in range(60, 400, 17):
        allowed = max_misses(positives, 0.95, 0.95)
        assert certifiable_recall(positives, allowed, 0.95) >= 0.95 > certifiable_recall(positives, allowed + 1, 0.95)
        assert min_positives(0.95, 0.95, allowed) <= positives < min_positives(0.95, 0.95, allowed + 1)


def test_the_certified_recall_is_the_exact_lower_limit():
    assert certifiable_recall(100, 3, 0.95) == pytest.approx(proportion_ci(97, 100, 0.90, "exact").low)
    assert certifiable_recall(10, 10, 0.95) == 0


def test_in_2000_cohorts_of_100_positives_the_certificate_holds_and_the_naive_rule_does_not():
    """Recall at least 0.95 must hold in 95 % of cohorts; exactly 96.3 % is expected of the one, 38.4 % of the other."""
    generator = np.random.default_rng(20)
    shift = norm.ppf(0.90) * np.sqrt(2)
    y = np.repeat([1, 0], 100)
    held = naive = 0
    for _ in range(2000):
        s = generator.normal(size=200) + shift * y
        held += norm.sf(certify_threshold(y, s).threshold - shift) >= 0.95
        highest_with_recall_95 = np.sort(s[:100])[5]
        naive += norm.sf(highest_with_recall_95 - shift) >= 0.95
    assert 0.945 <= held / 2000 <= 0.98
    assert naive / 2000 < 0.5


def test_choosing_the_best_of_five_keeps_the_confidence_only_when_it_is_shared_out():
    generator = np.random.default_rng(9)
    shift = norm.ppf(0.90) * np.sqrt(2)
    y = np.repeat([1, 0], 150)
    held = {1: 0, 5: 0}
    for _ in range(200):
        scores = [generator.normal(size=300) + shift * y for _ in range(5)]
        for shared in held:
            best = min((certify_threshold(y, s, n_models=shared) for s in scores), key=lambda c: c.referral_rate.value)
            held[shared] += norm.sf(best.threshold - shift) >= 0.95
    assert held[5] / 200 >= 0.95
    assert held[1] < held[5]


@pytest.fixture
def cohort():
    generator = np.random.default_rng(1)
    y = np.repeat([1, 0], [120, 300])
    return y, generator.normal(size=420) + 2 * y


def test_the_threshold_is_the_smallest_score_after_the_allowed_misses(cohort):
    y, s = cohort
    certificate = certify_threshold(y, s)
    assert certificate.misses_allowed == 1
    assert certificate.threshold == np.sort(s[y == 1])[1]
    counts = confusion(y, s, certificate.threshold)
    assert (counts.fn, certificate.misses_seen) == (1, 1)
    assert certificate.recall == proportion_ci(119, 120)
    assert certificate.specificity == proportion_ci(counts.tn, 300)
    assert certificate.referral_rate == proportion_ci(counts.tp + counts.fp, 420)
    assert certificate.certified_recall == pytest.approx(proportion_ci(119, 120, 0.90, "exact").low)
    assert certificate.certified_recall >= 0.95


def test_the_exact_threshold_survives_as_hexadecimal(cohort):
    certificate = certify_threshold(*cohort)
    assert float.fromhex(certificate.to_dict()["threshold_hex"]) == certificate.threshold


def test_order_of_patients_does_not_matter(cohort):
    y, s = cohort
    order = np.random.default_rng(0).permutation(len(y))
    assert certify_threshold(y[order], s[order]) == certify_threshold(y, s)


def test_a_rising_transform_of_the_scores_refers_the_same_patients(cohort):
    y, s = cohort
    transformed = np.exp(s / 3) - 7
    referred = s >= certify_threshold(y, s).threshold
    assert (referred == (transformed >= certify_threshold(y, transformed).threshold)).all()


def test_tied_patients_are_all_referred(cohort):
    y, s = cohort
    s[:120] = np.maximum(s[:120], np.sort(s[:120])[4])
    certificate = certify_threshold(y, s)
    assert certificate.misses_allowed == 1
    assert certificate.misses_seen == 0
    assert certificate.certified_recall == certifiable_recall(120, 1, 0.95)


def test_models_compared_share_the_confidence(cohort):
    certificate = certify_threshold(*cohort, n_models=4)
    assert certificate.confidence_used == pytest.approx(0.9875)
    assert certificate.misses_allowed == max_misses(120, 0.95, 0.9875) == 0
    with pytest.raises(ValueError, match="at least one model"):
        certify_threshold(*cohort, n_models=0)


def test_too_few_positives_are_refused_with_the_number_that_would_do():
    y, s = np.repeat([1, 0], [50, 90]), np.arange(140.0)
    with pytest.raises(NotEnoughData, match=r"50 positives: 0\.95 recall cannot.*at most 0\.942; 59 needed") as refused:
        certify_threshold(y, s)
    assert (refused.value.positives, refused.value.needed) == (50, 59)
    with collect_warnings() as warned:
        certificate = certify_threshold(y, s, on_fail="refer_all")
    assert certificate.threshold == -np.inf
    assert certificate.referral_rate.value == 1
    assert [w.code for w in warned] == ["refers_everyone"]


def test_weights_and_repeated_patients_have_no_exact_guarantee(cohort):
    y, s = cohort
    with pytest.raises(ValueError, match="weight"):
        certify_threshold(y, s, weight=np.ones(420))
    with pytest.raises(ValueError, match="1 rows repeat a patient"):
        certify_threshold(y, s, patient_id=[0, *range(419)])


@pytest.mark.parametrize("share", [0, 1, 1.2])
def test_shares_lie_strictly_between_0_and_1(cohort, share):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        certify_threshold(*cohort, recall=share)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(100, "confirmed"), (99, "confirmed"), (98, "not_confirmed"), (95, "not_confirmed"), (85, "contradicted")],
)
def test_verification_is_by_one_sided_exact_limits(found, verdict):
    y = np.repeat([1, 0], 100)
    s = np.where(np.arange(200) < found, 1.0, 0.0)
    assert verify_threshold(y, s, 0.5, 0.95, 0.95) == verdict
    lower, upper = recall_bounds(found, 100, 0.95)
    assert (lower, upper) == pytest.approx(
        (
            proportion_ci(found, 100, 0.9, "exact").low if found else 0,
            proportion_ci(found, 100, 0.9, "exact").high if found < 100 else 1,
        )
    )


def test_a_bound_that_is_the_recall_itself_confirms_and_does_not_contradict():
    y, s = np.ones(100), np.r_[np.ones(97), np.zeros(3)]
    low, high = recall_bounds(97, 100, 0.95)
    assert verify_threshold(y, s, 0.5, low, 0.95) == "confirmed"
    assert verify_threshold(y, s, 0.5, high, 0.95) == "not_confirmed"
    assert verify_threshold(y, s, 0.5, np.nextafter(high, 1), 0.95) == "contradicted"


def test_one_positive_can_be_judged_and_none_cannot():
    assert verify_threshold([1, 0], [0.9, 0.1], 0.5, 0.95, 0.95) == "not_confirmed"
    with pytest.raises(ValueError, match="no patient with the condition: recall cannot be verified"):
        verify_threshold([0, 0], [0.9, 0.1], 0.5, 0.95, 0.95)


def test_without_a_positive_nothing_is_certified_and_what_is_needed_is_said():
    with pytest.raises(NotEnoughData, match="no patient with the condition: no recall can be certified") as none:
        certify_threshold(np.zeros(9), np.arange(9.0), 0.95, 0.95, on_fail="refer_all")
    assert (none.value.positives, none.value.needed, none.value.certifiable_recall) == (0, 59, 0.0)


def test_codes_are_warned_of_where_they_hold_and_nowhere_else():
    positives = np.arange(100.0)
    for negatives, codes in (
        ([], {"single_class"}),
        ([50.0], set()),
        ([-1.0], set()),
        ([-1.0, -2.0], set()),  # as many below the threshold as are missed
    ):
        with collect_warnings() as warned:
            found = certify_threshold(np.r_[np.ones(100), np.zeros(len(negatives))], np.r_[positives, negatives])
        assert {one.code for one in warned} == codes
        assert (found.negatives, found.certifiable_recall) == (len(negatives), certifiable_recall(100, 0, 0.95))
    with collect_warnings() as warned:
        certify_threshold(np.ones(100), np.ones(100))
    assert {one.code: one.args[0] for one in warned}["refers_everyone"] == "the threshold refers every patient"


def test_confidence_is_shared_out_over_labels_and_models_alike():
    assert shared_confidence(0.95, 1, 3) == pytest.approx(1 - 0.05 / 3)
    assert shared_confidence(0.95, 2, 3) == shared_confidence(0.95, 6) == pytest.approx(1 - 0.05 / 6)
    y, s = np.repeat([1, 0], [200, 100]), np.concatenate([np.linspace(1, 2, 200), np.linspace(0, 1, 100)])
    one, many = certify_threshold(y, s), certify_threshold(y, s, n_labels=3)
    assert (many.labels_certified, many.models_compared, many.confidence) == (3, 1, 0.95)
    assert many.misses_allowed == max_misses(200, 0.95, 1 - 0.05 / 3) < one.misses_allowed
    assert many.positives_needed == min_positives(0.95, 1 - 0.05 / 3) == 80
    assert many.threshold < one.threshold
    with pytest.raises(ValueError, match="at least one label"):
        shared_confidence(0.95, 1, 0)


def test_all_labels_certified_hold_their_promise_at_once():
    """Three labels of the same patients, 2,000 cohorts: all three promises hold in at least 95 % of them."""
    generator, recall, n = np.random.default_rng(3), 0.9, 150
    allowed = max_misses(n, recall, shared_confidence(0.95, 1, 3))
    # Of uniform scores of positives, the share below the threshold is the threshold itself.
    thresholds = np.sort(generator.random((2000, 3, n)), axis=2)[:, :, allowed]
    chance = 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert (thresholds <= 1 - recall).all(axis=1).mean() >= 0.95 - chance
    alone = np.sort(generator.random((2000, 3, n)), axis=2)[:, :, max_misses(n, recall, 0.95)]
    assert (alone <= 1 - recall).all(axis=1).mean() < 0.95 - chance
