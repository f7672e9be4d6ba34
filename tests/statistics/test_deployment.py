"""The threshold to use: what pooling keeps and saves, and what groups are promised."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from pipeline.statistics.deployment import certified_subgroups, certify_groups, deployment, lowered, pooled
from pipeline.statistics.intervals import proportion_ci
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
        held += specificity.low <= norm.cdf(threshold) <= specificity.high
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


def test_a_pooled_deployment_field_by_field():
    """200 positives with scores 1 to 200, at a confidence shared over four promises: 3 misses are allowed."""
    y = np.repeat([1, 0], [200, 40])
    s = np.r_[np.arange(1.0, 201), np.arange(-35.0, 5)]  # one negative lies at the threshold, and is referred
    ids, odd = np.array([f"p{i:03d}" for i in range(240)]), np.arange(240) % 2 == 1
    first = Patients(ids[~odd], y[~odd], s[~odd], 130, 2, (1, 2), 3)
    second = Patients(ids[odd], y[odd], s[odd], 125, 1, (1, 2), 4)
    both = pooled(first, second)
    assert (both.images, both.conflicts, both.seeds, both.linked) == (255, 3, (1, 2), 7)
    made = deployment("pooled", first, second, replace(CERTIFIED, models_compared=2, labels_certified=2), 0.1, 0.9)
    assert made.confidence_used == pytest.approx(0.9875)
    assert (made.threshold, made.positives, made.misses_allowed, made.negatives) == (4.0, 200, 3, 40)
    assert made.expected_recall == pytest.approx(197 / 201)
    lower = lowered(made, 2.0, first, second, 0.9)
    for one, kept in ((made, 39), (lower, 37)):
        specificity = proportion_ci(kept, 40, 0.9)
        assert one.specificity == specificity
        shares = {"value": specificity.value, "low": specificity.high, "high": specificity.low}
        expected = {name: 0.1 * 197 / 201 + 0.9 * (1 - share) for name, share in shares.items()}
        assert {name: getattr(one.referral, name) for name in expected} == pytest.approx(expected)
        assert one.prevalence == 0.1
    alone = deployment("calibration", first, second, CERTIFIED, 0.1)
    assert (alone.positives, alone.negatives) == (100, 40)
    nobody = lowered(made, 2.0, *(replace(one, y=np.ones_like(one.y)) for one in (first, second)))
    assert nobody.negatives == 0
    assert np.isnan(nobody.specificity.value)


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


def test_the_lowest_of_certified_groups_holds_for_each_and_the_confidence_is_shared_over_labels_too():
    s, y = np.r_[np.arange(200.0), np.full(5, -50.0)], np.repeat([1, 0], [200, 5])
    patients = Patients(np.array([f"p{i:03d}" for i in range(205)]), y, s, 205, 0, (1,))
    attributes = pd.DataFrame({"site": ["a", "b"] * 100 + ["c"] * 5}, index=patients.ids)
    made = certified_subgroups(patients, attributes, ["site"], 0.9, 0.95, 2, None)
    first, second, third = made["groups"]
    # 0.95 shared over two labels and three groups: 46 positives are needed, 3 of 100 may be missed.
    assert [row["positives_needed"] for row in made["groups"]] == [46] * 3
    assert (first["threshold"], first["misses_allowed"], first["misses"]) == (6.0, 3, 0)
    assert second["threshold"] == 7.0
    assert (third["positives"], third["certified"], third["certifiable_recall"]) == (0, False, 0.0)
    assert made["minimum"] == 6.0
