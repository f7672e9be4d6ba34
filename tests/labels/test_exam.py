"""Views and sides by image, whom to believe, and what an examination lacks."""

import pandas as pd
import pytest

from pipeline.labels.exam import completeness, exams_digest, named_exams, sentence, told_apart
from pipeline.labels.identity import row_pseudonym
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError

SECRET = b"\1" * 32
COLUMNS = {"path": "file", "view": "view", "laterality": "eye"}
RULE = PathRule()


@pytest.fixture
def table(tmp_path):
    def write(*rows: str):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(["file,view,eye", *rows]) + "\n")
        return path

    return write


def test_sides_are_read_however_people_write_them(table):
    said = named_exams(table("a.png,cc,OD", "b.png,MLO,left", "c.png,,L", "d.png,mlo,"), COLUMNS, "path", RULE)
    assert said.to_dict("index") == {
        "a.png": {"view": "CC", "laterality": "R"},
        "b.png": {"view": "MLO", "laterality": "L"},
        "c.png": {"view": "", "laterality": "L"},
        "d.png": {"view": "MLO", "laterality": ""},
    }


def test_every_problem_of_the_table_is_named_with_its_count(table):
    path = table("a.png,CC,upper", "b.png,sideways,L", "b.png,CC,R")
    with pytest.raises(LabelsError) as error:
        named_exams(path, COLUMNS, "path", RULE)
    text = str(error.value)
    assert "1 row has a value in column view that is not a view position of DICOM" in text
    assert "1 row has a value in column eye that is not L, R, left, right, OD or OS" in text
    assert "1 image has several values in column eye" in text
    assert "upper" not in text


def settled(header: list[tuple[str, str]], said: list[tuple[str, str]], exam_from: str | None = None):
    names = [f"{n}.png" for n in range(len(header))]
    images = pd.DataFrame(header, columns=["view", "laterality"]).assign(image_id=names)
    row_ids = pd.Series([row_pseudonym(SECRET, "path", name) for name in names], index=names)
    table = pd.DataFrame(said, index=names, columns=["view", "laterality"])
    found, differing = told_apart(images, row_ids, table, "path", exam_from, SECRET)
    return list(zip(found["view"], found["laterality"], strict=True)), differing.to_dict()


def test_the_table_fills_in_and_what_differs_is_named():
    header = [("CC", ""), ("MLO", "L"), ("MLO", "L"), ("CC", "R")]
    said = [("", "L"), ("MLO", "L"), ("CC", "R"), ("", "L")]
    found, differing = settled(header, said)
    assert found[:2] == [("CC", "L"), ("MLO", "L")]
    assert differing == {"2.png": "view and laterality", "3.png": "laterality"}
    assert settled(header, said, "table") == ([("CC", "L"), ("MLO", "L"), ("CC", "R"), ("CC", "L")], {})
    assert settled(header, said, "header") == ([("CC", "L"), ("MLO", "L"), ("MLO", "L"), ("CC", "R")], {})


def test_what_patients_lack_is_counted_by_place():
    rows = [("a", "CC", "L"), ("a", "CC", "R"), ("a", "MLO", "B"), ("b", "CC", "L"), ("b", "", "R"), ("b", "ML", "L")]
    images = pd.DataFrame(rows, columns=["patient_id", "view", "laterality"])
    found = completeness(images, {"views": ["CC", "MLO"], "sides": ["L", "R"]})
    assert (found["patients"], found["complete"], found["elsewhere"]) == (2, 1, 2)
    assert found["lacking"] == {"CC L": 0, "CC R": 1, "MLO L": 1, "MLO R": 1}
    assert found["images"] == {"CC L": 2, "CC R": 1, "MLO L": 1, "MLO R": 1}
    assert sentence(found) == (
        "1 of 2 patients has all of CC L, CC R, MLO L, MLO R; missing: CC R in 1, MLO L in 1, MLO R in 1; "
        "2 images are none of these, or do not say"
    )
    assert list(completeness(images, {"views": [], "sides": ["L", "R"]})["lacking"].values()) == [0, 0]
    assert completeness(images.iloc[:0], {"views": ["CC"], "sides": []})["patients"] == 0


def test_the_digest_follows_views_and_sides_and_whom_to_believe_and_nothing_else(table):
    first = exams_digest(table("a.png,CC,L", "b.png,CC,R"), COLUMNS, "path", RULE)
    assert exams_digest(table("b.png,CC,right", "a.png,cc,L"), COLUMNS, "path", RULE) == first
    assert exams_digest(table("a.png,CC,R", "b.png,CC,R"), COLUMNS, "path", RULE) != first
    assert exams_digest(table("a.png,CC,L", "b.png,CC,R"), COLUMNS | {"exam_from": "table"}, "path", RULE) != first
