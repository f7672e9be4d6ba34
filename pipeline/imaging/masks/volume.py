"""Masks as NIfTI volumes."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np

from pipeline.imaging.formats.nifti import MM_PER_UNIT
from pipeline.imaging.grid import Grid
from pipeline.imaging.image import Policy
from pipeline.imaging.masks.placement import placed, size_text
from pipeline.imaging.quarantine import Refused


def read_nifti_mask(data: bytes, grid: Grid, policy: Policy) -> np.ndarray:
    """Return the values of a mask, scaled as its header says, as they lie on the pixels of an image.

    The sform says how it lies, else the qform, as for images.

    Raises Refused.
    """
    kind = nib.Nifti1Image if data[344:348] == b"n+1\0" else nib.Nifti2Image
    try:
        volume = kind.from_file_map({name: nib.FileHolder(fileobj=io.BytesIO(data)) for name in ("header", "image")})
        shape, affine = volume.shape, np.array(volume.affine, dtype=float)
        unit = MM_PER_UNIT.get(str(volume.header.get_xyzt_units()[0]), 1.0)
    except Exception as error:
        raise Refused("mask_format", type(error).__name__) from None
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1 or len(grid.shape) != 3:
        raise Refused("mask_size", f"{size_text(shape)} instead of {size_text(grid.stored)}")
    if np.prod(shape, dtype=float) * 8 > policy.max_pixel_bytes:
        raise Refused("too_large", f"{size_text(shape)} voxels")
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise Refused("mask_position", "position matrix is singular or not finite")
    try:
        values = np.asanyarray(volume.dataobj).reshape(shape)
    except Exception as error:
        raise Refused("mask_format", type(error).__name__) from None
    return placed(values, np.diag([unit, unit, unit, 1.0]) @ affine, grid)
