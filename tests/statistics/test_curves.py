"""Points of the curves."""

import numpy as np
import pytest
from scipy.special import expit

from pipeline.statistics.curves import (
    curve_table,
    decision_points,
    precision_recall_points,
    reliability_points,
    roc_points,
)
from pipeline.statistics.discrimination import auc_value
from pipeline.statistics.patients import Patients


@pytest.fixture
def cohort():
    generator = np.random.default_rng(0)
    y = np.repeat([1, 0], [3000, 5000])
    return y, generator.normal(size=8000) + 1.5 * y


def test_the_area_under_the_thinned_curve_is_the_auc(cohort):
    points = roc_points(*cohort, "mae")
    assert len(points) <= 500
    assert np.trapezoid(points["y"], points["x"]) == pytest.approx(auc_value(*cohort), abs=1e-3)
    assert points[["x", "y"]].iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]
    assert points["x"].is_monotonic_increasing


def test_the_precision_recall_curve_ends_at_the_prevalence_and_has_no_made_up_point():
    y, s = np.array([1, 0, 1, 0]), np.array([4.0, 3, 2, 1])
    points = precision_recall_points(y, s, "mae")
    assert points[["x", "y"]].to_numpy().tolist() == [[0.5, 1], [0.5, 0.5], [1, pytest.approx(2 / 3)], [1, 0.5]]


def test_reliability_points_have_limits_and_counts(cohort):
    y, _ = cohort
    points = reliability_points(y, np.linspace(0, 1, 8000), "mae", "reliability_after", 10, 0.95)
    assert points["n"].tolist() == [800] * 10
    assert ((points["y_low"] <= points["y"]) & (points["y"] <= points["y_high"])).all()


def test_one_class_has_no_curve():
    assert roc_points(np.ones(3, int), np.arange(3.0), "mae").empty
    assert precision_recall_points(np.zeros(3, int), np.arange(3.0), "mae").empty


def test_every_arm_has_curves_and_the_reported_one_its_reliability(cohort):
    y, s = cohort
    patients = Patients(np.arange(8000), y, s, 8000, 0, (1,))
    table = curve_table(
        {"hog": patients, "mae": patients}, "mae", np.full(8000, 0.5), np.linspace(0, 1, 8000), 10, 0.95, 1.0
    )
    shown = set(zip(table["curve"], table["arm"], strict=True))
    assert shown == {
        *((curve, arm) for curve in ("roc", "precision_recall") for arm in ("hog", "mae")),
        ("reliability_before", "mae"),
        ("reliability_after", "mae"),
        ("net_benefit", "mae"),
        ("net_benefit_all", "mae"),
        ("net_benefit_operating_point", "mae"),
    }


def test_the_decision_curve_is_net_benefit_at_each_probability(cohort):
    y, s = cohort
    p = expit(1.5 * s - 1.125 + np.log(3 / 5))  # the true probability
    model, everyone, fixed = (c.set_index("x") for c in decision_points(y, s, p, "mae", 0.95, 0.2))
    for pt in (0.05, 0.3, 0.8):
        w = pt / (1 - pt)
        for curve, referred in ((model, p >= pt), (everyone, np.ones(8000, bool)), (fixed, s >= 0.2)):
            assert curve.loc[pt, "y"] == pytest.approx((referred & (y == 1)).mean() - w * (referred & (y == 0)).mean())
    # The truth does best: nobody gains by refusing it, within noise.
    assert (model["y"] >= np.maximum(everyone["y"], 0) - 0.005).all()
    assert (model["y"] >= fixed["y"] - 0.005).all()
    assert ((model["y_low"] <= model["y"]) & (model["y"] <= model["y_high"])).all()
    assert everyone["y_low"].isna().all()


def test_without_an_operating_point_there_is_no_curve_of_it(cohort):
    curves = decision_points(*cohort, np.full(8000, 0.4), "mae", 0.95, None)
    assert [c["curve"].iloc[0] for c in curves] == ["net_benefit", "net_benefit_all"]
