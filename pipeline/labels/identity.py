"""Whose image it is: what headers say, what the label table says, and what to make of it when they differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.imaging.identifiers import KINDS, own_name, placeholder
from pipeline.imaging.pseudonyms import day_shift, path_pseudonym, patient_pseudonym, pseudonym, visible
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError, read_labels, refuse_shortened
from pipeline.store.files import sha256_json
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.imaging.archive.journal import Archive
    from pipeline.settings.card import CardColumns

# Kind of pseudonym by the way in which rows of a label table are about files.
WHAT = {
    "path": ("path", "paths"),
    "sop_instance_uid": ("image", "images"),
    "series_instance_uid": ("series", "series"),
    "study_instance_uid": ("study", "studies"),
}

# One person, or several under one identifier. Ages are given in whole years, rounded as it happens.
YEARS_TOLERATED = 3.0
YEARS_TOLERATED_UNDATED = 20.0
TOP_AGE = 90
DAYS_PER_YEAR = 365.25
STUDIES_OF_A_CROWD = 10
# Typing errors contradict themselves here and there; more than this share of the identifiers is another matter.
CONTRADICTIONS_TOLERATED = 0.05
FACTS = ("source_id", "row_id", "header_patient", "placeholder", "patient_id", "part_of", "study_id", "format", "sex")
NUMBERS = ("age_years", "shifted_day")


# ---------------------------------------------------------------- the label table


@dataclass(frozen=True)
class Named:
    """The patients of a label table: their pseudonyms by those of what its rows are about, and the originals.

    `unsaid` counts the rows whose patient is a placeholder that several of them share.
    """

    patients: Mapping[str, str] = field(default_factory=dict)
    originals: Mapping[str, str] = field(default_factory=dict)
    unsaid: int = 0


def named_by_row(labels: Path, join: str, column: str, patient_column: str | None, rule: PathRule) -> dict[str, str]:
    """Return the patient of each row that names one, by what is compared of the row's path or by its UID.

    `join` says what `column` holds: `path`, or a kind of UID. Empty without a column of patients, and where rows are
    about patients.

    Raises LabelsError when something has several patients, or a spreadsheet has shortened their numbers.
    """
    if patient_column is None or join == "patient_id":
        return {}
    table = read_labels(labels, [column, patient_column]).dropna()
    refuse_shortened(table[patient_column])
    keys = table[column].map(rule.of_row) if join == "path" else table[column]
    pairs = pd.DataFrame({"key": keys, "patient": table[patient_column]}).drop_duplicates()
    conflicts = int(pairs.loc[pairs["key"].duplicated(), "key"].nunique())
    if conflicts:
        things = counted(
            conflicts, f"{WHAT[join][0]} of the label table has", f"{WHAT[join][1]} of the label table have"
        )
        raise LabelsError(f"{things} more than one patient; correct the table")
    return dict(zip(pairs["key"], pairs["patient"], strict=True))


def alike_patients(patients: Collection[str]) -> str:
    """Return what to say of identifiers that could be one person's, written by two hands; nothing without any.

    They differ in nothing but case, blanks, leading zeros and decimals.
    """
    counts = Counter(
        re.sub(r"(?<!\d)0+(?=\d)", "", "".join(visible(one).casefold().split())).removesuffix(".0")
        for one in {visible(patient).strip() for patient in patients}
    )
    several = sum(count for count in counts.values() if count > 1)
    if not several:
        return ""
    return (
        f"{several} patients of the label table differ from another one in nothing but case, blanks, leading zeros or "
        "decimals (like 007 and 7): they are taken for different people; where they are one, correct the table"
    )


def named_patients(by_row: Mapping[str, str], join: str, secret: bytes) -> Named:
    """Return what `named_by_row` found in terms of pseudonyms, without placeholders that several rows share."""
    originals = {patient_pseudonym(secret, text): text for text in set(by_row.values())}
    counts = pd.Series(by_row, dtype=object).value_counts()
    blank = {text for text in counts.index[counts > 1] if (what := placeholder(text, secret)) and what not in originals}
    patients = {
        row_pseudonym(secret, join, key): patient_pseudonym(secret, text)
        for key, text in by_row.items()
        if text not in blank
    }
    return Named(patients, originals, int(counts[counts.index.isin(blank)].sum()))


def row_pseudonym(secret: bytes, join: str, key: str) -> str:
    """Return the pseudonym by which a label table knows a file: of what is compared of its path, or of a UID."""
    return path_pseudonym(secret, key) if join == "path" else pseudonym(secret, KINDS[join], key)


def row_pseudonyms(archive: Archive, columns: CardColumns, secret: bytes) -> dict[str, str]:
    """Return, by pseudonym, what a label table that joins by paths knows the files by; nothing where it does not."""
    if columns.join != "path":
        return {}
    rule, names = PathRule(**columns.path_rule), zip(archive.ids.to_pylist(), archive.sources, strict=True)
    return {name: row_pseudonym(secret, "path", rule.of_file(source.path)) for name, source in names}


def patients_digest(
    labels: Path, join: str, column: str, patient_column: str | None, patient_from: str | None, rule: PathRule
) -> str:
    """Return a digest of all that decides whose a file is, headers apart: the part of the table ingest depends on."""
    named = named_by_row(labels, join, column, patient_column, rule)
    return sha256_json([sorted(named.items()), patient_from, asdict(rule)])


# ---------------------------------------------------------------- who is who


@dataclass(frozen=True)
class Findings:
    """What is odd about identifiers. All are counts: of files, unless they say of what."""

    files_compared: int = 0
    files_disagreeing: int = 0
    table_patients_with_several_header_ids: int = 0
    header_ids_with_several_table_patients: int = 0
    placeholders: int = 0
    table_placeholders: int = 0
    undecided: int = 0
    patients_with_several_studies: int = 0
    patients_of_several_sexes: int = 0
    patients_of_contradicting_ages: int = 0
    patients_of_implausibly_many_studies: int = 0


def decide(facts: pd.DataFrame, named: Named, patient_from: str | None, secret: bytes) -> tuple[pd.Series, Findings]:
    """Return the patient of each file, by source_id, nothing where nobody says, and what is odd.

    `facts` has the columns FACTS and NUMBERS of tables.EXAMINED, of files that were not refused. The label table
    decides where it names a patient; what else belongs to the same volume or study, or has the same identifier in its
    header, goes with it. Otherwise the header decides. With `patient_from` header, it is the other way round. A
    placeholder that several studies share is no identifier, unless the headers are to decide.
    """
    header = facts["header_patient"]
    blank = pd.Series(False, index=facts.index)
    if patient_from != "header":
        blank = _shared_placeholders(facts)
        header = header.mask(blank, "")
    table = facts["row_id"].map(named.patients).astype(object).fillna("")
    first, second = (header, table) if patient_from == "header" else (table, header)
    patient = first
    for group in (facts["part_of"], facts["study_id"], second):
        patient = patient.where(patient != "", group.map(_only(group, first)).astype(object).fillna(""))
    ambiguous = (patient == "") & second.isin(second[(first != "") & (second != "")])
    patient = patient.where((patient != "") | ambiguous, second)
    both = (header != "") & (table != "")
    several = _several(table[both], header[both]), _several(header[both], table[both])
    findings = Findings(
        files_compared=int(both.sum()),
        files_disagreeing=int((table.isin(several[0]) & both | header.isin(several[1]) & both).sum()),
        table_patients_with_several_header_ids=len(several[0]),
        header_ids_with_several_table_patients=len(several[1]),
        placeholders=int((blank & (patient == "")).sum()),
        table_placeholders=named.unsaid,
        undecided=int(ambiguous.sum()),
        **_implausible(facts.assign(patient=patient), secret),
    )
    return pd.Series(patient.to_numpy(), index=facts["source_id"]), findings


def _only(group: pd.Series, patient: pd.Series) -> pd.Series:
    """Return the patient of each group that has exactly one."""
    said = pd.DataFrame({"group": group, "patient": patient})[(group != "") & (patient != "")].drop_duplicates()
    return said[~said["group"].duplicated(keep=False)].set_index("group")["patient"]


def _several(one: pd.Series, other: pd.Series) -> pd.Index:
    """Return the values of `one` that go with several of `other`."""
    counts = other.groupby(one.to_numpy()).nunique()
    return counts.index[counts > 1]


def _shared_placeholders(facts: pd.DataFrame) -> pd.Series:
    """Return which files have a placeholder for a patient that files of several studies have."""
    marked = (facts["placeholder"] != "") & ~facts["placeholder"].isin(facts["header_patient"])
    studies = facts[marked].groupby("header_patient")["study_id"].nunique()
    return marked & facts["header_patient"].isin(studies.index[studies > 1])


def _implausible(facts: pd.DataFrame, secret: bytes) -> dict[str, int]:
    """Return the counts of patients who can hardly be one person, by headers: other files name no study."""
    facts = facts[(facts["patient"] != "") & (facts["format"] == "dicom")]
    studies = facts.groupby("patient")["study_id"].nunique()
    sexes = facts[facts["sex"].isin(["F", "M"])].groupby("patient")["sex"].nunique() > 1
    crowds = (studies >= STUDIES_OF_A_CROWD) & (2 * studies > studies.sum())
    return {
        "patients_with_several_studies": int((studies > 1).sum()),
        "patients_of_several_sexes": int(sexes.sum()),
        "patients_of_contradicting_ages": int(_contradicting_ages(facts, secret).sum()),
        "patients_of_implausibly_many_studies": int(crowds.sum()),
    }


def _contradicting_ages(facts: pd.DataFrame, secret: bytes) -> pd.Series:
    """Return, by patient, whether ages and dates cannot be those of one person."""
    age = facts["age_years"].astype(float).where(lambda years: years < TOP_AGE)
    days = facts["shifted_day"].astype(float) + _shifts(facts["patient_id"], secret) - _shifts(facts["patient"], secret)
    born, undated = (days / DAYS_PER_YEAR - age).groupby(facts["patient"]), age[days.isna()].groupby(facts["patient"])
    apart = (born.max() - born.min() > YEARS_TOLERATED) | False
    return apart | (undated.max() - undated.min() > YEARS_TOLERATED_UNDATED).reindex(apart.index, fill_value=False)


def _shifts(patients: pd.Series, secret: bytes) -> pd.Series:
    return patients.map({patient: day_shift(secret, patient) for patient in patients.unique()}).astype(float)


def objection(found: Findings, patient_from: str | None) -> str:
    """Return why a run should stop until somebody says who is right; nothing when it need not."""
    problems = []
    if found.files_disagreeing:
        table, headers = found.table_patients_with_several_header_ids, found.header_ids_with_several_table_patients
        problems.append(
            "the label table and the headers disagree about who is who: "
            f"{counted(table, 'patient of the table has', 'patients of the table have')} several PatientIDs in "
            f"headers, {counted(headers, 'PatientID of headers is', 'PatientIDs of headers are')} several patients of "
            f"the table ({counted(found.files_disagreeing, 'file')} of {found.files_compared} compared)"
        )
    contradicting = max(found.patients_of_several_sexes, found.patients_of_contradicting_ages)
    if contradicting > max(1, CONTRADICTIONS_TOLERATED * found.patients_with_several_studies):
        problems.append(f"an identifier stands for several people, it seems: {'; '.join(_contradictions(found))}")
    if crowds := found.patients_of_implausibly_many_studies:
        more = f" ({'; '.join(_contradictions(found))})" if contradicting else ""
        problems.append(f"more than half of all studies, at least {STUDIES_OF_A_CROWD}, have {crowds} identifier{more}")
    if not problems or patient_from is not None:
        return ""
    return (
        f"{'; '.join(problems)}. Say in the dataset card whom to believe: columns.patient_from: table, for the column "
        "that columns.patient_id names, or columns.patient_from: header"
    )


def _contradictions(found: Findings) -> list[str]:
    several = found.patients_with_several_studies
    return [
        f"{counted(number, 'patient is', 'patients are')} {what} (of {several} with several studies)"
        for number, what in (
            (found.patients_of_several_sexes, "of both sexes by the headers"),
            (found.patients_of_contradicting_ages, "of ages that contradict the dates of the studies"),
        )
        if number
    ]


def remarks(found: Findings) -> list[str]:
    """Return what to warn of when the run goes on."""
    said = (
        (
            found.placeholders,
            "without a patient: the header has a placeholder (ANONYMOUS, UNKNOWN, 0 ...) that several studies share. "
            "Name the patients in a column of the label table (columns.patient_id), or, if it is one person, say "
            "columns.patient_from: header in the dataset card",
        ),
        (found.undecided, "without a patient: the label table, which does not name them, divides what the header says"),
    )
    text = [f"{counted(number, 'file')} {what}" for number, what in said if number]
    if found.table_placeholders:
        rows = counted(found.table_placeholders, "row of the label table has", "rows of the label table have")
        text.append(f"{rows} a placeholder for a patient, which says nothing; their headers decide")
    return text + [f"{what}; an identifier may stand for several people" for what in _contradictions(found)]


# ---------------------------------------------------------------- what follows from it


def with_patients(rows: pa.Table, patient: Mapping[str, str], secret: bytes) -> pa.Table:
    """Return rows of tables.EXAMINED with the patients decided, by source_id, and all that depends on them.

    That is the day, moved by the patient's shift, and the names of images without a UID. Whole images without a
    patient are refused; what belongs to a volume is left to it.
    """
    frame = rows.select(
        ["source_id", "patient_id", "image_id", "study_id", "sha256", "shifted_day", "reason", "part_of"]
    ).to_pylist()
    columns: dict[str, list[Any]] = {
        name: [] for name in ("patient_id", "image_id", "study_id", "shifted_day", "reason")
    }
    for row in frame:
        decided = patient.get(row["source_id"])
        if decided is not None:
            row |= _moved(row, decided, secret)
            row["reason"] = "" if decided or row["part_of"] else "no_patient"
        for name, values in columns.items():
            values.append(row[name])
    for name, values in columns.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    return rows


def _moved(row: Mapping[str, Any], patient: str, secret: bytes) -> dict[str, Any]:
    """Return what is otherwise in a row of another patient."""
    before = row["patient_id"] or ""
    if patient == before:
        return {}
    moved: dict[str, Any] = {"patient_id": patient}
    if row["shifted_day"] is not None:
        moved["shifted_day"] = row["shifted_day"] + day_shift(secret, before) - day_shift(secret, patient)
    image_id = row["image_id"]
    if image_id and image_id == pseudonym(secret, "image", own_name(before, row["sha256"])):
        moved["image_id"] = pseudonym(secret, "image", own_name(patient, row["sha256"]))
        if row["study_id"] == pseudonym(secret, "study", image_id):
            moved["study_id"] = pseudonym(secret, "study", moved["image_id"])
    return moved
