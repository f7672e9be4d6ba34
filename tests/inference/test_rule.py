"""From logits to a decision, and what the certificate of the operating point in use says."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.inference.decision import Decision
from pipeline.inference.rule import OperatingPoint, Rule, RuleError
from pipeline.statistics.calibration import displayed_probability
from pipeline.statistics.calibrators import LogisticCalibrator

CALIBRATOR = LogisticCalibrator(n=200, n_positive=100, prevalence=0.5, slope=1.2, intercept=-0.3)
FIRST = OperatingPoint(0.5, 0.95, 0.9, 111, "calibration patients")
OTHER = OperatingPoint(0.8, 0.9, 0.9, 111, "calibration patients")


def rule(*points: OperatingPoint, reasons: tuple[str, ...] = ()) -> Rule:
    return Rule("max", CALIBRATOR, points, Decision(reasons), np.empty((0, 0)))


def test_the_scope_speaks_of_the_operating_point_in_use():
    assert "at least 95 % of people" in rule(FIRST, OTHER).scope("adults")[0]
    chosen = rule(FIRST, OTHER).at(0.9)
    assert "at least 90 % of people" in chosen.scope("adults")[0]
    assert "95 %" not in " ".join(chosen.scope("adults"))
    assert chosen.scope("adults ")[1] == "These came from: adults."
    with pytest.raises(RuleError, match=r"recall 0\.99 is not certified for this model; certified: 0\.95, 0\.9"):
        rule(FIRST, OTHER).at(0.99)


def test_without_a_usable_point_the_scope_says_why_and_nobody_is_decided_about():
    closed = rule(reasons=("it does not separate",))
    assert closed.scope("adults") == ["it does not separate"]
    judged = closed.of(np.array([9.0]))
    assert (judged.decision, judged.reasons, judged.score) == ("not assessable", ("not_usable",), 9.0)


def test_a_lost_image_makes_no_refer_unknown_and_leaves_refer():
    assert rule(FIRST).of(np.array([0.2, 0.5]), lost=1).decision == "refer"
    assert rule(FIRST).of(np.array([0.2, 0.4]), lost=1).reasons == ("image_lost",)
    assert rule(FIRST).of(np.array([0.2, 0.4])).decision == "no refer"
    assert rule(FIRST).of(np.empty(0)).reasons == ("no_image",)


def test_the_local_probability_is_the_displayed_one_to_the_bit():
    judged = rule(FIRST).of(np.array([0.7]), prevalence=0.02)
    assert judged.local_probability == displayed_probability(CALIBRATOR, [0.7], 0.02)[0]
    assert judged.probability == displayed_probability(CALIBRATOR, [0.7])[0]
