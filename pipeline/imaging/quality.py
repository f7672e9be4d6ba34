"""What is odd about an image that can be read. Flags inform; they exclude nothing."""

from __future__ import annotations

import numpy as np

from pipeline.imaging.image import Image, Policy

FEWEST_GREY_LEVELS = 32
BORDER_SHARE = 0.1


def quality_flags(image: Image, policy: Policy) -> list[str]:
    """Return the names, from verdicts.FLAGS, of all that is odd, sorted."""
    pixels = image.pixels if image.valid is None else image.pixels[image.valid]
    levels, counts = np.unique(pixels, return_counts=True)
    flags = set(image.flags)
    if levels.size == 1:
        return sorted(flags | {"blank"})
    if levels.size < FEWEST_GREY_LEVELS:
        flags.add("few_grey_levels")
    if max(counts[0], counts[-1]) > policy.max_clipped * pixels.size:
        flags.add("clipped")
    plane = image.pixels.shape[-2:]
    if max(plane) > policy.max_aspect * min(plane):
        flags.add("extreme_aspect")
    if image.pixels.ndim == 2 and has_constant_border(image.pixels):
        flags.add("constant_border")
    return sorted(flags)


def has_constant_border(pixels: np.ndarray) -> bool:
    """Say whether a strip along an edge of (H, W) pixels, a tenth of the side wide, has a single value."""
    for view in (pixels, pixels[::-1], pixels.T, pixels.T[::-1]):
        strip = view[: max(1, round(view.shape[0] * BORDER_SHARE))]
        if strip.min() == strip.max():
            return True
    return False
