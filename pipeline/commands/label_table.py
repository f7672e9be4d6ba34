"""What a label table says: the columns that join, the label column, and what each of its values means."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.commands.studies_glance import Glance
from pipeline.imaging.archive.choice import has_images
from pipeline.imaging.pseudonyms import patient_pseudonym
from pipeline.labels.joining import better_spelling
from pipeline.labels.path_rules import PathRule, join_paths
from pipeline.labels.table_file import column_name, read_table_file
from pipeline.labels.values import NUMBER, meanings, refuse_shortened, spelling

NEGATIVE_WORDS = {*"0 no n neg negative normal false healthy benign absent".split(), "no finding"}
POSITIVE_WORDS = {*"1 yes y pos positive abnormal true disease malignant present".split()}
# How names of classes begin that are hardly the condition: never an example of a positive one.
NEGATIONS = {*"no non none not without negative normal healthy benign kein keine sans sin nessun".split()}
# What somebody writes who does not know. `none` is not among them: it may be the name of a class.
UNCERTAIN_WORDS = {
    *"-1 u ? - . n/a na nan null unknown unclear unsure uncertain equivocal indeterminate inconclusive".split(),
    *"borderline missing pending possible possibly probable probably suspected suspicious doubtful maybe".split(),
    *("not available", "not known", "not done", "not sure", "cannot exclude", "cannot be excluded", "cannot rule out"),
    *"#n/a #n/d #name? #null! #ref! #value!".split(),  # a spreadsheet's errors
    *"-9 -99 -999 -9999 99 999 9999".split(),  # what statistical packages are told to take for missing
}
# Between the findings of one cell. A bar is nothing else; these may belong to the name of a value.
BETWEEN = re.compile(r"[;,/+&]|\band\b")
# Column names as `_plain` writes them, the most telling first.
JOIN_NAMES = {
    "path": "path filepath imagepath relativepath file filename imagefile imagefilename imagename imageindex image img",
    "patient_id": "patientid patient patientnumber patientnr pid subjectid subject participantid participant",
    "study_instance_uid": "studyinstanceuid studyuid",
    "series_instance_uid": "seriesinstanceuid seriesuid",
    "sop_instance_uid": "sopinstanceuid sopuid instanceuid imageuid dicomuid",
}
# Of these the studies tell whether they name files, patients or images.
OPEN_NAMES = "id imageid dicomid caseid case scanid scan studyid study name examid exam accession accessionnumber key"
LABEL_NAMES = "label target class diagnosis finding findings findinglabels pathology outcome result groundtruth gt y"
MOST_LABEL_VALUES = 20
SHOWN_VALUES = 12
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz", ".npy")
# A column joins when at least this share of its values is found among the studies.
SHARE_FOUND = 0.5


class InitError(ValueError):
    """The folder or the label table cannot be described; the message says what is missing."""


@dataclass(frozen=True)
class Answers:
    """What the user said at the command line."""

    label: str | None = None
    patient: str | None = None
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    unused: Sequence[str] = ()


@dataclass(frozen=True)
class Described:
    """What was found in the label table.

    `rules` are settings of the card that make more rows join, `values` counts by value, `others` further columns of
    labels. `one_each` says that rows are about images and no two have the same patient.
    """

    joins: Mapping[str, str]
    rules: Mapping[str, str]
    label: str
    positive: list[str]
    negative: list[str]
    unused: list[str]
    values: Mapping[str, int]
    empty: int
    others: Mapping[str, tuple[list[str], list[str]]]
    one_each: bool

    def lines(self) -> list[str]:
        """Return each value with its count and what it will mean."""
        meaning = {
            **dict.fromkeys(self.unused, "not used: no answer"),
            **dict.fromkeys(self.negative, "negative"),
            **dict.fromkeys(self.positive, "positive"),
        }
        rows = [f"  {count:>8}  {value:<24} {meaning[value]}" for value, count in self.values.items()]
        rows += [f"  {self.empty:>8}  {'(empty)':<24} no label"] if self.empty else []
        joined = ", ".join(f"{column} ({field})" for field, column in self.joins.items())
        also = [f"further columns of labels, each a further label of the card: {', '.join(self.others)}"]
        rules = [f"the card leaves out what differs: columns.{name}: {value}" for name, value in self.rules.items()]
        found = [f"joined by {joined}", *rules, f"column {self.label}", *rows, *(also if self.others else [])]
        return [*found, _one_each(self.joins["patient_id"])] if self.one_each else found


def describe(labels: Path, answers: Answers, seen: Glance) -> Described:
    """Find the join columns, the label column and its values.

    Raises InitError naming the columns or values there are when one must be named by the user, LabelsError when the
    file is no table.
    """
    table = read_table_file(labels)
    _refuse_row_for_header(table, seen)
    _refuse_twins(table, answers)
    joins = _joins(table, seen)
    if answers.patient is not None:
        joins["patient_id"] = _named(table, answers.patient)
    if "patient_id" in joins:
        refuse_shortened(table[joins["patient_id"]])
    label = _named(table, answers.label) if answers.label else _label_column(table, joins)
    if has_images(labels):
        joins.setdefault("patient_id", joins["path"])  # such a file names no patients: each image is its own
    meant = _meanings(table[label], label, answers)
    others = _others(table, {label, *joins.values()})
    counts = table[label].value_counts().sort_index()
    values = {str(value): int(count) for value, count in counts.items()}
    rules, empty = _rules(table, joins, seen), int(table[label].isna().sum())
    return Described(joins, rules, label, *meant, values, empty, others, _is_one_each(table, joins))


def _is_one_each(table: pd.DataFrame, joins: Mapping[str, str]) -> bool:
    path, patient = joins.get("path"), joins.get("patient_id")
    return path is not None and patient not in (None, path) and len(table) > 1 and table[patient].is_unique


def _one_each(patient: str) -> str:
    return (
        f"every row has a {patient} of its own: where a person can have several, their images may be on both sides of "
        f"a split, and what is promised is promised of each {patient}, not of each person"
    )


# ---------------------------------------------------------------- columns


def _refuse_row_for_header(table: pd.DataFrame, seen: Glance) -> None:
    """Raise InitError when the first line names a file or is a number, and so is no line of names; it is not quoted."""
    names = [str(name) for name in table.columns]
    if any(NUMBER.fullmatch(name) or name.lower().endswith(ENDINGS) for name in names) or {*names} & {*seen.files}:
        raise InitError(
            "line 1 of the label table looks like a row, not like the names of its columns: it holds a number or the "
            "name of a file. Write the names above it, such as path,patient_id,label"
        )


def _refuse_twins(table: pd.DataFrame, answers: Answers) -> None:
    """Raise InitError when two columns are called alike and say different things, and one of them would be taken."""
    known = {*" ".join([*JOIN_NAMES.values(), OPEN_NAMES, LABEL_NAMES]).split()}
    named = {column_name(name) for name in (answers.label, answers.patient) if name}
    columns: dict[str, str] = {}
    for name in table.columns:
        first = columns.setdefault(_plain(name), name)
        if _plain(name) in known and not {first, name} & named and not table[first].equals(table[name]):
            raise InitError(
                f"columns {first} and {name} of the label table have names that differ in nothing but case, blanks or "
                "signs, and different values; rename or remove the one that is not meant"
            )


def _named(table: pd.DataFrame, column: str) -> str:
    """Return the column that the user named. Raises InitError when there is none such."""
    column = column_name(column)
    if column not in table.columns:
        raise InitError(f"the label table has no column {column}; its columns: {', '.join(table.columns)}")
    return column


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", str(name)).casefold()


def _joins(table: pd.DataFrame, seen: Glance) -> dict[str, str]:
    """Return the column of each way to join: by its name, or, where that is open, by what the studies hold.

    A column whose values are names of files is that of the paths, whatever it is called.
    """
    table = table.dropna(axis="columns", how="all")
    columns = {_plain(name): str(name) for name in reversed(table.columns)}
    joins = {}
    for field, names in JOIN_NAMES.items():
        if column := next((columns[name] for name in names.split() if name in columns), None):
            joins[field] = column
    for column in [columns[name] for name in OPEN_NAMES.split() if name in columns]:
        found = {field: share for field, share in seen.shares(table[column].dropna()).items() if share >= SHARE_FOUND}
        for field in found:
            joins.setdefault(field, column)
    for column in map(str, table.columns if "path" not in joins else ()):
        values = table[column].dropna()
        if column in joins.values() or values.map(NUMBER.fullmatch).any():
            continue  # numbers can be those of files by chance
        if seen.shares(values)["path"] >= SHARE_FOUND:
            joins.setdefault("path", column)
    if "path" in joins and seen.files and not seen.shares(table[joins["path"]].dropna())["path"] and len(joins) > 1:
        # `image` can name a finding or a number; another column joins.
        del joins["path"]
    if {*joins} == {"patient_id"} and seen.identities and not any(one.patient for one in seen.identities):
        raise InitError(
            f"column {joins['patient_id']} names patients, but the files opened name none, and no column holds names "
            f"of files that are there: nothing says which image is whose; columns: "
            f"{', '.join(map(str, table.columns))}. Add a column path with the file of each row"
        )
    if not joins:
        raise InitError(
            f"no column of the label table says which image or patient a row is about; columns: "
            f"{', '.join(map(str, table.columns))}. Tried: a column named like {', '.join(JOIN_NAMES)}, and columns "
            f"whose values are names of files, or patients, studies or images in the headers. Rename one to "
            f"{', '.join(JOIN_NAMES)}"
        )
    return joins


def _rules(table: pd.DataFrame, joins: Mapping[str, str], seen: Glance) -> dict[str, str]:
    """Return the settings of the card by which paths or identifiers of the table are found among the studies."""
    if "path" in joins:
        better = join_paths(list(table[joins["path"]].dropna()), seen.files, PathRule()).better
        if better is None:
            return {}
        written = {"path_without": better.without, "path_within": better.within}
        rules = {name: quoted([value])[1:-1] for name, value in written.items() if value}
        return rules | ({"path_ignore": f"[{', '.join(better.ignore)}]"} if better.ignore else {})
    if "patient_id" in joins:
        # Pseudonyms that leave no trace, so that the key is of no account.
        values = table[joins["patient_id"]].dropna()
        unfound = {patient_pseudonym(b"", one.patient) for one in seen.identities if one.patient}
        unfound -= {patient_pseudonym(b"", value) for value in values}
        ignore, _ = better_spelling(values, b"", unfound)
        if ignore:
            return {"id_ignore": f"[{', '.join(ignore)}]"}
    return {}


def _label_column(table: pd.DataFrame, joins: Mapping[str, str]) -> str:
    columns = {_plain(name): str(name) for name in reversed(table.columns)}
    taken = set(joins.values())
    named = [columns[name] for name in LABEL_NAMES.split() if name in columns and columns[name] not in taken]
    if named:
        return named[0]
    telling = [name for name in table.columns if name not in taken and _tells(table[name])]
    if len(telling) == 1:
        return telling[0]
    if telling:
        raise InitError(
            f"{len(telling)} columns could be the label: {', '.join(telling)}; choose the main one with --label. The "
            "others can be further labels of the card (further_labels: id, name, column, positive, negative)"
        )
    raise InitError(f"name the label column with --label; columns: {', '.join(map(str, table.columns))}")


def _tells(column: pd.Series) -> bool:
    """Say whether every value is a word for yes, for no or for not known, and both answers occur."""
    spelled = {spelling(value) for value in column.dropna().unique()}
    known = POSITIVE_WORDS | NEGATIVE_WORDS | UNCERTAIN_WORDS
    return bool(spelled & POSITIVE_WORDS) and bool(spelled & NEGATIVE_WORDS) and spelled <= known


def _others(table: pd.DataFrame, taken: set[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Return positive and negative values of the other columns that could be labels."""
    others = {}
    for name in table.columns:
        if name not in taken and _tells(table[name]):
            values = sorted(table[name].dropna().unique())
            positive = [value for value in values if spelling(value) in POSITIVE_WORDS]
            others[str(name)] = positive, [value for value in values if spelling(value) in NEGATIVE_WORDS]
    return others


