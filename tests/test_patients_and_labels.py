"""From a folder and a label table to the split, or to the message that says what to change: by the command line."""

import csv
import io
import json
import os
import re
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from imaging.files import make_dicom
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app

PEOPLE = 60
WIDE = {ord("0") + digit: chr(ord("\uff10") + digit) for digit in range(10)}
SETTINGS = {
    "project": "folder",
    "reports": "reports",
    "machine": {"workers": 1},
    "ingest": {"min_side": 16, "near_duplicates": False},
    "split": {"fractions": {"train": 0.4, "tune": 0.2, "calibration": 0.2, "test": 0.2}},
    "report": {"title": "t"},
}
CARD = {
    **dict.fromkeys(("title", "source", "licence", "attribution"), "not stated"),
    "name": "folder",
    "identifiers": "real",
    "intended_use": dict.fromkeys(("condition", "population", "user", "place"), "not stated"),
    "label": {
        **dict.fromkeys(("name", "definition", "reference_standard"), "not stated"),
        "positive": ["1"],
        "negative": ["0"],
    },
}
Row = dict[str, Any]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16)).astype(np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def dicom(number: int, **elements: Any) -> bytes:
    uids = {
        "SOPInstanceUID": f"2.25.1{number}",
        "SeriesInstanceUID": f"2.25.2{number}",
        "StudyInstanceUID": f"2.25.3{number}",
    }
    return make_dicom(pixels(number), **{**uids, "PatientID": f"P{number}", **elements})


@dataclass
class Folder:
    """Studies, a label table and a card in one folder; `store` is shared, since making its database takes seconds."""

    path: Path
    store: Path
    columns: dict[str, Any]
    rows: list[Row]
    studies: str = "studies"
    encoding: str = "utf-8"
    keys: dict[str, str] = field(default_factory=dict)

    def run(self, *overrides: str, **columns: Any) -> Any:
        """Run to the split; return the answer with `exit_code`, `stdout` and `stderr`."""
        card, config = {**CARD, "columns": {**self.columns, **columns}}, self.path / "config.yaml"
        (self.path / "card.yaml").write_text(yaml.safe_dump(card))
        data = {"studies": [self.studies], "labels": "labels.csv", "card": "card.yaml", "key_file": "keys/secret"}
        config.write_text(yaml.safe_dump({**SETTINGS, "store": str(self.store), "data": data}))
        key = self.path / "keys" / "secret"
        key.parent.mkdir(exist_ok=True)
        key.write_text("5e" * 32)
        key.chmod(0o600)
        with (self.path / "labels.csv").open("w", newline="", encoding=self.encoding) as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        result = CliRunner().invoke(app, ["run", str(config), "--until", "split", *overrides])
        self.keys = dict(re.findall(r"^(ingest|split) +([0-9a-f]{16}) ", result.output, re.MULTILINE))
        return result

    def split(self, *overrides: str, **columns: Any) -> pd.DataFrame:
        """Return the split of a run that must succeed."""
        result = self.run(*overrides, **columns)
        assert result.exit_code == 0, result.stderr
        return pd.read_parquet(self.artifact("split") / "split.parquet")

    def refused(self, *overrides: str, **columns: Any) -> str:
        """Return the message of a run that must stop, and never says what is not true."""
        result = self.run(*overrides, **columns)
        assert result.exit_code == 1, result.stderr
        message = result.stderr.splitlines()[-1]
        assert "Add patients" not in message
        return message

    def artifact(self, stage: str) -> Path:
        return self.store / stage / self.keys[stage]

    def summary(self, stage: str) -> dict[str, Any]:
        return json.loads((self.artifact(stage) / "summary.json").read_text())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def folder(tmp_path, store) -> Callable[..., Folder]:
    """Return a function that writes files, by path and content, and returns their folder."""

    def make(files: dict[str, bytes], rows: Sequence[Row], **columns: Any) -> Folder:
        for name, content in files.items():
            path = tmp_path / "studies" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Folder(tmp_path, store, columns, list(rows))

    return make


@pytest.fixture
def radiographs(folder) -> Folder:
    """One picture each of sixty people, every second one ill, joined by the path."""
    files = {f"site/p{n:03d}.png": png(n) for n in range(PEOPLE)}
    rows = [{"path": name, "patient": f"p{n}", "label": n % 2} for n, name in enumerate(files)]
    return folder(files, rows, path="path", patient_id="patient")


# ---------------------------------------------------------------- who is who


def women(folder: Callable[..., Folder], header: Callable[[int, int], str], **columns: Any) -> Folder:
    """Return two pictures each of forty women, whose header names them as `header` of woman and picture says."""
    files, rows = {}, []
    for n in range(80):
        files[f"{n:03d}.dcm"] = dicom(n, SpecificCharacterSet="ISO_IR 192", PatientID=header(n // 2, n))
        keys = {"path": f"{n:03d}.dcm", "sop": f"2.25.1{n}", "series": f"2.25.2{n}", "study": f"2.25.3{n}"}
        rows.append({**keys, "woman": f"W{n // 2}", "label": n // 2 % 2})
    return folder(files, rows, patient_id="woman", **columns)


@pytest.mark.parametrize("join", [{"path": "path"}, {"study_instance_uid": "study"}])
def test_where_every_image_has_a_patient_id_of_its_own_the_table_decides_once_somebody_says_so(folder, join):
    made = women(folder, lambda woman, n: f"IMG{n}", **join)
    message = made.refused()
    assert "40 patients of the table have several PatientIDs in headers" in message
    assert "80 files of 80 compared" in message
    assert "columns.patient_from: table" in message
    table = made.split(patient_from="table")
    assert table["patient_id"].nunique() == 40
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    assert (table.groupby("patient_id").size() == 2).all()
    if "path" in join:
        assert made.split(patient_from="header")["patient_id"].nunique() == 80


def test_one_id_in_every_header_is_nobody_and_the_table_is_believed(folder):
    made = women(folder, lambda woman, n: "ANONYMOUS", path="path")
    assert made.split()["patient_id"].nunique() == 40


def test_one_id_of_several_patients_of_the_table_stops_the_run(folder):
    made = women(folder, lambda woman, n: f"H{woman // 4}", path="path")
    assert "10 PatientIDs of headers are several patients of the table" in made.refused()


def test_ids_that_are_only_written_otherwise_are_no_disagreement_and_lead_images_the_table_lacks(folder):
    """The header's `0012` is the table's `W12`, also of an image without a row: same patient, same split."""
    made = women(folder, lambda woman, n: f"{woman:04d}", path="path")
    made.rows = [row for n, row in enumerate(made.rows) if n != 1]
    table = made.split()
    assert table["patient_id"].nunique() == 40
    assert (table.groupby("patient_id").size() == 2).all()
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()


def test_identifiers_that_look_the_same_are_one_patients(folder):
    """With characters that have no width in the table and digits of full width in the headers."""
    made = women(folder, lambda woman, n: str(1000 + woman).translate(WIDE), path="path")
    for n, row in enumerate(made.rows):
        row["woman"] = f"{1000 + n // 2}" + ("\u200b" if n % 2 else "")
    result = made.run()
    assert "80 files: 80 images of 40 patients accepted" in result.stderr
    assert "disagree" not in result.stderr


def test_identifiers_of_one_person_by_two_hands_are_told(radiographs):
    for n, row in enumerate(radiographs.rows):
        row["patient"] = f"{n // 2}" if n % 2 else f"{n // 2:03d}"
    message = radiographs.run().stderr
    assert "60 patients of the label table differ from another one in nothing but case, blanks, leading" in message


def test_a_placeholder_that_studies_share_is_no_patient(folder):
    files = {f"{n:03d}.dcm": dicom(n, PatientID=f"P{n}" if n < 40 else "anonymous^") for n in range(80)}
    rows = [{"path": name, "label": n % 2} for n, name in enumerate(files)]
    made = folder(files, rows, path="path")
    result = made.run()
    assert result.exit_code == 0, result.stderr
    assert "40 files without a patient: the header has a placeholder" in result.stderr
    assert made.summary("ingest")["quarantined"] == {"no_patient": 40}
    assert made.split(patient_from="header")["patient_id"].nunique() == 41


def test_one_id_for_people_of_both_sexes_stops_the_run(folder):
    files = {
        f"{n:03d}.dcm": dicom(n, PatientID=f"P{n // 4}" if n < 40 else f"P{n}", PatientSex="FM"[n % 2])
        for n in range(80)
    }
    rows = [{"path": name, "label": n % 3 % 2} for n, name in enumerate(files)]
    message = folder(files, rows, path="path").refused()
    assert "10 patients are of both sexes by the headers (of 10 with several studies)" in message
    assert "columns.patient_from: header" in message


# ---------------------------------------------------------------- several rows


def rounds(folder: Callable[..., Folder], **columns: Any) -> Folder:
    """Return three films of forty people, the ill found in the last round, as a table of rounds says."""
    files, rows = {}, []
    for n in range(120):
        files[f"{n:03d}.dcm"] = dicom(n, PatientID=f"{n // 3:03d}")
        rows.append({"pid": f"{n // 3:03d}", "round": f"T{n % 3}", "uid": f"2.25.1{n}", "label": int(n % 6 == 5)})
    return folder(files, rows, patient_id="pid", **columns)


def test_rows_of_a_patient_that_differ_are_refused_with_the_columns_that_tell_them_apart(folder):
    made = rounds(folder)
    message = made.refused()
    assert "20 patients have contradicting labels in several rows; these differ in round, uid" in message
    assert "columns.several_rows: any_positive" in message
    assert made.split(several_rows="any_positive")["label"].sum() == 60
    assert made.split(sop_instance_uid="uid")["label"].sum() == 20


# ---------------------------------------------------------------- joins that fail for a reason


def changed(radiographs: Folder, change: Callable[[str], str]) -> Folder:
    radiographs.rows = [{**row, "path": change(row["path"])} for row in radiographs.rows]
    return radiographs


@pytest.mark.parametrize(
    ("change", "said", "setting"),
    [
        (lambda p: f"images/{p}", "columns.path_without: images/", {"path_without": "images/"}),
        (lambda p: p[:-4], "columns.path_ignore: [suffix]", {"path_ignore": ["suffix"]}),
        (lambda p: f"{int(p[6:9]) % 7}/{p[5:-4]}", "columns.path_ignore: [folders, suffix]",
         {"path_ignore": ["folders", "suffix"]}),
    ],
)  # fmt: skip
def test_paths_that_would_match_name_the_setting_that_makes_them(radiographs, change, said, setting):
    made = changed(radiographs, change)
    message = made.refused()
    assert "0 of 60 different paths in column path are files under data.studies; 60 would be with" in message
    assert said in message
    assert made.split(**setting)["label"].notna().sum() == 60


def test_a_clinic_whose_paths_differ_is_not_lost_silently(radiographs):
    made = changed(radiographs, lambda path: f"north/{path}" if path < "site/p012" else path)
    message = made.refused()
    assert "48 of 60" in message
    assert "60 would be with columns.path_without: north/" in message


def test_a_row_is_never_about_two_files(folder):
    """Where folders or case are left out of account, other people's pictures would have one person's label."""
    files = {f"{site}/{n:03d}.png": png(100 * n + len(site)) for n in range(4) for site in ("a", "bb")}
    rows = [{"path": f"{n:03d}.png", "patient": f"p{n}", "label": n % 2} for n in range(4)]
    made = folder(files, rows, path="path", patient_id="patient", path_ignore=["folders"])
    assert "4 paths in column path fit several files, since columns.path_ignore leaves folders" in made.refused()


def test_paths_that_match_in_no_way_show_what_they_look_like(radiographs):
    message = changed(radiographs, lambda path: f"X{path[6:9]}").refused()
    assert "a path of the table looks like A9, one of the 60 files like a/a9.a" in message
    assert "site" not in message


def test_letters_composed_and_decomposed_are_the_same(folder):
    files = {unicodedata.normalize("NFD", f"Zürich/p{n:03d}.png"): png(n) for n in range(PEOPLE)}
    rows = [
        {"path": unicodedata.normalize("NFC", name), "patient": name[-8:], "label": n % 2}
        for n, name in enumerate(files)
    ]
    assert len(folder(files, rows, path="path", patient_id="patient").split()) == PEOPLE


@pytest.mark.parametrize("name", ["site\\p{}.png", "./site/p{}.png", "Zürich/p{}.png"])
def test_members_of_zip_archives_from_elsewhere(folder, name):
    """Backslashes of old .NET; names from macOS, which are UTF-8 in NFD and do not say so."""
    rows = [{"path": name.replace("\\", "/").format(n), "patient": f"p{n}", "label": n % 2} for n in range(PEOPLE)]
    made = folder({}, rows, path="path", patient_id="patient")
    with zipfile.ZipFile(made.path / "studies.zip", "w") as archive:
        for n in range(PEOPLE):
            archive.writestr(zipfile.ZipInfo(name.replace("ü", "u@@").format(n)), png(n))
    path = made.path / "studies.zip"
    path.write_bytes(path.read_bytes().replace(b"u@@", unicodedata.normalize("NFD", "ü").encode()))
    made.studies = "studies.zip"
    assert len(made.split()) == PEOPLE


def test_two_names_that_are_one_are_both_refused(radiographs):
    for form in ("NFC", "NFD"):
        (radiographs.path / "studies" / unicodedata.normalize(form, "ü.png")).write_bytes(png(200 + len(form)))
    if len(os.listdir(radiographs.path / "studies")) < 3:
        pytest.skip("this file system composes names")
    radiographs.rows.append({"path": "ü.png", "patient": "u", "label": 1})
    assert len(radiographs.split()) == PEOPLE
    assert radiographs.summary("ingest")["quarantined"] == {"ambiguous_name": 2}


@pytest.mark.parametrize(
    ("header", "table", "setting"),
    [
        ("{:05d}", "{}", ["leading_zeros"]),
        ("{:05d}", "{}.0", ["leading_zeros", "decimals"]),
    ],
)
def test_identifiers_that_would_match_name_the_setting_that_makes_them(folder, header, table, setting):
    files = {f"{n}.dcm": dicom(n, PatientID=header.format(n)) for n in range(1, 61)}
    rows = [{"who": table.format(n), "label": n % 2} for n in range(1, 61)]
    made = folder(files, rows, patient_id="who")
    message = made.refused()
    assert "none of 60 accepted images has a label: 0 of 60 labelled rows are about patients" in message
    assert f"60 would be with columns.id_ignore: [{', '.join(setting)}] in the dataset card" in message
    assert made.split(id_ignore=setting)["label"].notna().sum() == 60


def test_an_id_that_fits_two_patients_is_refused(folder):
    files = {f"{n}.dcm": dicom(n, PatientID=f"{n:03d}") for n in range(1, 61)} | {"x.dcm": dicom(99, PatientID="07")}
    rows = [{"who": str(n), "label": n % 2} for n in range(1, 61)]
    message = folder(files, rows, patient_id="who").refused(id_ignore=["leading_zeros"])
    assert "1 identifier of the table fits several of the headers" in message


def test_a_column_of_other_things_than_the_card_says_is_recognised(folder):
    files = {f"{n}.dcm": dicom(n) for n in range(PEOPLE)}
    rows = [{"uid": f"2.25.3{n}", "label": n % 2} for n in range(PEOPLE)]
    message = folder(files, rows, patient_id="uid").refused()
    assert "60 would be with columns.study_instance_uid: uid in the dataset card instead" in message


def test_labels_of_another_archive(folder):
    files = {f"{n}.dcm": dicom(n) for n in range(PEOPLE)}
    rows = [{"who": f"Q-{n:03d}", "label": n % 2} for n in range(PEOPLE)]
    message = folder(files, rows, patient_id="who").refused()
    assert "A value of that column looks like a-999" in message


# ---------------------------------------------------------------- the same picture, opposite labels


def test_copies_with_opposite_labels_are_used_for_nothing(folder):
    """Ten within a patient, of which ingest keeps one, and ten across patients."""
    files, rows = {}, []
    for n in range(100):
        files[f"a{n:03d}.png"] = png(n)
        rows.append({"path": f"a{n:03d}.png", "patient": f"p{n}", "label": n % 2})
        if n < 20:
            files[f"b{n:03d}.png"] = png(n)
            rows.append({"path": f"b{n:03d}.png", "patient": f"p{n}" if n < 10 else f"q{n}", "label": 1 - n % 2})
    made = folder(files, rows, path="path", patient_id="patient")
    result = made.run()
    assert result.exit_code == 0, result.stderr
    assert "30 images show 20 pictures with opposite labels elsewhere" in result.stderr
    assert made.summary("split")["contradicting_copies"] == {
        "pictures": 20, "copies": 30, "patients": 30, "left_out": 30}  # fmt: skip
    table = made.split()
    assert table["label"].notna().sum() == 80
    assert set(table.loc[table["label"].isna(), "label_source"]) == {""}
    unmatched = pd.read_parquet(made.artifact("split") / "unmatched.parquet")
    assert (unmatched["what"] == "label contradicted by a copy").sum() == 30


# ---------------------------------------------------------------- shares


def test_a_picture_that_most_patients_share_stops_the_split_with_the_reason(folder):
    files, rows = {}, []
    for n in range(80):
        for name, number in ((f"{n:03d}.png", n), (f"{n:03d}_mask.png", 1000 if n < 70 else 1000 + n)):
            files[name] = png(number)
            rows.append({"path": name, "patient": f"p{n}", "label": n % 2 if "mask" not in name else ""})
    message = folder(files, rows, path="path", patient_id="patient").refused()
    assert "of 80 labelled patients instead of about 16" in message
    assert "70 labelled patients are linked by pictures that they share, exactly or nearly, and 70 of them" in message


def test_letters_that_were_guessed_are_told_of(radiographs):
    radiographs.encoding, radiographs.rows[0]["note"] = "cp1252", "größer"
    for row in radiographs.rows[1:]:
        row["note"] = ""
    assert "warning: the label table is not UTF-8 and was read as Windows-1252" in radiographs.run().stderr


def test_a_column_that_names_no_people_is_asked_about(radiographs):
    for n, row in enumerate(radiographs.rows):
        row["patient"] = f"clinic {n % 3}"
    result = radiographs.run()
    assert result.exit_code == 1
    assert "60 images are of 3 patients: see that the column of columns.patient_id" in result.stderr


def test_a_table_without_one_of_the_classes_says_so(radiographs):
    radiographs.rows = [{**row, "label": 0} for row in radiographs.rows]
    assert "the label table has no positive row" in radiographs.refused()
