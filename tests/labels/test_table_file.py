"""One reader of tables: whatever separator, encoding or type, the same text; and a plain word where it cannot be."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.labels.table_file import encoding_remark, read_table_file
from pipeline.labels.values import LabelsError, meanings, read_labels, spelling

ROWS = "path,who,label\nÄ/1.png, 007 ,1\nb/2.png,8,\nc/3.png,None,0\n"
READ = {"path": ["Ä/1.png", "b/2.png", "c/3.png"], "who": ["007", "8", "None"], "label": ["1", None, "0"]}


def write(tmp_path, data: bytes, name: str = "labels.csv"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separator_encoding_and_line_ends_are_found(tmp_path, encoding, separator, newline):
    text = ROWS.replace(",", separator).replace("\n", newline)
    assert read_table_file(write(tmp_path, text.encode(encoding))).to_dict("list") == READ


@pytest.mark.parametrize(
    "text",
    [
        '"path";"label"\n"a;b.png";"0,5"\n',  # the separator inside quotes, a decimal comma
        "sep=;\npath;label\n" + '"a;b.png";0,5\n',  # Excel's own note
        'path,label,\n"a;b.png","0,5",\n\n  ,\n',  # separators at the end of lines, blank lines
    ],
)
def test_quotes_decimal_commas_and_blank_lines(tmp_path, text):
    assert read_table_file(write(tmp_path, text.encode())).to_dict("list") == {"path": ["a;b.png"], "label": ["0,5"]}


@pytest.mark.parametrize(
    ("cell", "encoding"),
    [
        ("Мюллер", "cp1251"),
        ("Мюллер", "koi8-r"),
        ("阳性", "gb18030"),
        ("陽性", "shift_jis"),
        ("ポジティブ", "shift_jis"),
        ("양성", "euc_kr"),
        ("θετικό", "cp1253"),
    ],
)
def test_letters_of_other_scripts_are_never_taken_for_western_ones(tmp_path, cell, encoding):
    path = write(tmp_path, f"path,label\n1.png,{cell}\n".encode(encoding))
    with pytest.raises(LabelsError, match=r"(?s)neither UTF-8.*CP1251, GB18030, SHIFT_JIS.*iconv -f CP1251"):
        read_table_file(path)


@pytest.mark.parametrize(
    ("encoding", "remark"), [("cp1252", "was read as Windows-1252"), ("utf-8", ""), ("utf-16", "")]
)
def test_a_guess_of_the_encoding_is_told(tmp_path, encoding, remark):
    path = write(tmp_path, "path,label\n1.png,infecção\n2.png,größer – „5 µm“\n".encode(encoding))
    assert read_table_file(path)["label"].tolist() == ["infecção", "größer – „5 µm“"]
    assert remark in encoding_remark(path)
    assert bool(remark) == bool(encoding_remark(path))


def test_a_name_of_a_column_is_one_however_it_is_broken_and_composed(tmp_path):
    path = write(tmp_path, '"Patient\nID ","Gro\u0308\u00dfe  neu"\n1,0\n'.encode())
    assert [*read_table_file(path).columns] == ["Patient ID", "Gr\u00f6\u00dfe neu"]
    assert read_labels(path, ["Gro\u0308\u00dfe neu"]).to_dict("list") == {"Gro\u0308\u00dfe neu": ["0"]}


def test_what_nobody_sees_is_no_part_of_a_column_s_name(tmp_path):
    path = write(tmp_path, "\ufeff\ufeffid\u200b,\ufefflabel\n1,0\n".encode())
    assert read_labels(path, ["id", "label"]).to_dict("list") == {"id": ["1"], "label": ["0"]}


def test_a_cell_may_hold_a_line_end(tmp_path):
    table = read_table_file(write(tmp_path, b'id,note,label\n1,"two\nlines",0\n'))
    assert table["note"].tolist() == ["two\nlines"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf  \n", "is empty"),
        (b"id label\n1 0\n", "header of the label table has a single cell"),
        (b"id,label,label\n1,0,1\n", "1 column name more than once: label; which column is meant"),
        (b"id, label,label \n1,0,1\n", "more than once: label"),
        (b"id,label\n1,0\nMeier,0,1\n2\n", r"2 rows .* more or fewer cells than its header, which has 2 .*line 3, 4"),
        (b'id,label\n1,"Meier\n', "quotation mark is not closed"),
        (b"a,b;c\n1,2;3\n", "read as separated by comma and by semicolon"),
        (b"id,label\n1,\x000\n", "zero bytes"),
        (b"\x89PNG\r\n\x1a\nMeier", "no text"),
        (b"PK\x03\x04Meier", r"\.xlsx or \.ods.*save it as CSV"),
        (b"\xd0\xcf\x11\xe0Meier", r"\.xls\).*save it as CSV"),
        (b"\x1f\x8bMeier", "compressed; unpack it"),
        (b"id,label\n\x81Meier,0\n", "neither UTF-8, UTF-16 nor, it seems, Windows-1252"),
        (b"PAR1Meier", "damaged, or not Parquet"),
        (b'[{"id": "Meier", "label": 0},\n{"id": "Meier", "label": 1}]', "is JSON, not CSV; save it as CSV"),
        (b'{"id": "Meier", "label": 0}\n', "is JSON, not CSV"),
        (b" <table><tr><td>Meier, A</td></tr></table>", "is HTML or XML, not CSV"),
        (b"{\\rtf1 Meier, A\\par}", "is RTF, not CSV"),
        (b"id,label\n", "no row below its header"),
        (b"id,label\nMeier," + b"x" * 200_000 + b"\n", "a cell of more than 131,072 characters near line 2"),
    ],
)
def test_what_is_no_table_is_named_for_what_it_is_and_not_quoted(tmp_path, data, words):
    with pytest.raises(LabelsError, match=words) as error:
        read_table_file(write(tmp_path, data))
    assert "Meier" not in str(error.value)


@pytest.mark.parametrize("name", ["nothing.csv", "nothing.parquet", "nothing.npz", "folder", "folder.parquet"])
def test_a_file_that_cannot_be_read_is_not_named(tmp_path, name):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(LabelsError, match=r"cannot be read: (no such file|is a directory)") as error:
        read_table_file(tmp_path / name)
    assert str(tmp_path) not in str(error.value)


def test_typed_columns_read_as_they_would_stand_in_csv(tmp_path):
    table = pa.table(
        {
            "gaps": pa.array([1.0, None, 0.5]),
            "nan": pa.array([1.0, float("nan"), float("inf")]),
            "large": pa.array([2**53 + 1, None, -1]),
            "flag": pa.array([True, False, None]),
            "word": pa.array([" a ", "", "None"]).dictionary_encode(),
            "exact": pa.array([Decimal("1.50"), Decimal("2.00"), None]),
            "day": pa.array([datetime.date(2020, 1, 2), None, None]),
            "__index_level_0__": pa.array([5, 6, 7]),
        }
    )
    pq.write_table(table, tmp_path / "labels.parquet")
    assert read_table_file(tmp_path / "labels.parquet").to_dict("list") == {
        "gaps": ["1", None, "0.5"],
        "nan": ["1", None, "inf"],
        "large": [str(2**53 + 1), None, "-1"],
        "flag": ["True", "False", None],
        "word": ["a", None, "None"],
        "exact": ["1.5", "2", None],
        "day": ["2020-01-02", None, None],
    }


@pytest.mark.parametrize("values", [[[1, 2]], [{"a": 1}], [b"raw"]])
def test_a_column_that_is_no_text_is_refused_by_name(tmp_path, values):
    pq.write_table(pa.table({"id": ["1"], "odd": values}), tmp_path / "labels.parquet")
    with pytest.raises(LabelsError, match="column odd of the label table holds"):
        read_table_file(tmp_path / "labels.parquet")


def test_a_table_and_its_parquet_copy_are_the_same(tmp_path):
    frame = pd.DataFrame({"id": ["007", "8", "9"], "label": [1.0, np.nan, 0.0], "stage": ["NA", "nan", "null"]})
    frame.to_parquet(tmp_path / "labels.parquet")
    frame.to_csv(tmp_path / "labels.csv", index=False)
    parquet, csv = (read_labels(tmp_path / f"labels.{kind}", ["id", "stage"]) for kind in ("parquet", "csv"))
    assert parquet.to_dict("list") == csv.to_dict("list") == {"id": ["007", "8", "9"], "stage": ["NA", "nan", "null"]}


def test_arrays_with_several_labels_have_a_column_each(tmp_path):
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "several.npz", train_images=images, train_labels=np.array([[1, 0], [0, 0], [1, 1]]))
    table = read_table_file(tmp_path / "several.npz")
    assert table[["label_0", "label_1"]].to_dict("list") == {"label_0": ["1", "0", "1"], "label_1": ["0", "0", "1"]}
    np.savez(tmp_path / "short.npz", train_images=images, train_labels=np.array([1, 0]))
    with pytest.raises(LabelsError, match=r"train_labels of the .npz file has the shape \(2,\); .* holds 3 images"):
        read_table_file(tmp_path / "short.npz")
    np.savez(tmp_path / "none.npz", train_images=images)
    with pytest.raises(LabelsError, match="has no labels"):
        read_table_file(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("1", "1,00"),
        ("-1.0", "-1"),
        ("Malignant", " malignant"),
        ("0.5", "0,50"),
        ("no  finding", "No Finding"),
        ("b\u00f6sartig", "bo\u0308sartig"),
        ("\uff11", "1"),
        ("1\u200b", "1"),
        ("\u22121", "-1"),
    ],
)
def test_spellings_of_one_value(one, other):
    assert spelling(one) == spelling(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1", "10"), ("1", "-1"), ("1", "true"), ("none", ""), ("1.5", "15"), ("1.5", "1")]
)
def test_different_values_stay_different(one, other):
    assert spelling(one) != spelling(other)


def test_a_value_means_what_the_card_says_in_any_spelling():
    column = pd.Series(["1.0", "1", "Benign", "benign", "U", "u", "odd", None])
    label, explained = meanings(column, ["1"], ["benign"], ["U"])
    assert label.astype(object).where(label.notna(), None).tolist() == [1, 1, 0, 0, None, None, None, None]
    assert explained.tolist() == [True] * 6 + [False, True]


def test_a_spelling_that_would_mean_two_things_means_nothing():
    label, explained = meanings(pd.Series(["A", "a", " A".strip().lower() + "", "Ä"]), ["A"], ["a"])
    assert label.tolist()[:2] == [1, 0]
    assert explained.tolist() == [True, True, True, False]
    label, explained = meanings(pd.Series(["1.0"]), ["1"], ["01"])
    assert not explained.any()
