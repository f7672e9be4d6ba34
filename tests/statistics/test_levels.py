"""Every interval is at the level that was asked for, says so, and counts the units behind it."""

import numpy as np
import pandas as pd
import pytest

from pipeline.statistics.compare import delong_test
from pipeline.statistics.discrimination import average_precision, roc_auc
from pipeline.statistics.gate import assess_discrimination
from pipeline.statistics.intervals import (
    bootstrap,
    newcombe,
    proportion_ci,
    ratio_ci,
)
from pipeline.statistics.macro import macro_averages
from pipeline.statistics.metrics import Counts, at_prevalence, net_benefit, operating_metrics
from pipeline.statistics.patients import Patients
from pipeline.statistics.reliability import calibration_line, calibration_summary, reliability_bins
from pipeline.statistics.shift import Promise, group_shift
from pipeline.statistics.subgroups import subgroup_table

N = 120
GENERATOR = np.random.default_rng(3)
Y = np.arange(N) % 2
S = GENERATOR.normal(Y, 1.2)
P = 1 / (1 + np.exp(-(0.7 * S - 0.4)))
TABLE = Counts(tp=45, fp=20, tn=40, fn=15)
PATIENTS = Patients(np.array([f"p{i:03d}" for i in range(N)]), Y, S, N, 0, (1,))
ALL = N


def a_group(level):
    return group_shift("site A", PATIENTS, PATIENTS, P, Promise(0.0, 0.5, 0.95), level=level)


INTERVALS = {
    "wilson": (lambda level: proportion_ci(9, 40, level), "wilson", 40),
    "exact": (lambda level: proportion_ci(9, 40, level, "exact"), "exact", 40),
    "newcombe": (lambda level: newcombe(9, 40, 5, 60, level), "newcombe", 100),
    "ratio": (lambda level: ratio_ci(9, 40, 5, 60, level), "mover_wilson", 100),
    "bootstrap": (lambda level: bootstrap(lambda y, s: s.mean(), Y, S, level=level), "patient_bootstrap", ALL),
    "auc": (lambda level: roc_auc(Y, S, level), "delong_logit", ALL),
    "average precision": (lambda level: average_precision(Y, S, level), "patient_bootstrap", ALL),
    "net benefit": (lambda level: net_benefit(TABLE, 0.2, level), "mover_wilson", ALL),
    "slope": (lambda level: calibration_line(Y, P, level).slope, "wald", ALL),
    "intercept": (lambda level: calibration_line(Y, P, level).intercept, "wald", ALL),
    "in the large": (lambda level: calibration_line(Y, P, level).in_the_large, "wald", ALL),
    "reliability bin": (lambda level: reliability_bins(Y, P, 3, level=level)[1].observed, "wilson", 40),
    "prevalence of a group": (lambda level: a_group(level).prevalence, "wilson", ALL),
    "recall of a group": (lambda level: a_group(level).recall, "wilson", ALL // 2),
    "calibration of a group": (lambda level: a_group(level).in_the_large, "wald", ALL),
    **{
        f"operating {name}": (lambda level, name=name: operating_metrics(TABLE, level)[name], method, n)
        for name, method, n in (
            ("recall", "wilson", 60),
            ("specificity", "wilson", 60),
            ("ppv", "wilson", 65),
            ("npv", "wilson", 55),
            ("referral_rate", "wilson", ALL),
            ("f1", "wilson_transformed", 80),
            ("youden", "newcombe", ALL),
            ("balanced_accuracy", "newcombe", ALL),
            ("lr_positive", "mover_wilson", ALL),
            ("lr_negative", "mover_wilson", ALL),
        )
    },
    **{
        f"at a prevalence {name}": (
            lambda level, name=name: getattr(at_prevalence(TABLE, 0.1, 1000, level), name),
            m,
            n,
        )
        for name, m, n in (
            ("found", "wilson", 60),
            ("missed", "wilson", 60),
            ("false_alarms", "wilson", 60),
            ("referred", "monte_carlo", ALL),
            ("ppv", "monte_carlo", ALL),
            ("npv", "monte_carlo", ALL),
            ("number_needed_to_recall", "monte_carlo", ALL),
        )
    },
    **{
        f"calibration {name}": (lambda level, name=name: calibration_summary(Y, P, 5, level)[name], m, ALL)
        for name, m in (
            ("brier", "patient_bootstrap"),
            ("brier_skill", "patient_bootstrap"),
            ("ece", "patient_bootstrap_norm"),
            ("log_loss", "patient_bootstrap"),
            ("slope", "wald"),
            ("in_the_large", "wald"),
        )
    },
}


@pytest.mark.parametrize("name", INTERVALS)
def test_an_interval_is_at_the_level_that_was_asked_for(name):
    make, method, n = INTERVALS[name]
    narrow, wide = make(0.6), make(0.99)
    assert (narrow.level, wide.level) == (0.6, 0.99)
    assert (narrow.method, narrow.n) == (wide.method, wide.n) == (method, n)
    assert wide.low <= narrow.low <= narrow.value <= narrow.high < wide.high
    assert wide.low < narrow.low or wide.low == 0  # an expected calibration error of 0 is within reach of both


def test_paired_differences_are_at_the_level_that_was_asked_for():
    other = S + np.random.default_rng(4).normal(size=N)
    narrow, wide = delong_test(Y, S, other, 0.6), delong_test(Y, S, other, 0.99)
    assert wide.low < narrow.low < narrow.diff == wide.diff < narrow.high < wide.high


def test_the_rows_of_subgroups_are_at_the_level_that_was_asked_for():
    frame = pd.DataFrame({"label": Y, "score": S, "sex": np.where(np.arange(N) % 4 < 2, "F", "M")})
    narrow, wide = (subgroup_table(frame, ["sex"], 0.5, 10, level) for level in (0.6, 0.99))
    for metric in ("recall", "specificity", "auc"):
        assert (wide[f"{metric}_low"] < narrow[f"{metric}_low"]).all()
        assert (wide[f"{metric}_high"] > narrow[f"{metric}_high"]).all()


def test_macro_averages_are_at_the_level_that_was_asked_for():
    other = Patients(PATIENTS.ids, 1 - Y, -S + 0.1, N, 0, (1,))
    narrow, wide = (macro_averages([PATIENTS, other], [0.5, 0.5], level) for level in (0.6, 0.99))
    for measure in ("auc", "recall", "specificity"):
        assert getattr(wide, measure).level == 0.99
        assert getattr(wide, measure).low < getattr(narrow, measure).low


def test_the_gate_judges_at_the_level_that_was_asked_for():
    weak = np.random.default_rng(6).normal(0.1 * Y, 1)
    interval = {level: roc_auc(Y, weak, level) for level in (0.6, 0.99)}
    assert interval[0.99].low < 0.5 < interval[0.6].low
    codes = {level: {f.code for f in assess_discrimination(Y, weak, P, 0.3, level=level)} for level in interval}
    assert codes[0.99] >= {"no_discrimination", "ppv_no_lift"}
    assert not codes[0.6] & {"no_discrimination", "ppv_no_lift"}
