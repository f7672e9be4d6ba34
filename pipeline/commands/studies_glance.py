"""A short look at a folder of studies before there is a config: names of files, and a few of them opened."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from pipeline.imaging.archive.sources import Source, find_sources, read_bytes
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.image import Identity, Part, Policy
from pipeline.imaging.quarantine import Refusal
from pipeline.imaging.read import read_image
from pipeline.settings.config import IngestSettings

OPENED = 24
MB = 1_000_000
UIDS = ("study_uid", "series_uid", "sop_instance_uid")


@dataclass(frozen=True)
class Glance:
    """What was seen: paths of all files, and what the headers and pixels of some of them are."""

    files: Sequence[str]
    identities: Sequence[Identity] = ()
    pictures: int = 0
    volumes: int = 0
    colour: int = 0
    small: int = 0

    def shares(self, values: Iterable[str]) -> dict[str, float]:
        """Return which share of a column's values names files, with or without folders and suffix; and, for each kind
        of identifier, which share of the headers opened has one of the values.
        """
        column = {_normal(value) for value in values}
        if not column:
            return {}
        names = {name for path in self.files for name in _spellings(path)}
        found = {"path": sum(bool(_spellings(value) & names) for value in column) / len(column)}
        known = {value.lstrip("0") for value in column}
        fields = {"patient_id": "patient", **{f"{name.removesuffix('_uid')}_instance_uid": name for name in UIDS[:2]}}
        fields["sop_instance_uid"] = "sop_instance_uid"
        for join, attribute in fields.items():
            stated = [value for one in self.identities if (value := getattr(one, attribute))]
            found[join] = sum(_normal(value).lstrip("0") in known for value in stated) / len(stated) if stated else 0.0
        return found

    def settings(self) -> str:
        """Return the sections of a config that these studies need, each line with its reason."""
        ingest = {
            "colour: luminance": "pictures are in colour; networks take their brightness" if self.colour else "",
            "min_side: 16": "pictures are smaller than the usual 32 pixels" if self.small else "",
        }
        text = "".join(f"  {setting:<29}  # {reason}\n" for setting, reason in ingest.items() if reason)
        text = f"ingest:\n{text}" if text else ""
        if self.volumes > self.pictures:
            text += (
                "preprocess:\n  image_size: [64, 64, 64]       # the studies are volumes: superior, anterior, right\n"
                "pretrain:\n  encoder: {patch_size: [8, 8, 8]}\n"
                "finetune:\n  arms: [mae, scratch, linear_probe]   # hog takes pictures only\n"
            )
        return text

    def lines(self) -> list[str]:
        """Return what was decided, for people."""
        found = []
        if self.colour:
            found.append("pictures in colour: the config reduces them to their luminance (ingest.colour)")
        if self.small:
            found.append("small pictures: the config accepts sides of 16 pixels and more (ingest.min_side)")
        if self.volumes > self.pictures:
            found.append("volumes: the config has three axes (preprocess.image_size, pretrain.encoder.patch_size)")
        return found


def glance(folder: Path, labels: Path) -> Glance:
    """List the files under `folder` and open some of them, evenly spread, in a disposable process.

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
        colour=kinds.count("colour"),
        small=kinds.count("too_small"),
    )


@dataclass(frozen=True)
class Opened:
    """What one file is: picture, volume, or the reason why it is neither; with the header's identifiers."""

    kind: str
    identity: Identity | None = None


def _open(source: Source) -> Opened:
    limits = IngestSettings()
    policy = Policy(int(limits.max_file_mb * MB), int(limits.max_pixels_mb * MB))
    found = read_image(read_bytes(source, policy.max_file_bytes), policy)
    volume = isinstance(found, Part) or found.pixels.ndim == 3
    return Opened("volume" if volume else "picture", found.about.identity)


def _normal(value: str) -> str:
    return unicodedata.normalize("NFC", value.strip())


def _spellings(path: str) -> set[str]:
    """Return a path, its last part, and that without suffix."""
    pure = PurePosixPath(_normal(path).replace("\\", "/"))
    return {str(pure), pure.name, pure.stem, pure.name.split(".")[0]}
