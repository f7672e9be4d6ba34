"""From bytes to one checked image: the format is taken from the content, never from the name."""

from __future__ import annotations

from pipeline.imaging.dicom import is_dicom, read_dicom
from pipeline.imaging.image import Image, Policy
from pipeline.imaging.nifti import GZIP, inflate, is_nifti, read_nifti
from pipeline.imaging.raster import is_raster, read_raster
from pipeline.imaging.verdicts import Refused

ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"Rar!", b"7z\xbc\xaf\x27\x1c")


def read_image(data: bytes, policy: Policy) -> Image:
    """Return the image in `data`.

    Raises Refused with the reason when it is unusable.
    """
    if data.startswith(GZIP):
        data = inflate(data, policy.max_file_bytes)
        if not is_nifti(data):
            raise Refused("archive" if _is_tar(data) else "unknown_format", "gzip without NIfTI")
    if is_dicom(data):
        image = read_dicom(data, policy)
    elif is_nifti(data):
        image = read_nifti(data, policy)
    elif is_raster(data):
        image = read_raster(data, policy)
    elif data.startswith(ARCHIVES) or _is_tar(data):
        raise Refused("archive")
    else:
        raise Refused("unknown_format")
    rows, columns = image.pixels.shape[-2:]
    if image.pixels.ndim == 2 and min(rows, columns) < policy.min_side:
        raise Refused("too_small", f"{rows} x {columns} pixels")
    return image


def _is_tar(data: bytes) -> bool:
    return data[257:262] == b"ustar"
