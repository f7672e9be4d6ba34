"""The table of operating points."""

import numpy as np
import pandas as pd
import pytest

from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.metrics import confusion, operating_metrics
from pipeline.statistics.sweep import sweep_thresholds, threshold_sweep
from pipeline.statistics.threshold import certify_threshold


@pytest.fixture
def cohort():
    generator = np.random.default_rng(1)
    y = np.repeat([1, 0], [70, 150])
    return y, np.round(generator.normal(size=220) + 2 * y, 2)


def test_each_row_is_the_2x2_table_at_its_threshold(cohort):
    y, s = cohort
    for row in threshold_sweep(y, s).itertuples():
        counts = confusion(y, s, row.threshold)
        assert (row.true_positive, row.false_positive) == (counts.tp, counts.fp)
        assert (row.true_negative, row.false_negative) == (counts.tn, counts.fn)
        with collect_warnings():
            metrics = operating_metrics(counts) if counts.tn + counts.fn else {}
        for name in ("recall", "specificity", "ppv", "npv", "referral_rate") if metrics else ():
            assert getattr(row, name) == pytest.approx(metrics[name].value)
        if metrics:
            assert (row.recall_low, row.recall_high) == (metrics["recall"].low, metrics["recall"].high)


def test_missed_cases_and_costs_are_those_of_the_who_tool(cohort):
    y, s = cohort
    sweep = threshold_sweep(y, s, [0.5, 99.0], cost_per_person=2.0, cost_per_referral=30.0)
    c = confusion(y, s, 0.5)
    first, nobody = sweep.to_dict("records")
    assert first["missed_share"] == pytest.approx(c.fn / 70)
    assert first["total_cost"] == pytest.approx(2 * 220 + 30 * (c.tp + c.fp))
    assert first["cost_per_found"] == pytest.approx(first["total_cost"] / c.tp)
    assert (nobody["missed_share"], nobody["total_cost"]) == (1, 440)
    assert np.isnan(nobody["cost_per_found"])
    in_referrals = threshold_sweep(y, s, [0.5]).iloc[0]
    assert in_referrals["cost_per_found"] == pytest.approx(1 / in_referrals["ppv"])


def test_every_recall_that_can_be_had_is_in_the_table(cohort):
    y, s = cohort
    thresholds = np.unique(s)
    assert {confusion(y, s, t).tp for t in thresholds} - {0} == set(threshold_sweep(y, s)["true_positive"])


def test_the_row_of_the_certificate_certifies_the_same_recall(cohort):
    y, s = cohort
    certificate = certify_threshold(y, s)
    sweep = threshold_sweep(y, s, sweep_thresholds(y, s, [certificate.threshold])).set_index("threshold")
    assert sweep.loc[certificate.threshold, "certified_recall"] == certificate.certified_recall
    higher = sweep.loc[sweep.index > certificate.threshold]
    assert higher.iloc[0]["certified_recall"] < 0.95


def test_long_tables_keep_every_point_where_screening_works():
    generator = np.random.default_rng(2)
    y = np.repeat([1, 0], [3000, 5000])
    s = generator.normal(size=8000) + 2 * y
    operating = certify_threshold(y, s).threshold
    thresholds = sweep_thresholds(y, s, [operating, operating + 0.001])
    assert len(thresholds) <= 93
    assert {operating, operating + 0.001} <= set(thresholds)
    assert (thresholds[1:40] == np.sort(s[y == 1])[:39]).all()
    assert (np.diff(thresholds) > 0).all()
    assert thresholds[0] == s.min()
    assert thresholds[-1] == s[y == 1].max()


def test_one_class_leaves_what_is_undefined_missing():
    sweep = threshold_sweep([1, 1, 1], [1.0, 2, 3])
    assert sweep["specificity"].isna().all()
    assert sweep["recall"].tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    healthy = threshold_sweep([0, 0], [1.0, 2.0], [1.5])
    assert healthy[["recall", "certified_recall"]].isna().all(axis=None)
    assert healthy["npv"].tolist() == [1.0]


def test_order_of_patients_does_not_matter(cohort):
    y, s = cohort
    order = np.random.default_rng(0).permutation(len(y))
    pd.testing.assert_frame_equal(threshold_sweep(y, s), threshold_sweep(y[order], s[order]))
