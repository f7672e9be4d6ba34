"""predict --dicom: valid objects, the same bytes again, names as they were, something said of every study."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from delivery.dicom_files import NAMES, bytes_of, dump, errors_of, with_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as pillow
from pydicom.dataelem import RawDataElement
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from small_model import image, picture, small_model
from typer.testing import CliRunner

from pipeline import __version__
from pipeline.cli import app
from pipeline.delivery.dicom import KINDS
from pipeline.delivery.dicom.objects import source_of, write_objects
from pipeline.delivery.dicom.source import expressible
from pipeline.delivery.results import write_results
from pipeline.imaging.archive.sources import find_sources
from pipeline.imaging.quarantine import Refusal
from pipeline.inference.batch import Group
from pipeline.inference.model import Model
from pipeline.inference.result import Picture, Result
from pipeline.inference.rule import Judgement

GOLDEN = Path(__file__).parent / "golden"
OPTIONAL = (
    "PatientID PatientName PatientBirthDate PatientSex StudyDate StudyTime ContentDate ContentTime AccessionNumber "
    "StudyID ReferringPhysicianName StudyDescription Modality".split()
)
ALL = tuple(KINDS)


def recoded(content: bytes, syntax: str) -> bytes:
    """The same data set in another transfer syntax without compression of pixels."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True, little_endian=little, implicit_vr=implicit)
    return stream.getvalue()


def procedure(meaning: str | bytes) -> pydicom.Dataset:
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24648-8", "LN", "as text"
    raw = meaning if isinstance(meaning, bytes) else meaning.encode()
    raw += b" " * (len(raw) % 2)
    code[Tag("CodeMeaning")] = RawDataElement(Tag("CodeMeaning"), "LO", len(raw), raw, 0, False, True, True)
    code.set_original_encoding(False, True, "iso8859")
    return code


def archive() -> dict[str, bytes]:
    """Studies as archives hold them: whole, poor, wrong, in every alphabet and encoding, damaged, no DICOM."""
    wrong = {"PatientSex": "W", "StudyDate": "2024.03.05", "StudyTime": "99", "PatientBirthDate": "19501399"}
    files = {
        "whole.dcm": image(1, ProcedureCodeSequence=[procedure("XR Chest PA upright")]),
        "two_a.dcm": image(2, 1),
        "two_b.dcm": image(2, 2),
        "poor.dcm": image(3, **dict.fromkeys(OPTIONAL[:-1])),
        "wrong.dcm": image(4, **wrong),
        "implicit.dcm": recoded(image(5), ImplicitVRLittleEndian),
        "deflated.dcm": recoded(image(6), DeflatedExplicitVRLittleEndian),
        "big.dcm": recoded(image(7), ExplicitVRBigEndian),
        "cut.dcm": image(8)[:4000],
        "half_a.dcm": image(9, 1),
        "half_b.dcm": image(9, 2)[:4000],
        "no_series.dcm": image(10, SeriesInstanceUID=None),
        "lossy.dcm": image(11, LossyImageCompression="01", LossyImageCompressionRatio="12.5"),
    }
    for at, (name, (charset, raw)) in enumerate(NAMES.items(), 20):
        content = image(at, SpecificCharacterSet=charset, PatientName=None, ProcedureCodeSequence=[procedure(raw[:60])])
        files[f"name_{name}.dcm"] = with_bytes(content, PatientName=("PN", raw))
    png = io.BytesIO()
    pillow.fromarray(picture(1)).save(png, "PNG")
    return {**files, "picture.png": png.getvalue()}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = small_model(tmp_path_factory.mktemp("small") / "model", threshold=-12.5)
    return Model.load(folder, device="cpu", threads=1, say=lambda line: None)


