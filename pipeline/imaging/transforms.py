"""From a decoded image to the array a model sees: one definition, in MONAI's transforms, for training and prediction.

Cut out the field of view, if asked to → clip to a window → resize with physical proportions kept → centre in the wanted
size → scale the window to uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.transforms import Resize, ResizeWithPadOrCrop, ScaleIntensityRange

from pipeline.imaging.field_of_view import field_of_view
from pipeline.imaging.image import Image, as_json
from pipeline.imaging.quarantine import Refused

# From so many pixels on, percentiles are taken from a part of them: a 2,000 x 2,000 image would spend most time here.
SAMPLED_PIXELS = 1 << 18
CHANNELS = {"grey": 1, "colour": 3}


@dataclass(frozen=True)
class Rendering:
    """How images become arrays.

    With `spacing_mm`, images are resampled to it and then padded or cropped around their centre, so that a
    structure keeps its size in mm; without, they are scaled to fit inside `image_size`, so that nothing is lost.
    `window`, lowest and highest value shown, is for images whose values mean the same everywhere (CT, in Hounsfield
    units); without, each image is shown between two of its own percentiles, of all its channels together, so that hue
    stays. `channels`: grey, or colour, in which grey images are repeated. `crop`: none, or field_of_view, by which the
    disc of a fundus photograph is cut out first; see `field_of_view`. `channel_names` are those of volumes with the
    card's channels, each of which is shown between percentiles of its own, since each has its own scale.
    """

    image_size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    lower_percentile: float
    upper_percentile: float
    window: tuple[float, float] | None = None
    channels: str = "grey"
    crop: str = "none"
    channel_names: tuple[str, ...] = ()

    @property
    def channel_count(self) -> int:
        """Channels of an array, C."""
        return len(self.channel_names) or CHANNELS[self.channels]

    def no_arrays(self) -> np.ndarray:
        """Return the arrays of no image, (0, C, ...) uint8."""
        return np.empty((0, self.channel_count, *self.image_size), np.uint8)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], channel_names: Sequence[str] = ()) -> Rendering:
        """Return how the settings of `preprocess` make arrays, of images with the card's channels if it lists any."""
        spacing, window = settings["spacing_mm"], settings["window"]
        return cls(
            image_size=tuple(settings["image_size"]),
            spacing_mm=tuple(spacing) if spacing else None,
            lower_percentile=settings["lower_percentile"],
            upper_percentile=settings["upper_percentile"],
            window=(window[0], window[1]) if window else None,
            # Artifacts and models can be of before there was a choice.
            channels=settings.get("channels", "grey"),
            crop=settings.get("crop", "none"),
            channel_names=tuple(channel_names),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a model's JSON."""
        content = as_json(self)
        return {name: value for name, value in content.items() if name != "channel_names" or value}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Rendering:
        """Return the rendering kept in a model's JSON."""
        return cls.from_settings(content, content.get("channel_names", ()))


@dataclass(frozen=True)
class Rendered:
    """uint8 `pixels` of shape (C, H, W) or (C, D, H, W), and pixels added before and after each axis (cut: < 0).

    `size` is the image's own, `resized` what it was scaled to before `padding`, both per axis. `box` is what was cut
    out of the image before, first and behind the last place of each axis: all of it unless `cropped`.
    """

    pixels: np.ndarray
    padding: tuple[int, ...]
    size: tuple[int, ...] = ()
    resized: tuple[int, ...] = ()
    box: tuple[int, ...] = ()
    cropped: bool = False

    @property
    def matrix(self) -> np.ndarray:
        """The matrix (n + 1, n + 1) from indices of the array to those of the image; whole numbers are centres."""
        starts, ends = np.reshape(self.box or [end for side in self.size for end in (0, side)], (-1, 2)).T
        scale = (ends - starts) / np.array(self.resized)
        matrix = np.diag([*scale, 1.0])
        matrix[:-1, -1] = starts + (0.5 - np.array(self.padding[::2])) * scale - 0.5
        return matrix

    def to_image(self, values: np.ndarray) -> np.ndarray:
        """Return `values` of the array's pixels on those of the image, the nearest for each; 0 beyond the array."""
        return _sampled(values, np.linalg.inv(self.matrix), self.size, 0)

    def of_image(self, values: np.ndarray, beyond: int) -> np.ndarray:
        """Return `values` of the image's pixels on those of the array, the nearest for each; `beyond` in the padding.

        A structure smaller than a pixel of the array can be lost.
        """
        return _sampled(values, self.matrix, self.pixels.shape[1:], beyond)


def _sampled(values: np.ndarray, matrix: np.ndarray, size: Sequence[int], beyond: int) -> np.ndarray:
    """Return `values` at the places to which `matrix` leads from the indices of an array of `size`, the nearest."""
    places = [np.round(np.arange(side) * matrix[n, n] + matrix[n, -1]).astype(int) for n, side in enumerate(size)]
    inside = [(place >= 0) & (place < side) for place, side in zip(places, values.shape, strict=True)]
    found = values[np.ix_(*(np.clip(p, 0, s - 1) for p, s in zip(places, values.shape, strict=True)))]
    return np.where(_outer(inside), found, np.array(beyond, values.dtype))


def _outer(masks: list[np.ndarray]) -> np.ndarray:
    """Return where all of the masks, one per axis, are true."""
    covered = np.ones((), dtype=bool)
    for mask in masks:
        covered = covered[..., None] & mask
    return covered


def render(image: Image, how: Rendering) -> Rendered:
    """Return the array of an image. Padding is black; a constant image becomes black.

    Raises Refused when the image has another number of axes than `how`, or no spacing where one is needed.
    """
    if image.pixels.ndim != len(how.image_size):
        raise Refused("bad_geometry", f"{image.pixels.ndim}-D image, but preprocess.image_size has another number")
    if how.channel_names:
        return _each_channel(image, how)
    whole = image.pixels.shape
    box = field_of_view(image.channels) if how.crop == "field_of_view" else None
    if box is not None:
        image = _cut(image, box)
    low, high = how.window or window_of(image, how)
    # Clipping comes first, so that a bright speck does not colour its surroundings; scaling last, on fewer pixels.
    clipped = torch.from_numpy(np.clip(_channels(image, how), low, high))
    resized = _resized(clipped, _size_inside(image, how))
    if high > low:
        scaled = torch.as_tensor(ScaleIntensityRange(low, high, 0.0, 255.0, clip=True)(resized))
    else:
        scaled = torch.zeros_like(resized)
    fitted = ResizeWithPadOrCrop(how.image_size, mode="constant")(scaled)
    array = torch.as_tensor(fitted).round_().clamp_(0, 255).to(torch.uint8).numpy()
    size = tuple(resized.shape[1:])
    if len(array) < how.channel_count:
        array = np.repeat(array, how.channel_count, axis=0)
    taken = box or tuple(end for side in whole for end in (0, side))
    padding = _padding(size, how.image_size)
    return Rendered(np.ascontiguousarray(array), padding, whole, size, taken, box is not None)


def _each_channel(image: Image, how: Rendering) -> Rendered:
    """Return the array of an image of several channels; one that was missing is zeros."""
    if image.joined is None or len(image.joined) != how.channel_count:
        raise Refused("missing_channel", f"{how.channel_count} channels are needed")
    alone = replace(how, channel_names=())
    parts = [render(part, alone) for part in image.parts()]
    pixels = np.zeros((how.channel_count, *how.image_size), np.uint8)
    there = [number for number in range(how.channel_count) if number not in image.absent]
    pixels[there] = np.concatenate([part.pixels for part in parts])
    return replace(parts[0], pixels=pixels)


def windows_of(image: Image, how: Rendering) -> list[tuple[float, float]]:
    """Return the values that each channel is shown between, one pair for all channels of a picture in colour."""
    alone = replace(how, channel_names=())
    parts = image.parts() if how.channel_names else [image]
    return [how.window or window_of(part, alone) for part in parts]


def _cut(image: Image, box: tuple[int, int, int, int]) -> Image:
    """Return the part of a picture in a box: top, bottom, left and right."""
    part = (..., slice(*box[:2]), slice(*box[2:]))
    valid, colour = (None if one is None else one[part] for one in (image.valid, image.colour))
    return replace(image, pixels=image.pixels[part], valid=valid, colour=colour)


def window_of(image: Image, how: Rendering) -> tuple[float, float]:
    """Return the percentiles of the valid pixels, of a regular grid of them when there are many; else the extremes."""
    channels = _channels(image, how)
    step = max(1, int((image.pixels.size / SAMPLED_PIXELS) ** (1 / image.pixels.ndim)))
    grid = (slice(None, None, step),) * image.pixels.ndim
    values = channels[:, *grid] if image.valid is None else channels[:, *grid][:, image.valid[grid]]
    if values.size:
        low, high = np.percentile(values, (how.lower_percentile, how.upper_percentile))
        if low < high:
            return float(low), float(high)
    return float(channels.min()), float(channels.max())


def _channels(image: Image, how: Rendering) -> np.ndarray:
    """Return what is shown of an image: in a colour task its channels (C, H, W), else grey values (1, ...)."""
    return image.channels if how.channel_count > 1 else image.pixels[None]


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
