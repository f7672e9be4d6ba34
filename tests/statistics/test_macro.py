"""Means over labels: scikit-learn's values, limits that keep what labels share, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from pipeline.statistics.discrimination import auc_value
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.intervals import bootstrap
from pipeline.statistics.macro import macro_averages
from pipeline.statistics.patients import Patients


def cohort(seed: int, n: int = 200, shift: float = 1.0) -> Patients:
    generator = np.random.default_rng(seed)
    y = (generator.random(n) < 0.4).astype(np.int64)
    s = np.round(generator.normal(shift * y, 1), 1)  # with ties
    return Patients(np.array([f"p{i:04d}" for i in range(n)]), y, s, n, 0, (1,))


def those(patients: Patients, rows: slice) -> Patients:
    return Patients(patients.ids[rows], patients.y[rows], patients.s[rows], patients.images, 0, (1,))


def test_values_are_those_of_scikit_learn():
    labels, thresholds = [cohort(1), cohort(2, shift=2.0)], [0.3, 1.1]
    means = macro_averages(labels, thresholds)
    y, s = (np.column_stack([getattr(one, name) for one in labels]) for name in "ys")
    assert means.auc.value == pytest.approx(roc_auc_score(y, s, average="macro"))
    referred = s >= thresholds
    assert means.recall.value == pytest.approx(recall_score(y, referred, average="macro"))
    assert means.specificity.value == pytest.approx(recall_score(1 - y, ~referred, average="macro"))
    assert all(0 < one.low < one.value < one.high < 1 for one in (means.auc, means.recall, means.specificity))
    assert means.auc.n == 200


def test_patients_who_lack_a_label_count_for_the_others():
    first, second = cohort(1), those(cohort(2), slice(50, None))
    auc = macro_averages([first, second], [None, None]).auc
    assert auc.value == pytest.approx((auc_value(first.y, first.s) + auc_value(second.y, second.s)) / 2)
    assert auc.n == 200


def test_limits_keep_what_labels_share():
    """Twice the same label tells no more than once; two that have nothing in common tell more."""
    one = cohort(1)
    twice = macro_averages([one, one], [0.3, 0.3])
    alone = bootstrap(auc_value, one.y, one.s, stratify=False)
    assert (twice.auc.low, twice.auc.high) == pytest.approx((alone.low, alone.high))
    apart = macro_averages([one, cohort(7)], [0.3, 0.3])
    for measure in ("auc", "recall", "specificity"):
        mean, same = getattr(apart, measure), getattr(twice, measure)
        assert mean.high - mean.low < same.high - same.low


def test_without_every_threshold_there_is_no_mean_of_what_depends_on_them():
    means = macro_averages([cohort(1), cohort(2)], [0.3, None])
    assert means.recall is None
    assert means.specificity is None
    assert not math.isnan(means.auc.low)


def test_a_mean_that_every_resample_repeats_has_no_limits():
    one = cohort(1)
    certain = Patients(one.ids, one.y, one.y.astype(float), 200, 0, (1,))
    with collect_warnings() as warned:
        means = macro_averages([certain, certain], [0.5, 0.5])
    every = [means.auc, means.recall, means.specificity]
    assert [one and one.value for one in every] == [1, 1, 1]
    assert all(one and math.isnan(one.low) and math.isnan(one.high) for one in every)
    assert {warning.code for warning in warned} == {"macro_boundary"}