@pytest.fixture(scope="module")
def judged(model, tmp_path_factory) -> SimpleNamespace:
    """The archive, and what predict wrote about it, by the name of a study's first file."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "in").mkdir()
    for name, content in archive().items():
        (folder / "in" / name).write_bytes(content)
    out = folder / "out"
    write_results(model.predict([folder / "in"], workers=1, pictures=True), out, dicom=ALL)
    content = json.loads((out / "results.json").read_text("utf-8"))
    rows = {row["path"].partition(".")[0]: row for row in content["results"]}
    return SimpleNamespace(folder=folder, out=out, rows=rows, content=content)


def objects(judged: SimpleNamespace, name: str) -> dict[str, Path]:
    paths = [judged.out / name for name in judged.rows[name]["dicom"]]
    return {path.name.partition("-")[0]: path for path in paths}


def items(dataset: pydicom.Dataset, meaning: str) -> list[pydicom.Dataset]:
    """The content items of a concept, wherever they are in the tree."""
    found = []
    for item in dataset.get("ContentSequence", ()):
        found += [item] if item.ConceptNameCodeSequence[0].CodeMeaning == meaning else []
        found += items(item, meaning)
    return found


def codes_of(dataset: pydicom.Dataset, meaning: str) -> list[str]:
    return [item.ConceptCodeSequence[0].CodeMeaning for item in items(dataset, meaning)]


def test_every_object_is_valid(judged):
    paths = sorted((judged.out / "dicom").rglob("*.dcm"))
    assert len(paths) > 50
    found = {path: errors for path in paths if (errors := errors_of(path))}
    # A name that its header declares wrongly stays as it is: an archive knows the patient by it.
    kept = {*objects(judged, "name_undeclared").values()}
    assert {path.name: errors for path, errors in found.items() if path not in kept} == {}
    said = {line for errors in found.values() for line in errors}
    assert all("character repertoire" in line or "invalid data values" in line for line in said)


@pytest.mark.parametrize("name", NAMES)
def test_names_come_back_byte_for_byte(judged, name):
    made = objects(judged, f"name_{name}")
    assert set(made) == set(KINDS)
    source = judged.folder / "in" / f"name_{name}.dcm"
    for path in made.values():
        for keyword in ("PatientName", "PatientID", "ReferringPhysicianName", "AccessionNumber", "StudyDescription"):
            assert bytes_of(path, keyword) == bytes_of(source, keyword)
        own, theirs = pydicom.dcmread(path), pydicom.dcmread(source, stop_before_pixels=True)
        assert own.get("SpecificCharacterSet") == theirs.get("SpecificCharacterSet")
        assert str(own.PatientName) == str(theirs.PatientName)
    assert made["sr"].read_bytes().count(NAMES[name][1][:60]) == 2  # the procedure is called like the patient


def test_a_study_is_reported_as_it_was_judged(judged):
    row, report = judged.rows["whole"], pydicom.dcmread(objects(judged, "whole")["sr"])
    assert codes_of(report, "Screening decision") == [{"refer": "Refer", "no refer": "No refer"}[row["decision"]]]
    measured = {
        name: items(report, name)[0].MeasuredValueSequence[0]
        for name in ("Score of the model", "Calibrated probability of the condition")
    }
    assert float(measured["Score of the model"].NumericValue) == pytest.approx(row["score"])
    probability = measured["Calibrated probability of the condition"]
    assert float(probability.NumericValue) == pytest.approx(100 * row["probability"])
    assert probability.MeasurementUnitsCodeSequence[0].CodeValue == "%"
    assert codes_of(report, "Procedure reported") == ["XR Chest PA upright"]
    assert "With 95 % confidence at least 90 %" in items(report, "Certificate of recall")[0].TextValue
    assert row["model_sha256"] in items(report, "Algorithm Version")[0].TextValue
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items(report, "Source of Measurement")
    ] == [pydicom.dcmread(judged.folder / "in" / "whole.dcm", stop_before_pixels=True).SOPInstanceUID]
    equipment = report.ContributingEquipmentSequence[0]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == codes.DCM.ProcessingEquipment.value
    assert equipment.DeviceUID == items(report, "Device Observer UID")[0].UID


@pytest.mark.parametrize(
    ("name", "decision", "said"),
    [
        ("cut", "Not assessable", "no file of the study is an image that the model takes"),
        ("half_a", None, "1 of its files"),
        ("poor", None, None),
        ("wrong", None, None),
    ],
)
def test_no_study_is_met_with_silence(judged, name, decision, said):
    report = pydicom.dcmread(objects(judged, name)["sr"])
    assert decision is None or codes_of(report, "Screening decision") == [decision]
    if said:
        assert report.CompletionFlag == "PARTIAL"
        texts = [
            item.TextValue
            for kind in ("Reason for not assessable", "Remark on the images")
            for item in items(report, kind)
        ]
        assert any(said in text for text in texts)
        assert report.CurrentRequestedProcedureEvidenceSequence


def test_what_is_missing_is_said_and_what_is_wrong_is_left_out(judged):
    assert judged.rows["picture"]["dicom"] == []
    assert judged.rows["picture"]["dicom_missing"] == ["the study did not come as DICOM"]
    assert judged.rows["no_series"]["dicom_missing"] == ["its headers lack the UIDs by which a result names its images"]
    assert judged.rows["cut"]["dicom_missing"] == ["sc: the study has no image that was scored"]
    report = pydicom.dcmread(objects(judged, "wrong")["sr"])
    assert [report.PatientSex, report.StudyDate, report.StudyTime, report.PatientBirthDate] == ["", "", "", ""]
    assert (report.PatientID, report.ContentDate, report.ContentTime) == ("P4", "20240305", "101501")
    assert pydicom.dcmread(objects(judged, "lossy")["sc"]).LossyImageCompression == "01"


def test_kinds_have_series_of_their_own_in_the_study_of_the_images(judged):
    series = {}
    for name in ("whole", "two_a", "half_a"):
        sources = [pydicom.dcmread(p, stop_before_pixels=True) for p in (judged.folder / "in").glob(f"{name[:4]}*")]
        for kind, path in objects(judged, name).items():
            own = pydicom.dcmread(path)
            assert own.StudyInstanceUID == sources[0].StudyInstanceUID
            assert own.SeriesInstanceUID not in series
            series[own.SeriesInstanceUID] = kind
            assert own.SOPInstanceUID not in {one.SOPInstanceUID for one in sources}
            assert "RESEARCH USE ONLY" in own.SeriesDescription
    assert sorted(series.values()) == sorted([*KINDS] * 3)


def test_the_page_and_the_picture_are_in_them(judged):
    made = objects(judged, "whole")
    pdf = pydicom.dcmread(made["pdf"])
    page = pdf.EncapsulatedDocument[: pdf.EncapsulatedDocumentLength]
    assert page.startswith(b"%PDF")
    assert page.rstrip().endswith(b"%%EOF")
    pixels = pydicom.dcmread(made["sc"]).pixel_array
    assert pixels.shape[2] == 3
    assert (pixels[: pixels.shape[0] // 40].max(axis=2) == 255).any()  # white letters above the image
    assert (pixels == (255, 165, 0)).all(axis=2).any()  # the outline


def test_nobody_else_looks_in_and_the_originals_stay_as_they_were(judged):
    assert stat.S_IMODE(os.stat(judged.out).st_mode) == 0o700
    for name, content in archive().items():
        assert (judged.folder / "in" / name).read_bytes() == content
    plain = (judged.out / "results.json").read_text("utf-8") + (judged.out / "journal.jsonl").read_text("utf-8")
    assert "Muster" not in plain


def test_the_same_study_gives_the_same_bytes_elsewhere(judged, model, tmp_path):
    """Other names, another order, by the command."""
    folder = tmp_path / "in"
    folder.mkdir()
    for at, name in enumerate(("two_b.dcm", "whole.dcm", "two_a.dcm", "cut.dcm")):
        shutil.copyfile(judged.folder / "in" / name, folder / f"{at}.dcm")
    command = [
        "predict",
        str(model.folder),
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--dicom",
        "sc,sr",
        "--workers",
        "1",
    ]
    done = CliRunner().invoke(app, [*command, "--threads", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "they hold identities" in done.output
    again = {path.name: path.read_bytes() for path in (tmp_path / "out" / "dicom").rglob("*.dcm")}
    before = {path.name: path.read_bytes() for path in (judged.out / "dicom").rglob("*.dcm")}
    assert len(again) == 5
    assert again.items() <= before.items()


def test_a_late_image_gives_a_revised_report(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    found = []
    for number in (1, 2, 3):
        (folder / f"{number}.dcm").write_bytes(image(1, number))
        write_results(model.predict([folder], workers=1, pictures=True), tmp_path / "out", dicom=ALL)
        content = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
        found.append([*content["results"], *content.get("superseded", [])])
    (now, second, first) = found[-1]
    assert [len(rows) for rows in found] == [1, 2, 3]
    assert (now["supersedes"], second["superseded_by"]) == (second["dicom"], now["dicom"])
    assert first["superseded_by"] == second["dicom"]
    reports = [pydicom.dcmread(tmp_path / "out" / one["dicom"][0]) for one in (first, second, now)]
    assert [one.InstanceNumber for one in reports] == [1, 2, 3]
    assert "PredecessorDocumentsSequence" not in reports[0]
    for earlier, later in pairwise(reports):
        named = later.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
        assert named.SeriesInstanceUID == earlier.SeriesInstanceUID == later.SeriesInstanceUID
        assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == earlier.SOPInstanceUID
    for one in (first, second, now):
        assert [errors_of(tmp_path / "out" / path) for path in one["dicom"]] == [[], [], []]
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "dicom").rglob("*.dcm")}
    (tmp_path / "out" / now["dicom"][0]).unlink()
    write_results(model.predict([folder], workers=1, pictures=True), tmp_path / "out", dicom=ALL)
    assert {path: path.read_bytes() for path in before} == before


def test_another_model_or_other_settings_make_other_objects(judged, model, tmp_path):
    path = judged.folder / "in" / "whole.dcm"
    uids = set()
    for other, prevalence in ((model, None), (model, 0.1), (replace(model, sha256="1" * 64), None)):
        predictions = other.predict([path], workers=1, prevalence=prevalence)
        made, _ = made_of(predictions, path, tmp_path)
        uids |= {pydicom.dcmread(tmp_path / name).SOPInstanceUID for name in made.files.values()}
    assert len(uids) == 3


def made_of(predictions, path: Path, out: Path, kinds=("sr",), **changes):
    """The objects about a file, judged as `changes` say, without a network."""
    sources = tuple(find_sources([path]))
    group = Group("study", "", "", sources, "identity")
    base = {"study": "study", "path": path.name, "study_uid": "", "images": 1, "further": {}, "threshold": {}}
    base |= {
        "judgement": Judgement("refer", (), 1.25, 0.34, 0.2, 0.5),
        "typicality": None,
        "unusual": (),
        "remarks": (),
    }
    base |= {"refused": (), "model": {}, "identity": "identity"}
    result = Result(**base | changes)
    return write_objects(out, result, source_of(result, group, predictions), predictions, kinds), result


@pytest.fixture(scope="module")
def quiet(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "empty.dcm").write_bytes(image(1))
    return model.predict([folder], workers=1), folder


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(absent=st.sets(st.sampled_from(OPTIONAL)), charset=st.sampled_from(["ISO_IR 100", "ISO_IR 999", None]))
def test_no_tag_that_may_be_missing_loses_a_result(quiet, absent, charset):
    predictions, folder = quiet
    path = folder / "one.dcm"
    path.write_bytes(image(1, SpecificCharacterSet=charset, **dict.fromkeys(absent)))
    made, _ = made_of(predictions, path, folder / "out")
    assert not made.missing
    found = errors_of(folder / "out" / made.files["sr"])
    assert [line for line in found if "ISO_IR 999" not in line and "invalid data values" not in line] == []


@settings(max_examples=200, deadline=None)
@given(
    st.text(),
    st.sampled_from(["", "ISO_IR 100", "ISO_IR 144", "ISO_IR 13", "ISO_IR 192", "\\ISO 2022 IR 87", "ISO_IR 999"]),
)
def test_our_own_texts_fit_every_character_set(text, charset):
    fits = {"ISO_IR 100": "latin-1", "ISO_IR 144": "iso8859_5", "ISO_IR 192": "utf-8"}
    said = expressible(text.encode("utf-8", "ignore").decode(), charset)
    said.encode(fits.get(charset, "ascii"))
    assert "\\" not in said


def test_encodings_do_not_change_unnoticed(model, quiet, tmp_path):
    """The dumps in golden/. Made anew by MAESCREEN_GOLDEN=1; a difference means other objects for the same studies."""
    fixed = replace(model, sha256="ab" * 32, content={**model.content, "threshold_sha256": "cd" * 32})
    predictions = replace(quiet[0], model=fixed)
    path = tmp_path / "one.dcm"
    path.write_bytes(image(1, ProcedureCodeSequence=[procedure("XR Chest PA upright")]))
    shown = Picture(np.zeros((1, 32, 32), np.uint8), None, files=("one.dcm",))
    made, _ = made_of(predictions, path, tmp_path, ALL, picture=shown, remarks=("burned-in text",))
    lost = {"judgement": Judgement("not assessable", ("no_image",)), "images": 0}
    unread, _ = made_of(predictions, path, tmp_path, refused=(("one.dcm", Refusal("damaged_pixels")),), **lost)
    dumps = {kind: tmp_path / file for kind, file in made.files.items()} | {"sr_unread": tmp_path / unread.files["sr"]}
    for kind, file in dumps.items():
        assert errors_of(file) == []
        text = dump(pydicom.dcmread(file), __version__)
        if os.environ.get("MAESCREEN_GOLDEN"):
            (GOLDEN / f"{kind}.txt").write_text(text, "utf-8")
        assert text == (GOLDEN / f"{kind}.txt").read_text("utf-8")
    assert "121112" in (GOLDEN / "sr.txt").read_text("utf-8")


def test_nothing_of_a_header_is_said(quiet, tmp_path, recwarn, caplog):
    """pydicom quotes what it finds wrong: a character set that nobody knows, a date that is none."""
    predictions, _ = quiet
    path = tmp_path / "one.dcm"
    wrong = {"SpecificCharacterSet": ("CS", b"MUSTERFRAU"), "StudyDate": ("DA", b"Muster"), "PatientSex": ("CS", b"W")}
    path.write_bytes(with_bytes(image(1), **wrong, PatientName=("PN", "Müller".encode("latin-1"))))
    recwarn.clear()
    caplog.clear()
    made, _ = made_of(predictions, path, tmp_path)
    assert made.files
    assert [str(one.message) for one in recwarn] == []
    assert caplog.text == ""


@pytest.mark.parametrize("asked", [["--dicom", "sr,xml"], ["--dicom", "pdf", "--no-pages"]])
def test_what_cannot_be_made_is_refused_before_anything_is_written(model, tmp_path, asked):
    (tmp_path / "one.dcm").write_bytes(image(1))
    done = CliRunner().invoke(
        app, ["predict", str(model.folder), str(tmp_path / "one.dcm"), "--out", str(tmp_path / "out"), *asked]
    )
    assert done.exit_code == 1
    assert "--dicom" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_the_report(judged):
    for name in ("whole", "cut", "name_utf8"):
        done = subprocess.run(["dsrdump", objects(judged, name)["sr"]], capture_output=True, check=True)
        assert b"Screening decision" in done.stdout
        assert b"E:" not in done.stderr


def test_files_are_named_by_nothing_of_the_patient(judged):
    for path in (judged.out / "dicom").rglob("*"):
        assert "P1" not in path.name
        assert "Muster" not in path.name
