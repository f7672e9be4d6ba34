"""Augmentation: each image's own, whatever the batch; the identity where nothing is asked for; equal to MONAI's."""

from __future__ import annotations

import colorsys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.transforms import (
    AdjustContrast,
    Affine,
    Flip,
    GaussianSmooth,
    RandAffineGrid,
    RandCoarseDropout,
    Rotate,
    ScaleIntensity,
    ShiftIntensity,
)
from scipy import stats

from pipeline.models import randomness
from pipeline.models.augmentation import AXES, COLUMNS, Augmentation, Draws
from pipeline.models.hue import saturated, shifted, turned
from pipeline.models.intensity import add_noise, blur, cut_out
from pipeline.models.resampling import resample, resample_planes
from pipeline.settings.training import FinetuneAugmentation, PretrainAugmentation

EACH: dict[str, Any] = {
    "crop_min": 0.5, "rotate_degrees": 20.0, "shear": 0.2, "scale": 0.2, "translate": 0.1,
    "flips": ["horizontal", "vertical"], "contrast": 0.2, "brightness": 0.2, "gamma": 0.5,
    "noise": 0.1, "blur_pixels": 2.0, "cutout": 0.5,
}  # fmt: skip
VOLUME: dict[str, Any] = {**EACH, "tilt_degrees": 15.0, "flips": ["horizontal", "vertical", "depth"]}
COLOUR: dict[str, Any] = {"saturation": 0.6, "hue": 0.3, "channel_brightness": 0.2}
# Sides and products of sides that no vector width divides.
SIZES = pytest.mark.parametrize("size", [(21, 27), (7, 13, 9)], ids=["2-D", "3-D"])


