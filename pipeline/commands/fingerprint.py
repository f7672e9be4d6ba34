"""What a folder of studies is, before there is a config: everything that the files state, counted and measured."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.commands.inspect import counts_of, examined
from pipeline.commands.studies_glance import Glance
from pipeline.orchestration.estimate import cores
from pipeline.settings.images import IngestSettings
from pipeline.store.runlog import RunLog
from pipeline.store.wording import counted

MOST_EXAMINED = 2000
MOST_WORKERS = 8
STATED = ("format", "modality", "view", "body_part", "manufacturer", "sex")
SIZE_PERCENTILE = 95


@dataclass(frozen=True)
class Fingerprint:
    """What the examined files state; sizes and spacings slowest axis first, in pixels and mm.

    `files` are all under the folder, `examined` those that were opened: fewer in a large archive. `images` are those
    accepted. `patients` are by headers, None where they name none. `median_size` and `extent_mm` (95th percentile)
    describe images; `spacing_mm` is the median, None unless all state one. `seconds` is how long the examination took.
    """

    files: int
    megabytes: float
    examined: int
    images: int
    volumes: int
    patients: int | None
    quarantined: Mapping[str, int]
    flags: Mapping[str, int]
    duplicates: Mapping[str, int]
    stated: Mapping[str, Mapping[str, int]]
    age_years: Sequence[float] | None
    colour: bool
    channels: str
    median_size: Sequence[int]
    spacing_mm: Sequence[float] | None
    extent_mm: Sequence[float] | None
    seconds: float

    @property
    def axes(self) -> int:
        """3 when most images are volumes, else 2."""
        return 3 if 2 * self.volumes > self.images else 2

    @property
    def images_of_all(self) -> int:
        """Images to expect of all files."""
        return round(self.images * self.files / max(self.examined, 1))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self) | {"axes": self.axes}

    def lines(self) -> list[str]:
        """Return it for people, a line each."""
        opened = "" if self.examined == self.files else f" ({self.examined:,} of them opened)"
        said = [
            f"{counted(self.files, 'file')}{opened}, {self.megabytes:,.0f} MB: {counted(self.images, 'image')} accepted"
        ]
        if self.patients is not None:
            said[0] += f" of {counted(self.patients, 'patient')} named in headers"
        said += [f"refused: {name} {count}" for name, count in self.quarantined.items()]
        for name, values in self.stated.items():
            said.append(
                f"{name.replace('_', ' ')}: " + ", ".join(f"{value} {count}" for value, count in values.items())
            )
        if self.age_years:
            low, middle, high = self.age_years
            said.append(f"age: median {middle:g} years, {low:g} to {high:g}")
        size = " × ".join(map(str, self.median_size))
        spacing = "no spacing stated by all" if self.spacing_mm is None else f"spacing {_by(self.spacing_mm)} mm"
        said.append(f"median size {size}, {spacing}{', in colour' if self.colour else ''}")
        if copies := {name: count for name, count in self.duplicates.items() if count}:
            said.append(
                "repeated pictures: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in copies.items())
            )
        return said


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)


def fingerprint(folder: Path, seen: Glance, labels: Path | None = None) -> Fingerprint:
    """Examine the files under `folder`, or an even choice of `MOST_EXAMINED`, as `ingest` does, and sum them up.

    Raises SourcesError when there is no such folder.
    """
    chosen = sample(seen.files, MOST_EXAMINED)
    settings = IngestSettings(
        colour="luminance" if seen.colour else "quarantine",
        min_side=16 if seen.small else 32,
        axes=3 if seen.volumes > seen.pictures else 2,
    )
    started = time.monotonic()
    include = [_pattern(path) for path in chosen] if len(chosen) < len(seen.files) else []
    workers = min(cores(), MOST_WORKERS)
    images, summary = examined(folder, workers, settings, RunLog("init", progress_only=True), include)
    seconds = time.monotonic() - started
    refused = {name: count for name, count in summary["quarantined"].items() if name != "left_out"}
    named = images[images["format"] == "dicom"]
    size, spacing, extent = _geometry(images)
    ages = images["age_years"].dropna()
    return Fingerprint(
        files=len(seen.files),
        megabytes=_megabytes(folder),
        examined=len(chosen),
        images=len(images),
        volumes=int(summary["volumes"]),
        patients=None if named.empty else int(named["patient_id"].nunique()),
        quarantined=refused,
        flags=summary["flags"],
        duplicates=summary["duplicates"],
        stated={name: counts for name in STATED if {*(counts := counts_of(images[name]))} - {"not stated"}},
        age_years=[float(np.percentile(ages, q)) for q in (0, 50, 100)] if len(ages) else None,
        colour=bool(seen.colour),
        channels="colour" if seen.in_colour else "grey",
        median_size=size,
        spacing_mm=spacing,
        extent_mm=extent,
        seconds=round(seconds, 2),
    )


def sample(files: Sequence[str], most: int) -> list[str]:
    """Return at most about `most` files, evenly spread: whole folders, since slices of a series belong together.

    Of a folder that alone holds more than a tenth of `most`, single files are taken.
    """
    if len(files) <= most:
        return list(files)
    folders: dict[str, list[str]] = defaultdict(list)
    for path in files:
        folders[path.rpartition("/")[0]].append(path)
    share = most / len(files)
    small = [name for name, own in folders.items() if len(own) <= most / 10]
    step = max(1, round(1 / share))
    chosen = [path for name in small[::step] for path in folders[name]]
    for name in folders.keys() - {*small}:
        chosen += folders[name][::step]
    return chosen[: 2 * most]


def _pattern(path: str) -> str:
    """Return a pattern that fits this path alone."""
    return "./" + "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _geometry(images: pd.DataFrame) -> tuple[list[int], list[float] | None, list[float] | None]:
    """Return median size, median spacing and the 95th percentile of extents in mm, the last two where all state one."""
    if images.empty:
        return [], None, None
    names = ["slices", "rows", "columns"] if (images["axes"] == 3).mean() > 0.5 else ["rows", "columns"]
    kind = images[images["axes"] == len(names)]
    sizes = kind[names].to_numpy(float)
    median = [int(value) for value in np.median(sizes, axis=0)]
    if kind["spacing_mm"].isna().any():
        return median, None, None
    spacings = np.stack([np.asarray(value, float) for value in kind["spacing_mm"]])
    extents = np.percentile(sizes * spacings, SIZE_PERCENTILE, axis=0)
    return median, [float(f"{v:.4g}") for v in np.median(spacings, axis=0)], [float(f"{v:.4g}") for v in extents]


def _megabytes(folder: Path) -> float:
    if folder.is_file():
        return folder.stat().st_size / 1e6
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
