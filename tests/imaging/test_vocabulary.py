"""What may leave a header: known answers of the closed lists, ages and dates."""

from datetime import date

import pytest

from pipeline.imaging import vocabulary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SIEMENS", "Siemens"),
        ("GE Medical Systems", "GE"),
        ("GE", "GE"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("Agent Smith", "OTHER"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_manufacturers(text, expected):
    assert vocabulary.manufacturer(text) == expected


def test_unknown_terms_become_other_or_nothing():
    assert vocabulary.modality("dx") == "DX"
    assert vocabulary.modality("Erika") == "OTHER"
    assert vocabulary.body_part("c spine") == "CSPINE"
    assert vocabulary.body_part("Erika") == "OTHER"
    assert (vocabulary.view("AP "), vocabulary.view("Erika"), vocabulary.view("")) == ("AP", "", "")
    assert (vocabulary.sex("f"), vocabulary.sex("X"), vocabulary.laterality("R")) == ("F", "", "R")
    assert (vocabulary.sex("Male"), vocabulary.sex("FEMALE"), vocabulary.laterality("left ")) == ("M", "F", "L")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20150310", date(2015, 3, 10)), ("2015.03.10", date(2015, 3, 10)), ("20150230", None), ("Erika", None)],
)
def test_dates(text, expected):
    assert vocabulary.day(text) == expected


@pytest.mark.parametrize(
    ("age", "born", "studied", "expected"),
    [
        ("004Y", None, None, 4.0),
        ("018M", None, None, 1.0),
        ("006M", None, None, 0.5),
        ("003W", None, None, 0.0),
        ("089Y", None, None, 89.0),
        ("090Y", None, None, 90.0),
        ("104Y", None, None, 90.0),
        ("", date(2010, 6, 2), date(2015, 6, 1), 4.0),
        ("", date(2010, 6, 1), date(2015, 6, 2), 5.0),
        ("", date(1900, 1, 1), date(2015, 6, 1), 90.0),
        ("", date(2016, 1, 1), date(2015, 6, 1), None),
        ("Erika", None, None, None),
        ("", None, date(2015, 6, 1), None),
    ],
)
def test_ages_are_whole_years_and_capped(age, born, studied, expected):
    assert vocabulary.age_years(age, born, studied) == expected
