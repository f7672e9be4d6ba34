"""Volumes out of the slices of a series: decoded one file at a time, placed by geometry, each file accounted for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xxhash
from pydicom.dataset import Dataset

from pipeline.imaging.display import display
from pipeline.imaging.formats.decoding import decode, frame_count
from pipeline.imaging.formats.dicom import PIXEL_ELEMENTS, about_image, check, parse
from pipeline.imaging.formats.dicom_geometry import FUNCTIONAL_GROUPS, VALUE_ELEMENTS, frame_headers, slice_of
from pipeline.imaging.image import BYTES_PER_PIXEL, About, Image, Policy
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.volumes.orientation import canvas
from pipeline.imaging.volumes.series import Slice, Stack, assemble


@dataclass(frozen=True)
class Volume:
    """A volume, the files that its slices came from, in order, and what names it among the volumes of the series."""

    image: Image
    source_ids: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class _Frame:
    """A decoded slice: its place, the header to display it by, stored values (H, W), and its file's UID and values."""

    place: Slice
    header: Dataset
    stored: np.ndarray
    about: About


def read_series(files: Iterable[tuple[str, bytes]], policy: Policy) -> tuple[list[Volume], list[tuple[str, Refusal]]]:
    """Return the volumes in the files of one series, given as (source_id, content), and every file that is in none.

    Reads one file at a time; stored values of all wait in memory until their volumes are known.

    Raises Refused when the series as a whole is too large.
    """
    frames: list[_Frame] = []
    refused: list[tuple[str, Refusal]] = []
    size = 0
    for source_id, data in files:
        try:
            read = _frames(source_id, data, policy)
        except Refused as error:
            refused.append((source_id, error.refusal))
            continue
        size += sum(frame.stored.size * BYTES_PER_PIXEL for frame in read)
        if size > policy.max_pixel_bytes:
            raise Refused("too_large", f"a series of more than {policy.max_pixel_bytes} bytes of pixels")
        frames += read
    frames, conflicting = _without_conflicts(frames)
    stacks, misplaced = assemble(frame.place for frame in frames)
    refused += conflicting + [(one.source_id, refusal) for one, refusal in misplaced]
    incomplete = any(refusal.reason not in ("localiser", "duplicate") for _, refusal in refused)
    by_place = {(frame.place.source_id, frame.place.frame): frame for frame in frames}
    volumes = []
    for stack in stacks:
        chosen = [by_place.pop((one.source_id, one.frame)) for one in stack.slices]
        try:
            volumes.append(_volume(stack, chosen, incomplete))
        except Refused as error:
            refused += [(source_id, error.refusal) for source_id in _sources(stack)]
    used = {source_id for volume in volumes for source_id in volume.source_ids}
    # A multi-frame file can have frames in a volume and others, a localiser's for instance, in none.
    first = {source_id: refusal for source_id, refusal in reversed(refused) if source_id not in used}
    return volumes, sorted(first.items())


def _frames(source_id: str, data: bytes, policy: Policy) -> list[_Frame]:
    """Decode the slices of one file.

    Raises Refused.
    """
    dataset = parse(data, policy)
    try:
        about = about_image(dataset)
        check(dataset, about, policy)
        stored = decode(dataset)
        if dataset.SamplesPerPixel != 1 or stored.ndim != (3 if frame_count(dataset) > 1 else 2):
            raise Refused("colour", about.photometric)
        headers = _headers(dataset)
    except Refused:
        raise
    except Exception as error:
        raise Refused("damaged_header", type(error).__name__) from None
    planes = stored if stored.ndim == 3 else stored[None]
    return [
        _Frame(slice_of(header, source_id, _content(plane, header), number), header, plane, about)
        for number, (header, plane) in enumerate(zip(headers, planes, strict=True))
    ]


def _headers(dataset: Dataset) -> list[Dataset]:
    """Return the header of each frame, pixels and functional groups left out."""
    grouped = frame_count(dataset) > 1 or len(dataset.get("PerFrameFunctionalGroupsSequence") or ()) == 1
    frames = frame_headers(dataset) if grouped else [Dataset()]
    if frames is None:
        raise Refused("multi_frame", f"{frame_count(dataset)} frames")
    base = Dataset()
    for element in dataset:
        # Functional groups can be larger than the pixels; what they say is in the frame headers.
        if element.keyword not in (*PIXEL_ELEMENTS, *FUNCTIONAL_GROUPS):
            base.add(element)
    headers = []
    for frame in frames:
        header = Dataset()
        header.update(base)
        header.update(frame)
        headers.append(header)
    return headers


def _content(plane: np.ndarray, header: Dataset) -> str:
    """Return a hash of stored values and of what rescales them."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(plane).data)
    digest.update("\0".join(str(header.get(keyword, "")) for keyword in VALUE_ELEMENTS).encode())
    return digest.hexdigest()


def _without_conflicts(frames: list[_Frame]) -> tuple[list[_Frame], list[tuple[str, Refusal]]]:
    """Take out files that share a SOP Instance UID without having the same pixels: nobody can tell which is right."""
    contents: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for frame in frames:
        contents[frame.about.identity.sop_instance_uid][frame.place.source_id].add(frame.place.content)
    conflicting = {
        source_id
        for uid, files in contents.items()
        if uid and len({frozenset(content) for content in files.values()}) > 1
        for source_id in files
    }
    kept = [frame for frame in frames if frame.place.source_id not in conflicting]
    return kept, [(source_id, Refusal("uid_conflict")) for source_id in sorted(conflicting)]


def _volume(stack: Stack, frames: Sequence[_Frame], incomplete: bool) -> Volume:
    """Turn stored values to display values, without windows, which can differ from slice to slice, and place them."""
    into = canvas((len(frames), *frames[0].stored.shape), stack.affine)
    padding = None
    inverted = False
    flags = set(stack.flags)
    for number, frame in enumerate(frames):
        try:
            shown = display(frame.stored, frame.header, windowed=False)
        except Refused:
            raise
        except Exception as error:
            raise Refused("damaged_header", type(error).__name__) from None
        into.stored[number] = shown.values
        inverted |= shown.inverted
        flags |= {*shown.flags}
        if shown.valid is not None:
            if padding is None:
                padding = canvas(into.stored.shape, stack.affine, np.bool_)
                padding.canonical[...] = False
            padding.stored[number] = ~shown.valid
    if incomplete:
        flags.add("slices_refused")
    first = min(frames, key=lambda frame: (frame.about.identity.sop_instance_uid, frame.place.frame))
    identity = replace(frames[0].about.identity, sop_instance_uid="")
    return Volume(
        image=Image(
            pixels=into.canonical,
            about=replace(frames[0].about, identity=identity),
            valid=None if padding is None else ~padding.canonical,
            spacing_mm=into.spacing_mm,
            polarity_fixed=inverted,
            flags=tuple(sorted(flags)),
            grid=into.grid,
        ),
        source_ids=_sources(stack),
        name=f"{identity.series_uid}\0{first.about.identity.sop_instance_uid}\0{first.place.frame}",
    )


def _sources(stack: Stack) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.source_id for one in stack.slices))
