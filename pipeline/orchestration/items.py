"""How many files, images and labels a run has to do with: counted, never opened; exact where a stage has counted them.

Nothing heavy is imported: `maescreen plan` has to answer at once.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.imaging.archive.choice import Choice
from pipeline.orchestration.work import MB, Items
from pipeline.settings.config import Config
from pipeline.settings.where import Studies, Unlabelled
from pipeline.store.artifacts import Artifact
from pipeline.store.files import read_json

# Kinds of table that have no line per row.
NO_TEXT = (".parquet", ".npz")


def counted_items(config: Config, data: Studies, test_only: bool = False) -> Items:
    """Return what there is to do as far as it is seen from outside: files, their bytes, and rows of the label table.

    An image per file is assumed for pictures, one per row of the table for volumes, which can have many files; every
    row with an answer, and one row per image. Raises OSError when something cannot be looked at.
    """
    choice = Choice(tuple(data.include), tuple(data.exclude))
    labels = data.labels.resolve()
    found = [size for root in data.studies for path, size in _files(root.resolve(), labels) if choice.takes(path)]
    rows = _rows(labels)
    volumes = len(config.preprocess.image_size) == 3
    images = min(len(found), rows) if volumes and rows else max(len(found), rows if labels.suffix == ".npz" else 0)
    labelled = min(images, rows or images)
    return divided(config, len(found), sum(found) / MB, images, labelled, test_only)


def counted_unlabelled(data: Unlabelled) -> Items:
    """Return what there is to do of images without labels, an image per file. Raises OSError as `counted_items`."""
    labels = (data.labels or Path()).resolve()
    sizes = [size for root in data.studies for _, size in _files(root.resolve(), labels)]
    return Items(len(sizes), sum(sizes) / MB, len(sizes), 0, 0, 0, 0, len(sizes))


def divided(config: Config, files: int, megabytes: float, images: int, labelled: int, test_only: bool = False) -> Items:
    """Return the items when labelled images are divided as `split.fractions` says."""
    if test_only:
        return Items(files, megabytes, images, 0, 0, 0, labelled)
    shares = config.split.fractions
    train, tune, calibration = (round(labelled * getattr(shares, name)) for name in ("train", "tune", "calibration"))
    test = labelled - train - tune - calibration
    return Items(files, megabytes, images, train, tune, calibration, test, images - labelled)


def items_of(found: Items, ingest: Artifact | None, split: Artifact | None) -> Items:
    """Return `found` with what finished stages have counted in its place."""
    values = dict(found.__dict__)
    if ingest is not None:
        summary = _summary(ingest)
        values |= {"files": int(summary["received"]), "images": int(summary["accepted"])}
        values["megabytes"] = found.megabytes / max(found.files, 1) * values["files"]
        labelled = found.train + found.tune + found.calibration + found.test
        scale = values["images"] / max(found.images, 1)
        values |= {name: round(getattr(found, name) * scale) for name in ("train", "tune", "calibration", "pretrain")}
        values["test"] = max(0, round(labelled * scale) - values["train"] - values["tune"] - values["calibration"])
    if split is not None:
        splits = _summary(split)["splits"]
        values |= {name: int(splits[name]["images"]) for name in ("train", "tune", "calibration", "test", "pretrain")}
    return Items(**values)


def _summary(artifact: Artifact) -> Mapping[str, Any]:
    return read_json(artifact.path / "summary.json")


def _files(root: Path, labels: Path) -> Iterator[tuple[str, int]]:
    """Yield path and bytes of every file under a root but the label table, members of zip archives one by one."""
    if root.is_file():
        yield from _members(root, root.name)
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder, name)
            if path != labels:
                yield from _members(path, str(path.relative_to(root)))


def _members(path: Path, name: str) -> Iterator[tuple[str, int]]:
    if path.suffix.lower() != ".zip":
        yield name, path.lstat().st_size
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(one.filename, one.file_size) for one in archive.infolist() if not one.is_dir()]
    except zipfile.BadZipFile:
        members = [(name, path.stat().st_size)]
    yield from members


def _rows(labels: Path) -> int:
    """Return how many rows a label table has; 0 where that cannot be told without reading it as a whole."""
    if labels.suffix.lower() in NO_TEXT:
        return 0
    lines = labels.read_bytes().count(b"\n")
    return max(lines - 1, 0)