# ---------------------------------------------------------------- values


def _meanings(column: pd.Series, name: str, answers: Answers) -> tuple[list[str], list[str], list[str]]:
    """Return positive, negative and unused values.

    What the user named is meant, in any spelling. Where positive values are named and negative ones are not, the others
    are negative, but for those that look as if nobody knew. Raises InitError with what has to be said.
    """
    values = sorted(column.dropna().unique())
    _refuse_what_is_no_label(column, values, name)
    said = {"positive": answers.positive, "negative": answers.negative, "unused": answers.unused}
    wanted = {what: {spelling(value) for value in named} for what, named in said.items()}
    if twice := [
        value for value, times in Counter(one for named in wanted.values() for one in named).items() if times > 1
    ]:
        raise InitError(f"said to mean two things: {', '.join(sorted(twice))}; name each value once")
    if absent := set.union(*wanted.values()) - {spelling(value) for value in values}:
        raise InitError(f"column {name} has no value {', '.join(sorted(absent))}; its values: {_shown(column)}")
    found: dict[str, list[str]] = {"positive": [], "negative": [], "unused": [], "open": []}
    for value in values:
        found[_meaning(spelling(value), wanted)].append(value)
    if several := [value for value in found["negative"] if _holds_another(value, found["positive"], wanted)]:
        raise InitError(
            f"column {name} holds values that name a positive one beside others: {', '.join(several[:SHOWN_VALUES])}. "
            "Say what each of them means with --positive, --negative or --unused"
        )
    if found["open"] or not found["positive"] or not found["negative"]:
        raise InitError(_question(column, name, found))
    return found["positive"], found["negative"], found["unused"]


