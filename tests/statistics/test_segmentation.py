"""Masks against masks: cases by hand, MONAI and SimpleITK as oracles, and what must hold of any two masks."""

import math

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_surface_dice
from scipy import ndimage

from pipeline.statistics.segmentation import (
    agreement,
    mean_interval,
    patient_means,
    size_of_voxel,
    surface_dice,
)
from pipeline.store.tables.masks import NOT_ANNOTATED

SPACING = (3.0, 0.8, 1.5)
masks = arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 2))
pairs = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


def blobs(seed, shape=(10, 24, 20)):
    """Two masks that overlap in part, as a smooth random field and a shifted one give them."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, 3, 3))
    return field > 0.05, np.roll(field, (0, 1, -2), (0, 1, 2)) > 0.06


def compared(reference, predicted, spacing=(1.0, 1.0), tolerance=1.0, structure=1):
    return agreement(np.uint8(reference), np.uint8(predicted), structure, spacing, tolerance)


def square(top, left, side=4, shape=(12, 12)):
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_two_squares_by_hand():
    # Two of 4 x 4 shifted by two columns share 2 x 4 pixels. The outline of each has twelve elements of length 1 and
    # four corners of sqrt(1/2); above and below, two sides and a corner of one lie on the other's.
    one = compared(square(2, 2), square(2, 4), tolerance=0.0)
    assert (one.case, one.dice, one.reference, one.predicted) == ("found", 0.5, 16, 16)
    corner = math.sqrt(0.5)
    assert one.nsd == pytest.approx((4 + 2 * corner) / (12 + 4 * corner))
    # At two columns every element has its partner; at a spacing of 3 mm they are 6 mm apart.
    assert compared(square(2, 2), square(2, 4), tolerance=2.0).nsd == 1
    assert compared(square(2, 2), square(2, 4), (1.0, 3.0), tolerance=2.0).nsd < 1
    assert compared(square(2, 2), square(2, 4), (1.0, 3.0), tolerance=6.0).nsd == 1


@pytest.mark.parametrize(
    ("reference", "predicted", "case"),
    [
        (square(1, 1), square(2, 2), "found"),
        (square(1, 1), square(9, 9, 2), "missed"),  # seen elsewhere is missed all the same
        (square(1, 1), square(0, 0, 0), "missed"),
        (square(0, 0, 0), square(1, 1), "invented"),
        (square(0, 0, 0), square(0, 0, 0), "both_empty"),
    ],
)
def test_four_cases_are_told_apart_and_a_missed_structure_is_the_worst(reference, predicted, case):
    # A tolerance wider than the image must not turn a missed structure into one that agrees.
    one = compared(reference, predicted, tolerance=100.0)
    assert one.case == case
    if case == "both_empty":
        assert math.isnan(one.dice)
        assert math.isnan(one.nsd)
    elif case != "found":
        assert (one.dice, one.nsd) == (0, 0)


def test_what_nobody_annotated_counts_neither_for_nor_against():
    reference, predicted = np.uint8(square(2, 2)), np.uint8(square(2, 2))
    predicted[9:, 9:] = 1
    assert agreement(reference, predicted, 1, None, 1.0).dice < 1
    reference[8:] = NOT_ANNOTATED
    one = agreement(reference, predicted, 1, (1.0, 1.0), 0.0)
    assert (one.dice, one.nsd, one.predicted) == (1, 1, 16)
    # Foreground of the prediction alone, where nothing is known, is nothing invented.
    assert agreement(np.full_like(reference, NOT_ANNOTATED), predicted, 1, None, 1.0).case == "both_empty"


def test_structures_are_compared_one_by_one_and_millimetres_need_a_spacing():
    reference = np.uint8(square(1, 1)) + 2 * np.uint8(square(6, 6))
    predicted = np.uint8(square(1, 1)) + 2 * np.uint8(square(6, 7))
    assert agreement(reference, predicted, 1, None, 1.0).dice == 1
    assert agreement(reference, predicted, 2, None, 1.0).dice == 0.75
    assert math.isnan(agreement(reference, predicted, 1, None, 1.0).nsd)
    assert math.isnan(agreement(reference, np.zeros_like(reference), 1, None, 1.0).nsd)
    assert size_of_voxel((2.0, 0.5, 1.0)) == pytest.approx(0.001)
    assert size_of_voxel((0.5, 2.0)) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="does not fit"):
        agreement(reference, predicted[:-1], 1, None, 1.0)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [SPACING, (0.7, 1.9)])
def test_surface_dice_is_that_of_monai_which_has_the_tables_of_nikolov(seed, spacing):
    reference, predicted = (mask if len(spacing) == 3 else mask[5] for mask in blobs(seed))
    for tolerance in (0.5, 1.0, 2.5):
        one_hot = [torch.tensor(m[None, None]) for m in (predicted, reference)]
        expected = compute_surface_dice(
            *one_hot, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        )
        assert surface_dice(reference, predicted, spacing, tolerance) == pytest.approx(float(expected), abs=1e-5)
        assert compared(reference, predicted, spacing, tolerance).nsd == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_simpleitks(seed):
    reference, predicted = blobs(seed)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*[sitk.GetImageFromArray(np.uint8(m)) for m in (reference, predicted)])
    assert compared(reference, predicted, SPACING).dice == pytest.approx(overlap.GetDiceCoefficient())


@settings(deadline=None, max_examples=150)
@given(pair=pairs, tolerance=st.sampled_from([0.0, 1.0, 1.5, 4.0]))
def test_of_any_two_masks(pair, tolerance):
    first, second = pair
    spacing = (2.0, 1.0)
    there, back = (compared(a, b, spacing, tolerance) for a, b in (pair, pair[::-1]))
    if not (first.any() or second.any()):
        assert math.isnan(there.dice)
        return
    assert there.dice == back.dice
    assert there.nsd == pytest.approx(back.nsd)
    assert 0 <= there.dice <= 1
    assert 0 <= there.nsd <= 1
    assert (there.dice == 1) == np.array_equal(first, second)
    assert there.nsd <= compared(first, second, spacing, tolerance + 1).nsd
    flipped = compared(first[::-1, ::-1], second[::-1, ::-1], spacing, tolerance)
    assert (flipped.dice, flipped.nsd) == (there.dice, pytest.approx(there.nsd))
    # The border of the image closes a mask as background does.
    padded = [np.pad(m, 2) for m in pair]
    assert compared(*padded, spacing, tolerance).nsd == pytest.approx(there.nsd)


@given(mask=masks)
@settings(deadline=None, max_examples=60)
def test_a_mask_agrees_with_itself(mask):
    if mask.any():
        assert compared(mask, mask, tolerance=0.0) == compared(mask, mask, tolerance=9.0)
        assert compared(mask, mask, tolerance=0.0).nsd == 1


def test_patients_count_the_same_however_many_images_they_have():
    rows = pd.DataFrame({"patient_id": ["a", "a", "a", "b", "c"], "dice": [0.9, 0.7, np.nan, 0.2, np.nan]})
    means = patient_means(rows, ["dice"])["dice"]
    assert means["a"] == pytest.approx(0.8)
    assert means["b"] == 0.2
    assert math.isnan(means["c"])
    one = mean_interval(means.dropna().to_numpy(), 0.95, 1)
    assert (one.value, one.n) == (pytest.approx(0.5), 2)
    assert (one.low, one.high) == (pytest.approx(0.2), pytest.approx(0.8))


def test_one_patient_has_no_limits_and_none_no_mean():
    one = mean_interval(np.array([0.4]), 0.95, 1)
    assert (one.value, one.n) == (0.4, 1)
    assert math.isnan(one.low)
    nobody = mean_interval(np.empty(0), 0.95, 1)
    assert math.isnan(nobody.value)
    assert nobody.n == 0


def test_the_interval_of_a_mean_covers_it():
    generator = np.random.default_rng(3)
    covered = 0
    for at in range(120):
        one = mean_interval(generator.beta(6, 2, 60), 0.95, at, resamples=300)
        covered += one.low <= 0.75 <= one.high
    assert covered >= 107  # of 120 at 0.95: fewer has a probability of 1 in 400
