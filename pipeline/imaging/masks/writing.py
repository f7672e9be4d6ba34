"""Masks as files on the grid of the file that the image came from: NIfTI for volumes, PNG for pictures."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image as pillow

from pipeline.imaging.formats.nifti import MM_PER_UNIT, inflate, is_nifti, is_pair_header
from pipeline.imaging.grid import Grid
from pipeline.store.files import atomic

SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
LARGEST_FILE = 1 << 33
SAME_PLACE_MM = 1e-3
# What a header says of how a volume lies; all else in it is not ours to copy: free text can name a patient.
FORMS = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"),
)


def write_mask_nifti(path: Path, mask: np.ndarray, grid: Grid, source: bytes | None = None) -> None:
    """Write the structures (uint8) of a volume, on the grid of its file, as NIfTI; a name ending in .gz is compressed.

    `source` is the NIfTI file, or header, that the volume came from: the mask says as it does how it lies, in the same
    words. Without it, as for a DICOM series, (slices, rows, columns) become (columns, rows, slices), as usual.

    Raises ValueError when the mask is not on the grid, or nobody knows how that lies.
    """
    affine = grid.stored_affine
    if mask.shape != grid.stored or affine is None or mask.ndim != 3:
        raise ValueError(f"a mask of shape {mask.shape} cannot be written on a grid of {grid.stored}")
    header = _header(source)
    if header is None:
        image = nib.Nifti1Image(np.ascontiguousarray(mask.T, np.uint8), affine[:, [2, 1, 0, 3]])
        image.header.set_xyzt_units("mm")
        image.set_sform(image.affine, SCANNER)
        image.set_qform(None, 0)  # it could not hold a matrix that is sheared by a rounding
    else:
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(np.ascontiguousarray(mask, np.uint8), header.get_best_affine())
        for name in FORMS:
            image.header[name] = header[name]
        image.header["pixdim"][:4] = header["pixdim"][:4]
    data = image.to_bytes()
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _header(source: bytes | None) -> nib.Nifti1Header | None:
    if source is None:
        return None
    data = inflate(source, LARGEST_FILE)
    if not (is_nifti(data) or is_pair_header(data)):
        return None
    two = int.from_bytes(data[:4], "little") == 540 or int.from_bytes(data[:4], "big") == 540
    kind = nib.Nifti2Header if two else nib.Nifti1Header
    return kind.from_fileobj(io.BytesIO(data), check=False)


def source_header(contents: Iterable[bytes], grid: Grid) -> bytes | None:
    """Return the NIfTI file, or header of a pair, among the files of an image; None where there is none.

    Of several, which are channels, it is the one that lies on the grid: the others were brought to that.
    """
    known = [(data, header) for data in contents if (header := _header(data)) is not None]
    if len(known) > 1:
        known = [(data, header) for data, header in known if _lies_on(header, grid)]
    return known[0][0] if known else None


def _lies_on(header: nib.Nifti1Header, grid: Grid) -> bool:
    if header.get_data_shape()[:3] != grid.stored or grid.stored_affine is None:
        return False
    to_mm = MM_PER_UNIT.get(str(header.get_xyzt_units()[0]), 1.0)
    affine = np.diag([to_mm, to_mm, to_mm, 1.0]) @ header.get_best_affine()
    return np.allclose(affine, grid.stored_affine, rtol=0, atol=SAME_PLACE_MM)


def write_mask_png(path: Path, mask: np.ndarray, grid: Grid) -> None:
    """Write the structures (uint8) of a picture, on the grid of its file, as a grey PNG.

    Where the picture has an orientation tag, the mask lies as the picture is stored, and has no tag.

    Raises ValueError when the mask is not on the grid.
    """
    if mask.shape != grid.stored or mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape} cannot be written on a grid of {grid.stored}")
    with atomic(path) as temporary:
        pillow.fromarray(np.ascontiguousarray(mask, np.uint8)).save(temporary, "PNG")
