"""The files of one study as the channels of one image: which is which, read one channel after the other, joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipeline.imaging.archive.members import Member, contents
from pipeline.imaging.archive.sources import Source
from pipeline.imaging.channels import of_path
from pipeline.imaging.formats.dicom import is_dicom
from pipeline.imaging.image import About, Image, Part, Policy
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.read import read_image
from pipeline.imaging.volumes.assemble import Volume, read_series
from pipeline.imaging.volumes.joining import join


def channel_file(source: Source, data: bytes, policy: Policy) -> Part:
    """Return what a file that is a channel is part of; a DICOM header is read for whose it is, and no pixels are.

    Raises Refused.
    """
    name, study = (source.channel, source.study) if source.channel else of_path(source.place, policy.channels)
    if not name:
        raise Refused("no_channel")
    about = About("nifti", bits_stored=0)
    if is_dicom(data):
        about = read_image(data, policy).about
    return Part(about, f"channels\0{study}", name, name)


def read_channels(members: Sequence[Member], policy: Policy) -> tuple[list[Volume], list[tuple[str, Refusal]]]:
    """Return the one image that the files of a study make, in a list, and every file that is not in it.

    Raises Refused when they make none.
    """
    series: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    refused: list[tuple[str, Refusal]] = []
    for member in members:
        try:
            part = _part(member, policy)
            series[part.channel][part.volume].append(member)
        except Refused as error:
            refused.append((member.source_id, error.refusal))
    volumes: dict[str, Volume] = {}
    for channel in [one.name for one in policy.channels if one.name in series]:
        found: list[Volume] = []
        for files in series[channel].values():
            made, unused = _volumes(files, policy)
            found += made
            refused += unused
        if len(found) > 1:
            raise Refused("ambiguous_channel", f"{len(found)} volumes are channel {channel}")
        if found:
            volumes[channel] = found[0]
    if not volumes:
        return [], refused
    try:
        image = join({name: one.image for name, one in volumes.items()}, policy)
    except Refused as error:
        used = [name for one in volumes.values() for name in one.source_ids]
        return [], [*refused, *((name, error.refusal) for name in used)]
    ids = tuple(name for one in volumes.values() for name in one.source_ids)
    return [Volume(image, ids, "\0".join(one.name for one in volumes.values()))], refused


def _part(member: Member, policy: Policy) -> Part:
    ((_, data),) = contents([member], policy)
    found = channel_file(member.source, data, policy) if policy.joins_files else read_image(data, policy)
    if not isinstance(found, Part):
        raise Refused("axes", "a picture")
    return found


def _volumes(files: Sequence[Member], policy: Policy) -> tuple[list[Volume], list[tuple[str, Refusal]]]:
    """Return the volumes in the files of one channel: slices by geometry, else each file by itself."""
    ((_, first),) = contents(files[:1], policy)
    if is_dicom(first):
        return read_series(contents(files, policy), policy)
    volumes, refused = [], []
    for member in files:
        try:
            ((_, data),) = contents([member], policy)
            image = read_image(data, policy)
            if not isinstance(image, Image):
                raise Refused("damaged_pixels", "the header of a pair of files")
            volumes.append(Volume(image, (member.source_id,), member.sha256))
        except Refused as error:
            refused.append((member.source_id, error.refusal))
    return volumes, refused
