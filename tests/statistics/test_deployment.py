"""The threshold to use: what pooling keeps and saves, and what groups are promised."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from pipeline.statistics.deployment import certified_subgroups, certify_groups, deployment, lowered, pooled
from pipeline.statistics.patients import Patients
from pipeline.statistics.threshold import max_misses
from pipeline.store.results.threshold import Target

DISTANCE = norm.ppf(0.95) * np.sqrt(2)
CERTIFIED = Target(
    certified=True, at=None, recall_target=0.95, confidence=0.95, confidence_used=0.95, models_compared=1,
    labels_certified=1, positives=111, negatives=54, certifiable_recall=0.97, positives_needed=59, message="",
    advice="",
)  # fmt: skip


def sample(generator, positives, negatives, name="c"):
    y = np.repeat([1, 0], [positives, negatives])
    s = generator.normal(size=len(y)) + DISTANCE * y
    return Patients(np.array([f"{name}{i:04d}" for i in range(len(y))]), y, s, len(y), 0, (1,))


def test_pooled_certificates_keep_the_promise_and_refer_fewer():
    generator, kept, runs, held = np.random.default_rng(3), 0, 250, 0
    referral = {"calibration": [], "pooled": []}
    for _ in range(runs):
        sets = sample(generator, 111, 54), sample(generator, 116, 66, "t")
        made = {rule: deployment(rule, *sets, CERTIFIED, 0.05) for rule in referral}
        for rule, one in made.items():
            referral[rule].append(one.referral.value)
        threshold, specificity = made["pooled"].threshold, made["pooled"].specificity
        kept += norm.sf(threshold - DISTANCE) >= 0.95
        held += specificity["low"] <= norm.cdf(threshold) <= specificity["high"]
    assert kept / runs >= 0.945
    assert held / runs >= 0.92
    # By quadrature: 0.474 and 0.393.
    assert np.mean(referral["calibration"]) == pytest.approx(0.474, abs=0.02)
    assert np.mean(referral["pooled"]) == pytest.approx(0.393, abs=0.02)


def test_specificity_is_that_of_all_unseen_negatives_and_the_threshold_that_of_positives_alone():
    generator = np.random.default_rng(4)
    first, second = sample(generator, 111, 54), sample(generator, 116, 66, "t")
    made = deployment("pooled", first, second, CERTIFIED, 0.05)
    assert (made.positives, made.misses_allowed, made.negatives) == (227, max_misses(227), 120)
    moved = replace(second, s=np.where(second.y == 0, second.s - 1, second.s))
    again = deployment("pooled", first, moved, CERTIFIED, 0.05)
    assert again.threshold_hex == made.threshold_hex
    assert again.specificity.value > made.specificity.value
    assert not hasattr(made, "recall")
    with pytest.raises(ValueError, match="share patients"):
        pooled(first, first)


def test_a_lower_threshold_for_the_sake_of_groups_refers_more():
    generator = np.random.default_rng(5)
    sets = sample(generator, 111, 54), sample(generator, 116, 66, "t")
    made = deployment("calibration", *sets, CERTIFIED, 0.05)
    lower = lowered(made, made.threshold - 1, *sets)
    assert lower.referral.value > made.referral.value
    assert float.fromhex(lower.threshold_hex) == lower.threshold == made.threshold - 1
    assert lower.expected_recall == made.expected_recall


def test_a_promise_over_everybody_is_none_over_the_harder_fifth_but_the_lowest_of_groups_is():
    generator, runs = np.random.default_rng(6), 150
    overall, lowest = 0, 0
    for _ in range(runs):
        group = np.repeat(["easy", "hard"], [400, 100])
        s = generator.normal(size=500) - 0.5 * (group == "hard")
        y, everybody = np.ones(500, int), np.sort(s)[max_misses(500)]
        rows = certify_groups(y, s, group, 0.95, 0.95, everybody, 2)
        overall += norm.sf(everybody + 0.5) >= 0.95
        lowest += norm.sf(min(row["threshold"] for row in rows) + 0.5) >= 0.95
    assert overall / runs < 0.2
    assert lowest / runs >= 0.945


def test_a_group_with_too_few_positives_gets_what_can_be_promised():
    y, s = np.ones(100, int), np.arange(100.0)
    rows = certify_groups(y, s, np.repeat(["few", "many"], [20, 80]), 0.95, 0.95, 4.0, 2)
    few, many = rows
    assert (few["certified"], few["threshold"], few["positives_needed"], few["misses"]) == (False, None, 72, 4)
    assert 0 < few["certifiable_recall"] < 0.8
    assert (many["certified"], many["threshold"]) == (True, 20.0)
    patients = Patients(np.array([f"p{i}" for i in range(100)]), y, s, 100, 0, (1,))
    attributes = pd.DataFrame({"site": ["a"] * 20 + ["b"] * 80, "sex": ["F", "M"] * 50}, index=patients.ids)
    both = certified_subgroups(patients, attributes, ["site", "sex"], 0.95, 0.95, 1, 4.0)
    # Shared over all four groups, so that all promises hold at once: nobody has the 87 that it takes.
    assert [row["positives_needed"] for row in both["groups"]] == [86] * 4
    assert both["minimum"] is None
    assert certified_subgroups(patients, attributes, [], 0.95, 0.95, 1, 4.0)["groups"] == []
