"""Lesions against false marks: a curve by hand, what must hold of any, and the coverage of its intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.statistics.froc import (
    RATES,
    Marked,
    all_marks,
    curve,
    lesions_of,
    match,
    sensitivities,
    sensitivity_difference,
)


def marked(images, lesions, false):
    """`lesions` and `false` have a pair of patient and score each."""
    columns = [
        (np.array([p for p, _ in rows], int), np.array([s for _, s in rows], float)) for rows in (lesions, false)
    ]
    return Marked(np.array(images), *columns[0], *columns[1])


BY_HAND = marked(
    [2, 1, 1],  # four images of three patients, the last without a lesion
    [(0, 0.9), (0, 0.4), (1, -np.inf), (1, 0.7)],
    [(0, 0.8), (2, 0.6), (2, 0.4)],
)


def test_the_curve_by_hand():
    one = curve(BY_HAND)
    assert one.threshold.tolist() == [0.9, 0.8, 0.7, 0.6, 0.4]
    assert one.sensitivity.tolist() == [0.25, 0.25, 0.5, 0.5, 0.75]
    assert one.false_per_image.tolist() == [0, 0.25, 0.25, 0.5, 0.75]
    # Not one false mark allowed, between two steps, on a step, and beyond the last.
    assert one.at(np.array([0.0, 0.2, 0.25, 0.5, 0.75, 8.0])).tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert BY_HAND.lesions.tolist() == [2, 2, 0]
    assert BY_HAND.found.tolist() == [2, 1, 0]
    assert BY_HAND.false.tolist() == [1, 0, 2]


def test_every_point_has_its_limits_and_the_patients_behind_it():
    for rate, one in zip(RATES, sensitivities(BY_HAND, RATES, 0.95, 1), strict=True):
        assert one.n == 2
        assert one.low <= one.value <= one.high
        assert one.value == curve(BY_HAND).at(np.array([rate]))[0]
    sensitivity, false = all_marks(BY_HAND, 0.95, 1)
    assert (sensitivity.value, false.value) == (0.75, 0.75)
    assert false.low < 0.75 < false.high


def test_all_found_or_none_is_no_certainty():
    everything = marked([1] * 20, [(i, 1.0) for i in range(20)], [])
    sensitivity, false = all_marks(everything, 0.95, 1)
    assert (sensitivity.value, sensitivity.high) == (1, 1)
    assert sensitivity.low == pytest.approx(0.025 ** (1 / 20))
    assert (false.value, false.low) == (0, 0)
    assert false.high == pytest.approx(-math.log(0.025) / 20)
    nothing = marked([1] * 20, [(i, -np.inf) for i in range(20)], [(0, 1.0)])
    one = sensitivities(nothing, [1.0], 0.95, 1)[0]
    assert (one.value, one.low) == (0, 0)
    assert one.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_without_lesions_there_is_no_sensitivity():
    sensitivity, false = all_marks(marked([1, 1], [], [(0, 0.5)]), 0.95, 1)
    assert math.isnan(sensitivity.value)
    assert (false.value, false.n) == (0.5, 2)
    assert math.isnan(sensitivities(marked([1, 1], [], []), [1.0], 0.95, 1)[0].value)


def test_lesions_hang_together_across_corners_and_marks_hit_by_their_peak():
    mask = np.zeros((8, 8), bool)
    mask[1, 1] = mask[2, 2] = mask[6, 6] = True
    lesions, count = lesions_of(mask)
    assert count == 2
    peaks = np.array([[2, 2], [1, 1], [5, 5], [6, 5]])
    best, false = match(lesions, count, peaks, np.array([0.3, 0.6, 0.9, 0.8]))
    # Two marks in one lesion count once, the higher one; a mark beside the other is false twice over.
    assert best.tolist() == [0.6, -np.inf]
    assert false.tolist() == [0.9, 0.8]
    best, false = match(lesions, count, np.empty((0, 2)), np.empty(0))
    assert (best.tolist(), false.tolist()) == ([-np.inf, -np.inf], [])


scored = st.tuples(st.integers(0, 4), st.sampled_from([-np.inf, 0.1, 0.3, 0.5, 0.9]))


@settings(deadline=None, max_examples=60)
@given(
    images=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    lesions=st.lists(scored, min_size=1, max_size=12),
    false=st.lists(scored.filter(lambda one: np.isfinite(one[1])), max_size=12),
)
def test_of_any_marks(images, lesions, false):
    own = marked(images, lesions, false)
    one = curve(own)
    assert (np.diff(one.sensitivity) >= 0).all()
    assert (np.diff(one.false_per_image) >= 0).all()
    for threshold, sensitivity, per_image in zip(one.threshold, one.sensitivity, one.false_per_image, strict=True):
        assert sensitivity == pytest.approx(np.mean([s >= threshold for _, s in lesions]))
        assert per_image == pytest.approx(sum(s >= threshold for _, s in false) / sum(images))
    # What keeps the order of scores keeps the curve.
    stretched = Marked(own.images, own.lesion_of, 7 * own.lesion_score + 1, own.false_of, 7 * own.false_score + 1)
    assert curve(stretched).sensitivity.tolist() == one.sensitivity.tolist()


def test_arms_are_compared_on_the_same_patients():
    same = sensitivity_difference(BY_HAND, BY_HAND, 1.0, 0.95, 3)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = marked([2, 1, 1], [(0, 0.9), (0, -np.inf), (1, -np.inf), (1, -np.inf)], [])
    one = sensitivity_difference(BY_HAND, worse, 1.0, 0.95, 3)
    assert one.value == 0.5
    assert one.low <= 0.5 <= one.high
    with pytest.raises(ValueError, match="different patients"):
        sensitivity_difference(BY_HAND, marked([1, 1], [(0, 1.0)], []), 1.0, 0.95, 3)


def simulated(generator, patients):
    """Patients with 0 to 3 lesions whose chances of being found hang together within a patient."""
    count = generator.integers(0, 4, patients)
    lesion_of = np.repeat(np.arange(patients), count)
    skill = generator.beta(6, 2, patients)
    score = np.where(generator.random(len(lesion_of)) < skill[lesion_of], generator.random(len(lesion_of)), -np.inf)
    false_of = np.repeat(np.arange(patients), generator.poisson(0.8, patients))
    return Marked(np.ones(patients, int), lesion_of, score, false_of, generator.random(len(false_of)))


def test_intervals_cover_the_sensitivity_at_a_rate_of_false_marks():
    generator = np.random.default_rng(7)
    truth = curve(simulated(generator, 40_000)).at(np.array([0.5]))[0]
    covered = 0
    for at in range(60):
        one = sensitivities(simulated(generator, 80), [0.5], 0.95, at)[0]
        covered += one.low <= truth <= one.high
    assert covered >= 52  # of 60 at 0.95: fewer has a probability of 1 in 200
