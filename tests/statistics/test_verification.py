"""Outcomes that came back only for some: what is known of the missed."""

import numpy as np
import pytest

from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.verification import Verified, audits_needed, recall_in_use


def test_recall_is_refused_when_only_the_referred_have_outcomes():
    with pytest.raises(NotEnoughData, match="outcomes came back for referred people only") as refused:
        recall_in_use(Verified(400, 40, 600, 0, 0))
    assert refused.value.needed == 598


def test_so_many_audits_bound_the_missed():
    assert audits_needed(0.005) == 598
    assert audits_needed(0.005, positives=1) > 900
    # None found in so many would be seen in at most 5 of 100 were the share higher.
    assert 0.995**598 <= 0.05 < 0.995**597


def test_everybody_referred_is_everybody_found():
    recall = recall_in_use(Verified(100, 7, 0, 0, 0))
    assert (recall.value, recall.low, recall.high) == (1, 1, 1)


def test_an_audit_identifies_recall_and_its_limits_cover():
    generator, runs, held = np.random.default_rng(2), 300, 0
    people, prevalence, sensitivity, specificity = 4000, 0.05, 0.9, 0.6
    for _ in range(runs):
        sick = generator.random(people) < prevalence
        referred = generator.random(people) < np.where(sick, sensitivity, 1 - specificity)
        others = np.flatnonzero(~referred)
        audited = generator.choice(others, 600, replace=False)
        outcomes = Verified(int(referred.sum()), int(sick[referred].sum()), len(others), 600, int(sick[audited].sum()))
        limits = recall_in_use(outcomes)
        truth = sick[referred].sum() / sick.sum()
        held += limits.low <= truth <= limits.high
    assert held / runs >= 0.95
    # The share of outcomes that were positive would call it perfect.
    assert truth < 0.97


@pytest.mark.parametrize("counts", [(10, 11, 5, 1, 0), (10, 1, 5, 6, 0), (10, 1, 5, 3, 4)])
def test_counts_that_make_no_sense_are_refused(counts):
    with pytest.raises(ValueError, match="none more than all"):
        Verified(*counts)
