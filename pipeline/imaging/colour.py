"""Colour images: kept in a colour task; in a grey one, equal channels are grey and the policy decides of all others."""

from __future__ import annotations

import io
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image as pillow
from PIL import ImageCms

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


def to_srgb(colour: np.ndarray, profile: bytes | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return RGB (H, W, 3) converted from the colour space of an ICC profile to sRGB by littlecms, and flags.

    Through Pillow for 8 bits, through imagecodecs for 16. Values without a profile, or with one that calls itself sRGB,
    stay as they are.
    """
    if not profile:
        return colour, ()
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return colour, ()
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
        if colour.dtype == np.uint8:
            picture = pillow.fromarray(np.ascontiguousarray(colour), "RGB")
            converted = np.asarray(ImageCms.profileToProfile(picture, source, _srgb(), intent))
        elif colour.dtype == np.uint16:
            spaces = {"colorspace": "rgb", "outcolorspace": "rgb"}
            converted = imagecodecs.cms_transform(
                np.ascontiguousarray(colour), profile, _srgb().tobytes(), intent=int(intent), **spaces
            )
        else:
            return colour, ("profile_ignored",)
    except (OSError, ValueError, RuntimeError, ImageCms.PyCMSError):
        return colour, ("profile_ignored",)
    return converted, ("profile_converted",)


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def on_black(values: np.ndarray, associated: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return values (H, W, C) without the last channel, their opacity, as they look on black, and flags.

    `associated` values are multiplied by their opacity already.
    """
    full = np.iinfo(values.dtype).max
    colours, opacity = values[..., :-1], values[..., -1:]
    if (opacity == full).all():
        return colours, ()
    seen = colours if associated else colours * (opacity / np.float32(full))
    return seen.astype(np.float32), ("transparent_on_black",)
