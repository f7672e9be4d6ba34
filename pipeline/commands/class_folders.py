"""Folders by class, `normal/` and `sick/`, in place of a label table: the table that they stand for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.label_table import InitError
from pipeline.imaging.archive.sources import find_sources
from pipeline.store.wording import agreeing, counted

LEAST_CLASSES, MOST_CLASSES = 2, 20
SHOWN = 5
NO_STUDY = (".csv", ".tsv", ".txt", ".json", ".md", ".xlsx", ".ds_store")


@dataclass(frozen=True)
class ClassFolders:
    """The rows (path, patient, class) of a table; `patients` says what names them: header, folder or file."""

    rows: Sequence[tuple[str, str, str]]
    patients: str

    def write(self, path: Path) -> None:
        """Write the table, paths relative to the folder of studies."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            headers = self.patients == "header"
            writer.writerow(["path", "label"] if headers else ["path", "patient_id", "label"])
            writer.writerows(
                [(path, label) if headers else (path, patient, label) for path, patient, label in self.rows]
            )

    def lines(self) -> list[str]:
        """Return what was taken for what."""
        said = [
            f"{counted(len(self.rows), 'file')} in folders by class: {', '.join(sorted({row[2] for row in self.rows}))}"
        ]
        if self.patients == "folder":
            alone = sum(patient == path for path, patient, _ in self.rows)
            beside = f", each of {counted(alone, 'file')} in no such folder another one" if alone else ""
            taken = f"each folder inside a class is taken to be one patient{beside}"
            said.append(f"{taken} (column patient_id of labels.csv)")
        if self.patients == "file":
            said.append(
                "nothing names the patients: each file is taken to be another one. Where several are of one person, "
                "write the same patient_id beside them in labels.csv; else the certificate is one of images, and too "
                "good"
            )
        return said


def read_class_folders(folder: Path, header_names_patients: bool) -> ClassFolders:
    """Return the table that the folders below `folder` stand for.

    The first folder of each path is its class. Patients are those of headers, where these name them; else a folder
    inside a class is one, and so is each file in no such folder. Raises InitError when there are fewer than two
    classes, or files beside them.
    """
    if not folder.is_dir():
        raise InitError("--classes takes a folder that holds a folder for each class, not a single file")
    paths = [source.path for source in find_sources([folder]) if source.refusal is None]
    paths = [path for path in paths if not path.lower().endswith(NO_STUDY)]
    loose = [path for path in paths if "/" not in path]
    classes = sorted({path.partition("/")[0] for path in paths if "/" in path})
    if not LEAST_CLASSES <= len(classes) <= MOST_CLASSES:
        named = f"{len(classes)}: {', '.join(classes[:SHOWN])}" if classes else "none"
        raise InitError(
            f"--classes takes {LEAST_CLASSES} to {MOST_CLASSES} folders with files, one for each class; here "
            f"{agreeing(len(classes), 'is', 'are')} {named}. Name the folder that holds them, or give a table with "
            "--labels"
        )
    if loose:
        raise InitError(
            f"{counted(len(loose), 'file lies', 'files lie')} beside the folders of the classes, so that nothing says "
            "what they show; move them into a class, or elsewhere"
        )
    nested = any(path.count("/") > 1 for path in paths)
    how = "header" if header_names_patients else "folder" if nested else "file"
    # Numbered anew in each class, `normal/1` and `sick/1` are two people; the class tells them apart.
    return ClassFolders([(path, "/".join(path.split("/")[:2]), path.partition("/")[0]) for path in paths], how)
