"""Colour images in a grey task: equal channels are grey, anything else is a decision of the policy."""

from __future__ import annotations

import numpy as np

from pipeline.imaging.image import Policy
from pipeline.imaging.quarantine import Refused


def grey_of(colour: np.ndarray, kind: str, policy: Policy) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return float32 (H, W) of colour (H, W, 3), the common value of equal channels or the luminance, and flags.

    Raises Refused when channels differ and the policy does not accept colour.
    """
    if (colour == colour[..., :1]).all():
        return colour[..., 0].astype(np.float32), ()
    if not policy.accept_colour:
        raise Refused("colour", kind)
    return luminance(colour), ("colour_reduced",)


def luminance(colour: np.ndarray) -> np.ndarray:
    """Return the luminance (..., H, W) of RGB (..., H, W, 3): the Y of YBR_FULL (DICOM PS3.3 C.7.6.3.1.2)."""
    return colour[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
