"""Labels join by pseudonym; a table that is not clear stops with counts, never with a patient's cell."""

import pandas as pd
import pytest

from pipeline.imaging.labels import LabelsError, patients_by_path, patients_digest, read_labels
from pipeline.imaging.pseudonyms import path_pseudonym, patient_pseudonym

SECRET = b"k" * 32
VALUES = {"ill": 1, "well": 0}


def write(tmp_path, text: str):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_rows_join_by_the_pseudonym_of_what_they_are_about(tmp_path):
    path = write(tmp_path, "file,finding\na/1.dcm,ill\na/2.dcm, well \nb.dcm,\n")
    labels = read_labels(path, "path", "file", "finding", VALUES, SECRET)
    assert labels.joined_to == "source_id"
    assert labels.table["key"].tolist() == [path_pseudonym(SECRET, p) for p in ("a/1.dcm", "a/2.dcm", "b.dcm")]
    assert labels.table["label"].tolist()[:2] == [1, 0]
    assert pd.isna(labels.table["label"][2])


def test_patients_join_whatever_blanks_surround_their_number(tmp_path):
    path = write(tmp_path, "patient,finding\n 007 ,ill\n")
    labels = read_labels(path, "patient_id", "patient", "finding", VALUES, SECRET)
    assert labels.table["key"].tolist() == [patient_pseudonym(SECRET, "007")]


def test_the_same_table_in_parquet(tmp_path):
    pd.DataFrame({"file": ["a"], "finding": ["ill"]}).to_parquet(tmp_path / "labels.parquet")
    labels = read_labels(tmp_path / "labels.parquet", "path", "file", "finding", VALUES, SECRET)
    assert labels.table["label"].tolist() == [1]


def test_every_problem_is_counted_and_no_cell_is_quoted(tmp_path):
    path = write(tmp_path, "patient,finding\nMeier,ill\nMeier,well\n,ill\nHuber,sick\n")
    with pytest.raises(LabelsError) as error:
        read_labels(path, "patient_id", "patient", "finding", VALUES, SECRET)
    message = str(error.value)
    assert "1 rows have no patient" in message
    assert "1 rows have a finding that the card does not list; it lists ill, well" in message
    assert "1 values of patient have more than one finding" in message
    assert not any(cell in message for cell in ("Meier", "Huber", "sick"))


def test_a_missing_column_names_those_there_are(tmp_path):
    path = write(tmp_path, "patient,finding\n1,ill\n")
    with pytest.raises(LabelsError, match="no column label; it has patient, finding"):
        read_labels(path, "patient_id", "patient", "label", VALUES, SECRET)


def test_repeated_equal_rows_are_one(tmp_path):
    path = write(tmp_path, "patient,finding\n1,ill\n1,ill\n")
    assert len(read_labels(path, "patient_id", "patient", "finding", VALUES, SECRET).table) == 1


def test_a_corrected_label_leaves_the_patients_digest_alone(tmp_path):
    before = patients_digest(write(tmp_path, "path,patient,label\na,1,ill\nb,2,well\n"), "path", "patient")
    assert patients_digest(write(tmp_path, "path,patient,label\nb,2,ill\na,1,ill\n"), "path", "patient") == before
    assert patients_digest(write(tmp_path, "path,patient,label\na,2,ill\nb,2,well\n"), "path", "patient") != before


def test_a_path_of_two_patients_is_refused(tmp_path):
    path = write(tmp_path, "path,patient\na,1\na,2\n")
    with pytest.raises(LabelsError, match="1 paths are given to more than one patient"):
        patients_by_path(path, "path", "patient")
