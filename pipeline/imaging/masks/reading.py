"""From the bytes of a mask to structures on the pixels of its image, whatever the format, checked by geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.imaging.formats.dicom import is_dicom
from pipeline.imaging.formats.nifti import inflate, is_nifti
from pipeline.imaging.image import Image, Policy
from pipeline.imaging.masks.picture import is_picture, read_picture_mask
from pipeline.imaging.masks.segmentation import read_segmentation
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.masks.volume import read_nifti_mask
from pipeline.imaging.quarantine import Refused


def read_mask(
    data: bytes, image: Image, contents: Sequence[bytes], structures: Structures, policy: Policy
) -> np.ndarray:
    """Return the index of the structure at each pixel of an image, uint8 of the shape of `image.pixels`.

    `data` is the mask's file, `contents` are those of the image, in order: a DICOM SEG says which ones it is about.

    Raises Refused.
    """
    data = inflate(data, policy.max_file_bytes)
    grid = image.file_grid
    if is_nifti(data):
        return structures.indices(read_nifti_mask(data, grid, policy))
    if is_picture(data):
        if len(grid.shape) != 2:
            raise Refused("mask_size", "a picture as the mask of a volume")
        return structures.indices(read_picture_mask(data, grid, policy))
    if is_dicom(data):
        return read_segmentation(data, image, contents, structures, policy)
    raise Refused("mask_format")
