"""One study: files in, images as a reader would see them, and why the other files are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.imaging.archive.examination import Member, check_accepted, read_file, read_group
from pipeline.imaging.archive.quality import Limits, assess
from pipeline.imaging.archive.sources import Source, find_sources, read_bytes
from pipeline.imaging.image import Image, Policy
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.transforms import Rendered, Rendering, render
from pipeline.store.files import sha256_bytes

NO_LIMITS = Limits()


@dataclass(frozen=True)
class StudyImage:
    """An image of a study: the image, the paths of its files, what is odd about it."""

    image: Image
    files: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """The images of one study, and every file that is in none, with its reason."""

    images: tuple[StudyImage, ...]
    refused: tuple[tuple[str, Refusal], ...]

    def rendered(self, how: Rendering) -> list[Rendered]:
        """Return each image as the network sees it. Raises Refused where one does not fit `how`."""
        return [render(one.image, how) for one in self.images]

    def to_array(self, how: Rendering) -> np.ndarray:
        """Return the pixels that the network sees, (N, C, H, W) or (N, 1, D, H, W) uint8; N may be 0."""
        arrays = [one.pixels for one in self.rendered(how)]
        return np.stack(arrays) if arrays else how.no_arrays()


def read_study(
    files: Sequence[Path | Source], policy: Policy, limits: Limits = NO_LIMITS, min_slices: int = 1
) -> Study:
    """Read the files of one study, folders and zip archives among them, whatever their formats.

    Slices and pairs of NIfTI files become volumes. Volumes of fewer than `min_slices` slices are refused where the
    study has larger ones. What cannot be used is in `refused`; nothing is raised for it.
    """
    sources = [s for one in files for s in (find_sources([one]) if isinstance(one, Path) else [one])]
    images: list[StudyImage] = []
    refused: list[tuple[str, Refusal]] = []
    series: dict[str, list[Member]] = defaultdict(list)
    for source in sources:
        try:
            data = read_bytes(source, policy.max_file_bytes)
            found = read_file(source, data, policy)
            if isinstance(found, Image):
                images.append(_accepted(found, (source.path,), limits, policy))
            elif policy.axes == 2:
                raise Refused("axes", "a part of a volume")
            else:
                series[found.series].append(Member(source.path, source, sha256_bytes(data)))
        except Refused as error:
            refused.append((source.path, error.refusal))
    for members in series.values():
        volumes, unused = _volumes(members, limits, policy)
        images += volumes
        refused += unused
    kept, few = _large_enough(images, min_slices)
    return Study(tuple(kept), tuple(sorted({**dict(refused), **dict(few)}.items())))


def _accepted(image: Image, files: tuple[str, ...], limits: Limits, policy: Policy) -> StudyImage:
    quality = assess(image, limits)
    check_accepted(image, quality, policy)
    return StudyImage(image, files, quality.flags)


def _volumes(
    members: Sequence[Member], limits: Limits, policy: Policy
) -> tuple[list[StudyImage], list[tuple[str, Refusal]]]:
    try:
        volumes, refused = read_group(members, policy)
    except Refused as error:
        return [], [(member.source_id, error.refusal) for member in members]
    images = []
    for volume in volumes:
        try:
            images.append(_accepted(volume.image, volume.source_ids, limits, policy))
        except Refused as error:
            refused += [(name, error.refusal) for name in volume.source_ids]
    used = {name for one in images for name in one.files}
    return images, [(name, refusal) for name, refusal in refused if name not in used]


def _large_enough(images: Sequence[StudyImage], min_slices: int) -> tuple[list[StudyImage], list[tuple[str, Refusal]]]:
    def slices(one: StudyImage) -> int:
        return one.image.pixels.shape[0] if one.image.pixels.ndim == 3 else min_slices

    if not any(one.image.pixels.ndim == 3 and slices(one) >= min_slices for one in images):
        return list(images), []
    kept = [one for one in images if slices(one) >= min_slices]
    few = [one for one in images if slices(one) < min_slices]
    return kept, [(name, Refusal("few_slices")) for one in few for name in one.files]
