"""A table of studies, one in a row, judged to the rows of results.json: what a registered model does when served."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.imaging.archive.sources import find_sources
from pipeline.imaging.pseudonyms import normal_path
from pipeline.inference.model import Model
from pipeline.inference.result import MEANINGS, ON_REQUEST

# What each field of a row is, for the signature of a registered model.
KINDS = {
    "texts": ("reasons", "remarks"),
    "number": (
        *("score", "probability", "probability_low", "probability_high", "local_probability"),
        *("threshold", "recall_target", "confidence", "typicality"),
    ),
    "count": ("images", "files_refused"),
    "truth": ("typical",),
    "object": ("further_labels",),
}


def columns() -> dict[str, str]:
    """Return the fields of a row, and the kind of each: text, texts, number, count, truth or object."""
    known = {name: kind for kind, names in KINDS.items() for name in names}
    return {name: known.get(name, "text") for name in MEANINGS if name not in ON_REQUEST}


def judge_table(
    model: Model, contents: Sequence[bytes], studies: Sequence[str | None], workers: int = 1
) -> list[dict[str, Any]]:
    """Return a row for each study, in order: `contents` are the bytes of one file, or of a zip archive, per study.

    A study without a name is called by its number, from 1. Whatever is in an archive is of that one study. `path` is
    the file's in the archive, empty for a single file.
    """
    if not contents:
        return []
    with tempfile.TemporaryDirectory(prefix="maescreen-") as scratch:
        folder = Path(scratch)
        for number, content in enumerate(contents):
            (folder / _name(number, content)).write_bytes(content)
        named = {normal_path(source.path): str(_number(source.path)) for source in find_sources([folder])}
        results = {int(one.study): one for one in model.predict([folder], studies=named, workers=workers)}
    rows = []
    for number, study in enumerate(studies):
        found = results[number]
        inside = found.path.partition("/")[2]
        rows.append(replace(found, study=study or str(number + 1), path=inside).to_row())
    return rows


def _name(number: int, content: bytes) -> str:
    """Return the name of a study's file: an archive by its suffix, an empty one as a file that is no image."""
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):
        try:
            with zipfile.ZipFile(stream) as archive:
                empty = not any(not member.is_dir() for member in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            empty = False  # a study whose archive is damaged
        return f"{number:06d}" if empty else f"{number:06d}.zip"
    return f"{number:06d}"


def _number(path: str) -> int:
    return int(path[:6])
