"""Augmentation: each image's own, whatever the batch; the identity where nothing is asked for; known geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.transforms import Rotate

from pipeline.models.augmentation import Augmentation, resample

EVERYTHING = Augmentation(crop_min=0.5, rotate_degrees=20, intensity=0.2, flip_horizontal=True)
SIZES = pytest.mark.parametrize("size", [(20, 28), (8, 12, 10)], ids=["2-D", "3-D"])


def batch(size: tuple[int, ...], count: int = 7) -> torch.Tensor:
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(0))


@SIZES
def test_what_an_image_becomes_does_not_depend_on_its_batch(size):
    pixels, images = batch(size), np.arange(100, 107)
    together = EVERYTHING(pixels, 1, 2, images)
    for rows in ([3], [6, 0], [5, 4, 3, 2, 1, 0]):
        assert torch.equal(EVERYTHING(pixels[rows], 1, 2, images[rows]), together[rows])


def test_seed_epoch_and_image_each_change_the_result():
    pixels = batch((20, 28), 1).expand(2, -1, -1, -1)
    first = EVERYTHING(pixels, 1, 2, np.array([0, 1]))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, EVERYTHING(pixels, 1, 3, np.array([0, 1])))
    assert not torch.equal(first, EVERYTHING(pixels, 2, 2, np.array([0, 1])))


@SIZES
def test_nothing_asked_for_changes_nothing(size):
    pixels = batch(size)
    assert torch.allclose(Augmentation()(pixels, 1, 0, np.arange(7)), pixels, atol=1e-5)


def draws(**chosen: float) -> np.ndarray:
    """Uniform numbers in the middle of their range but for those chosen by column."""
    columns = {"share": 0, "shift_0": 1, "shift_1": 2, "angle": 4, "flip": 5}
    values = np.full((1, 8), 0.5)
    values[0, 5] = 0.9
    for name, value in chosen.items():
        values[0, columns[name]] = value
    return values


def moved(pixels: torch.Tensor, augmentation: Augmentation, **chosen: float) -> torch.Tensor:
    maps = augmentation.matrices(draws(**chosen), tuple(pixels.shape[2:]))
    return resample(pixels, torch.from_numpy(maps).to(pixels))


def test_flip_mirrors_the_last_axis():
    pixels = batch((20, 28), 1)
    assert torch.allclose(moved(pixels, Augmentation(flip_horizontal=True), flip=0.1), pixels.flip(-1), atol=1e-5)
    assert torch.allclose(moved(pixels, Augmentation(flip_horizontal=False), flip=0.1), pixels, atol=1e-5)


def test_crop_at_a_corner_enlarges_exactly_that_part():
    pixels = batch((20, 28), 1)
    # A quarter of the area from the upper left: shifts drawn at 0, side 1/2.
    cropped = moved(pixels, Augmentation(crop_min=0.25), share=1.0, shift_0=0.0, shift_1=0.0)
    expected = F.interpolate(pixels[..., :10, :14], size=(20, 28), mode="bilinear", align_corners=False)
    assert torch.allclose(cropped[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24), (20, 28)])
def test_rotation_agrees_with_monai_also_where_sides_differ(size):
    smooth = F.interpolate(batch((5, 7), 1), size=size, mode="bicubic", align_corners=False)
    ours = moved(smooth, Augmentation(rotate_degrees=20), angle=1.0)
    theirs = {
        sign: Rotate(sign * np.radians(20), padding_mode="zeros", align_corners=False, dtype=torch.float32)(smooth[0])
        for sign in (-1, 1)
    }
    inside = (slice(None), slice(4, -4), slice(4, -4))
    difference = {sign: (ours[0][inside] - image[inside]).abs().max().item() for sign, image in theirs.items()}
    assert min(difference.values()) < 1e-4
    assert max(difference.values()) > 0.05


def test_a_volume_turns_in_the_plane_of_its_last_axes():
    volume = batch((6, 16, 16), 1)
    turned = moved(volume, Augmentation(rotate_degrees=20), angle=1.0)
    slices = [moved(volume[:, :, z], Augmentation(rotate_degrees=20), angle=1.0) for z in range(6)]
    assert torch.allclose(turned, torch.stack(slices, dim=2), atol=1e-5)


def test_intensity_changes_contrast_and_brightness_within_the_range():
    grey = torch.full((500, 1, 4, 4), 0.5)
    shifted = Augmentation(intensity=0.1)(grey, 1, 0, np.arange(500))[:, 0, 0, 0]
    # At mid grey contrast has no effect: what is left is the shift, uniform within 0.1.
    assert shifted.min() >= 0.4
    assert shifted.max() <= 0.6
    assert shifted.std() == pytest.approx(0.2 / np.sqrt(12), rel=0.1)
    white = Augmentation(intensity=0.5)(torch.ones(50, 1, 4, 4), 1, 0, np.arange(50))
    assert white.max() <= 1


def test_crops_keep_at_least_the_smallest_share():
    maps = Augmentation(crop_min=0.5).matrices(np.random.default_rng(0).random((2000, 8)), (20, 28))
    area = maps[:, 0, 0] * maps[:, 1, 1]
    assert area.min() >= 0.5
    assert area.mean() == pytest.approx(0.75, abs=0.01)
    edges = np.abs(maps[:, :, -1]) + np.abs(maps[:, [0, 1], [0, 1]])
    assert edges.max() <= 1 + 1e-12
