"""What reading a file gives, and the limits that reading keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

import numpy as np

from pipeline.store.files import sha256_bytes


@dataclass(frozen=True)
class Policy:
    """What is accepted and where checks draw the line."""

    max_file_bytes: int
    max_pixel_bytes: int
    modalities: tuple[str, ...] = ()
    accept_burned_in: bool = False
    accept_secondary_capture: bool = False
    min_side: int = 32
    max_aspect: float = 4.0
    max_clipped: float = 0.25


@dataclass(frozen=True)
class Identity:
    """Identifying values of a header. They never leave the process that reads the file, but as keyed hashes."""

    patient: str = ""
    study_uid: str = ""
    sop_instance_uid: str = ""
    institution: str = ""
    study_date: date | None = None


@dataclass(frozen=True)
class Image:
    """One image, as a reader would see it: dense tissue bright, patient's values rescaled, padding masked.

    `pixels` is float32 of shape (H, W), or (D, H, W) with indices that rise towards the patient's superior, anterior
    and right side (RAS+ with the axes reversed, so that the slowest comes first). `valid` marks pixels that are not
    padding; None when all are valid. `spacing_mm` has one entry per axis, in the same order.
    """

    pixels: np.ndarray
    format: str
    bits_stored: int
    identity: Identity = field(default_factory=Identity, repr=False)
    valid: np.ndarray | None = None
    spacing_mm: tuple[float, ...] | None = None
    modality: str = ""
    view: str = ""
    laterality: str = ""
    body_part: str = ""
    manufacturer: str = ""
    photometric: str = ""
    polarity_fixed: bool = False
    sex: str = ""
    age_years: float | None = None
    flags: tuple[str, ...] = ()

    def pixel_sha256(self) -> str:
        """Return the SHA-256 of shape and display pixels, the same on every machine."""
        # Adding zero turns -0.0 into 0.0, which are equal but have different bytes.
        content = np.ascontiguousarray(self.pixels + 0.0, dtype="<f4")
        return sha256_bytes(str(self.pixels.shape).encode() + content.tobytes())
