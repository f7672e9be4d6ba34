"""The image that ingest found in some files, once more."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.imaging.archive.channel_groups import read_channels
from pipeline.imaging.archive.members import Member
from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.image import Image, Policy
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import load_image
from pipeline.store.files import sha256_bytes


def load(
    sources: Sequence[Source], axes: int, pixel_hash: str, policy: Policy, hashes: Sequence[str] | None = None
) -> Image:
    """Return the image in these files; see `read_contents` and `image_of`."""
    return image_of(read_contents(sources, policy, hashes), sources, axes, pixel_hash, policy)


def read_contents(sources: Sequence[Source], policy: Policy, hashes: Sequence[str] | None = None) -> list[bytes]:
    """Return the content of files. Raises Refused when they are others than those with these SHA-256 `hashes`."""
    contents = [read_bytes(source, policy.max_file_bytes) for source in sources]
    if hashes is not None and [sha256_bytes(data) for data in contents] != [*hashes]:
        raise Refused("unreadable", "changed since ingest")
    return contents


def image_of(contents: Sequence[bytes], sources: Sequence[Source], axes: int, pixel_hash: str, policy: Policy) -> Image:
    """Return the image in these files, in their order: a picture, a volume, or several channels; see `load_image`.

    Raises Refused, also when they decode to other pixels than they did then.
    """
    if not policy.joins:
        return load_image(contents, axes, pixel_hash, policy)
    pairs = zip(sources, contents, strict=True)
    members = [Member(str(n), source, sha256_bytes(data)) for n, (source, data) in enumerate(pairs)]
    for volume in read_channels(members, policy)[0]:
        if volume.image.pixel_hash() == pixel_hash:
            return volume.image
    raise Refused("damaged_pixels", "decodes to other pixels than at ingest")
