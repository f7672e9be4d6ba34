"""What ingest would find in a folder, before there is a config, a card or a key: looked at, counted, forgotten."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from pipeline.imaging.archive.sources import find_sources
from pipeline.imaging.pseudonyms import normal_path
from pipeline.imaging.quarantine import FLAGS, REASONS
from pipeline.settings.card import NOT_STATED, Card
from pipeline.settings.images import IngestSettings
from pipeline.settings.where import Machine
from pipeline.stages.ingest import NothingAccepted, ingest
from pipeline.store.artifacts import Inputs
from pipeline.store.files import read_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import read_table
from pipeline.store.wording import counted

COUNTED = ("format", "modality", "body_part", "view", "manufacturer", "sex")


def inspect_folder(folder: Path, workers: int) -> dict[str, Any]:
    """Examine every file under `folder` as ingest does with its default settings; nothing is kept but counts.

    Pseudonyms are made with a key that is thrown away. Files without a patient in their header count as one patient
    each. Raises SourcesError when there is no such folder.
    """
    images, summary = examined(folder, workers, IngestSettings(), RunLog("inspect", progress_only=True))
    return {
        "files": summary["received"],
        "images": summary["accepted"],
        "volumes": summary["volumes"],
        "patients": summary["patients"],
        "images_without_header": int((images["format"] != "dicom").sum()),
        "quarantined": {name: [count, REASONS[name]] for name, count in summary["quarantined"].items()},
        "flags": {name: [count, FLAGS[name]] for name, count in summary["flags"].items()},
        "duplicates": summary["duplicates"],
        "values": {column: counts_of(images[column]) for column in COUNTED},
        "ranges": _ranges(images),
    }


def examined(
    folder: Path, workers: int, settings: IngestSettings, log: RunLog, include: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return ingest's table of images and its summary, of the files under `folder` that fit `include`; empty = all.

    Raises SourcesError when there is no such folder.
    """
    with TemporaryDirectory() as name:
        work, labels = Path(name) / "ingest", Path(name) / "labels.parquet"
        work.mkdir()
        paths = list(dict.fromkeys(normal_path(source.path) for source in find_sources([folder])))
        paths = [path for path in paths if path.encode("utf-8", "replace").decode() == path]
        pd.DataFrame({"path": paths, "patient": paths}).to_parquet(labels)
        inputs = Inputs(
            _card(),
            Machine(workers=workers),
            studies=(folder,),
            include=tuple(include),
            labels=labels,
            secret=os.urandom(32),
        )
        try:
            ingest(settings, inputs, work, log)
            return read_table(work / "images.parquet", IMAGES), read_json(work / "summary.json")
        except NothingAccepted as nothing:
            return IMAGES.schema.empty_table().to_pandas(), nothing.summary


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what a person would want to read of it."""
    if not found["files"]:
        return ["there is no file"]
    refused = sum(count for count, _ in found["quarantined"].values())
    images, volumes, nameless = found["images"], found["volumes"], found["images_without_header"]
    accepted = "none would be accepted"
    if images:
        of_them = f"{volumes} of them {'a volume' if volumes == 1 else 'volumes'}"
        accepted = (
            f"{counted(images, 'image')} would be accepted, {of_them}, of {counted(found['patients'], 'patient')}"
        )
    text = [f"{counted(found['files'], 'file')}: {accepted}; {counted(refused, 'file')} would be quarantined"]
    if nameless:
        text.append(
            f"{counted(nameless, 'image')} of a format without patients (each counted as a patient of its own): the "
            "label table must name them"
        )
    text += _section(
        "quarantined", [f"{c:>8}  {name}: {meaning}" for name, (c, meaning) in found["quarantined"].items()]
    )
    text += _section(
        "accepted with a remark", [f"{c:>8}  {name}: {meaning}" for name, (c, meaning) in found["flags"].items()]
    )
    text += _section(
        "duplicates", [f"{c:>8}  {name.replace('_', ' ')}" for name, c in found["duplicates"].items() if c]
    )
    for column, counts in found["values"].items():
        text += _section(column.replace("_", " "), [f"{count:>8}  {value}" for value, count in counts.items()])
    text += _section("sizes", [f"{name}: {low:g} to {high:g}" for name, (low, high) in found["ranges"].items()])
    return text


def _section(title: str, rows: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {row}" for row in rows)] if rows else []


def counts_of(values: pd.Series) -> dict[str, int]:
    """Return how often each value occurs, the most frequent first; an empty one is not stated."""
    counts = values.replace("", NOT_STATED).value_counts()
    return {str(value): int(count) for value, count in counts.items()}


def _ranges(images: pd.DataFrame) -> dict[str, tuple[float, float]]:
    ranges = {name: images[name] for name in ("rows", "columns", "bits_stored")}
    if (images["axes"] == 3).any():
        ranges["slices"] = images["slices"]
    spacing = images["spacing_mm"].dropna().explode().astype(float)
    if len(spacing):
        ranges["spacing_mm"] = spacing
    return {name: (float(values.min()), float(values.max())) for name, values in ranges.items() if len(values)}


def _card() -> Card:
    text = dict.fromkeys(("title", "source", "licence", "attribution"), NOT_STATED)
    label = {"name": NOT_STATED, "definition": NOT_STATED, "reference_standard": NOT_STATED}
    return Card.model_validate(
        {
            **text,
            "name": "dry_run",
            "identifiers": "real",
            "label": {**label, "positive": ["1"], "negative": ["0"]},
            "columns": {"path": "path", "patient_id": "patient", "patient_from": "header"},
            "intended_use": dict.fromkeys(("condition", "population", "user", "place"), NOT_STATED),
        }
    )
