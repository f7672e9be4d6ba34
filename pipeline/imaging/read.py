"""From bytes to one checked image: the format is taken from the content, never from the name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.imaging.formats.dicom import is_dicom, read_dicom
from pipeline.imaging.formats.nifti import inflate, is_nifti, is_pair_header, read_nifti
from pipeline.imaging.formats.numpy_array import is_array, read_array
from pipeline.imaging.formats.raster import is_raster, read_raster
from pipeline.imaging.image import About, Image, Part, Policy
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.volumes.assemble import read_series


@dataclass(frozen=True)
class Format:
    """A format of image files: how its content begins, and what reads it.

    `read` returns an Image, or a Part of one that takes other files; it raises Refused. A new format is a file in
    formats/ and an entry in FORMATS; `name` is what tables call it.
    """

    name: str
    sniff: Callable[[bytes], bool]
    read: Callable[[bytes, Policy], Image | Part]


# The first whose sniff fits is taken.
FORMATS = (
    Format("dicom", is_dicom, read_dicom),
    Format("nifti", is_pair_header, lambda data, policy: Part(About("nifti", bits_stored=0), series="")),
    Format("nifti", is_nifti, read_nifti),
    Format("raster", is_raster, read_raster),
    Format("array", is_array, read_array),
)
ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"Rar!", b"7z\xbc\xaf\x27\x1c")


def read_image(data: bytes, policy: Policy) -> Image | Part:
    """Return the image in `data`, or a Part when it takes other files to make one.

    Raises Refused with the reason when it is unusable.
    """
    data = inflate(data, policy.max_file_bytes)
    known = next((one for one in FORMATS if one.sniff(data)), None)
    if known is None:
        raise Refused("archive" if data.startswith(ARCHIVES) or _is_tar(data) else "unknown_format")
    image = known.read(data, policy)
    if isinstance(image, Part):
        return image
    if policy.keep_colour and image.colour is None:
        image = replace(image, flags=(*image.flags, "grey_repeated"))
    rows, columns = image.pixels.shape[-2:]
    if image.pixels.ndim == 2 and min(rows, columns) < policy.min_side:
        raise Refused("too_small", f"{rows} x {columns} pixels")
    return image


def load_image(contents: Sequence[bytes], axes: int, pixel_hash: str, policy: Policy) -> Image:
    """Return the image that ingest found in these files: one picture or volume, or the parts of one volume.

    Raises Refused, also when they decode to other pixels than they did then.
    """
    opened = [inflate(data, policy.max_file_bytes) for data in contents]
    if is_pair_header(opened[0]):
        found = [read_nifti(opened[0], policy, opened[1])]
    elif axes == 3 and is_dicom(opened[0]):
        volumes, _ = read_series(((str(number), data) for number, data in enumerate(opened)), policy)
        found = [volume.image for volume in volumes]
    else:
        image = read_image(opened[0], replace(policy, assemble_slices=False))
        found = [image] if isinstance(image, Image) else []
    for image in found:
        if image.pixel_hash() == pixel_hash:
            return image
    raise Refused("damaged_pixels", "decodes to other pixels than at ingest")


def _is_tar(data: bytes) -> bool:
    return data[257:262] == b"ustar"
