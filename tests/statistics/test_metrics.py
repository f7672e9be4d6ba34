"""The 2x2 table, and what it means at another prevalence."""

import math

import numpy as np
import pytest

from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.intervals import newcombe, proportion_ci
from pipeline.statistics.metrics import (
    Counts,
    at_prevalence,
    confusion,
    net_benefit,
    net_benefit_at,
    operating_metrics,
)

TABLE = Counts(tp=90, fp=60, tn=240, fn=10)


def test_a_score_at_the_threshold_is_referred():
    assert confusion([1, 1, 0, 0], [0.5, 0.49, 0.5, 0.1], 0.5) == Counts(tp=1, fp=1, tn=1, fn=1)


def test_metrics_of_a_table_worked_by_hand():
    values = {name: interval.value for name, interval in operating_metrics(TABLE).items()}
    assert values == pytest.approx(
        {
            "recall": 0.9,
            "specificity": 0.8,
            "ppv": 0.6,
            "npv": 0.96,
            "referral_rate": 0.375,
            "f1": 0.72,
            "youden": 0.7,
            "balanced_accuracy": 0.85,
            "lr_positive": 4.5,
            "lr_negative": 0.125,
        }
    )


def test_intervals_are_those_named():
    metrics = operating_metrics(TABLE)
    assert metrics["recall"] == proportion_ci(90, 100)
    assert metrics["ppv"] == proportion_ci(90, 150)
    youden = newcombe(90, 100, 60, 300)
    assert (metrics["youden"].low, metrics["youden"].high) == (youden.low, youden.high)
    assert metrics["balanced_accuracy"].low == pytest.approx((youden.low + 1) / 2)
    jaccard = proportion_ci(90, 160)
    assert metrics["f1"].low == pytest.approx(2 * jaccard.low / (1 + jaccard.low))
    assert all(i.low <= i.value <= i.high and i.level == 0.95 for i in metrics.values())


def test_f1_limits_hold_as_often_as_they_say():
    generator = np.random.default_rng(1)
    shares = np.array([0.15, 0.10, 0.70, 0.05])
    truth = 2 * 0.15 / (2 * 0.15 + 0.10 + 0.05)
    held = 0
    for tp, fp, tn, fn in generator.multinomial(200, shares, 800):
        interval = operating_metrics(Counts(int(tp), int(fp), int(tn), int(fn)))["f1"]
        held += interval.low <= truth <= interval.high
    assert 740 <= held <= 785


def test_consequences_per_1000_worked_by_hand():
    row = at_prevalence(TABLE, 0.05)
    values = {name: getattr(row, name).value for name in ("found", "missed", "false_alarms", "referred")}
    assert values == pytest.approx({"found": 45, "missed": 5, "false_alarms": 190, "referred": 235})
    assert row.ppv.value == pytest.approx(45 / 235)
    assert row.npv.value == pytest.approx(760 / 765)
    assert row.number_needed_to_recall.value == pytest.approx(235 / 45)
    recall = proportion_ci(90, 100)
    assert (row.missed.low, row.missed.high) == pytest.approx((50 * (1 - recall.high), 50 * (1 - recall.low)))


def test_at_the_prevalence_of_the_sample_the_predictive_value_is_the_samples():
    row = at_prevalence(TABLE, 0.25)
    assert row.ppv.value == pytest.approx(0.6)
    assert row.npv.value == pytest.approx(0.96)


def test_every_consequence_lies_in_its_interval_even_when_nothing_was_missed():
    for counts in (TABLE, Counts(60, 0, 100, 0), Counts(60, 100, 0, 0), Counts(1, 1, 1, 1)):
        with collect_warnings():
            row = at_prevalence(counts, 0.01).to_dict()
        for name, interval in row.items():
            if isinstance(interval, dict) and not math.isnan(interval["value"]):
                assert interval["low"] <= interval["value"] <= interval["high"], name


def test_predictive_value_limits_hold_as_often_as_they_say():
    generator = np.random.default_rng(2)
    truth = 0.05 * 0.9 / (0.05 * 0.9 + 0.95 * 0.25)
    held = 0
    for tp, fp in zip(generator.binomial(100, 0.9, 500), generator.binomial(150, 0.25, 500), strict=True):
        row = at_prevalence(Counts(int(tp), int(fp), 150 - int(fp), 100 - int(tp)), 0.05, draws=4000)
        held += row.ppv.low <= truth <= row.ppv.high
    assert 460 <= held <= 490


def test_the_same_seed_gives_the_same_consequences():
    assert at_prevalence(TABLE, 0.02, seed=3) == at_prevalence(TABLE, 0.02, seed=3)


@pytest.mark.parametrize("prevalence", [0, 1, -0.1])
def test_a_prevalence_lies_between_0_and_1(prevalence):
    with pytest.raises(ValueError, match="strictly between"):
        at_prevalence(TABLE, prevalence)


def test_net_benefit_worked_by_hand():
    y, p = [1] * 10 + [0] * 90, [0.9] * 8 + [0.1] * 2 + [0.6] * 18 + [0.1] * 72
    assert net_benefit(confusion(y, p, 0.2), 0.2).value == pytest.approx(8 / 100 - 18 / 100 * 0.25)
    assert net_benefit(confusion(y, p, 0.05), 0.05).value == pytest.approx(0.1 - 0.9 * 0.05 / 0.95)
    assert net_benefit(confusion(y, p, 0.95), 0.95).value == 0
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        net_benefit(TABLE, 1.0)


def test_net_benefit_has_the_coverage_it_states():
    generator = np.random.default_rng(3)
    pt, recall, false_rate = 0.2, 0.85, 0.3
    truth = 0.3 * recall - 0.7 * false_rate * pt / (1 - pt)
    inside = 0
    for _ in range(500):
        tp, fp = generator.binomial(60, recall), generator.binomial(140, false_rate)
        interval = net_benefit(Counts(tp=tp, fp=fp, tn=140 - fp, fn=60 - tp), pt)
        inside += interval.low <= truth <= interval.high
    assert 0.925 <= inside / 500 <= 0.98


def test_net_benefit_of_one_class_has_limits_too():
    healthy = net_benefit(Counts(tp=0, fp=10, tn=90, fn=0), 0.5)
    assert (healthy.value, healthy.low < -0.1 < healthy.high) == (-0.1, True)


def test_net_benefit_elsewhere_is_that_of_as_many_patients_with_the_condition_there():
    counts = Counts(tp=114, fp=26, tn=40, fn=2)
    own = 116 / 182
    for pt in (0.05, 0.3):
        here, there = net_benefit(counts, pt), net_benefit_at(counts, pt, own)
        assert (there.value, there.low, there.high) == pytest.approx((here.value, here.low, here.high))
    # What helps where 64 % have it does harm where 5 % have it, for whoever accepts 9 needless referrals per case.
    assert net_benefit(counts, 0.1).value > 0 > net_benefit_at(counts, 0.3, 0.05).value
    expected = 0.05 * 114 / 116 - 0.95 * 26 / 66 / 9
    assert net_benefit_at(counts, 0.1, 0.05).value == pytest.approx(expected)
    assert math.isnan(net_benefit_at(Counts(3, 0, 0, 1), 0.1, 0.05).value)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        net_benefit_at(counts, 0.1, 1.0)
