"""The label table: text in, text out, and no cell in a message."""

import pandas as pd
import pytest

from pipeline.labels.values import LabelsError, read_labels


def write(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding)
    return path


def test_numbers_words_and_blanks_stay_what_they_are(tmp_path):
    path = write(tmp_path, "id,label,more\n 007 ,NA,x\n8,,y\n,,\n9,None,\n", "utf-8-sig")
    table = read_labels(path, ["id", "label"])
    assert table["id"].tolist() == ["007", "8", "9"]
    assert table["label"].dropna().tolist() == ["NA", "None"]


def test_the_same_table_in_parquet(tmp_path):
    pd.DataFrame({"id": ["a", "b", "c"], "label": [1.0, None, 0.0]}).to_parquet(tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet", ["label", "id"])["label"].tolist()[::2] == ["1", "0"]


def test_a_missing_column_names_those_there_are(tmp_path):
    with pytest.raises(LabelsError, match=r"no column finding, label, named in the card; its columns: id, x"):
        read_labels(write(tmp_path, "id,x\nMeier,1\n"), ["id", "finding", "label"])


@pytest.mark.parametrize("content", [b"a,b\n1,2,3,Meier\n", b'"Meier', b"\xff\xfe\x00Meier"])
def test_a_file_that_is_no_table_is_not_quoted(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(LabelsError) as error:
        read_labels(path, ["a", "b"])
    assert "Meier" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
