"""A short look at a folder of studies before there is a config: names of files, and a few of them opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.imaging.archive.sources import Source, find_sources, read_bytes
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.image import MB, Identity, Part, Policy
from pipeline.imaging.pseudonyms import visible
from pipeline.imaging.quarantine import Refusal
from pipeline.imaging.read import read_image
from pipeline.labels.path_rules import PathRule
from pipeline.settings.images import IngestSettings

OPENED = 24
NAMES_ALONE = PathRule(ignore=("folders", "suffix"))
# What headers state, by the field of a card that joins by it.
STATED = {
    "patient_id": "patient",
    "study_instance_uid": "study_uid",
    "series_instance_uid": "series_uid",
    "sop_instance_uid": "sop_instance_uid",
}
WINDOW_ADVICE = (
    "#  window: [-1000, 400]           # CT: Hounsfield units that become black and white, here for lungs. Without\n"
    "#                                 # them, what a maker writes where nothing was scanned tells makers apart\n"
)


@dataclass(frozen=True)
class Glance:
    """What was seen: paths of all files, and what the headers and pixels of some of them are."""

    files: Sequence[str]
    identities: Sequence[Identity] = ()
    pictures: int = 0
    volumes: int = 0
    colour: int = 0
    small: int = 0
    ct: int = 0

    @property
    def in_colour(self) -> bool:
        """Whether most of the pictures are in colour, so that networks should see it."""
        return 2 * self.colour > self.pictures

    def shares(self, values: Iterable[str]) -> dict[str, float]:
        """Return which share of a column's values names files, with or without folders and suffix; and, for each kind
        of identifier, which share of the headers opened has one of the values.
        """
        column = list(values)
        rows = {NAMES_ALONE.of_row(value) for value in column}
        if not rows:
            return {"path": 0.0, **dict.fromkeys(STATED, 0.0)}
        files = {NAMES_ALONE.of_file(path) for path in self.files}
        found = {"path": len(rows & files) / len(rows)}
        known = {_without_zeros(value) for value in column}
        for join, attribute in STATED.items():
            stated = [value for one in self.identities if (value := getattr(one, attribute))]
            found[join] = sum(_without_zeros(value) in known for value in stated) / len(stated) if stated else 0.0
        return found

    def lines(self) -> list[str]:
        """Return what was decided, for people."""
        found = []
        if self.in_colour:
            found.append("pictures in colour: networks will see it (preprocess.channels)")
        elif self.colour:
            found.append("some pictures in colour: the config reduces them to their luminance (ingest.colour)")
        if self.small:
            found.append("small pictures: the config accepts sides of 16 pixels and more (ingest.min_side)")
        if self.volumes > self.pictures:
            found.append("volumes: the config has three axes (preprocess.image_size, pretrain.encoder.patch_size)")
        if self.ct:
            found.append(
                "CT: the config proposes a window in a comment (preprocess.window); without one, what a maker writes "
                "where nothing was scanned tells makers apart"
            )
        return found


def glance(folder: Path, labels: Path | None) -> Glance:
    """List the files under `folder`, `labels` left out, and open some of them, evenly spread, in a disposable process.

    Raises SourcesError when there is no such folder.
    """
    sources = find_sources([folder], labels)
    chosen = sources[:: max(1, len(sources) // OPENED)][:OPENED]
    limits = IngestSettings()
    pool = Pool(1, limits.timeout_s, memory_bytes=int(limits.max_memory_mb * MB))
    opened: list[Opened] = []
    with TemporaryDirectory() as scratch:
        for _, found in each_batch(_open, {0: chosen} if chosen else {}, pool, Path(scratch)):
            opened += [Opened(kind=one.reason) if isinstance(one, Refusal) else one for one in found]
    kinds = [one.kind for one in opened]
    return Glance(
        files=[source.path for source in sources],
        identities=[one.identity for one in opened if one.identity is not None],
        pictures=kinds.count("picture"),
        volumes=kinds.count("volume"),
        colour=sum(one.colour for one in opened),
        small=sum(one.small for one in opened),
        ct=sum(one.modality == "CT" for one in opened),
    )


@dataclass(frozen=True)
class Opened:
    """What one file is: picture, volume, or the reason why it is neither; with the header's identifiers."""

    kind: str
    identity: Identity | None = None
    modality: str = ""
    colour: bool = False
    small: bool = False


def _open(source: Source) -> Opened:
    settings = IngestSettings()
    policy = replace(Policy.from_settings(settings.model_dump()), accept_colour=True, min_side=1)
    found = read_image(read_bytes(source, policy.max_file_bytes), policy)
    identity, modality = found.about.identity, found.about.modality
    if isinstance(found, Part) or found.pixels.ndim == 3:
        return Opened("volume", identity, modality)
    small = min(found.pixels.shape) < settings.min_side
    return Opened("picture", identity, modality, colour="colour_reduced" in found.flags, small=small)


def _without_zeros(identifier: str) -> str:
    return visible(identifier).strip().lstrip("0")