def _holds_another(value: str, positive: Sequence[str], wanted: Mapping[str, set[str]]) -> bool:
    """Say whether a value that nobody explained names a positive one among several, as in `Mass; Nodule`."""
    parts = {spelling(part) for part in BETWEEN.split(spelling(value))}
    return spelling(value) not in wanted["negative"] and bool(parts & {spelling(one) for one in positive})


def _meaning(value: str, wanted: Mapping[str, set[str]]) -> str:
    if said := next((what for what, named in wanted.items() if value in named), None):
        return said
    if value in UNCERTAIN_WORDS or value.endswith("?"):
        return "unused"
    if wanted["positive"]:
        return "open" if wanted["negative"] else "negative"
    if value in POSITIVE_WORDS:
        return "positive"
    return "negative" if value in NEGATIVE_WORDS and not wanted["negative"] else "open"


def _refuse_what_is_no_label(column: pd.Series, values: Sequence[str], name: str) -> None:
    bars = sorted({part.strip() for value in values if "|" in value for part in value.split("|")})
    if bars:
        raise InitError(
            f"column {name} holds several findings in one cell, separated by bars: {', '.join(bars[:SHOWN_VALUES])}. "
            "Give each finding a column of its own, 1 where it is named and 0 elsewhere; --label then chooses the main "
            f"one. With pandas: table.join(table['{name}'].str.get_dummies('|'))"
        )
    if len(values) > MOST_LABEL_VALUES:
        raise InitError(f"column {name} has {len(values)} different values; it is no label. Choose one with --label")
    if not values:
        raise InitError(f"column {name} is empty; choose the label column with --label")


