"""From a decoded image to the array a model sees: one definition, in MONAI's transforms, for training and prediction.

Window between two percentiles → resize with physical proportions kept → centre in the wanted size → uint8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import Resize, ResizeWithPadOrCrop, ScaleIntensityRange

from pipeline.imaging.image import Image
from pipeline.imaging.verdicts import Refused


@dataclass(frozen=True)
class Rendering:
    """How images become arrays.

    With `spacing_mm`, images are resampled to it and then padded or cropped around their centre, so that a
    structure keeps its size in mm; without, they are scaled to fit inside `image_size`, so that nothing is lost.
    """

    image_size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    lower_percentile: float
    upper_percentile: float


@dataclass(frozen=True)
class Rendered:
    """uint8 `pixels` of shape (1, H, W) or (1, D, H, W), and pixels added before and after each axis (cut: < 0)."""

    pixels: np.ndarray
    padding: tuple[int, ...]


def render(image: Image, how: Rendering) -> Rendered:
    """Return the array of an image. Padding is black; a constant image becomes black.

    Raises Refused when the image has another number of axes than `how`, or no spacing where one is needed.
    """
    if image.pixels.ndim != len(how.image_size):
        raise Refused("bad_geometry", f"{image.pixels.ndim}-D image, but preprocess.image_size has another number")
    pixels = torch.from_numpy(np.ascontiguousarray(image.pixels))[None]
    pixels = _windowed(pixels, image.valid, how)
    resized = _resized(pixels, _size_inside(image, how))
    fitted = ResizeWithPadOrCrop(how.image_size, mode="constant")(resized)
    array = torch.as_tensor(fitted).round_().clamp_(0, 255).to(torch.uint8).numpy()
    return Rendered(np.ascontiguousarray(array), _padding(tuple(resized.shape[1:]), how.image_size))


def _windowed(pixels: torch.Tensor, valid: np.ndarray | None, how: Rendering) -> torch.Tensor:
    """Map the percentiles of the valid pixels to 0 and 255 and clip what lies beyond."""
    values = pixels.numpy() if valid is None else pixels[0].numpy()[valid]
    low, high = np.percentile(values, (how.lower_percentile, how.upper_percentile))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        return torch.zeros_like(pixels)
    return torch.as_tensor(ScaleIntensityRange(float(low), float(high), 0.0, 255.0, clip=True)(pixels))


def _size_inside(image: Image, how: Rendering) -> tuple[int, ...]:
    """Return the size to resample to."""
    shape = np.array(image.pixels.shape, dtype=float)
    if how.spacing_mm is not None:
        if image.spacing_mm is None:
            raise Refused("bad_geometry", "spacing unknown, but preprocess.spacing_mm is set")
        size = shape * np.array(image.spacing_mm) / np.array(how.spacing_mm)
    else:
        extent = shape * np.array(image.spacing_mm or 1.0)
        size = extent * (np.array(how.image_size) / extent).min()
    return tuple(int(side) for side in np.maximum(1, np.round(size)))


def _resized(pixels: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Average areas where the image shrinks, interpolate where it grows."""
    before = tuple(pixels.shape[1:])
    if size == before:
        return pixels
    linear = "bilinear" if len(size) == 2 else "trilinear"
    smaller = tuple(min(a, b) for a, b in zip(before, size, strict=True))
    if smaller != before:
        pixels = torch.as_tensor(Resize(smaller, mode="area")(pixels))
    if smaller != size:
        pixels = torch.as_tensor(Resize(size, mode=linear, align_corners=False)(pixels))
    return pixels


def _padding(size: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return what ResizeWithPadOrCrop does to each axis: pixels before, pixels after, cut ones negative."""
    padding: list[int] = []
    for now, then in zip(size, wanted, strict=True):
        before = (then - now) // 2 if then >= now else -(now // 2 - then // 2)
        padding += [before, then - now - before]
    return tuple(padding)
