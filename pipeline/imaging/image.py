"""What reading a file gives, and the limits that reading keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np
import xxhash

from pipeline.imaging.channels import Channel, by_axis, by_file
from pipeline.imaging.grid import Grid

HASHED_ROWS = 256
# Display values are float32, whatever is stored.
BYTES_PER_PIXEL = 4
LARGEST_SPACING_MM = 100.0
MB = 1_000_000


def as_json(one: Any) -> dict[str, Any]:
    """Return the fields of a flat dataclass as plain values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(one).items()}


def from_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that `as_json` gave, tuples again."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


# What a policy without channels says nothing of.
OF_CHANNELS = ("channels", "fill_channels", "min_overlap")


@dataclass(frozen=True)
class Policy:
    """What is accepted, in bytes and pixels and kinds.

    With `assemble_slices`, a single slice of a CT, MR or PET series is a part of a volume, else an image of its own.
    With `accept_colour`, a colour image becomes its luminance; with `keep_colour`, as in a colour task, it stays so.
    `image_types` are accepted third values of ImageType; empty = all but phase, real and imaginary images, which
    `accept_any_kind` takes, too. `refused_flags` are those that exclude an image; with `axes`, so does another number
    of them. With `accept_unclear_orientation`, a volume that does not say how it lies is taken by its better statement,
    or an assumption. With `channels`, those of a study become one image; a missing one is zeros with `fill_channels`,
    and each has to cover the share `min_overlap` of the first.
    """

    max_file_bytes: int
    max_pixel_bytes: int
    modalities: tuple[str, ...] = ()
    accept_burned_in: bool = False
    accept_secondary_capture: bool = False
    accept_derived: bool = True
    accept_colour: bool = False
    assemble_slices: bool = True
    min_side: int = 32
    image_types: tuple[str, ...] = ()
    accept_any_kind: bool = False
    accept_for_processing: bool = False
    refused_flags: tuple[str, ...] = ()
    axes: int | None = None
    accept_unclear_orientation: bool = False
    keep_colour: bool = False
    channels: tuple[Channel, ...] = ()
    fill_channels: bool = False
    min_overlap: float = 0.9

    @property
    def joins(self) -> bool:
        """Whether several files or series make one image, as its channels."""
        return bool(self.channels) and not by_axis(self.channels)

    @property
    def joins_files(self) -> bool:
        """Whether these are files, told by their names; else series."""
        return by_file(self.channels)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], channels: tuple[Channel, ...] = ()) -> Policy:
        """Return what the settings of `ingest` accept, of studies with the card's channels if it lists any."""
        return cls(
            max_file_bytes=int(settings["max_file_mb"] * MB),
            max_pixel_bytes=int(settings["max_pixels_mb"] * MB),
            modalities=tuple(settings["modalities"]),
            accept_burned_in=settings["burned_in_annotation"] == "accept",
            accept_secondary_capture=settings["secondary_capture"] == "accept",
            accept_derived=settings["derived"] == "accept",
            accept_colour=settings["colour"] == "luminance",
            assemble_slices=settings["slices"] == "assemble",
            min_side=settings["min_side"],
            image_types=tuple(settings["image_types"]),
            accept_for_processing=settings["intent"] == "any",
            refused_flags=tuple(settings["refuse"]),
            axes=settings["axes"],
            accept_unclear_orientation=settings["orientation"] == "accept",
            keep_colour=settings["colour"] == "keep",
            channels=channels,
            # Artifacts can be of before there was a choice.
            fill_channels=settings.get("missing_channels") == "zero",
            min_overlap=settings.get("min_overlap", 0.9),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a model's JSON."""
        content = as_json(self) | {"channels": [one.to_json() for one in self.channels]}
        return {name: value for name, value in content.items() if self.channels or name not in OF_CHANNELS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Policy:
        """Return the policy kept in a model's JSON."""
        channels = tuple(Channel.from_settings(one) for one in content.get("channels", ()))
        return cls(**from_json(content) | {"channels": channels})


@dataclass(frozen=True)
class Identity:
    """Identifying values of a header. They never leave the process that reads the file, but as keyed hashes."""

    patient: str = ""
    study_uid: str = ""
    series_uid: str = ""
    sop_instance_uid: str = ""
    institution: str = ""
    frame_uid: str = ""
    study_date: date | None = None


@dataclass(frozen=True)
class About:
    """What a header says of an image, from closed lists."""

    format: str
    bits_stored: int
    identity: Identity = field(default_factory=Identity, repr=False)
    modality: str = ""
    view: str = ""
    laterality: str = ""
    body_part: str = ""
    manufacturer: str = ""
    photometric: str = ""
    sex: str = ""
    age_years: float | None = None


@dataclass(frozen=True)
class Image:
    """One image, as a reader would see it: dense tissue bright, patient's values rescaled, padding masked.

    `pixels` is float32 of shape (H, W), or (D, H, W) with indices that rise towards the patient's superior, anterior
    and right side (RAS+ with the axes reversed, so that the slowest comes first). `valid` marks pixels that are not
    padding; None when all are valid. `spacing_mm` has one entry per axis, in the same order. `colour` is float32
    (3, H, W), red, green and blue, of a colour image in a colour task, whose `pixels` are its luminance; else None.
    `joined` is float32 (C, D, H, W) of a volume with the channels that a card lists, whose `pixels` are the first there
    is; those in `absent` are zeros. `grid` says how `pixels` lie in the file and the patient; None where they lie as
    stored, and nobody knows where.
    """

    pixels: np.ndarray
    about: About
    valid: np.ndarray | None = None
    spacing_mm: tuple[float, ...] | None = None
    polarity_fixed: bool = False
    flags: tuple[str, ...] = ()
    colour: np.ndarray | None = None
    joined: np.ndarray | None = None
    absent: tuple[int, ...] = ()
    grid: Grid | None = None

    @property
    def affine(self) -> np.ndarray | None:
        """The matrix (4, 4) from an index of `pixels`, slowest axis first, to RAS+ mm; None where unknown."""
        return None if self.grid is None else self.grid.affine

    @property
    def file_grid(self) -> Grid:
        """The grid of `pixels`, also where they lie as they are stored."""
        return self.grid or Grid.plain(self.pixels.shape)

    @property
    def channels(self) -> np.ndarray:
        """The values of each channel: (3, H, W) in colour, (C, D, H, W) of the card's channels, else (1, ...)."""
        return next((one for one in (self.colour, self.joined) if one is not None), self.pixels[None])

    def parts(self) -> list[Image]:
        """Return a grey image for each channel that there is of an image of several, the first first."""
        planes = () if self.joined is None else self.joined
        there = [plane for number, plane in enumerate(planes) if number not in self.absent]
        return [replace(self, pixels=plane, joined=None, absent=()) for plane in there]

    def pixel_hash(self) -> str:
        """Return 128 bits of XXH3 of shape and display pixels, the same on every machine.

        It finds equal pictures; that files are unchanged is for SHA-256 to say.
        """
        values = self.pixels if self.colour is None and self.joined is None else self.channels
        digest = xxhash.xxh3_128(str(values.shape).encode())
        rows = values.reshape(-1, values.shape[-1])
        for start in range(0, len(rows), HASHED_ROWS):
            # Adding zero turns -0.0 into 0.0, which are equal but have different bytes.
            digest.update(np.ascontiguousarray(rows[start : start + HASHED_ROWS] + np.float32(0), dtype="<f4").data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """A file that is an image only together with others, those with the same `series`; no pixels were decoded.

    In a task of several channels, `series` is what all of them have in common, and `volume` what those files have that
    are one `channel`.
    """

    about: About
    series: str = field(repr=False)
    channel: str = ""
    volume: str = field(default="", repr=False)
