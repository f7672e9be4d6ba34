"""Where the pixels that a network saw lie on the grid of the files that they come from: the way back for masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.imaging.grid import Grid
from pipeline.imaging.image import Image
from pipeline.imaging.transforms import Rendered


@dataclass(frozen=True)
class Placement:
    """The way of one image; `rendered` is without its pixels, `format` that of its files: dicom, nifti, raster …"""

    rendered: Rendered
    grid: Grid
    format: str

    @classmethod
    def of(cls, image: Image, rendered: Rendered) -> Placement:
        """Return the way back from an image as it was rendered."""
        return cls(replace(rendered, pixels=rendered.pixels[:0]), image.file_grid, image.about.format)

    def to_file(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask of the array's pixels, (H, W) or (D, H, W), on the grid of the file; 0 beyond the array."""
        return self.grid.to_stored(self.rendered.to_image(mask))


@dataclass(frozen=True)
class DrawnMask:
    """What a model marked in an image: `mask` as the network saw it, uint8, and the paths of the image's files."""

    mask: np.ndarray
    placement: Placement
    files: tuple[str, ...]
