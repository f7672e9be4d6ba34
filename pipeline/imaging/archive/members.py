"""The files of a series or a study, as they were when they were examined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.formats.nifti import inflate
from pipeline.imaging.image import Policy
from pipeline.imaging.quarantine import Refused
from pipeline.store.files import sha256_bytes


@dataclass(frozen=True)
class Member:
    """A file of a series, as it was when it was examined."""

    source_id: str
    source: Source
    sha256: str


def contents(members: Sequence[Member], policy: Policy) -> Iterator[tuple[str, bytes]]:
    """Yield source_id and content of each file.

    Raises Refused when one cannot be read any more, or has changed since it was examined.
    """
    for member in members:
        data = read_bytes(member.source, policy.max_file_bytes)
        if sha256_bytes(data) != member.sha256:
            raise Refused("unreadable", "changed while it was read")
        yield member.source_id, inflate(data, policy.max_file_bytes)
