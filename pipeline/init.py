"""A card and a config for a user's own folder, written from what its label table shows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.config import NOT_STATED, StudyStatements

NEGATIVE_WORDS = {"0", "no", "negative", "normal", "false", "healthy", "benign"}
POSITIVE_WORDS = {"1", "yes", "positive", "abnormal", "true", "disease", "malignant"}
JOIN_NAMES = {
    "path": ("path", "file", "filename", "image", "image_path"),
    "patient_id": ("patient_id", "patientid", "patient", "subject", "subject_id"),
    "study_instance_uid": ("study_instance_uid", "studyinstanceuid", "study_uid"),
    "series_instance_uid": ("series_instance_uid", "seriesinstanceuid", "series_uid"),
    "sop_instance_uid": ("sop_instance_uid", "sopinstanceuid", "sop_uid", "image_uid"),
}
LABEL_NAMES = ("label", "target", "class", "diagnosis", "finding", "y")
MOST_LABEL_VALUES = 20


class InitError(ValueError):
    """The folder or the label table cannot be described; the message says what is missing."""


@dataclass(frozen=True)
class Described:
    """What was found in the label table."""

    joins: dict[str, str]
    label: str
    positive: list[str]
    negative: list[str]


def describe(labels: Path, label: str | None, positive: list[str]) -> Described:
    """Find the join columns, the label column and its values in a CSV or Parquet table.

    Raises InitError naming the columns or values there are when one must be named by the user.
    """
    table = pd.read_parquet(labels) if labels.suffix == ".parquet" else pd.read_csv(labels, dtype=str)
    columns = {str(name).lower(): str(name) for name in table.columns}
    joins = {field: columns[name] for field, names in JOIN_NAMES.items() for name in names if name in columns}
    if not joins:
        raise InitError(
            f"no column of {labels.name} says which image or patient a row is about; "
            f"columns: {', '.join(columns.values())}; rename one to {', '.join(JOIN_NAMES)}"
        )
    chosen = label or next((columns[name] for name in LABEL_NAMES if name in columns), None)
    if chosen is None or chosen not in columns.values():
        raise InitError(f"name the label column with --label; columns: {', '.join(columns.values())}")
    values = sorted(table[chosen].dropna().astype(str).unique())
    if len(values) > MOST_LABEL_VALUES:
        raise InitError(f"column {chosen} has {len(values)} different values; it is not a label")
    found = positive or [value for value in values if value.lower() in POSITIVE_WORDS]
    negative = [value for value in values if value not in found and (positive or value.lower() in NEGATIVE_WORDS)]
    unknown = [value for value in values if value not in found and value not in negative]
    if not found or not negative or unknown or set(found) - set(values):
        raise InitError(f"say which values are positive with --positive; values of {chosen}: {', '.join(values)}")
    return Described(joins, chosen, found, negative)


def write(
    folder: Path, labels: Path, output: Path, name: str | None, label: str | None, positive: list[str]
) -> list[Path]:
    """Write `data_manifests/<name>/card.yaml` and `configs/<name>.yaml` under `output`; return their paths.

    Raises InitError when a file exists already or the label table is not understood.
    """
    name = name or re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_") or "project"
    described = describe(labels, label, positive)
    card, config = output / "data_manifests" / name / "card.yaml", output / "configs" / f"{name}.yaml"
    existing = [str(path) for path in (card, config) if path.exists()]
    if existing:
        raise InitError(f"not overwritten: {', '.join(existing)}; choose another --name")
    for path, text in ((card, _card(name, described)), (config, _config(name, folder, labels, card, config))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return [card, config]


def _quoted(values: list[str]) -> str:
    return "[" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + "]"


def _card(name: str, described: Described) -> str:
    columns = "\n".join(f"  {field}: {_quoted([column])[1:-1]}" for field, column in described.joins.items())
    return f"""# What this dataset is. The report prints it; replace every "not stated" with what a reader must know.
name: {name}
title: not stated
source: not stated
licence: not stated
attribution: not stated
identifiers: real                    # real: the pseudonymisation key must be secret; synthetic: headers are made up
synthetic: nothing
columns:                             # columns of the label table
{columns}
  label: {_quoted([described.label])[1:-1]}
label:
  name: the condition                # as a reader would say it: "pneumonia"
  definition: not stated             # what makes a patient positive
  reference_standard: not stated     # who decided, how, blinded to what
  positive: {_quoted(described.positive)}
  negative: {_quoted(described.negative)}
intended_use:
  condition: not stated
  population: not stated
  user: not stated
  place: not stated                  # place in the pathway
  not_for: []
symmetric_axes: []                   # axes that training may mirror: horizontal, vertical, depth; none if sides matter
known_traps: []
study:                               # asked for by reporting guidelines; the report lists what is missing
{_statements()}
"""


def _statements() -> str:
    """Return a line per statement of the card, with what it is about."""
    fields = StudyStatements.model_fields.items()
    return "\n".join(f"  {f'{name}: {NOT_STATED}':<35}# {field.description}" for name, field in fields)


def _config(name: str, folder: Path, labels: Path, card: Path, config: Path) -> str:
    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), config.parent.resolve()).replace("'", "''")

    return f"""# maescreen run {config}
# Every setting not named here has its default; `configs/chest_xray.yaml` shows and explains all of them.
project: {name}
data:
  studies: ['{relative(folder)}']
  labels: '{relative(labels)}'
  card: '{relative(card)}'
  key_file: '~/.config/maescreen/{name}.key'   # secret; made on the first run; back it up, never share it
report:
  title: not stated
"""
