"""Whose image it is: table and header, what goes with whom, and what one person cannot be."""

from typing import Any

import pandas as pd
import pytest

from pipeline.imaging.pseudonyms import day_shift, path_pseudonym, patient_pseudonym
from pipeline.labels.identity import Findings, Named, decide, named_patients, objection, patients_digest, placeholder
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError

SECRET = b"k" * 32
WORDS = ("ANONYMOUS", "anonymous^", "Anonymized", "UNKNOWN", "n/a", "NONE", "Test", "xxx", "?", "---", "Patient ID")


def somebody(name: str) -> str:
    return patient_pseudonym(SECRET, name) if name else ""


def facts(*files: dict[str, Any]) -> pd.DataFrame:
    """Return a row per file; `header` and `study` are as somebody wrote them, days are true ones."""
    rows = []
    for n, file in enumerate(files):
        header = somebody(file.get("header", ""))
        day = file.get("day")
        rows.append(
            {
                "source_id": f"s{n}",
                "row_id": path_pseudonym(SECRET, file.get("path", f"{n}")),
                "header_patient": header,
                "patient_id": header,
                "placeholder": placeholder(file.get("header", "P"), SECRET),
                "part_of": file.get("part_of", ""),
                "study_id": file.get("study", f"study{n}"),
                "format": "dicom",
                "sex": file.get("sex", ""),
                "age_years": file.get("age"),
                "shifted_day": None if day is None else day - day_shift(SECRET, header),
            }
        )
    return pd.DataFrame(rows)


def named(**patients: str) -> Named:
    return named_patients({name.lstrip("_"): patient for name, patient in patients.items()}, "path", SECRET)


def decided(files: pd.DataFrame, by: Named, patient_from: str | None = None) -> tuple[list[str], Findings]:
    patients, findings = decide(files, by, patient_from, SECRET)
    return patients.tolist(), findings


def test_what_agrees_has_the_same_pseudonym_from_either():
    files = facts({"header": "A"}, {"header": "B"})
    for patient_from in (None, "table", "header"):
        patients, findings = decided(files, named(_0="A", _1="B"), patient_from)
        assert patients == [somebody("A"), somebody("B")]
        assert findings.files_disagreeing == 0


def test_the_table_decides_and_what_it_does_not_name_goes_with_study_volume_or_header():
    files = facts(
        {"header": "H1", "study": "one"},
        {"header": "H9", "study": "one"},
        {"header": "H1"},
        {"header": "H2", "part_of": "v"},
        {"header": "", "part_of": "v"},
        {"header": "H3"},
        {"header": ""},
    )
    patients, findings = decided(files, named(_0="A", _3="B"))
    assert patients == [somebody(name) for name in ("A", "A", "A", "B", "B", "H3", "")]
    assert findings.files_disagreeing == 0


def test_a_header_that_the_table_divides_names_nobody_else():
    files = facts({"header": "H"}, {"header": "H"}, {"header": "H"})
    patients, findings = decided(files, named(_0="A", _1="B"), "table")
    assert patients == [somebody("A"), somebody("B"), ""]
    assert (findings.header_ids_with_several_table_patients, findings.undecided) == (1, 1)
    assert decided(files, named(_0="A", _1="B"), "header")[0] == [somebody("H")] * 3


@pytest.mark.parametrize(("table", "headers"), [("AA", "12"), ("AB", "11")])
def test_a_disagreement_stops_until_somebody_is_believed(table, headers):
    files = facts({"header": headers[0]}, {"header": headers[1]})
    _, findings = decided(files, named(_0=table[0], _1=table[1]))
    assert findings.files_disagreeing == 2
    assert "columns.patient_from: table" in objection(findings, None)
    assert objection(findings, "table") == objection(findings, "header") == ""


