"""NIfTI-1 and NIfTI-2 volumes in one file, gzip-compressed or not."""

from __future__ import annotations

import gzip
import io
import zlib

import nibabel as nib
import numpy as np

from pipeline.imaging.image import Image, Policy
from pipeline.imaging.verdicts import Refused

GZIP = b"\x1f\x8b"
# Length of the header, little or big endian, and where the magic string stands (NIfTI-1 and NIfTI-2 headers).
VERSIONS = {348: (nib.Nifti1Image, 344, b"n+1\0"), 540: (nib.Nifti2Image, 4, b"n+2\0")}
MM_PER_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
FLATTEST_AFFINE = 1e-9
PIECE_BYTES = 1 << 20


def is_nifti(data: bytes) -> bool:
    """Say whether uncompressed bytes start like a single-file NIfTI."""
    return _version(data) is not None


def inflate(data: bytes, limit: int) -> bytes:
    """Return the content of a gzip file, checksum included, up to `limit` bytes.

    nibabel stops reading before the checksum, and so accepts damaged voxels.

    Raises Refused.
    """
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while piece := stream.read(PIECE_BYTES):
                content += piece
                if len(content) > limit:
                    raise Refused("too_large", f"inflates to more than {limit} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise Refused("damaged_pixels", f"gzip: {type(error).__name__}") from None
    return bytes(content)


def read_nifti(data: bytes, policy: Policy) -> Image:
    """Read a volume and turn it to RAS+, with the slowest axis first.

    Raises Refused when it is not three-dimensional and real, or when orientation or voxels are not finite.
    """
    version = _version(data)
    if version is None:
        raise Refused("unknown_format")
    try:
        volume = version.from_bytes(data)
        header, affine = volume.header, np.array(volume.affine, dtype=float)
        shape = tuple(int(side) for side in volume.shape)
        dtype = header.get_data_dtype()
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise Refused("bad_geometry", f"{len(shape)} axes")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refused("colour" if dtype.fields else "bad_values", "not real numbers of at most 64 bits")
    voxels = int(np.prod(shape, dtype=np.int64)) if min(shape) > 0 else 0
    if voxels == 0 or voxels * max(4, dtype.itemsize) > policy.max_pixel_bytes:
        raise Refused("too_large" if voxels else "bad_geometry", "x".join(map(str, shape)) + " voxels")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < FLATTEST_AFFINE:
        raise Refused("bad_geometry", "position matrix is singular or not finite")
    try:
        values = np.asanyarray(volume.dataobj, dtype=np.float32).reshape(shape)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
        unit = header.get_xyzt_units()[0]
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    pixels = np.ascontiguousarray(canonical.get_fdata(dtype=np.float32).transpose(2, 1, 0))
    if not np.isfinite(pixels).all():
        raise Refused("bad_values", "voxels are not finite")
    # Lengths of the matrix columns, since the header's own spacing may contradict its matrix.
    spacing = nib.affines.voxel_sizes(canonical.affine)[::-1] * MM_PER_UNIT.get(str(unit), 1.0)
    return Image(
        pixels=pixels,
        format="nifti",
        bits_stored=dtype.itemsize * 8,
        spacing_mm=tuple(float(length) for length in spacing),
        flags=("units_assumed",) if unit == "unknown" else (),
    )


def _version(data: bytes) -> type[nib.Nifti1Image] | None:
    for order in ("little", "big"):
        found = VERSIONS.get(int.from_bytes(data[:4], order))
        if found is not None:
            image, offset, magic = found
            return image if data[offset : offset + 4] == magic else None
    return None
