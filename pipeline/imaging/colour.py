"""Colour images: kept in a colour task; in a grey one, equal channels are grey and the policy decides of all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.imaging.image import Policy
from pipeline.imaging.quarantine import Refused


@dataclass(frozen=True)
class Planes:
    """Grey values or luminance (H, W), the channels (3, H, W) of a colour image that is kept or None, and flags."""

    pixels: np.ndarray
    colour: np.ndarray | None = None
    flags: tuple[str, ...] = ()


def planes_of(colour: np.ndarray, kind: str, policy: Policy) -> Planes:
    """Return float32 planes of RGB (H, W, 3): the common value of equal channels, else what the policy says.

    Raises Refused when channels differ and the policy does not accept colour.
    """
    if (colour == colour[..., :1]).all():
        return Planes(colour[..., 0].astype(np.float32))
    if policy.keep_colour:
        return Planes(luminance(colour), np.ascontiguousarray(np.moveaxis(colour, -1, 0), np.float32))
    if not policy.accept_colour:
        raise Refused("colour", kind)
    return Planes(luminance(colour), flags=("colour_reduced",))


def luminance(colour: np.ndarray) -> np.ndarray:
    """Return the luminance (..., H, W) of RGB (..., H, W, 3): the Y of YBR_FULL (DICOM PS3.3 C.7.6.3.1.2)."""
    return colour[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