@pytest.mark.parametrize("word", WORDS)
def test_a_placeholder_of_several_studies_is_nobody_and_of_one_somebody(word):
    several = facts({"header": word}, {"header": word}, {"header": "P1"})
    assert decided(several, Named())[0] == ["", "", somebody("P1")]
    assert decided(several, Named(), "header")[0] == [somebody(word)] * 2 + [somebody("P1")]
    one = facts({"header": word, "study": "one"}, {"header": word, "study": "one"})
    assert decided(one, Named())[0] == [somebody(word)] * 2


@pytest.mark.parametrize("name", ["P1", "X12", "TESTER", "anna", "10", "Nanette"])
def test_an_identifier_is_no_placeholder(name):
    assert placeholder(name, SECRET) == ""


@pytest.mark.parametrize(("others", "expected"), [((), ""), (("0001", "0002"), "0000"), (("1234",), "")])
def test_zeros_are_somebody_where_numbers_follow(others, expected):
    files = facts({"header": "0000"}, {"header": "0000"}, *({"header": other} for other in others))
    assert decided(files, Named())[0][0] == somebody(expected)


def test_a_placeholder_in_the_table_names_nobody_either():
    by = named(_0="unknown", _1="unknown", _2="A")
    files = facts({"header": "H0"}, {"header": "H1"}, {"header": "H2"})
    assert decided(files, by)[0] == [somebody("H0"), somebody("H1"), somebody("A")]
    assert by.unsaid == 2


def test_both_sexes_or_ages_apart_are_not_one_person():
    well = [
        {"header": f"P{n}", "day": 700_000 + 365 * k, "age": 50 + k, "sex": "F"} for n in range(4) for k in range(2)
    ]
    assert decided(facts(*well), Named())[1].patients_of_contradicting_ages == 0
    older = [{**file, "age": 50 + 30 * (n % 2), "sex": "FM"[n % 2]} for n, file in enumerate(well)]
    findings = decided(facts(*older), Named())[1]
    assert (findings.patients_of_several_sexes, findings.patients_of_contradicting_ages) == (4, 4)
    assert "4 patients are of both sexes by the headers (of 4 with several studies)" in objection(findings, None)


def test_a_typing_error_among_many_stops_nothing():
    files = [{"header": f"P{n}", "sex": "M" if (n, k) == (3, 1) else "F"} for n in range(40) for k in range(2)]
    findings = decided(facts(*files), Named())[1]
    assert findings.patients_of_several_sexes == 1
    assert objection(findings, None) == ""


def test_one_identifier_for_most_studies_is_nobodys():
    findings = decided(facts(*({"header": "SITE-A" if n < 30 else f"P{n}"} for n in range(40))), Named())[1]
    assert findings.patients_of_implausibly_many_studies == 1
    assert "more than half of all studies" in objection(findings, None)


def write(tmp_path, text: str):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def digest(path, **columns: Any) -> str:
    chosen = {"join": "path", "column": "path", "patient_column": "patient", "patient_from": None, "rule": PathRule()}
    return patients_digest(path, **(chosen | columns))


def test_a_corrected_label_leaves_the_patients_digest_alone(tmp_path):
    before = digest(write(tmp_path, "path,patient,label\na,1,ill\nb,2,well\n"))
    assert digest(write(tmp_path, "path,patient,label\nb,2,ill\n./a,1,ill\n")) == before
    assert digest(tmp_path / "labels.csv", patient_from="table") != before
    assert digest(write(tmp_path, "path,patient,label\na,2,ill\nb,2,well\n")) != before


@pytest.mark.parametrize(
    ("join", "what"), [("path", "path"), ("sop_instance_uid", "image"), ("study_instance_uid", "study")]
)
def test_what_has_two_patients_is_refused(tmp_path, join, what):
    path = write(tmp_path, "path,patient\na,Meier\na,Huber\nb,Meier\n")
    with pytest.raises(LabelsError, match=f"1 {what} of the label table has more than one patient") as error:
        digest(path, join=join)
    assert "Meier" not in str(error.value)
