"""Make the label tables of the tuberculosis task from the folders as their publishers give them.

    python make_tables.py ROOT OUTPUT

ROOT holds, unpacked and unchanged, what there is of

    ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png    Shenzhen; ClinicalReadings/CHNCXR_0001_0.txt: "male 45yrs", a finding
    MontgomerySet/CXR_png/MCUCXR_0001_0.png        Montgomery; ClinicalReadings/MCUCXR_0001_0.txt: "Patient's Sex: F",
                                                   "Patient's Age: 027Y", a finding
    ChestXray14/**/00000001_000.png                NIH ChestX-ray14, without labels: for pretraining alone

and OUTPUT gets shenzhen.csv and montgomery.csv; mixed.csv, both in one table, for a split across the two; and, where
there are NIH images, nih.csv, which says whose they are (`data.unlabelled_patients`). Paths are relative to ROOT, those
in nih.csv to ChestXray14, which `data.unlabelled` names.

The last digit of a file's name is the label: 1 tuberculosis, 0 not. `sex` and `age_years` are those of the text files,
empty where these do not say; nothing else of the texts is taken over. A reading that says normal beside a 1, or
something else beside a 0, is counted and printed: the name decides. Names of another form are counted, never guessed.
Each film of the first two sets is taken to be another patient's: the names say nothing else.

This was written to the published description and run on made-up folders of these names alone, never on the films.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FILM = re.compile(r"(CHNCXR|MCUCXR)_(\d{4})_([01])\.png", re.IGNORECASE)
NIH = re.compile(r"(\d{8})_\d{3}\.png", re.IGNORECASE)
SEX = re.compile(r"\b(female|male|[FM])\b", re.IGNORECASE)
AGE = re.compile(r"(\d{1,3})\s*(years?|yrs?|y|months?|mos?|m|days?|d)?\b", re.IGNORECASE)
SEX_LINE = re.compile(r"patient'?s?\s+sex\s*:\s*(.*)", re.IGNORECASE)
AGE_LINE = re.compile(r"patient'?s?\s+age\s*:\s*(.*)", re.IGNORECASE)
YEARS_PER = {"y": 1.0, "m": 1 / 12, "d": 1 / 365.25}
COLUMNS = ["path", "patient_id", "label", "sex", "age_years"]


@dataclass(frozen=True)
class Collection:
    """A collection of films: its folder below the root, how its names begin, and what its patients are called."""

    name: str
    folder: str
    prefix: str


SHENZHEN = Collection("shenzhen", "ChinaSet_AllFiles", "CHNCXR")
MONTGOMERY = Collection("montgomery", "MontgomerySet", "MCUCXR")
NIH_FOLDER = "ChestXray14"


@dataclass(frozen=True)
class Reading:
    """What a text file says: sex as F or M, age in years, each None where it does not, and whether it says normal."""

    sex: str | None
    age_years: float | None
    normal: bool


def main() -> None:
    """Read the arguments, write the tables, print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    for line in make_tables(arguments.root, arguments.output):
        print(line)


def make_tables(root: Path, output: Path) -> list[str]:
    """Write every table for which there are films; return what was counted. Raises SystemExit when there is none."""
    found = {one.name: films(root, one) for one in (SHENZHEN, MONTGOMERY) if (root / one.folder).is_dir()}
    if not found:
        raise SystemExit(f"neither {SHENZHEN.folder} nor {MONTGOMERY.folder} is in {root}; unpack the archives there")
    tables = {name: table for name, (table, _) in found.items()}
    said = [line for _, lines in found.values() for line in lines]
    if len(tables) == 2:
        tables["mixed"] = pd.concat(tables.values(), ignore_index=True)
    unlabelled = nih(root / NIH_FOLDER)
    if len(unlabelled):
        said.append(f"nih: {len(unlabelled)} images of {unlabelled['patient_id'].nunique()} patients, without labels")
        tables["nih"] = unlabelled
    output.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(output / f"{name}.csv", index=False, lineterminator="\n")
        said.append(f"written: {name}.csv, {len(table)} rows")
    return said


