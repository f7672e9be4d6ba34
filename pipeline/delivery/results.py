"""The folder that predict leaves: results as JSON and CSV, a page per study, the batch, what was refused.

`journal.jsonl` grows by a line per finished study, so that a killed command goes on; the files beside it are made of
it at the end, and are the same bytes however often it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.delivery import pages
from pipeline.delivery.dicom.archive import Archive
from pipeline.delivery.masks import MaskFiles
from pipeline.inference.result import MEANINGS, SCHEMA, Result, refused_row
from pipeline.reporting.spreadsheet import csv_text
from pipeline.store.files import finite, write_json, write_text

if TYPE_CHECKING:
    from pipeline.inference.model import Model, Predictions

JOURNAL, RESULTS, TABLE, QUARANTINE = "journal.jsonl", "results.json", "results.csv", "quarantine.csv"
SUMMARY = "summary.pdf"
QUARANTINE_COLUMNS = ("path", "study", "reason", "detail")
Track = Callable[[Iterable[Result], int, int], Iterable[Result]]


class FolderError(ValueError):
    """The folder cannot take these results; the message says why and what to do."""


@dataclass(frozen=True)
class Written:
    """What was written: the rows of results.json, and how many files were in none."""

    rows: list[dict[str, Any]]
    quarantined: int

    def counts(self) -> dict[str, int]:
        """Return the studies by decision; those that are not assessable are referred, too."""
        kinds = ("refer", "no refer", "not assessable")
        return {kind: sum(row["decision"] == kind for row in self.rows) for kind in kinds}


def plainly(results: Iterable[Result], _done: int, _total: int) -> Iterable[Result]:
    """Show no progress."""
    return results


def write_results(
    predictions: Predictions,
    folder: Path,
    *,
    identified: bool = False,
    dicom: Sequence[str] = (),
    track: Track = plainly,
) -> Written:
    """Write the results of all studies into `folder`, taking up what an interrupted command left there.

    With `identified`, rows hold the patient's identifier of the header. `dicom` names kinds of `delivery.dicom.KINDS`:
    objects beside the images, which hold the patient's identity as an archive needs it; so do the masks of DICOM images
    where `predictions` has masks. With any of these, nobody else may look into the folder. Raises FolderError when
    `folder` holds something else than results.
    """
    _prepare(folder, private=identified or bool(dicom) or predictions.masks)
    settings, groups = predictions.settings_sha256, predictions.found.groups
    by_identity = {group.identity: group for group in groups}
    kept = _read_journal(folder / JOURNAL, settings, identified)
    archive, masks = Archive(folder, predictions, tuple(dicom), kept), MaskFiles(folder, predictions)
    done = {
        name: line
        for name, line in kept.items()
        if name in by_identity and _has_page(folder, line, predictions) and archive.has(line) and masks.has(line)
    }
    at = pages.now()
    with (folder / JOURNAL).open("a", encoding="utf-8") as journal:
        for result in track(predictions.of(groups, done), len(done), len(groups)):
            if predictions.pictures:
                pages.write_page(folder, result, predictions, at)
            line = {"settings": settings, "identity": result.identity, "identified": identified}
            line |= {"row": finite(result.to_row(identified)), "quarantine": result.quarantine()}
            line |= archive.add(result, by_identity[result.identity]) | masks.add(result, by_identity[result.identity])
            journal.write(json.dumps(line, ensure_ascii=False) + "\n")
            journal.flush()
            done[result.identity] = kept[result.identity] = line
        os.fsync(journal.fileno())
    # The name is as it is now: the same files can be another study when others stand beside them.
    lines = [(group.name, done[group.identity]) for group in groups]
    rows = [{**line["row"], "study": name, **archive.fields(line), **masks.fields(line)} for name, line in lines]
    quarantine = [{**row, "study": name} for name, line in lines for row in line["quarantine"]]
    quarantine += [refused_row(path, refusal) for path, refusal in predictions.found.alone]
    _write(folder, predictions, rows, quarantine, archive.superseded(lines))
    if predictions.pictures:
        (folder / SUMMARY).write_bytes(pages.summary(rows, quarantine, predictions, at))
    return Written(rows, len(quarantine))


def _has_page(folder: Path, line: dict[str, Any], predictions: Predictions) -> bool:
    return not predictions.pictures or (folder / "pages" / pages.file_name(line["row"]["study"])).is_file()


def _prepare(folder: Path, private: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
        raise FolderError(f"{folder} holds other files; name a new or empty folder, or one that predict has begun")
    folder.mkdir(parents=True, exist_ok=True)
    if private:
        folder.chmod(0o700)


def _read_journal(path: Path, settings: str, identified: bool) -> dict[str, dict[str, Any]]:
    """Return the lines of studies that were judged by the same model and settings, by the identity of their files."""
    if not path.is_file():
        return {}
    lines = [line for text in path.read_text("utf-8", "replace").splitlines() if (line := _line(text))]
    own = [line for line in lines if (line["settings"], line["identified"]) == (settings, identified)]
    # A kill can leave half a line, to which the next one would be glued.
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in own))
    return {line["identity"]: line for line in own}


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and {"settings", "identity", "row", "quarantine"} <= line.keys() else None


def _write(
    folder: Path,
    predictions: Predictions,
    rows: list[dict[str, Any]],
    quarantine: list[dict[str, str]],
    superseded: list[dict[str, Any]],
) -> None:
    quarantine = sorted(quarantine, key=lambda row: (row["path"], row["study"]))
    columns = [name for name in MEANINGS if not rows or name in rows[0]]
    model = predictions.model
    content = {
        "schema": SCHEMA,
        "meaning": {name: MEANINGS[name] for name in (*columns, *(["superseded_by"] if superseded else []))},
        "model": of_model(model),
        "prevalence": {"calibration": model.content["prevalence"], "local": predictions.prevalence},
        "files": {
            "received": len(predictions.sources),
            "used": len(predictions.sources) - len(quarantine),
            "quarantined": len(quarantine),
        },
        "results": rows,
        **({"superseded": superseded} if superseded else {}),
    }
    write_json(folder / RESULTS, content)
    shown = [[_cell(row.get(name)) for name in columns] for row in rows]
    write_text(folder / TABLE, csv_text(columns, shown))
    refused = [[row[name] for name in QUARANTINE_COLUMNS] for row in quarantine]
    write_text(folder / QUARANTINE, csv_text(list(QUARANTINE_COLUMNS), refused))


def of_model(model: Model) -> dict[str, Any]:
    """Return what results say of the model that gave them, as plain values."""
    structures = model.ensemble.structures
    return {
        "title": model.content["title"],
        "sha256": model.sha256,
        "usable": model.usable,
        **({"structures": {str(n): name for n, name in structures.items()}} if structures else {}),
        "not_usable_because": list(model.rule.decision.reasons),
        "scope": model.scope,
        "not_for": model.content["not_for"],
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