def batch(size: tuple[int, ...], count: int = 7, channels: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


def smooth_image(size: tuple[int, ...]) -> torch.Tensor:
    """One image without detail that two interpolations would render differently, (1, 1, ...)."""
    coarse = batch(tuple(4 + axis for axis in range(len(size))), 1, 1)
    mode = "bicubic" if len(size) == 2 else "trilinear"
    return F.interpolate(coarse, size=size, mode=mode, align_corners=False).clamp(0, 1)


def everything(size: tuple[int, ...]) -> dict[str, Any]:
    return EACH if len(size) == 2 else VOLUME


def test_the_settings_are_the_amounts():
    names = set(FinetuneAugmentation.model_fields)
    assert names == {field.name for field in fields(Augmentation)} == {*VOLUME, *COLOUR, "channel_dropout"}
    assert set(PretrainAugmentation.model_fields) < names


# ---------------------------------------------------------------- what a result depends on

ALONE = [{name: amount} for name, amount in VOLUME.items()]


@SIZES
@pytest.mark.parametrize("amounts", [*ALONE, {}], ids=[*VOLUME, "everything"])
def test_what_an_image_becomes_does_not_depend_on_its_batch(size, amounts):
    if len(size) == 2 and ("tilt_degrees" in amounts or "depth" in amounts.get("flips", [])):
        amounts = EACH
    augment = Augmentation(**(amounts or everything(size)))
    pixels, images = batch(size), np.arange(100, 107)
    together = augment(pixels, 1, 2, images)
    assert not torch.equal(together, pixels)
    for rows in ([3], [6, 0], [5, 4, 3, 2, 1, 0], [1, 1]):
        assert torch.equal(augment(pixels[rows], 1, 2, images[rows]), together[rows])


def test_neither_does_it_with_threads_that_share_an_image():
    """Torch divides work among threads from 32,768 elements on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pixels, images = batch((211, 187), 5, 1), np.arange(5)
        together = Augmentation(**EACH)(pixels, 1, 2, images)
        for rows in ([3], [4, 0], [1, 2, 3]):
            assert torch.equal(Augmentation(**EACH)(pixels[rows], 1, 2, images[rows]), together[rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*EACH])
def test_seed_epoch_and_image_each_change_the_result_of_every_transform(name):
    augment = Augmentation(**{name: EACH[name]})
    pixels, images = batch((21, 27), 1).expand(12, -1, -1, -1), np.arange(12)
    first = augment(pixels, 1, 2, images)
    for other in (augment(pixels, 1, 2, images + 12), augment(pixels, 1, 3, images), augment(pixels, 2, 2, images)):
        assert not torch.equal(other, first)


@SIZES
def test_nothing_asked_for_changes_nothing_and_the_input_is_never_changed(size):
    pixels = batch(size)
    before = pixels.clone()
    assert torch.equal(Augmentation()(pixels, 1, 0, np.arange(7)), pixels)
    for amounts in ({}, {"noise": 0.2, "cutout": 0.5}, everything(size)):
        Augmentation(**amounts)(pixels, 1, 0, np.arange(7))
        assert torch.equal(pixels, before)


@SIZES
def test_values_stay_in_the_range(size):
    result = Augmentation(**everything(size))(batch(size, 60), 1, 0, np.arange(60))
    assert result.isfinite().all()
    assert result.min() >= 0
    assert result.max() <= 1


# ---------------------------------------------------------------- geometry


def draws(**chosen: float | list[float]) -> Draws:
    """Numbers for one image in the middle of their range, so without effect, but for those named."""
    values = np.full((1, max(column.stop for column in COLUMNS.values())), 0.5)
    for name, value in chosen.items():
        column = COLUMNS[name]
        values[0, column] = np.resize(value, column.stop - column.start)
    return Draws(values)


def moved(pixels: torch.Tensor, augmentation: Augmentation, **chosen: float | list[float]) -> torch.Tensor:
    maps = augmentation.matrices(draws(**chosen), tuple(pixels.shape[2:]))
    return resample(pixels, torch.from_numpy(maps).to(pixels))


@SIZES
def test_each_flip_is_monais(size):
    pixels = batch(size, 40)
    for name, axis in list(AXES.items())[: len(size)]:
        mirrored = Augmentation(flips=[name])(pixels, 1, 0, np.arange(40))
        flip = Flip(spatial_axis=len(size) + axis)
        kinds = [
            (torch.equal(image, original), torch.equal(image, flip(original)))
            for image, original in zip(mirrored, pixels, strict=True)
        ]
        assert set(kinds) == {(True, False), (False, True)}
        # Together with a resampling the same images are mirrored.
        turned = moved(pixels[:1], Augmentation(flips=[name]), **{f"flip_{name}": 0.1})
        assert torch.allclose(turned[0], torch.as_tensor(flip(pixels[0])), atol=1e-5)
        cropping = Augmentation(flips=[name], crop_min=1 - 1e-9)(pixels, 1, 0, np.arange(40))
        assert torch.allclose(cropping, mirrored, atol=1e-4)


def test_crop_at_a_corner_enlarges_exactly_that_part():
    pixels = batch((20, 28), 1)
    # A quarter of the area from the upper left: shifts drawn at 0, side 1/2.
    cropped = moved(pixels, Augmentation(crop_min=0.25), crop_share=1.0, crop_place=0.0)
    expected = F.interpolate(pixels[..., :10, :14], size=(20, 28), mode="bilinear", align_corners=False)
    assert torch.allclose(cropped[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize("size", [(24, 24), (20, 28)])
def test_rotation_agrees_with_monai_also_where_sides_differ(size):
    smooth = smooth_image(size)
    ours = moved(smooth, Augmentation(rotate_degrees=20), rotate=0.0)
    theirs = {
        sign: Rotate(sign * np.radians(20), padding_mode="zeros", align_corners=False, dtype=torch.float32)(smooth[0])
        for sign in (-1, 1)
    }
    inside = (slice(None), slice(4, -4), slice(4, -4))
    assert (ours[0] - theirs[1])[inside].abs().max() < 1e-4
    assert (ours[0] - theirs[-1])[inside].abs().max() > 0.05


AFFINES = {
    "rotation": {"rotate": 0.1, "tilt": [0.2, 0.9]},
    "shear": {"shear": [0.1, 0.9, 0.3, 0.8, 0.2, 0.7]},
    "scale": {"scale": [0.1, 0.9, 0.7]},
    "translation": {"translate": [0.9, 0.2, 0.4]},
    "all": {
        "rotate": 0.1, "tilt": [0.2, 0.9], "shear": [0.1, 0.9, 0.3, 0.8, 0.2, 0.7], "scale": [0.1, 0.9, 0.7],
        "translate": [0.9, 0.2, 0.4],
    },
}  # fmt: skip


@pytest.mark.parametrize("size", [(24, 30), (14, 20, 18)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("chosen", AFFINES.values(), ids=AFFINES)
def test_affine_maps_are_those_of_monai(size, chosen):
    """In every plane, with every pair of axes sheared; to 1e-4 of the range."""
    axes = len(size)
    smooth = smooth_image(size)
    augmentation = Augmentation(rotate_degrees=20, tilt_degrees=15, shear=0.2, scale=0.2, translate=0.1)
    ours = moved(smooth, augmentation, **chosen)

    def each(name: str, count: int) -> np.ndarray:
        return 2 * np.resize(chosen.get(name, 0.5), count) - 1

    turns = [-np.radians(20) * each("rotate", 1)[0], *(np.radians(15) * each("tilt", 2))]
    theirs = Affine(
        rotate_params=turns if axes == 3 else turns[:1],
        shear_params=(0.2 * each("shear", 6))[: axes * (axes - 1)].tolist(),
        translate_params=(0.1 * each("translate", 3)[:axes] * np.array(size)).tolist(),
        scale_params=(1 + 0.2 * each("scale", 3)[:axes]).tolist(),
        padding_mode="zeros", align_corners=False, image_only=True,
    )(smooth[0])  # fmt: skip
    assert (ours[0] - smooth[0]).abs().max() > 0.05
    assert torch.allclose(ours[0], torch.as_tensor(theirs), atol=1e-4)


def test_a_volume_turns_in_the_plane_of_its_last_axes():
    volume = batch((6, 16, 16), 1)
    turned = moved(volume, Augmentation(rotate_degrees=20), rotate=1.0)
    slices = [moved(volume[:, :, z], Augmentation(rotate_degrees=20), rotate=1.0) for z in range(6)]
    assert torch.allclose(turned, torch.stack(slices, dim=2), atol=1e-5)


def test_plane_by_plane_gives_the_same_volume():
    volumes = batch((9, 14, 12), 40)
    augmentation = Augmentation(crop_min=0.3, rotate_degrees=30.0, scale=0.4, translate=0.3, flips=["depth"])
    maps = augmentation.matrices(Draws.of(1, 0, np.arange(40)), (9, 14, 12))
    maps = torch.from_numpy(maps).float()
    assert torch.allclose(resample_planes(volumes, maps), resample(volumes, maps), atol=1e-5)


@pytest.mark.parametrize("size", [(7, 13, 9), (40, 64, 56), (1, 5, 1)])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 30.0])
def test_a_volume_sampled_as_pictures_is_what_trilinear_sampling_gives(size, spread):
    # Any map, so that places lie in the volume, on its border, half a pixel off it and far outside.
    volumes = batch(size, 6)
    maps = spread * torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(3))
    if spread < 1:
        maps[:, :, :3] += torch.eye(3)
    grid = F.affine_grid(maps.double().flip(1)[:, :, [2, 1, 0, 3]], [6, 1, *size], align_corners=False).float()
    expected = F.grid_sample(volumes, grid, align_corners=False)
    assert spread > 3 or (expected != 0).any()
    assert torch.allclose(resample(volumes, maps), expected, atol=3e-4)


# ---------------------------------------------------------------- values

RAMP = torch.linspace(0, 1, 21 * 27).view(1, 1, 21, 27)


def test_contrast_brightness_and_gamma_are_monais():
    """ScaleIntensity (about mid grey), ShiftIntensity and AdjustContrast, by the amounts that are drawn; to 1e-6."""
    for image in range(5):
        number = np.array([image])
        drawn = Draws.of(1, 0, number)
        contrast, brightness, gamma = (
            amount * (2 * drawn.of_image(name)[0] - 1)
            for name, amount in (("contrast", 0.3), ("brightness", 0.2), ("gamma", 0.5))
        )
        scaled = ScaleIntensity(minv=None, maxv=None, factor=contrast)(RAMP[0] - 0.5) + 0.5
        expected = {
            "contrast": (0.3, scaled),
            "brightness": (0.2, ShiftIntensity(offset=brightness)(RAMP[0])),
            "gamma": (0.5, AdjustContrast(gamma=1 + gamma)(RAMP[0])),
        }
        for name, (amount, theirs) in expected.items():
            ours = Augmentation(**{name: amount})(RAMP, 1, 0, number)[0]
            assert not torch.equal(ours, RAMP[0])
            assert torch.allclose(ours, torch.as_tensor(theirs).clamp(0, 1), atol=1e-6), name


@pytest.mark.parametrize("sigmas", [[0.001, 0.8, 2.3], [1.6, 0.3, 0.1]])
@SIZES
def test_blur_is_monais_gaussian_smooth(size, sigmas):
    pixels = batch(size, 2)
    chosen = np.array([sigmas[: len(size)], sigmas[::-1][: len(size)]])
    ours = blur(pixels, chosen)
    for image, original, sigma in zip(ours, pixels, chosen, strict=True):
        theirs = GaussianSmooth(sigma=sigma.tolist(), approx="erf")(original)
        assert torch.allclose(image, torch.as_tensor(theirs), atol=1e-5)


@SIZES
def test_cutout_is_monais_coarse_dropout_of_the_same_box(size):
    pixels = batch(size, 3)
    transform = RandCoarseDropout(1, 1, max_spatial_size=5, fill_value=0, prob=1).set_random_state(0)
    theirs = torch.stack([torch.as_tensor(transform(pixels[1].clone())), torch.as_tensor(transform(pixels[1].clone()))])
    box = transform.hole_coords[0][1:]
    ours = pixels.clone()
    starts = np.array([side.start for side in box])
    cut_out(ours, [1], starts[None], np.array([side.stop for side in box])[None] - starts)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[[0, 2]], pixels[[0, 2]])


def test_noise_is_gaussian_and_differs_between_images():
    noise = torch.zeros(3, 1, 60, 60)
    add_noise(noise, [0, 2], [1.0, 2.0], [5, 6])
    assert not noise[1].any()
    assert stats.kstest(noise[0].flatten(), "norm").pvalue > 1e-3
    assert stats.kstest(noise[2].flatten() / 2, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[0].flatten(), noise[2].flatten())[0, 1]) < 4.5 / 60


# ---------------------------------------------------------------- distributions

MANY = np.arange(4000)


def uniform(values: np.ndarray, low: float, high: float) -> bool:
    return stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize("axes", [2, 3])
def test_affine_maps_have_the_distribution_of_monais(axes):
    """Entry by entry, on a cube, whose places are pixels up to one factor."""
    size = (32,) * axes
    augmentation = Augmentation(rotate_degrees=20, tilt_degrees=10, shear=0.2, scale=0.3, translate=0.1)
    ours = augmentation.matrices(Draws.of(1, 0, MANY), size)
    ours[:, :, -1] *= 16
    turns = np.radians([20, 10, 10])
    grid = RandAffineGrid(
        rotate_range=turns[: 3 if axes == 3 else 1].tolist(), shear_range=[0.2] * (axes * (axes - 1)),
        translate_range=[3.2] * axes, scale_range=[0.3] * axes,
    ).set_random_state(0)  # fmt: skip
    theirs = []
    for _ in range(500):
        grid((2,) * axes)
        theirs.append(np.asarray(grid.get_transformation_matrix())[:axes])
    for row in range(axes):
        for column in range(axes + 1):
            both = ours[:, row, column], np.stack(theirs)[:, row, column]
            assert stats.ks_2samp(*both).pvalue > 1e-3, (row, column)


def test_crops_keep_at_least_the_smallest_share():
    maps = Augmentation(crop_min=0.5).matrices(Draws.of(1, 0, MANY), (20, 28))
    area = maps[:, 0, 0] * maps[:, 1, 1]
    assert uniform(area, 0.5, 1)
    edges = np.abs(maps[:, :, -1]) + np.abs(maps[:, [0, 1], [0, 1]])
    assert edges.max() <= 1 + 1e-12
    room = 1 - maps[:, 0, 0]
    for axis in range(2):
        assert uniform(maps[:, axis, -1] / room, -1, 1)


def test_amounts_are_uniform_within_their_limits():
    images = MANY[:1000]
    grey = torch.full((len(images), 1, 2, 2), 0.5)

    def changed(**amounts: Any) -> np.ndarray:
        return Augmentation(**amounts)(grey, 1, 0, images)[:, 0, 0, 0].double().numpy()

    # At mid grey contrast has no effect, and gamma can be read from the result.
    assert np.allclose(changed(contrast=0.5), 0.5, atol=1e-6)
    assert uniform(changed(brightness=0.1), 0.4, 0.6)
    assert uniform(-np.log2(changed(gamma=0.4)), 0.6, 1.4)
    light = Augmentation(contrast=0.4)(grey + 0.25, 1, 0, images)[:, 0, 0, 0].double().numpy()
    assert uniform((light - 0.5) / 0.25, 0.6, 1.4)


def test_half_of_the_images_are_noisy_with_uniform_spread():
    images = np.arange(600)
    grey = torch.full((600, 1, 40, 40), 0.5)
    spread = Augmentation(noise=0.1)(grey, 1, 0, images).flatten(1).std(dim=1).double().numpy()
    assert 240 < (spread > 0).sum() < 360
    assert uniform(spread[spread > 0], 0, 0.1)


def test_half_of_the_images_are_blurred_with_uniform_widths_along_each_axis():
    """A blurred line becomes the kernel, whose variance is that of the Gaussian and of the pixel, a twelfth."""
    images = np.arange(600)
    point = torch.zeros(600, 1, 41, 41)
    point[:, :, 20, 20] = 1
    blurred = Augmentation(blur_pixels=4.0)(point, 1, 0, images)[:, 0].double().numpy()
    touched = blurred[:, 20, 20] < 1
    assert 240 < touched.sum() < 360
    places = (np.arange(41) - 20) ** 2
    for axis in (1, 2):
        variance = blurred.sum(axis=axis) @ places
        sigma = np.sqrt(np.maximum(variance - 1 / 12, 0))
        # Narrower ones vanish between pixels.
        wide = sigma[sigma > 1]
        assert uniform(wide, 1, 4)
        assert len(wide) == pytest.approx(0.75 * touched.sum(), abs=40)


def test_half_of_the_images_get_a_box_distributed_as_monais():
    images = np.arange(1000)
    ones = torch.ones(1000, 1, 16, 24)
    holes = Augmentation(cutout=0.5)(ones, 1, 0, images)[:, 0] == 0
    touched = holes.flatten(1).any(dim=1)
    assert 430 < touched.sum() < 570
    transform = RandCoarseDropout(1, 1, max_spatial_size=(8, 12), fill_value=0, prob=1).set_random_state(0)
    theirs = []
    for _ in range(500):
        transform(torch.ones(1, 16, 24))
        box = transform.hole_coords[0][1:]
        theirs.append([value for side in box for value in (side.start, side.stop - side.start)])
    ours = []
    for hole in holes[touched]:
        lines = [torch.nonzero(hole.any(dim=other))[:, 0] for other in (1, 0)]
        ours.append([int(value) for line in lines for value in (line[0], len(line))])
        assert hole.sum() == len(lines[0]) * len(lines[1])
    for mine, other in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3
    assert max(np.array(ours)[:, 1]) == 8
    assert max(np.array(ours)[:, 3]) == 12


# ---------------------------------------------------------------- colour


def rgb(count: int = 7) -> torch.Tensor:
    """Return colours of all kinds: drawn ones, grey, black, white, pure, and two channels equal."""
    pixels = batch((21, 27), count, 3)
    pixels[0, :, 0, :6] = torch.tensor([[0, 1, 0.5, 1, 0, 0.2], [0, 1, 0.5, 0, 0, 0.8], [0, 1, 0.5, 0, 1, 0.8]])
    return pixels


def by_pixel(pixels: torch.Tensor, function) -> torch.Tensor:
    """Return what a function of three numbers makes of each pixel of (B, 3, H, W)."""
    flat = pixels.double().movedim(1, -1).reshape(-1, 3).tolist()
    made = torch.tensor([function(*colour) for colour in flat], dtype=torch.float64)
    return made.reshape(len(pixels), *pixels.shape[2:], 3).movedim(-1, 1).float()


@pytest.mark.parametrize("turn", [0.0, 0.13, -0.3, 0.5])
def test_hue_is_turned_on_the_circle_of_hsv(turn):
    """torchvision.transforms.functional.adjust_hue: hue + factor, modulo 1, in the HSV of colorsys."""

    def wanted(*colour: float) -> tuple[float, ...]:
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    pixels = rgb()
    assert torch.allclose(turned(pixels, torch.full((7,), turn)), by_pixel(pixels, wanted), atol=2e-6)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_saturation_is_a_blend_with_grey(factor):
    """torchvision.transforms.functional.adjust_saturation: factor x image + (1 - factor) x grey, within [0, 1]."""

    def wanted(red: float, green: float, blue: float) -> tuple[float, ...]:
        grey = 0.2989 * red + 0.587 * green + 0.114 * blue
        return tuple(min(1, max(0, factor * one + (1 - factor) * grey)) for one in (red, green, blue))

    pixels = rgb()
    assert torch.allclose(saturated(pixels, torch.full((7,), factor)), by_pixel(pixels, wanted), atol=2e-6)


def test_each_channel_is_shifted_by_itself():
    """kornia.enhance.shift_rgb: a number added to each channel, within [0, 1]."""
    pixels, shifts = rgb(2), torch.tensor([[0.3, 0.0, -0.2], [0.0, 0.1, 0.0]])
    for image, own, made in zip(pixels, shifts, shifted(pixels, shifts), strict=True):
        for channel, shift, found in zip(image, own, made, strict=True):
            assert torch.equal(found, (channel + shift).clamp(0, 1))


@pytest.mark.parametrize("name", [*COLOUR])
def test_colours_change_by_each_images_own_draw_as_far_as_is_asked_for(name):
    augment, pixels, images = Augmentation(**{name: COLOUR[name]}), rgb(), np.arange(100, 107)
    together = augment(pixels, 1, 2, images)
    assert together.min() >= 0
    assert together.max() <= 1
    assert torch.equal(augment(pixels[[6, 0]], 1, 2, images[[6, 0]]), together[[6, 0]])
    drawn = 2 * Draws.of(1, 2, images).of_each(name, 3 if name == "channel_brightness" else 1) - 1
    amounts = torch.from_numpy(COLOUR[name] * drawn)
    changes = {
        "saturation": lambda: saturated(pixels, 1 + amounts[:, 0]),
        "hue": lambda: turned(pixels, amounts[:, 0]),
        "channel_brightness": lambda: shifted(pixels, amounts),
    }
    assert torch.equal(together, changes[name]())


def test_earlier_draws_stay_when_colour_is_added():
    """Published results hang on them: the numbers of an image are those of before there were draws for colour."""
    before = sum(column.stop - column.start for name, column in COLUMNS.items() if name not in COLOUR)
    drawn = Draws.of(3, 4, np.arange(5)).values
    assert np.array_equal(drawn[:, :before], randomness.uniform(3, 4, np.arange(5), randomness.AUGMENTATION, before))


def test_channels_are_dropped_each_by_its_own_chance_and_never_all_of_them():
    pixels, images = torch.full((400, 3, 4, 4, 4), 0.5), np.arange(400)
    changed = Augmentation(channel_dropout=0.4)(pixels, 1, 2, images)
    kept = changed.flatten(2).mean(dim=2).numpy()
    assert set(np.unique(kept)) == {0.0, 0.5}
    dropped = kept == 0
    assert not dropped.all(axis=1).any()
    chances = Draws.of(1, 2, images).of_each("channel_dropout", 3)
    several = ~(chances < 0.4).all(axis=1)
    assert (dropped == (chances < 0.4))[several].all()
    assert dropped[~several].sum(axis=1).tolist() == [2] * (~several).sum()
    # An image alone loses what it loses in a batch, and one channel is never lost.
    assert torch.equal(Augmentation(channel_dropout=0.4)(pixels[7:8], 1, 2, images[7:8])[0], changed[7])
    assert (Augmentation(channel_dropout=0.9)(pixels[:, :1], 1, 2, images) == 0.5).all()
