"""Which images the rows of a label table are about, and what to say when they are about none."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations

import pandas as pd

from pipeline.imaging.identifiers import KINDS
from pipeline.imaging.pseudonyms import patient_pseudonym
from pipeline.labels.identity import row_pseudonym
from pipeline.labels.path_rules import SHARE_TO_STOP, PathRule
from pipeline.labels.values import LabelsError, refuse_shortened
from pipeline.store.wording import counted

# The pseudonym that rows are joined by, and what it is of, per way of joining.
COLUMNS = {
    "path": "source_id",
    "sop_instance_uid": "image_id",
    "series_instance_uid": "series_id",
    "study_instance_uid": "study_id",
    "patient_id": "patient_id",
}
THINGS = {
    "path": ("image", "images"),
    "sop_instance_uid": ("image", "images"),
    "series_instance_uid": ("series", "series"),
    "study_instance_uid": ("study", "studies"),
    "patient_id": ("patient", "patients"),
}
IGNORED = ("leading_zeros", "decimals", "case", "punctuation")
LONGEST_NUMBER = 16
# So many values are enough to see why they do not match.
VALUES_LOOKED_AT = 2000
MOST_LABEL_VALUES = 20
# Fewer matches than this are chance; see `better_spelling`.
SHARE_ALIKE = 0.5
NUMBERED = re.compile(r"(.*?\D)?0*(\d+)")


def translate(value: str, join: str, secret: bytes, rule: PathRule) -> str:
    """Return the pseudonym of what a row is about."""
    if join == "patient_id":
        return patient_pseudonym(secret, value)
    return row_pseudonym(secret, join, rule.of_row(value) if join == "path" else value)


def row_keys(
    values: pd.Series, join: str, secret: bytes, present: Collection[str], rule: PathRule, ignore: Sequence[str]
) -> pd.Series:
    """Return the pseudonym of what each row is about; `present` are those that there are in the archive.

    With `ignore`, an identifier of a patient that is not in the archive stands for the one that differs in nothing
    else. Raises LabelsError when that is not one, when two identifiers of the table become the same, or when a
    spreadsheet has shortened them.
    """
    if join == "patient_id":
        refuse_shortened(values)
    keys = values.map(lambda value: translate(value, join, secret, rule))
    if not ignore or join != "patient_id":
        return keys
    known, lost = set(present), values[~keys.isin(present)].unique()
    found = {value: known & {patient_pseudonym(secret, other) for other in spellings(value, ignore)} for value in lost}
    ambiguous = sum(len(others) > 1 for others in found.values())
    again = values.map({value: next(iter(others)) for value, others in found.items() if len(others) == 1})
    keys = again.where(again.notna(), keys)
    merged = int((values.groupby(keys.to_numpy()).nunique() > 1).sum())
    if ambiguous or merged:
        raise LabelsError(
            f"columns.id_ignore [{', '.join(ignore)}] makes different patients one: "
            f"{counted(ambiguous, 'identifier of the table fits', 'identifiers of the table fit')} several of the "
            f"headers, {merged} of the headers several of the table; take it off the dataset card"
        )
    return keys


def spellings(value: str, ignore: Collection[str]) -> set[str]:
    """Return the identifiers that differ from this one in nothing but what is ignored."""
    found = {value}
    if "decimals" in ignore:
        found |= {re.sub(r"\.0+$", "", one) for one in found}
    if "punctuation" in ignore:
        found |= {re.sub(r"[\W_]+", "", one) for one in found}
    if "case" in ignore:
        found |= {change(one) for one in found for change in (str.upper, str.lower, str.title)}
    if "leading_zeros" in ignore:
        for one in list(found):
            if number := NUMBERED.fullmatch(one):
                front, digits = number[1] or "", number[2]
                found |= {front + digits.zfill(width) for width in range(len(digits), LONGEST_NUMBER + 1)}
    return found


def why_unmatched(
    values: pd.Series, keys: pd.Series, join: str, column: str, secret: bytes, present: Mapping[str, Collection[str]]
) -> tuple[str, bool]:
    """Return what to say of rows that are about nothing in the archive, and whether the run must stop for it.

    `values` and `keys` are those of the labelled rows; `present` has the pseudonyms in the archive per way of joining.
    """
    matched = keys.isin(present[join])
    about = "is" if matched.sum() == 1 else "are"
    rows = f"{int(matched.sum())} of {counted(len(values), 'labelled row')} {about}"
    said = f"{rows} about {THINGS[join][1]} of the archive, by column {column}"
    lost = values[~matched]
    if lost.empty:
        return "", False
    if join == "patient_id":
        ignore, would = better_spelling(lost, secret, {*present[join]} - {*keys})
        if would:
            more = " more" if matched.any() else ""
            advice = f"{would}{more} would be with columns.id_ignore: [{', '.join(ignore)}] in the dataset card"
            return f"{said}; {advice}", bool(would >= SHARE_TO_STOP * len(values) or not matched.any())
    if matched.any():
        return "", False
    other, would = _other_join(lost, join, secret, present)
    if would:
        return f"{said}; {would} would be with columns.{other}: {column} in the dataset card instead", True
    return (
        f"{said}. A value of that column looks like {_form(lost)} (letters shown as a or A, digits as 9); see which "
        f"column the card names as {join}, and whether labels and studies belong together",
        True,
    )


def better_spelling(lost: pd.Series, secret: bytes, known: Collection[str]) -> tuple[tuple[str, ...], int]:
    """Return what to ignore so that most of the identifiers are known, the least that does, and how many rows gain.

    `known` are pseudonyms of patients under `secret` that no row is about. Where fewer are gained than SHARE_ALIKE of
    the identifiers on the side that has fewer, they are written in another way, and such matches are chance: some of
    `0001_1`, `0002_1`, … would become other people's numbers.
    """

    def gained(some: pd.Series, ignore: Sequence[str]) -> int:
        return sum(any(patient_pseudonym(secret, one) in known for one in spellings(value, ignore)) for value in some)

    sample = lost.drop_duplicates()[:VALUES_LOOKED_AT]
    most = gained(sample, IGNORED)
    if most < max(1, SHARE_ALIKE * min(len(sample), len(known))):
        return (), 0
    ignore = next(one for one in _choices() if gained(sample, one) == most)
    return ignore, gained(lost, ignore)


def _choices() -> Iterator[tuple[str, ...]]:
    for count in range(1, len(IGNORED) + 1):
        yield from combinations(IGNORED, count)


def _other_join(lost: pd.Series, join: str, secret: bytes, present: Mapping[str, Collection[str]]) -> tuple[str, int]:
    """Return the way of joining by which most of the values are known, and of how many."""
    counts = {
        other: int(lost.map(lambda value, kind=other: translate(value, kind, secret, PathRule())).isin(known).sum())
        for other, known in present.items()
        if other != join and (other in KINDS or other in ("path", "patient_id"))
    }
    best = max(counts, key=lambda other: counts[other])
    return best, counts[best]


def _form(values: pd.Series) -> str:
    """Return what most values look like, every letter and digit hidden."""
    forms = values[:VALUES_LOOKED_AT].map(lambda text: re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", text)))
    return str(forms.value_counts().index[0])[:80]


# ---------------------------------------------------------------- several rows about one thing


def contradicting_rows(whole: Callable[[], pd.DataFrame], keys: pd.Series, label: pd.Series, join: str) -> str:
    """Return what to say of rows about one thing that have different labels; nothing when there are none.

    `keys` and `label` (0 or 1) are of the labelled rows; `whole` reads the whole table, to see what tells them apart.
    """
    counts = label.groupby(keys.to_numpy()).nunique()
    contradicting = counts.index[counts > 1]
    if not len(contradicting):
        return ""
    telling = _telling_columns(whole().loc[keys.index], keys, label, keys.isin(contradicting))
    one, several = THINGS[join]
    said = f"{counted(len(contradicting), f'{one} has', f'{several} have')} contradicting labels in several rows"
    if telling:
        said += f"; these differ in {', '.join(telling)}"
        if join in ("patient_id", "study_instance_uid", "series_instance_uid"):
            said += (
                ". If that says which image or study a row is about, name it in the card as columns.path, "
                "sop_instance_uid, series_instance_uid or study_instance_uid"
            )
    return f"{said}. If one positive row makes the {one} positive, say columns.several_rows: any_positive"


def _telling_columns(table: pd.DataFrame, keys: pd.Series, label: pd.Series, own: pd.Series) -> list[str]:
    """Return the columns by which rows of one key with different labels can be told apart, the coarsest first.

    A column with few values, each of which has one label everywhere, is another writing of the label.
    """
    found: dict[str, int] = {}
    for name in table.columns:
        values = table[name].astype(str).to_numpy()
        different = len(set(values))
        if different <= MOST_LABEL_VALUES and (label.groupby(values).nunique() == 1).all():
            continue
        if (label[own].groupby([keys[own].to_numpy(), values[own]]).nunique() == 1).all():
            found[str(name)] = different
    return sorted(found, key=lambda name: found[name])
