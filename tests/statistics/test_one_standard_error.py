"""The one-standard-error rule: known answers, and what it makes of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.statistics.discrimination import auc_value
from pipeline.statistics.one_standard_error import auc_standard_error, simplest_within


@pytest.mark.parametrize(
    ("values", "errors", "place"),
    [
        ([0.90, 0.92, 0.95], [0.02, 0.02, 0.02], 2),
        ([0.90, 0.935, 0.95], [0.02, 0.02, 0.02], 1),  # the error is the best one's
        ([0.94, 0.93, 0.95], [0.00, 0.00, 0.02], 0),
        ([0.95, 0.95], [0.01, 0.01], 0),
        ([0.90, 0.95, 0.95], [0.1, 0.0, 0.1], 1),  # of equal ones the first gives the error
        ([1.0, 1.0], [0.0, 0.0], 0),
        ([0.90, 0.95], [math.nan, math.nan], 1),
    ],
)
def test_the_simplest_within_one_error_of_the_best_is_taken(values, errors, place):
    assert simplest_within(values, errors) == place


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(ValueError, match="nothing to choose from"):
        simplest_within([], [])


def test_the_standard_error_is_that_of_repeated_studies():
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1], 60)

    def scores() -> np.ndarray:
        return generator.normal(1.2 * y)

    truth = np.std([auc_value(y, scores()) for _ in range(1500)])
    found = np.mean([auc_standard_error(y, scores(), np.arange(120)) for _ in range(8)])
    assert found == pytest.approx(truth, rel=0.15)


def test_images_of_a_patient_are_no_further_patients():
    generator = np.random.default_rng(1)
    y, s = np.repeat([0, 1], 40), generator.normal(np.repeat([0.0, 1.0], 40))
    alone = auc_standard_error(y, s, np.arange(80))
    assert auc_standard_error(np.repeat(y, 4), np.repeat(s, 4), np.repeat(np.arange(80), 4)) == pytest.approx(alone)
    as_if_each_were_one = auc_standard_error(np.repeat(y, 4), np.repeat(s, 4), np.arange(320))
    assert as_if_each_were_one < 0.6 * alone


def test_one_class_has_no_error():
    assert math.isnan(auc_standard_error([1, 1, 1], [0.1, 0.2, 0.3], [1, 2, 3]))


def test_where_recipes_are_alike_the_first_is_taken_mostly():
    """Seven equal recipes, judged on the same patients: the best by luck would be another than the first six times of
    seven; within one standard error of it the first mostly is."""
    generator = np.random.default_rng(2)
    y = np.repeat([0, 1], 40)
    first = 0
    for _ in range(60):
        common = generator.normal(1.5 * y)
        each = [common + 0.4 * generator.normal(size=80) for _ in range(7)]
        values = [auc_value(y, s) for s in each]
        errors = [0.04] * 7
        first += simplest_within(values, errors) == 0
    assert first / 60 > 0.8
