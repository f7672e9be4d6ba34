"""Masks: the same number for every image, each kind's own geometry, and nothing but the noise decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from pipeline.models.masking import Mask, make_mask, mask_draws
from pipeline.models.randomness import MASK, uniform

KINDS = pytest.mark.parametrize("kind", ["random", "block", "grid"])
GRIDS = pytest.mark.parametrize("grid", [(14, 14), (4, 9), (1, 7), (4, 8, 6)], ids=str)


def masks(kind: str, grid: tuple[int, ...], count: int, ratio: float = 0.75, share: float = 1.0, seed: int = 0) -> Mask:
    draws = uniform(seed, 0, np.arange(count), MASK, mask_draws(kind, grid))
    return make_mask(kind, torch.from_numpy(draws), grid, ratio, share)


def hidden(mask: Mask, grid: tuple[int, ...]) -> np.ndarray:
    """True where a patch is hidden, (B, *grid)."""
    shown = np.ones((len(mask.visible), math.prod(grid)), dtype=bool)
    np.put_along_axis(shown, mask.visible.numpy(), False, axis=1)
    return shown.reshape(-1, *grid)


@KINDS
@GRIDS
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.6, 0.75, 0.9, 0.99])
def test_every_image_hides_the_asked_share_and_every_patch_is_in_one_list(kind, grid, ratio):
    total = math.prod(grid)
    mask = masks(kind, grid, 20, ratio)
    assert mask.visible.shape == (20, min(max(round(total * (1 - ratio)), 1), total - 1))
    places = torch.cat((mask.visible, mask.masked), dim=1).sort(dim=1).values
    assert torch.equal(places, torch.arange(total).expand(20, -1))


@KINDS
@GRIDS
def test_a_mask_does_not_depend_on_its_batch_and_changes_with_the_seed(kind, grid):
    whole = masks(kind, grid, 12)
    for rows in ([3], [7, 2]):
        draws = uniform(0, 0, np.array(rows), MASK, mask_draws(kind, grid))
        alone = make_mask(kind, torch.from_numpy(draws), grid, 0.75)
        assert torch.equal(alone.visible, whole.visible[rows])
        assert torch.equal(alone.masked, whole.masked[rows])
    assert not torch.equal(masks(kind, grid, 12, seed=1).visible, whole.visible)


@KINDS
def test_decoding_a_share_keeps_the_visible_patches_and_draws_among_the_hidden_ones(kind):
    grid = (8, 8)
    whole, part = masks(kind, grid, 3000), masks(kind, grid, 3000, share=1 / 3)
    assert torch.equal(part.visible, whole.visible)
    assert torch.equal(part.masked, whole.masked[:, :16])
    # Given that a place is hidden, it is predicted a third of the time, wherever it lies.
    predicted = torch.bincount(part.masked.flatten(), minlength=64) / torch.bincount(whole.masked.flatten())
    assert (predicted - 1 / 3).abs().max() < 5 * math.sqrt(1 / 3 * 2 / 3 / 2000)


@KINDS
def test_every_place_is_hidden_equally_often(kind):
    share = hidden(masks(kind, (8, 12), 4000), (8, 12)).mean(axis=0)
    # 4000 draws of probability 0.75: a standard error of 0.0068. Cutting the last block favours its first row a little.
    assert np.abs(share - 0.75).max() < (0.05 if kind == "block" else 5 * 0.0068)


def regions(places: np.ndarray) -> int:
    return sum(ndimage.label(image)[1] for image in places)


@pytest.mark.parametrize("grid", [(14, 14), (6, 20), (8, 8, 8)], ids=str)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_blocks_are_contiguous(grid, ratio):
    """Hidden patches lie in blocks: far fewer regions than at random, and next to none alone."""
    block, random = (hidden(masks(kind, grid, 200, ratio), grid) for kind in ("block", "random"))
    assert regions(block) < 0.3 * regions(random)
    side = tuple(min(n, max(2, round(n / 4))) for n in grid)
    eroded = np.stack(
        [
            ndimage.binary_opening(image, np.ones(side))
            for image in np.pad(block, [(0, 0)] + [(9, 9)] * len(grid), constant_values=True)
        ]
    )
    # Opening keeps what whole blocks cover; the last block of an image is cut short.
    inside = (slice(None), *[slice(9, -9)] * len(grid))
    assert (block & ~eroded[inside]).sum(axis=tuple(range(1, block.ndim))).max() < math.prod(side)


@pytest.mark.parametrize(
    ("grid", "ratio", "strides"),
    [((14, 14), 0.75, (2, 2)), ((8, 12), 0.5, (1, 2)), ((6, 9), 8 / 9, (3, 3)), ((8, 8, 8), 0.875, (2, 2, 2))],
)
def test_what_a_grid_mask_shows_is_a_whole_lattice(grid, ratio, strides):
    offsets = set()
    for image in ~hidden(masks("grid", grid, 100, ratio), grid):
        first = tuple(int(axis.min()) for axis in np.nonzero(image))
        lattice = np.zeros(grid, dtype=bool)
        lattice[tuple(slice(f, None, s) for f, s in zip(first, strides, strict=True))] = True
        assert (image == lattice).all()
        offsets.add(first)
    assert len(offsets) == math.prod(strides)


def test_a_grid_mask_of_an_odd_share_is_a_lattice_filled_or_thinned_by_noise():
    """0.9 of 14 by 14: 20 visible patches from a lattice of 3 by 3, which has 16 to 25."""
    for image in ~hidden(masks("grid", (14, 14), 50, 0.9), (14, 14)):
        rows, columns = np.nonzero(image)
        on = max(((rows % 3 == r) & (columns % 3 == c)).sum() for r in range(3) for c in range(3))
        assert on >= 16


def test_random_masks_are_the_lowest_numbers():
    noise = torch.tensor([[0.7, 0.1, 0.5, 0.3]], dtype=torch.float64)
    mask = make_mask("random", noise, (2, 2), 0.5)
    assert mask.visible.tolist() == [[1, 3]]
    assert mask.masked.tolist() == [[2, 0]]


@KINDS
def test_one_patch_cannot_be_masked(kind):
    with pytest.raises(ValueError, match="at least 2 patches"):
        masks(kind, (1, 1), 1)
