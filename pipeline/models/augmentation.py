"""Augmentation of whole batches on the device, each image's by its own (seed, epoch, image) counter.

The transforms are MONAI's: RandSpatialCrop + Resize, in the image's proportions, RandAffine and RandFlip, composed into
a single resampling so that an image is interpolated once; then RandGaussianSmooth, RandAdjustContrast,
RandScaleIntensity about mid grey, RandShiftIntensity, RandGaussianNoise and RandCoarseDropout. Between shift and noise,
the colours of images with three channels are changed as torchvision and kornia do; see `hue`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate, permutations

import numpy as np
import torch
from torch import Tensor

from pipeline.models.hue import saturated, shifted, turned
from pipeline.models.intensity import add_noise, blur, cut_out
from pipeline.models.randomness import AUGMENTATION, uniform
from pipeline.models.resampling import resample, resample_planes

MOST_CHANNELS = 16
# The numbers drawn per image, in this order. Published results hang on it: new ones go to the end.
_COUNTS = {
    "crop_share": 1, "crop_place": 3, "rotate": 1, "flip_horizontal": 1, "contrast": 1, "brightness": 1,
    "tilt": 2, "shear": 6, "scale": 3, "translate": 3, "flip_vertical": 1, "flip_depth": 1, "gamma": 1,
    "noisy": 1, "noise_std": 1, "noise_field": 1, "blurred": 1, "blur_sigma": 3,
    "cut": 1, "cut_side": 3, "cut_place": 3, "saturation": 1, "hue": 1, "channel_brightness": 3,
    "channel_dropout": MOST_CHANNELS,
}  # fmt: skip
COLUMNS = {
    name: slice(end - count, end)
    for (name, count), end in zip(_COUNTS.items(), accumulate(_COUNTS.values()), strict=True)
}
AXES = {"horizontal": -1, "vertical": -2, "depth": -3}
_SMALLEST_SIGMA = 1e-3  # pixels; blurs nothing


@dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1) for a batch; `values` (B, columns), one column per number an image needs."""

    values: np.ndarray

    @classmethod
    def of(cls, seed: int, epoch: int, images: np.ndarray) -> Draws:
        """Draw for the images with these numbers; none depends on the others."""
        return cls(uniform(seed, epoch, images, AUGMENTATION, sum(_COUNTS.values())))

    def of_each(self, name: str, axes: int) -> np.ndarray:
        """Return what is drawn for the first `axes` of several, (B, axes)."""
        return self.values[:, COLUMNS[name]][:, :axes]

    def of_image(self, name: str) -> np.ndarray:
        """Return what is drawn once per image, (B,)."""
        return self.of_each(name, 1)[:, 0]

    def rows(self, start: int, stop: int) -> Draws:
        """Return the draws of some images of the batch."""
        return Draws(self.values[start:stop])


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed, as the settings of that name say; each amount is drawn uniformly, 0 is off.

    `crop_min`: smallest share of the area (volume) kept; the crop keeps the image's proportions and is scaled back.
    `rotate_degrees`: largest rotation either way, in the plane of the last two axes; `tilt_degrees`: in the two other
    planes of a volume. Angles are those of the array, whatever the pixels' spacing.
    `shear`: largest shift of an axis per pixel of another; `scale`: largest relative change of each axis' length, by
    itself; `translate`: largest shift along each axis, share of its side.
    `flips`: axes (`AXES`) that are mirrored, each in half of the cases.
    `contrast`: largest relative change about mid grey; `brightness`: largest shift, share of the range; `gamma`: the
    exponent is at most this far from 1.
    `noise`: largest standard deviation, share of the range; `blur_pixels`: largest standard deviation along each axis;
    `cutout`: largest side of a box made black, share of the image's. Each of these three befalls half of the images.
    Of three channels, `saturation`: largest relative change of it; `hue`: largest turn either way, share of the circle;
    `channel_brightness`: largest shift of each channel by itself, share of the range.
    `channel_dropout`: chance of each channel to be made black; where all would be, one stays.
    Black is what lies outside an image, too, and does not depend on what the image shows.
    """

    crop_min: float = 1.0
    rotate_degrees: float = 0.0
    tilt_degrees: float = 0.0
    shear: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    flips: Collection[str] = field(default=())
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur_pixels: float = 0.0
    cutout: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    channel_brightness: float = 0.0
    channel_dropout: float = 0.0

    def __call__(self, pixels: Tensor, seed: int, epoch: int, images: np.ndarray) -> Tensor:
        """Return the augmented batch; `pixels` (B, C, ...) in [0, 1], `images` (B,) are the images' own numbers.

        What an image becomes depends on nothing but itself and (seed, epoch, its number). Pixels from outside the
        image are black. Noise is another on a GPU than on a CPU.
        """
        draws = Draws.of(seed, epoch, images)
        moved = self._move(pixels, draws)
        # On a CPU one by one: an image stays in the cache, and how work is divided among threads, and with it the
        # rounding of its last pixels, does not depend on the batch.
        step = 1 if pixels.device.type == "cpu" else len(pixels)
        for start in range(0, len(pixels), step):
            self._change(moved[start : start + step], draws.rows(start, start + step))
        return moved

    def matrices(self, draws: Draws, size: tuple[int, ...]) -> np.ndarray:
        """Return (B, axes, axes + 1) maps from output to input places, as `resample` takes them.

        An output place is mirrored, then scaled, shifted, sheared and rotated in pixels about the centre, in MONAI's
        order and with its signs, and then put into the crop.
        """
        axes, sides = len(size), np.array(size)
        kept = (1 - draws.of_image("crop_share") * (1 - self.crop_min)) ** (1 / axes)
        turned = self._rotation(draws, axes) @ self._shearing(draws, axes)
        linear = turned * (1 + self.scale * _either_way(draws.of_each("scale", axes)))[:, None, :]
        shift = turned @ (self.translate * _either_way(draws.of_each("translate", axes)) * sides)[:, :, None]
        # Pixels become places scaled per axis.
        linear = linear * (sides[None, :] / sides[:, None])
        shift = shift[:, :, 0] * 2 / sides
        for name in self.flips:
            linear[:, :, AXES[name]] *= np.where(draws.of_image(f"flip_{name}") < 0.5, -1.0, 1.0)[:, None]
        place = (1 - kept)[:, None] * _either_way(draws.of_each("crop_place", axes))
        return np.concatenate([kept[:, None, None] * linear, (kept[:, None] * shift + place)[:, :, None]], axis=2)

    def _rotation(self, draws: Draws, axes: int) -> np.ndarray:
        in_plane = -np.radians(self.rotate_degrees) * _either_way(draws.of_image("rotate"))
        rotation = _rotation_in_plane(axes, axes - 2, axes - 1, in_plane)
        if axes == 3:
            about_rows, about_columns = (np.radians(self.tilt_degrees) * _either_way(draws.of_each("tilt", 2))).T
            rotation = rotation @ _rotation_in_plane(3, 2, 0, about_rows) @ _rotation_in_plane(3, 0, 1, about_columns)
        return rotation

    def _shearing(self, draws: Draws, axes: int) -> np.ndarray:
        """One shear after the other, which keeps areas (volumes)."""
        amounts = self.shear * _either_way(draws.of_each("shear", axes * (axes - 1)))
        shearing = np.tile(np.eye(axes), (len(amounts), 1, 1))
        for (first, second), amount in zip(permutations(range(axes), 2), amounts.T, strict=True):
            shearing[:, first] += amount[:, None] * shearing[:, second]
        return shearing

    def _move(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Return a new tensor with the images moved; resampled only where they are more than mirrored."""
        if self.crop_min < 1 or self.rotate_degrees or self.tilt_degrees or self.shear or self.scale or self.translate:
            maps = torch.from_numpy(self.matrices(draws, pixels.shape[2:])).to(pixels)
            in_planes = pixels.ndim == 5 and not (self.tilt_degrees or self.shear)
            return (resample_planes if in_planes else resample)(pixels, maps)
        moved = pixels.clone()
        for name in self.flips:
            rows = _half(draws.of_image(f"flip_{name}"))
            moved[rows] = moved[rows].flip(AXES[name])
        return moved

    def _change(self, pixels: Tensor, draws: Draws) -> None:
        """Change the values of (B, C, ...) in place."""
        size = pixels.shape[2:]
        axes = len(size)
        if self.blur_pixels and len(rows := _half(draws.of_image("blurred"))):
            sigmas = self.blur_pixels * draws.of_each("blur_sigma", axes)[rows]
            pixels[rows] = blur(pixels[rows], np.maximum(sigmas, _SMALLEST_SIGMA))
        if self.gamma:
            # Interpolation and blur may leave the range by a rounding error.
            pixels.clamp_(0, 1).pow_(_per_image(1 + self.gamma * _either_way(draws.of_image("gamma")), pixels))
        if self.contrast or self.brightness:
            factor = 1 + self.contrast * _either_way(draws.of_image("contrast"))
            shift = self.brightness * _either_way(draws.of_image("brightness")) + 0.5 * (1 - factor)
            pixels.mul_(_per_image(factor, pixels)).add_(_per_image(shift, pixels))
        if self.saturation or self.hue or self.channel_brightness:
            pixels.copy_(self._coloured(pixels.clamp_(0, 1), draws))
        if self.noise:
            rows = _half(draws.of_image("noisy"))
            stds = (self.noise * draws.of_image("noise_std")[rows]).tolist()
            seeds = (draws.of_image("noise_field")[rows] * 2**53).astype(np.int64).tolist()
            add_noise(pixels, rows.tolist(), stds, seeds)
        pixels.clamp_(0, 1)
        if self.cutout:
            rows = _half(draws.of_image("cut"))
            largest = np.maximum(1, np.floor(self.cutout * np.array(size)))
            sides = 1 + np.floor(draws.of_each("cut_side", axes)[rows] * largest).astype(int)
            starts = np.floor(draws.of_each("cut_place", axes)[rows] * (np.array(size) - sides + 1)).astype(int)
            cut_out(pixels, rows.tolist(), starts, sides)
        if self.channel_dropout:
            chances = draws.of_each("channel_dropout", pixels.shape[1])
            dropped = (chances < self.channel_dropout) & (chances < chances.max(axis=1, keepdims=True))
            pixels[torch.from_numpy(dropped).to(pixels.device)] = 0.0

    def _coloured(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Return RGB images (B, 3, H, W) in other colours."""
        if self.saturation:
            factors = 1 + self.saturation * _either_way(draws.of_image("saturation"))
            pixels = saturated(pixels, torch.from_numpy(factors))
        if self.hue:
            pixels = turned(pixels, torch.from_numpy(self.hue * _either_way(draws.of_image("hue"))))
        if self.channel_brightness:
            shifts = self.channel_brightness * _either_way(draws.of_each("channel_brightness", 3))
            pixels = shifted(pixels, torch.from_numpy(shifts))
        return pixels


def _either_way(draws: np.ndarray) -> np.ndarray:
    """Return draws from [0, 1) spread over [-1, 1)."""
    return 2 * draws - 1


def _half(draws: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows that something is done to: half of them, on average."""
    return np.flatnonzero(draws < 0.5)


def _per_image(values: np.ndarray, pixels: Tensor) -> Tensor:
    return torch.from_numpy(values).to(pixels).view(-1, *(1,) * (pixels.ndim - 1))


def _rotation_in_plane(axes: int, first: int, second: int, radians: np.ndarray) -> np.ndarray:
    """Return (B, axes, axes) rotations from axis `first` towards axis `second`."""
    rotation = np.tile(np.eye(axes), (len(radians), 1, 1))
    rotation[:, first, first] = rotation[:, second, second] = np.cos(radians)
    rotation[:, first, second], rotation[:, second, first] = -np.sin(radians), np.sin(radians)
    return rotation