def films(root: Path, collection: Collection) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of a collection, ordered by name, and what is to be said of it."""
    folder = root / collection.folder
    # Archives made on a Mac hold hidden copies of each name.
    names = sorted(p for p in (folder / "CXR_png").glob("*") if p.is_file() and p.suffix.lower() == ".png")
    names = [path for path in names if not path.name.startswith(".")]
    rows, odd, unread, differing = [], 0, 0, 0
    for path in names:
        match = FILM.fullmatch(path.name)
        if match is None or match[1].upper() != collection.prefix:
            odd += 1
            continue
        reading = _reading(folder / "ClinicalReadings" / f"{path.stem}.txt")
        unread += reading is None
        differing += reading is not None and reading.normal == (match[3] == "1")
        rows.append(
            {
                "path": path.relative_to(root).as_posix(),
                "patient_id": f"{collection.name}_{match[2]}",
                "label": match[3],
                "sex": reading.sex if reading else None,
                "age_years": reading.age_years if reading else None,
            }
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    said = f"{collection.name}: {len(table)} films, {(table['label'] == '1').sum()} with tuberculosis"
    notes = {
        "names of another form, left out": odd,
        "without a text file": unread,
        "whose text does not fit the name, which decides": differing,
        "without sex": int(table["sex"].isna().sum()),
        "without age": int(table["age_years"].isna().sum()),
    }
    return table, [said, *(f"{collection.name}: {count} {what}" for what, count in notes.items() if count)]


def nih(folder: Path) -> pd.DataFrame:
    """Return path and patient of each image of ChestX-ray14, wherever below its folder it lies."""
    found = sorted((path, match[1]) for path in folder.rglob("*.png") if (match := NIH.fullmatch(path.name)))
    rows = [(path.relative_to(folder).as_posix(), f"nih_{patient}") for path, patient in found]
    return pd.DataFrame(rows, columns=["path", "patient_id"])


def read_reading(text: str) -> Reading:
    """Return what a text file of either collection says.

    Montgomery names sex and age by lines of their own; Shenzhen begins with both in one, as "male 45yrs" or
    "Female, 8 months", in many spellings. Ages in months and days become parts of years.
    """
    lines = [line.strip() for line in text.replace("\x00", "").splitlines() if line.strip()]
    sex_line = next((match[1] for line in lines if (match := SEX_LINE.search(line))), None)
    age_line = next((match[1] for line in lines if (match := AGE_LINE.search(line))), None)
    told = sex_line is not None or age_line is not None
    first = lines[0] if lines else ""
    findings = [line for line in lines if not (SEX_LINE.search(line) or AGE_LINE.search(line))]
    if not told and _first_line_is_about_the_person(first):
        sex_line = age_line = first
        findings = lines[1:]
    return Reading(_sex(sex_line or ""), _age(age_line or ""), _says_normal(findings))


def _first_line_is_about_the_person(line: str) -> bool:
    return bool(re.search(r"\b(fe)?male", line, re.IGNORECASE))


def _says_normal(findings: Sequence[str]) -> bool:
    return any(re.match(r"normal\b", line, re.IGNORECASE) for line in findings)


def _sex(text: str) -> str | None:
    match = SEX.search(re.sub(r"(?i)((?:fe)?male)(?=\d)", r"\1 ", text))
    return match[1][0].upper() if match else None


def _age(text: str) -> float | None:
    match = AGE.search(text)
    if match is None:
        return None
    unit = (match[2] or "y")[0].lower()
    return round(int(match[1]) * YEARS_PER[unit], 2)


def _reading(path: Path) -> Reading | None:
    return read_reading(path.read_bytes().decode("utf-8", "replace")) if path.is_file() else None


if __name__ == "__main__":
    main()
