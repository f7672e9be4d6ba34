"""CSV cells that a spreadsheet program would run."""

import csv
import io
import math

import pytest

from pipeline.reporting.spreadsheet import cell, csv_text


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1", "＝1+1", " =1+1", "=cmd|'/C calc'!A0"]
)
def test_formulas_become_text(text):
    assert cell(text).lstrip()[0] == "'"
    assert cell(text).replace("'", "", 1) == text


@pytest.mark.parametrize("text", ["12", "-0.5", "+3", "1e-05", "-1.5E+3", ".5"])
def test_numbers_stay_numbers(text):
    assert cell(text) == text


@pytest.mark.parametrize("text", ["95.3 % (92.1–97.6 %)", "a = b", "−0.5 (−1.0 to 0.2)", "x@example.org", "a-b", ""])
def test_other_text_is_untouched(text):
    assert cell(text) == text


def test_a_formula_after_a_foreign_separator_is_text_too():
    assert cell("a;=1+1;b") == "a;'=1+1;b"


def test_a_table_comes_back_as_it_was():
    rows = [["a, b", 'say "x"', 1, 0.25], [None, math.nan, -3, "line\nbreak"]]
    read = list(csv.reader(io.StringIO(csv_text(["p", "q", "r", "s"], rows))))
    assert read == [["p", "q", "r", "s"], ["a, b", 'say "x"', "1", "0.25"], ["", "", "-3", "line\nbreak"]]
