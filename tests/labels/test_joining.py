"""Identifiers that are written otherwise, and rows that contradict each other."""

import pandas as pd
import pytest

from pipeline.imaging.pseudonyms import patient_pseudonym
from pipeline.labels.joining import COLUMNS, better_spelling, contradicting_rows, row_keys, spellings, why_unmatched
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError

SECRET = b"k" * 32


@pytest.mark.parametrize(
    ("table", "header", "ignored"),
    [
        ("7", "007", "leading_zeros"),
        ("007", "7", "leading_zeros"),
        ("P7", "P0007", "leading_zeros"),
        ("S-007", "S-7", "leading_zeros"),
        ("0", "000", "leading_zeros"),
        ("7.0", "7", "decimals"),
        ("abc", "ABC", "case"),
        ("P-0_7", "P07", "punctuation"),
    ],
)
def test_what_is_ignored_makes_them_one(table, header, ignored):
    assert header in spellings(table, [ignored])
    assert header not in spellings(table, [other for other in ("case", "decimals") if other != ignored])


def present(*patients: str) -> dict[str, set[str]]:
    return {
        join: {patient_pseudonym(SECRET, p) for p in patients} if join == "patient_id" else set() for join in COLUMNS
    }


def keys(values: list[str], *patients: str, ignore: tuple[str, ...] = ()) -> pd.Series:
    return row_keys(pd.Series(values), "patient_id", SECRET, present(*patients)["patient_id"], PathRule(), ignore)


def test_an_exact_match_comes_first():
    found = keys(["7", "007"], "7", "007", ignore=("leading_zeros",))
    assert found.tolist() == [patient_pseudonym(SECRET, "7"), patient_pseudonym(SECRET, "007")]


@pytest.mark.parametrize(("table", "headers"), [(["7"], ["07", "007"]), (["7", "07"], ["007"])])
def test_nobody_becomes_somebody_else(table, headers):
    with pytest.raises(LabelsError, match="makes different patients one"):
        keys(table, *headers, ignore=("leading_zeros",))


def test_few_that_would_match_are_mentioned_and_many_stop_the_run():
    patients = [f"{n:03d}" for n in range(100, 200)] + [f"{n:03d}" for n in range(10)]
    for lost, stops in ((2, False), (10, True)):
        values = pd.Series([f"{n}" for n in range(100, 200)] + [f"{n}" for n in range(lost)])
        there = present(*patients)
        said, stop = why_unmatched(values, keys([*values], *patients), "patient_id", "who", SECRET, there)
        assert f"{lost} more would be with columns.id_ignore: [leading_zeros]" in said
        assert stop is stops


def test_numbers_that_chance_makes_somebody_elses_are_not_proposed():
    """`0001_1` is the first visit of patient 0001, not patient 0011."""
    patients = [f"{n:04d}" for n in range(40)]
    values = pd.Series([f"{patient}_1" for patient in patients])
    said, stop = why_unmatched(values, keys([*values], *patients), "patient_id", "who", SECRET, present(*patients))
    assert "id_ignore" not in said
    assert "0 of 40 labelled rows" in said
    assert stop
    assert better_spelling(values, SECRET, present(*patients)["patient_id"]) == ((), 0)


@pytest.mark.parametrize("shortened", ["1.23457E+10", "1,2E+11", "3e+12"])
def test_numbers_that_a_spreadsheet_shortened_are_nobodys(shortened):
    with pytest.raises(LabelsError, match=r"2 identifiers in column who .* are numbers that a spreadsheet has"):
        row_keys(pd.Series([shortened, "7", shortened], name="who"), "patient_id", SECRET, set(), PathRule(), ())
    row_keys(pd.Series(["12E3", "E+7", "1.5"], name="who"), "patient_id", SECRET, set(), PathRule(), ())


def rows(*content: tuple[str, ...], columns: str = "who side label") -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    table = pd.DataFrame(content, columns=columns.split())
    return table, table["who"], table["label"].astype(int)


@pytest.mark.parametrize(
    ("table", "differ"),
    [
        (rows(("a", "L", "1"), ("a", "R", "0"), ("b", "L", "0"), ("b", "R", "0")), "; these differ in side"),
        (rows(("a", "L", "1"), ("a", "L", "0"), ("b", "L", "0"), ("b", "R", "0")), ""),
    ],
)
def test_the_columns_that_tell_rows_apart_are_named(table, differ):
    whole, who, label = table
    said = contradicting_rows(lambda: whole, who, label, "patient_id")
    assert said.startswith(f"1 patient has contradicting labels in several rows{differ}.")
    assert "label," not in said


def test_equal_rows_contradict_nothing():
    whole, who, label = rows(("a", "L", "1"), ("a", "R", "1"), ("b", "L", "0"))
    assert contradicting_rows(lambda: whole, who, label, "patient_id") == ""
