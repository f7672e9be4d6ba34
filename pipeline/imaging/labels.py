"""The label table: CSV, Parquet or MedMNIST's .npz, columns named by the dataset's card, every value read as text."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.imaging.sources import array_path, image_arrays


class LabelsError(ValueError):
    """The label table cannot be used; the message lists all problems and quotes no patient's data."""


def read_labels(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the named columns, or all, as stripped text; empty cells are missing values.

    Raises LabelsError when the file is no table or lacks a column.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix.lower() == ".npz":
            table = _labels_of_arrays(path)
        else:
            # "NA" and "None" are values that somebody wrote; only an empty cell is empty.
            table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        # The parser's message can quote a cell.
        raise LabelsError(f"the label table is not readable as CSV, Parquet or .npz ({type(error).__name__})") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise LabelsError("the label table has rows with more cells than its header; correct its commas and quotes")
    columns = [*table.columns] if columns is None else columns
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise LabelsError(
            f"the label table has no column {', '.join(missing)}, named in the card; "
            f"its columns: {', '.join(map(str, table.columns))}"
        )
    chosen = table[list(dict.fromkeys(columns))].dropna(how="all")
    return chosen.apply(lambda column: column.map(_text, na_action="ignore")).replace("", None)


def _labels_of_arrays(path: Path) -> pd.DataFrame:
    """Return `path`, `split` and `label` of every image of a .npz file as MedMNIST has it.

    The array `train_images` has its labels in `train_labels`, (N,) or (N, 1), and `train` is the split. There are no
    patients in such a file: a card that names the column `path` as patient_id says that each image has its own.

    Raises ValueError when an array of labels has another length than its images.
    """
    parts = []
    with np.load(path, allow_pickle=False) as arrays:
        for name, count in image_arrays(path).items():
            split = name.removesuffix("_images")
            if f"{split}_labels" not in arrays:
                continue
            labels = arrays[f"{split}_labels"].reshape(-1)
            if len(labels) != count:
                raise ValueError
            paths = [array_path(name, row) for row in range(count)]
            parts.append(pd.DataFrame({"path": paths, "split": split, "label": labels.astype(str)}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["path", "split", "label"])


def _text(value: object) -> str:
    # A Parquet column of numbers with gaps has become one of floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
