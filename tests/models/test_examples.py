"""What an epoch draws and mixes: functions of (seed, epoch, image), and of no batch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta, kstest

from pipeline.models.augmentation import Augmentation
from pipeline.models.examples import Examples, draw, mixing
from pipeline.models.images import Images

LABELS = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # 2 positive, 9 negative


def examples(mixup: float = 0.0, augment: Augmentation | None = None) -> Examples:
    pixels = np.random.default_rng(0).integers(0, 255, (len(LABELS), 1, 8, 8), dtype=np.uint8)
    index = pd.DataFrame({"label": LABELS, "shard": "a.npy", "row": range(len(LABELS))})
    plain = Augmentation() if augment is None else augment
    return Examples(Images(index, {"a.npy": pixels}), plain, mixup, 3, torch.device("cpu"))


def test_a_natural_epoch_has_every_image_once():
    assert draw(LABELS, "natural", 1, 2).tolist() == list(range(11))


@pytest.mark.parametrize("epoch", [0, 7])
def test_a_balanced_epoch_has_equal_classes_and_as_many_images(epoch):
    drawn = draw(LABELS, "balanced", 1, epoch)
    rows = drawn % len(LABELS)
    assert (LABELS[rows] == 1).sum() == (LABELS[rows] == 0).sum() == 5
    # Two positive images fill five places: each twice, one of them a third time. No negative image comes twice.
    assert sorted(np.unique(rows[LABELS[rows] == 1], return_counts=True)[1]) == [2, 3]
    assert len(set(rows[LABELS[rows] == 0])) == 5
    assert len(set(drawn)) == len(drawn), "copies of an image have numbers of their own"


def test_a_balanced_epoch_is_a_function_of_seed_and_epoch():
    first = draw(LABELS, "balanced", 1, 2)
    assert np.array_equal(first, draw(LABELS, "balanced", 1, 2))
    assert not np.array_equal(first, draw(LABELS, "balanced", 1, 3))
    assert not np.array_equal(first, draw(LABELS, "balanced", 2, 2))
    everyone = np.concatenate([draw(LABELS, "balanced", 1, epoch) % len(LABELS) for epoch in range(20)])
    assert set(everyone) == set(range(11))


def test_copies_of_an_image_in_one_epoch_differ_in_augmentation():
    made, drawn = (
        examples(augment=Augmentation(crop_min=0.5, contrast=0.2, brightness=0.2)),
        draw(LABELS, "balanced", 3, 0),
    )
    copies = [number for number in drawn if number % len(LABELS) == 0]
    pixels, targets = made.prepared(np.array(copies), drawn, 0)
    assert len(copies) >= 2
    assert not torch.equal(pixels[0], pixels[1])
    assert targets.tolist() == [1.0] * len(copies)


def test_a_mixture_is_of_two_images_and_their_labels():
    plain, mixed, drawn = examples(), examples(mixup=1.0), np.arange(11)
    pixels, targets = plain.prepared(drawn, drawn, 4)
    partners, shares = mixing(drawn, drawn, 1.0, 3, 4)
    found, mixtures = mixed.prepared(drawn, drawn, 4)
    for i, (partner, share) in enumerate(zip(partners, shares, strict=True)):
        assert torch.allclose(found[i], share * pixels[i] + (1 - share) * pixels[partner], atol=1e-6)
        assert mixtures[i].item() == pytest.approx(float(share * targets[i] + (1 - share) * targets[partner]))
    assert not torch.allclose(found, pixels, atol=1e-2)


def test_mixtures_do_not_depend_on_the_batch():
    made, drawn = examples(mixup=0.4, augment=Augmentation(crop_min=0.5)), np.arange(11)
    pixels, targets = made.prepared(drawn, drawn, 4)
    for part in ([3], [9, 0, 5]):
        some, some_targets = made.prepared(np.array(part), drawn, 4)
        assert torch.equal(some, pixels[part])
        assert torch.equal(some_targets, targets[part])
    assert not torch.equal(made.prepared(drawn, drawn, 5)[0], pixels)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution_and_partners_the_drawn_images(alpha):
    numbers, drawn = np.arange(4000), np.arange(100, 110)
    partners, shares = mixing(numbers, drawn, alpha, 3, 0)
    # The larger part of a symmetric distribution: its own distribution folded at 1/2.
    assert kstest(shares, lambda x: 2 * beta.cdf(x, alpha, alpha) - 1).pvalue > 0.01
    assert shares.min() >= 0.5
    assert set(partners) == set(drawn)
    assert np.unique(partners, return_counts=True)[1].min() > 330