def _question(column: pd.Series, name: str, found: Mapping[str, list[str]]) -> str:
    missing = [what for what in ("positive", "negative") if not found[what]]
    text = f"values of column {name}: {_shown(column)}. "
    text += f"None of them means {' or '.join(missing)} by itself. " if missing else ""
    telling = [value for value in found["open"] if spelling(value).partition(" ")[0] not in NEGATIONS]
    options = f"--positive {shlex.quote(telling[-1]) if telling else 'VALUE'}"
    return text + (
        f"Say which values are positive with --positive, as in {options}; the others are then negative, but for those "
        "that look like not known (--negative and --unused say otherwise). Each option may be repeated"
    )


def _shown(column: pd.Series) -> str:
    counts = column.value_counts().sort_index()
    rows = [f"{value} ({count})" for value, count in counts.items()]
    return ", ".join(rows[:SHOWN_VALUES]) + (", …" if len(rows) > SHOWN_VALUES else "")


def quoted(values: Sequence[str]) -> str:
    """Return texts as a YAML list, each in quotes."""
    return "[" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + "]"


# ---------------------------------------------------------------- counts


@dataclass(frozen=True)
class LabelCounts:
    """Rows and what they are about, by label: patients where a column names them, else whatever a row is about.

    `by_patient` says which; a patient is positive when any of the rows is. `of_patients`: no column names single
    images beside that of patients, so that a row may speak of several.
    """

    rows: int
    answered: int
    positive_rows: int
    positive: int
    negative: int
    by_patient: bool
    of_patients: bool


def counts(labels: Path, described: Described) -> LabelCounts:
    """Count the labels by the rules of `split`. Raises LabelsError when the file is no table."""
    table = read_table_file(labels)
    label, _ = meanings(table[described.label], described.positive, described.negative, described.unused)
    column = described.joins.get("patient_id") or next(iter(described.joins.values()))
    by_patient = label.groupby(table[column].fillna("").to_numpy()).max().dropna()
    return LabelCounts(
        len(table),
        int(label.notna().sum()),
        int((label == 1).sum()),
        int((by_patient == 1).sum()),
        int((by_patient == 0).sum()),
        "patient_id" in described.joins,
        "patient_id" in described.joins and described.joins.keys().isdisjoint(("path", "sop_instance_uid")),
    )
