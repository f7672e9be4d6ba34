"""NIfTI-1 and NIfTI-2 volumes, in one file or in a pair of header and voxels, gzip-compressed or not."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import replace

import nibabel as nib
import numpy as np

from pipeline.imaging.image import BYTES_PER_PIXEL, LARGEST_SPACING_MM, About, Image, Policy
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.volumes.orientation import Canvas, canvas

GZIP = b"\x1f\x8b"
# Length of the header, little or big endian, and where the magic string stands (NIfTI-1 and NIfTI-2 headers).
VERSIONS = {
    348: (344, {b"n+1\0": nib.Nifti1Image, b"ni1\0": nib.Nifti1Pair}),
    540: (4, {b"n+2\0": nib.Nifti2Image, b"ni2\0": nib.Nifti2Pair}),
}
PAIRS = (nib.Nifti1Pair, nib.Nifti2Pair)
MM_PER_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
FLATTEST_AFFINE = 1e-9
# sform and qform agree when no axis of the one leads farther away from the other's than to its nearest orientation.
LEAST_COSINE = math.cos(math.radians(45))
# Writers round voxel sizes, to 0.49 mm for 0.488; a form that leads to a template stretches them more.
LARGEST_SIZE_DIFFERENCE = 0.01
# In a single file, voxels follow the header and four bytes that announce extensions.
FIRST_VOXEL = {348: 352, 540: 544}
PIECE_BYTES = 1 << 20
UNCLEAR = {
    "orientation_assumed": "sform_code and qform_code are 0",
    "orientation_contradicts": "sform and qform lie differently",
    "spacing_contradicts": "sform and header differ in the size of voxels",
}


def is_nifti(data: bytes) -> bool:
    """Say whether uncompressed bytes start like a NIfTI header."""
    return _version(data) is not None


def inflate(data: bytes, limit: int) -> bytes:
    """Return the content of a gzip file, checksum included, up to `limit` bytes; what is no gzip file as it is.

    nibabel stops reading before the checksum, and so accepts damaged voxels.

    Raises Refused.
    """
    if not data.startswith(GZIP):
        return data
    content = io.BytesIO()  # hands over its buffer in the end, without a copy
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while piece := stream.read(PIECE_BYTES):
                if content.write(piece) and content.tell() > limit:
                    raise Refused("too_large", f"inflates to more than {limit} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise Refused("damaged_pixels", f"gzip: {type(error).__name__}") from None
    return content.getvalue()


def read_nifti(data: bytes, policy: Policy, voxels: bytes | None = None) -> Image:
    """Read a volume and turn it to RAS+, with the slowest axis first.

    `data` is a whole file, or the header of a pair whose `voxels` are in a file of their own (.hdr and .img).

    The sform says how it lies, else the qform.

    Raises Refused when it is not three-dimensional and real, when orientation or voxels are not finite, and, unless the
    policy accepts it, when neither form is said to be valid or they contradict each other in direction or voxel size.
    """
    version = _version(data)
    if version is None:
        raise Refused("unknown_format")
    try:
        files = {"header": nib.FileHolder(fileobj=io.BytesIO(data))}
        files["image"] = files["header"] if voxels is None else nib.FileHolder(fileobj=io.BytesIO(voxels))
        volume = version.from_file_map(files)
        raw = version.header_class.from_fileobj(io.BytesIO(data), check=False)
        header, affine = volume.header, np.array(volume.affine, dtype=float)
        shape = tuple(int(side) for side in volume.shape)
        dtype = header.get_data_dtype()
        unclear = _unclear_orientation(header)
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None
    if version not in PAIRS and raw["vox_offset"] < FIRST_VOXEL[int(raw["sizeof_hdr"])]:
        raise Refused("damaged_header", "voxels begin inside the header")
    if np.isinf(raw["scl_slope"]) or np.isinf(raw["scl_inter"]):  # nibabel takes it, like NaN, for no scaling at all
        raise Refused("bad_values", "scaling is not finite")
    end = int(raw["vox_offset"]) + math.prod(shape) * dtype.itemsize
    if voxels is None and is_nifti(data[end:]):  # as `cat` leaves them, also of compressed ones
        raise Refused("multi_frame", "more than one volume")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    places = [one.axis for one in policy.channels if one.axis is not None]
    if places and (len(shape) != 4 or shape[3] <= max(places)):
        raise Refused("missing_channel", f"{'x'.join(map(str, shape))} voxels; channels lie along a fourth axis")
    if len(shape) != 3 and not places:
        raise Refused("bad_geometry", f"{len(shape)} axes")
    shape = shape[:3]
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refused("colour" if dtype.fields else "bad_values", "not real numbers of at most 64 bits")
    count = math.prod(shape) * max(1, len(places)) if min(shape) > 0 else 0
    if count == 0 or count * max(BYTES_PER_PIXEL, dtype.itemsize) > policy.max_pixel_bytes:
        raise Refused("too_large" if count else "bad_geometry", "x".join(map(str, shape)) + " voxels")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < FLATTEST_AFFINE:
        raise Refused("bad_geometry", "position matrix is singular or not finite")
    if unclear and not policy.accept_unclear_orientation:
        raise Refused("unclear_orientation", UNCLEAR[unclear])
    try:
        filled = [_voxels(volume, shape, affine, place) for place in places or (0,)]
        into = filled[0]
        unit = str(header.get_xyzt_units()[0])
    except Exception as error:
        raise Refused("damaged_pixels", type(error).__name__) from None
    if not all(np.isfinite(one.canonical).all() for one in filled):
        raise Refused("bad_values", "voxels are not finite")
    to_mm = MM_PER_UNIT.get(unit, 1.0)
    spacing_mm = tuple(length * to_mm for length in into.spacing_mm)
    if not all(0 < length < LARGEST_SPACING_MM for length in spacing_mm):
        raise Refused("bad_geometry", "voxel size impossible")
    joined = np.stack([one.canonical for one in filled]) if places else None
    return Image(
        pixels=into.canonical if joined is None else joined[0],
        about=About(format="nifti", bits_stored=dtype.itemsize * 8),
        spacing_mm=spacing_mm,
        joined=joined,
        flags=(*(("units_assumed",) if unit == "unknown" else ()), *((unclear,) if unclear else ())),
        grid=replace(into.grid, affine=np.diag([to_mm, to_mm, to_mm, 1.0]) @ into.grid.affine),
    )


def _voxels(volume: nib.Nifti1Pair, shape: tuple[int, ...], affine: np.ndarray, place: int) -> Canvas:
    """Return the voxels of a volume, those at one place of its fourth axis if it has any, turned to RAS+."""
    into = canvas(shape, affine)
    further = len(volume.shape) - 3
    rest = (place, *(0,) * (further - 1)) if further else ()
    for plane in range(shape[2]):  # scaled values are float64; all at once would take twice the volume more
        into.stored[..., plane] = volume.dataobj[(slice(None), slice(None), plane, *rest)]
    return into


def _unclear_orientation(header: nib.Nifti1Header) -> str:
    """Return the flag for a header that does not say how its volume lies, or says it in two ways; else nothing.

    With both codes 0, that indices rise to the left is a custom of older software ("method 1"), no statement. The size
    of voxels (pixdim) is stated beside either form; where the sform stands alone, zeros and ones are no statement.
    """
    sform, qform = (form(coded=True)[0] for form in (header.get_sform, header.get_qform))
    if sform is None:
        return "orientation_assumed" if qform is None else ""
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if qform is not None:
        cosines = np.einsum("ij,ij->j", sform[:3, :3], qform[:3, :3])
        if not (cosines > LEAST_COSINE * lengths * np.linalg.norm(qform[:3, :3], axis=0)).all():
            return "orientation_contradicts"
    stated = np.abs(np.array(header.get_zooms()[:3], dtype=float))
    if qform is None and {*stated} <= {0.0, 1.0}:
        return ""
    apart = np.abs(stated - lengths) > LARGEST_SIZE_DIFFERENCE * lengths
    return "spacing_contradicts" if apart.any() else ""


def is_pair_header(data: bytes) -> bool:
    """Say whether these bytes are the header of a NIfTI whose voxels are in a file of their own."""
    return _version(data) in PAIRS


def _version(data: bytes) -> type[nib.Nifti1Pair] | None:
    for order in ("little", "big"):
        found = VERSIONS.get(int.from_bytes(data[:4], order))
        if found is not None:
            offset, kinds = found
            return kinds.get(data[offset : offset + 4])
    return None
