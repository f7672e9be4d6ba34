"""Several volumes of one patient as the channels of one image, on the grid of the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import ndimage

from pipeline.imaging.image import BYTES_PER_PIXEL, Image, Policy
from pipeline.imaging.quarantine import Refused

# Of a voxel: grids that lie closer than this are one, and nothing is interpolated.
SAME_PLACE = 1e-3


def join(found: Mapping[str, Image], policy: Policy) -> Image:
    """Return one image of all channels of the policy, in their order, on the grid of the first that there is.

    `found` are volumes (D, H, W) by channel. Values between voxels are linear; what lies beyond a channel's outermost
    voxels has that channel's lowest value. A missing channel is zeros and `absent`, where the policy takes it so. What
    the header says is that of the first channel.

    Raises Refused when a channel is missing or no volume, places cannot be compared, or a channel covers too little of
    the first.
    """
    names = [channel.name for channel in policy.channels]
    missing = [name for name in names if name not in found]
    if missing and not policy.fill_channels:
        raise Refused("missing_channel", ", ".join(missing))
    there = [name for name in names if name in found]
    for name in there:
        if found[name].pixels.ndim != 3 or found[name].affine is None:
            raise Refused("bad_geometry", f"channel {name} is no volume that says where it lies")
    if len(frames := {found[name].about.identity.frame_uid for name in there} - {""}) > 1:
        raise Refused("frame_of_reference", f"{len(frames)} frames of reference")
    first = found[there[0]]
    if len(names) * first.pixels.size * BYTES_PER_PIXEL > policy.max_pixel_bytes:
        raise Refused("too_large", f"{len(names)} channels of more than {policy.max_pixel_bytes} bytes of pixels")
    joined = np.zeros((len(names), *first.pixels.shape), np.float32)
    flags = {flag for name in there for flag in found[name].flags}
    for number, name in enumerate(names):
        if name in found:
            joined[number], moved = _on_grid(found[name], first, policy.min_overlap, f"{name} of {there[0]}")
            flags |= {"channels_resampled"} if moved else set()
    identity = replace(first.about.identity, sop_instance_uid="")
    return replace(
        first,
        pixels=joined[names.index(there[0])],
        about=replace(first.about, identity=identity),
        flags=tuple(sorted(flags | ({"zeros_for_channel"} if missing else set()))),
        joined=joined,
        absent=tuple(names.index(name) for name in missing),
    )


def _on_grid(image: Image, first: Image, min_overlap: float, which: str) -> tuple[np.ndarray, bool]:
    """Return the values of a volume at the voxels of another, and whether they had to be interpolated."""
    if image.affine is None or first.affine is None:
        raise Refused("bad_geometry", "a channel does not say where it lies")
    places = np.linalg.inv(image.affine) @ first.affine  # from indices of the first to those of the image
    shape = first.pixels.shape
    corners = np.stack(np.meshgrid(*([0, side - 1] for side in shape), [1], indexing="ij"), -1).reshape(-1, 4).T
    if image.pixels.shape == shape and np.abs(places @ corners - corners).max() < SAME_PLACE:
        return image.pixels, False
    inside = _inside(places, shape, image.pixels.shape)
    if (share := float(inside.mean())) < min_overlap:
        raise Refused("fields_of_view_apart", f"{which}: {share:.0%} of its volume")
    values = ndimage.affine_transform(
        image.pixels, places[:3, :3], places[:3, 3], output_shape=shape, output=np.float32, order=1, mode="nearest"
    )
    values[~inside] = image.pixels.min()
    return values, True


def _inside(places: np.ndarray, shape: tuple[int, ...], other: tuple[int, ...]) -> np.ndarray:
    """Return which voxels of a grid have their centre within the voxels of another, (D, H, W).

    Plane by plane, since the places of all voxels would take many times their values' memory.
    """
    inside = np.empty(shape, dtype=bool)
    rows, columns = np.indices(shape[1:], dtype=float)
    sides = np.array(other).reshape(3, 1, 1)
    for number in range(shape[0]):
        plane = np.stack([np.full_like(rows, number), rows, columns])
        at = np.tensordot(places[:3, :3], plane, 1) + places[:3, 3].reshape(3, 1, 1)
        inside[number] = ((at >= -0.5) & (at < sides - 0.5)).all(axis=0)
    return inside
