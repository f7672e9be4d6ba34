"""Changes that a radiograph may come with from elsewhere, on the arrays that the networks see.

Each takes one image (C, H, W) or (C, D, H, W) of uint8 and gives one of the same shape and type. Side lengths are those
of the array, not of the original picture: a blur of 1 pixel at 64 pixels is one of some 30 pixels of the film.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

FULL_SCALE = 255
BLUR_PIXELS, JPEG_QUALITY, CROPPED, STRETCHED_PERCENTILES, NOISE = 1.0, 40, 0.10, (5, 95), 0.02
Corruption = Callable[[np.ndarray, int], np.ndarray]


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Return the image with its grey values, as shares of the range, raised to `exponent`."""
    return _whole(FULL_SCALE * (image / FULL_SCALE) ** exponent)


def blurred(image: np.ndarray) -> np.ndarray:
    """Return the image after a Gaussian of standard deviation 1 pixel along each axis, edges repeated."""
    sigmas = (0.0, *(BLUR_PIXELS,) * (image.ndim - 1))
    return _whole(gaussian_filter(image.astype(np.float64), sigmas, mode="nearest"))


def compressed(image: np.ndarray) -> np.ndarray:
    """Return the image written as JPEG of quality 40 and read again; a volume slice by slice, colours together."""
    if image.ndim == 4:
        return np.stack([compressed(image[:, at]) for at in range(image.shape[1])], axis=1)
    picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY)
    read = np.asarray(Image.open(stream))
    return read[None] if len(image) == 1 else np.moveaxis(read, -1, 0)


def cropped(image: np.ndarray) -> np.ndarray:
    """Return the middle of the image, a tenth of each side cut off, at the size of before (linear interpolation)."""
    size = image.shape[1:]
    kept = [max(1, round(side * (1 - CROPPED))) for side in size]
    starts = [(side - own) // 2 for side, own in zip(size, kept, strict=True)]
    part = image[(slice(None), *(slice(at, at + own) for at, own in zip(starts, kept, strict=True)))]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    grown = F.interpolate(torch.from_numpy(part.astype(np.float64))[None], size, mode=mode, align_corners=False)
    return _whole(grown[0].numpy())


def stretched(image: np.ndarray) -> np.ndarray:
    """Return the image with its percentiles 5 and 95 as black and white; a constant one stays as it is."""
    low, high = np.percentile(image, STRETCHED_PERCENTILES)
    return _whole(FULL_SCALE * (image - low) / (high - low)) if high > low else image.copy()


def noisy(image: np.ndarray, number: int) -> np.ndarray:
    """Return the image with Gaussian noise of 2 % of the range, a pure function of the image's `number`."""
    noise = np.random.default_rng(number).normal(0, NOISE * FULL_SCALE, image.shape)
    return _whole(image + noise)


def _whole(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, FULL_SCALE).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "gamma 0.7": lambda image, _: gamma(image, 0.7),
    "gamma 1.4": lambda image, _: gamma(image, 1.4),
    "blur of 1 pixel": lambda image, _: blurred(image),
    "JPEG quality 40": lambda image, _: compressed(image),
    "crop of 10 %": lambda image, _: cropped(image),
    "contrast stretched": lambda image, _: stretched(image),
    "noise of 2 %": noisy,
}


def corrupted(images: np.ndarray, name: str) -> np.ndarray:
    """Return images (N, C, ...) uint8 after the corruption of this name; the image's number is its row."""
    return np.stack([CORRUPTIONS[name](image, number) for number, image in enumerate(images)])
