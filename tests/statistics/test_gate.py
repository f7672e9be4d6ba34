"""The gate: what it refuses, what it lets through, how often it errs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.statistics.calibration import fit_calibrator
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.gate import LEVELS, assess_discrimination, compare_tables
from pipeline.statistics.metrics import Counts, operating_metrics
from pipeline.statistics.sweep import threshold_sweep
from pipeline.statistics.threshold import certify_threshold


def binormal(seed, n1=100, n0=200, auc=0.9):
    y = np.repeat([1, 0], [n1, n0])
    return y, np.random.default_rng(seed).normal(size=n1 + n0) + y * norm.ppf(auc) * math.sqrt(2)


def judged(y, s, threshold=None, **more):
    """Calibrate and judge, as the stages do."""
    with collect_warnings():
        p = fit_calibrator(y, s).predict(s)
    return assess_discrimination(y, s, p, threshold, **more)


def codes(findings, level=None):
    return {f.code for f in findings if level in (None, f.level)}


def test_a_good_model_passes_without_a_word():
    y, s = binormal(0)
    threshold = certify_threshold(y, s).threshold
    assert judged(y, s, threshold, raw=expit(s), sweep=threshold_sweep(y, s)) == []


def test_a_squeezed_but_good_model_passes():
    """Scores 0.617 to 0.640 with AUC 0.90: only the reader is told that the narrow range says nothing."""
    y, s = binormal(1, 100, 400)
    raw = 0.617 + 0.023 * expit(s - 1)
    squeezed = logit(raw)
    findings = judged(y, squeezed, certify_threshold(y, squeezed).threshold, raw=raw)
    assert [(f.code, f.level) for f in findings] == [("narrow_raw_range", "info")]


def test_the_published_table_of_the_notebook_project_is_refused():
    """Thresholds 0.15 to 0.21, precision 0.48, recall 0.97; probabilities 0.617 to 0.640, no relation to the label.

    Accuracy = precision = 0.48 with recall 0.97 forces prevalence 0.481 and specificity 0.026.
    """
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(1000) < 481).astype(int)
    probabilities = generator.uniform(0.617, 0.640, 1000)
    published = pd.DataFrame(
        {
            "threshold": [0.15, 0.18, 0.21],
            "true_positive": [467, 420, 375],
            "false_positive": [506, 462, 418],
            "true_negative": [13, 57, 101],
            "false_negative": [14, 61, 106],
        }
    )
    findings = assess_discrimination(y, probabilities, probabilities, 0.15, raw=probabilities, sweep=published)
    assert {"threshold_outside_scores", "ppv_no_lift", "no_discrimination", "refers_everyone"} <= codes(
        findings, "fail"
    )
    assert {"no_skill", "narrow_calibrated"} <= codes(findings, "warn")
    messages = " ".join(f.message for f in findings)
    assert "3 rows of the table" in messages
    assert "(Brier skill −0." in messages
    assert ", 95 % interval −0." in messages
    assert codes(compare_tables(published, threshold_sweep(y, probabilities, published["threshold"])[list(published)]))
    for row in published.itertuples():
        counts = Counts(row.true_positive, row.false_positive, row.true_negative, row.false_negative)
        assert operating_metrics(counts)["youden"].low < 0


def test_permuted_labels_are_refused_nearly_always():
    refused = 0
    for seed in range(200):
        y, s = binormal(seed, 60, 120)
        refused += "no_discrimination" in codes(judged(np.random.default_rng(seed).permutation(y), s), "fail")
    assert refused >= 190


def test_models_of_auc_080_are_refused_almost_never():
    refused = sum(bool(codes(judged(*binormal(seed, 50, 200, 0.80)), "fail")) for seed in range(200))
    assert refused <= 1


def test_a_model_turned_upside_down_is_called_reversed():
    y, s = binormal(2)
    assert {"reversed", "no_discrimination"} <= codes(judged(y, -s), "fail")


def test_a_weak_model_is_a_warning():
    y, s = binormal(3, 100, 200, 0.62)
    findings = judged(y, s)
    assert codes(findings, "fail") == set()
    assert "weak" in codes(findings, "warn")


@pytest.mark.parametrize(("threshold", "code"), [(-9.0, "refers_everyone"), (9.0, "refers_no_one")])
def test_a_threshold_that_decides_nothing_is_refused(threshold, code):
    y, s = binormal(4)
    assert {code, "threshold_outside_scores", "ppv_no_lift"} <= codes(judged(y, s, threshold), "fail")


def test_referring_95_of_100_healthy_is_referring_everyone():
    y, s = binormal(5)
    healthy = s[y == 0]
    assert "refers_everyone" in codes(judged(y, s, np.quantile(healthy, 0.04)), "fail")
    assert "refers_everyone" not in codes(judged(y, s, np.quantile(healthy, 0.06)))


def test_a_good_model_tried_on_few_healthy_patients_is_not_stopped():
    """Judged by the share of all who are referred, a model of AUC 0.99 is stopped in 16 of 100 such sets."""
    generator, stopped, useless = np.random.default_rng(14), 0, 0
    for _ in range(60):
        for distance in (3.29, 0.0):
            y = np.repeat([1, 0], [190, 10])
            s = generator.normal(size=200) + distance * y
            threshold = np.sort(s[y == 1])[4]
            failed = "refers_everyone" in codes(assess_discrimination(y, s, np.full(200, 0.5), threshold), "fail")
            everything = codes(assess_discrimination(y, s, np.full(200, 0.5), threshold), "fail")
            stopped, useless = (stopped + failed, useless) if distance else (stopped, useless + bool(everything))
    assert stopped == 0
    assert useless >= 57


def test_rows_that_refer_all_or_none_may_lie_outside_the_scores():
    y, s = binormal(6)
    assert judged(y, s, sweep=threshold_sweep(y, s, [-9, 0.5, 9])) == []


@pytest.mark.parametrize(("threshold", "found"), [(-9.0, True), (9.0, True), (0.5, False)])
def test_rows_that_refer_some_beyond_either_end_of_the_scores_are_not_of_these(threshold, found):
    y, s = binormal(6)
    counts = {"true_positive": [0], "false_positive": [1], "true_negative": [0], "false_negative": [1]}
    sweep = pd.DataFrame({"threshold": [threshold]} | counts)
    assert ("threshold_outside_scores" in codes(judged(y, s, sweep=sweep))) is found


def test_always_stating_the_prevalence_is_no_skill():
    y, s = binormal(6, 100, 100)
    assert codes(assess_discrimination(y, s, np.full(200, 0.5))) == {"no_skill", "narrow_calibrated"}


def test_perfect_separation_passes_when_chance_cannot_explain_it():
    y = np.repeat([0, 1], 30)
    s = np.arange(60.0)
    assert codes(judged(y, s), "fail") == set()
    assert "reversed" in codes(judged(y, -s), "fail")
    with collect_warnings():
        assert "no_discrimination" in codes(assess_discrimination([0, 0, 1, 1], [1, 2, 3, 4], [0.5] * 4), "fail")


@pytest.mark.parametrize(("y", "s"), [([1] * 30, np.arange(30.0)), ([0, 1] * 15, np.full(30, 0.3))])
def test_one_class_or_one_score_shows_nothing(y, s):
    assert "no_discrimination" in codes(assess_discrimination(y, s, np.full(30, 0.5)), "fail")


def test_few_distinct_scores_are_said():
    y, s = binormal(7)
    assert codes(judged(y, np.round(s))) == {"few_values"}


def test_a_changed_number_in_a_stored_table_is_found():
    y, s = binormal(8)
    sweep = threshold_sweep(y, s)
    assert compare_tables(sweep, sweep.copy()) == []
    changed = sweep.copy()
    changed.loc[3, "true_negative"] += 1
    found = compare_tables(changed, sweep)
    assert [(f.code, f.level) for f in found] == [("table_inconsistent", "fail")]
    assert f"1 of {len(sweep)} rows" in found[0].message
    assert codes(compare_tables(sweep[:-1], sweep)) == {"table_inconsistent"}


def test_levels_are_those_of_the_specification():
    failing = {"no_discrimination", "reversed", "ppv_no_lift", "refers_everyone", "refers_no_one"}
    failing |= {"threshold_outside_scores", "table_inconsistent"}
    assert {code for code, level in LEVELS.items() if level == "fail"} == failing
    assert {code for code, level in LEVELS.items() if level == "info"} == {"narrow_raw_range"}


def test_a_finding_says_on_whom():
    y, s = binormal(9)
    assert judged(y, -s, on="test")[0].to_dict().keys() == {"code", "level", "on", "message"}
    assert {f.on for f in judged(y, -s, on="test")} == {"test"}
