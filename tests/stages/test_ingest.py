"""Every file received has one verdict; nothing that identifies comes out; a kill costs one batch."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import pytest
from imaging.files import gradient, make_dataset, make_dicom, to_bytes
from imaging.phantom import CASES, write_case
from PIL import Image
from pydicom import dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from stages.sources_run import SECRET, Archive, make_card

from pipeline.imaging.archive.sources import Source, SourcesError
from pipeline.imaging.archive.workers import each_batch
from pipeline.imaging.pseudonyms import patient_pseudonym
from pipeline.labels.values import LabelsError
from pipeline.store.artifacts import Artifact
from pipeline.store.lineage import SourceHashes
from pipeline.store.runlog import RunLog

DEMO = Path(__file__).parents[2] / "data_manifests" / "demo_chest_xray"
SETTINGS = {"min_side": 8, "batch_size": 4}
TEXT_VRS = ("LO", "SH", "PN", "LT", "ST", "UT")
FRACTIONS = {"train": 0.4, "tune": 0.2, "calibration": 0.2, "test": 0.2}
TABLES = ("images", "files", "quarantine", "quality", "near_duplicates", "examined", "assembled")
PLANTED = {
    "PatientName": "Hollerbusch^Wendelin",
    "PatientID": "QX-7431-ZZ",
    "PatientBirthDate": "19530817",
    "PatientAddress": "Kieselweg 19",
    "OtherPatientIDs": "LK88231",
    "InstitutionName": "Klinikum Siebenmorgen",
    "ReferringPhysicianName": "Pfefferkorn^Adele",
    "AccessionNumber": "ACC-55-1029",
    "StudyInstanceUID": "1.2.840.99.7431",
    "SOPInstanceUID": "1.2.840.99.7431.1",
    "StudyDate": "20170923",
    "StudyDescription": "Thorax Hollerbusch",
    "ImageComments": "Frau Hollerbusch",
    "SeriesDescription": "Hollerbusch pa",
}


def study(number: int, pixels: np.ndarray | None = None, **elements) -> bytes:
    if pixels is None:
        pixels = np.random.default_rng(number).integers(0, 4096, (40, 48)).astype(np.uint16)
    return make_dicom(
        np.ascontiguousarray(pixels), **{"SOPInstanceUID": f"2.25.{number + 1}", "PatientID": f"P{number}"} | elements
    )


@pytest.fixture
def archive(tmp_path) -> Archive:
    """Ten good images of ten patients."""
    made = Archive(tmp_path)
    for number in range(10):
        made.add(f"{number}.dcm", study(number))
    return made


def quarantined(archive: Archive) -> dict[str, int]:
    return archive.table("ingest", "quarantine")["reason"].value_counts().to_dict()


def test_good_files_are_accepted_and_the_counts_add_up(archive):
    archive.add("report.txt", b"no image")
    archive.add("cut.dcm", study(11)[:-100])
    archive.add("sub/nobody.dcm", study(12, PatientID=""))
    archive.run("ingest", **SETTINGS)
    summary = archive.summary("ingest")
    assert (summary["received"], summary["accepted"], summary["patients"]) == (13, 10, 10)
    assert summary["quarantined"] == {"damaged_pixels": 1, "no_patient": 1, "unknown_format": 1} == quarantined(archive)
    assert set(summary["reasons"]) == set(summary["quarantined"])
    tables = {f"{name}.parquet" for name in TABLES}
    assert set(archive.files("ingest")) == {*tables, "contact_sheet.png", "summary.json"}


def test_the_label_table_inside_the_studies_is_no_file_received(archive):
    (archive.folder / "labels.csv").symlink_to(archive.studies / "labels.csv")
    (archive.studies / "labels.csv").write_text("path,label\n1.dcm,1\n")
    archive.run("ingest", **SETTINGS)
    assert archive.summary("ingest")["received"] == 10


def test_nothing_accepted_is_an_error_that_says_why(tmp_path):
    archive = Archive(tmp_path)
    archive.add("a.txt", b"text")
    with pytest.raises(ValueError, match=r"none of 1 file was accepted; 1 unknown_format \(neither DICOM"):
        archive.run("ingest")


def test_days_count_from_each_patients_first_study(tmp_path):
    archive = Archive(tmp_path)
    for number, (patient, day) in enumerate([("A", "20150310"), ("A", "20150301"), ("B", "20110101"), ("C", "")]):
        archive.add(f"{number}.dcm", study(number, PatientID=patient, StudyDate=day))
    archive.run("ingest", **SETTINGS)
    images = archive.table("ingest", "images")
    days = {patient_pseudonym(SECRET, name): expected for name, expected in (("A", {0, 9}), ("B", {0}), ("C", {None}))}
    found = images.groupby("patient_id")["study_day"]
    assert {p: {None if pd.isna(day) else int(day) for day in part} for p, part in found} == days


def test_patients_of_files_without_header_come_from_the_label_table(tmp_path):
    archive = Archive(tmp_path, card=make_card(path="file", patient_id="who"))
    archive.studies.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.roll(gradient(), ord(name[0]))).save(archive.studies / name)
    archive.label([{"file": "a.png", "who": "P1", "label": "ill"}, {"file": "./b.png", "who": "P1", "label": "well"}])
    archive.run("ingest", **SETTINGS)
    assert archive.summary("ingest")["patients"] == 1
    assert quarantined(archive) == {"no_patient": 1}
    archive.label([{"file": "a.png", "who": "P1"}, {"file": "a.png", "who": "P2"}])
    with pytest.raises(LabelsError, match="more than one patient"):
        archive.run("ingest")


def test_duplicates_and_conflicts(archive):
    archive.add("copy.dcm", study(0))
    archive.add("same_pixels.dcm", study(0, SOPInstanceUID="2.25.99"))
    archive.add("other_patient.dcm", study(1, SOPInstanceUID="2.25.98", PatientID="Q"))
    archive.add("conflict.dcm", study(50, SOPInstanceUID="2.25.6"))
    log = RunLog("ingest", quiet=True)
    archive.run("ingest", log=log, **SETTINGS)
    assert quarantined(archive) == {"duplicate": 2, "uid_conflict": 2}
    images = archive.table("ingest", "images")
    assert images["quality_flags"].str.contains("duplicate_across_patients").sum() == 2
    assert "2 images have the same pixels as an image of another patient" in log.warnings[0]


# ---------------------------------------------------------------- privacy


def test_planted_identifiers_come_out_nowhere_but_in_the_private_table(tmp_path, capfd):
    archive = Archive(tmp_path / "a")
    dataset = make_dataset(gradient(), **PLANTED)
    dataset.private_block(0x0011, "HOLLERBUSCH", create=True).add_new(1, "LO", "Hollerbusch private")
    archive.add("Hollerbusch_Wendelin/QX-7431-ZZ.dcm", to_bytes(dataset))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.840.99.7431.2"
    archive.add("Hollerbusch_Wendelin/cut.dcm", to_bytes(dataset)[:-900])
    archive.add("Hollerbusch_Wendelin/broken.dcm", to_bytes(dataset)[:600])
    archive.run("ingest", log=RunLog("ingest"), **SETTINGS)
    said = "".join(capfd.readouterr())
    tables = str([archive.table("ingest", name).to_dict() for name in TABLES])
    raw = b"".join(path.read_bytes() for path in archive.work("ingest").rglob("*") if path.is_file())
    values = [*PLANTED.values(), "Hollerbusch", "HOLLERBUSCH", "Wendelin", "Pfefferkorn", "Siebenmorgen", "2017-09-23"]
    for value in values:
        assert value not in said + tables
        assert value.encode() not in raw
    assert archive.summary("ingest")["accepted"] == 1
    private = [json.loads(line) for line in archive.lookup.read_text().splitlines()]
    assert {line["original"] for line in private if line["kind"] == "patient"} == {"QX-7431-ZZ"}
    assert sum(line["kind"] == "path" for line in private) == 3
    assert stat.S_IMODE(archive.lookup.stat().st_mode) == 0o600


def test_not_even_the_journal_of_a_killed_run_holds_names_or_dates(tmp_path, monkeypatch):
    archive = Archive(tmp_path)
    archive.add("Hollerbusch.dcm", make_dicom(**PLANTED))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.stages.ingest.merge_pages", killed)
    with pytest.raises(KeyboardInterrupt):
        archive.run("ingest", **SETTINGS)
    journal = b"".join(path.read_bytes() for path in archive.work("ingest").rglob("*") if path.is_file())
    assert b"shifted_day" in journal  # pages of the journal are there
    assert not any(value.encode() in journal for value in [*PLANTED.values(), "Hollerbusch"])


def test_another_key_gives_other_pseudonyms_and_the_same_images(archive, tmp_path):
    archive.run("ingest", **SETTINGS)
    before = archive.table("ingest", "images")
    other = Archive(archive.folder, secret=b"o" * 32).run("ingest", **SETTINGS).table("ingest", "images")
    for column in ("image_id", "patient_id", "study_id"):
        assert not set(before[column]) & set(other[column])
    assert set(before["pixel_hash"]) == set(other["pixel_hash"])


# ---------------------------------------------------------------- faults


def test_moving_the_archive_or_other_batches_and_workers_change_nothing(archive, tmp_path):
    archive.run("ingest", **SETTINGS)
    moved = Archive(tmp_path / "elsewhere" / "x", workers=1)
    moved.folder.mkdir(parents=True)
    archive.studies.rename(moved.studies)
    moved.run("ingest", min_side=8, batch_size=3)
    assert moved.files("ingest") == archive.files("ingest")


def test_a_worker_killed_from_outside_costs_nothing(archive):
    """What the kernel does to the largest process when memory runs out."""
    for number in range(10, 60):
        archive.add(f"{number}.dcm", study(number))
    archive.run("ingest", **SETTINGS)
    expected = archive.files("ingest")

    class Killer(RunLog):
        killed = False

        def track(self, items, description, total, start=0):
            for item in items:
                if not self.killed:
                    self.killed = True
                    children = psutil.Process().children()
                    next(child for child in children if "popen_loky_posix" in str(child.cmdline())).kill()
                yield item

    log = Killer("ingest", quiet=True)
    archive.run("ingest", log=log, **SETTINGS)
    assert log.killed
    assert archive.files("ingest") == expected


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from stages.sources_run import Archive
if __name__ == "__main__":
    Archive(Path({folder!r})).run("ingest", min_side=8, batch_size=10)
"""


@pytest.mark.slow
def test_killed_three_times_and_started_again(tmp_path):
    archive = Archive(tmp_path)
    for number in range(120):
        archive.add(f"{number}.dcm", study(number, StudyDate=f"201501{number % 28 + 1:02d}"))
    archive.run("ingest", min_side=8, batch_size=10)
    expected = archive.files("ingest")
    for path in archive.work("ingest").iterdir():
        path.unlink()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    journal = archive.work("ingest") / "journal"
    for pages in (1, 4, 8):
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
        while process.poll() is None and len(list(journal.glob("files-*.parquet"))) < pages:
            time.sleep(0.005)
        assert process.poll() is None, "it was finished before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list(journal.glob("files-*.parquet"))) >= 8
    archive.run("ingest", min_side=8, batch_size=10)
    assert archive.files("ingest") == expected


def test_the_same_path_under_two_roots_is_an_error_when_labels_join_by_path(archive):
    inputs = archive.inputs("ingest")
    from pipeline.settings.images import IngestSettings
    from pipeline.stages.ingest import ingest

    twice = replace(inputs, studies=(archive.studies, archive.studies))
    archive.work("ingest").mkdir()
    with pytest.raises(SourcesError, match="10 paths occur under more than one"):
        ingest(IngestSettings(), twice, archive.work("ingest"), RunLog("ingest", quiet=True))


def test_the_committed_demo(tmp_path):
    """Its first sixty patients: real radiographs, made-up headers."""
    archive = Archive(tmp_path)
    archive.studies.mkdir()
    with zipfile.ZipFile(DEMO / "studies.zip") as whole, zipfile.ZipFile(archive.studies / "s.zip", "w") as part:
        for name in whole.namelist()[:60]:
            part.writestr(name, whole.read(name))
    archive.run("ingest")
    images = archive.table("ingest", "images")
    assert len(images) + archive.summary("ingest")["quarantined"].get("duplicate", 0) == 60
    assert set(images["modality"]) <= {"DX", "CR"}
    assert set(images["manufacturer"]) <= {"Siemens", "Fujifilm", "Philips"}
    assert images["age_years"].between(1, 5).all()
    assert set(images["photometric"]) == {"YBR_FULL_422"}
    assert (images[["rows", "columns"]] == 224).all(axis=None)
    assert images["site"].nunique() == 3


# ---------------------------------------------------------------- volumes


def test_the_known_series_end_to_end(tmp_path):
    """All cases of the table in one archive: every volume built, every other file refused for its reason."""
    archive = Archive(tmp_path)
    for number, case in enumerate(CASES):
        (archive.studies / f"{number:02d}").mkdir(parents=True)
        write_case(case, archive.studies / f"{number:02d}")
    log = RunLog("ingest", quiet=True)
    archive.run("ingest", log=log, min_side=1)
    images, files, summary = (
        archive.table("ingest", "images"),
        archive.table("ingest", "files"),
        archive.summary("ingest"),
    )
    received = sum(1 for path in archive.studies.rglob("*") if path.is_file())
    assert summary["received"] == received == files["source_id"].nunique() + sum(summary["quarantined"].values())
    assert summary["volumes"] == len(images) == sum(len(case.volumes) for case in CASES)
    expected = Counter()
    for case in CASES:
        expected += Counter(dict.fromkeys(case.refused, 1) if case.enhanced else case.refused)
    assert summary["quarantined"] == expected
    assert (images["axes"] == 3).all()
    shapes = {tuple(volume.canonical()[0].shape) for case in CASES for volume in case.volumes}
    assert set(zip(images["slices"], images["rows"], images["columns"], strict=True)) == shapes
    assert files.groupby("image_id")["part"].apply(lambda parts: sorted(parts) == list(range(len(parts)))).all()


def test_a_file_whose_two_time_points_are_equal_is_one_image_and_used(tmp_path):
    twice = next(case for case in CASES if case.name == "enhanced multi-frame, two time points")
    archive = Archive(tmp_path)
    archive.studies.mkdir()
    write_case(replace(twice, planes=[replace(plane, add=0.0) for plane in twice.planes]), archive.studies)
    archive.run("ingest", min_side=1)
    summary = archive.summary("ingest")
    assert (summary["received"], summary["accepted"], summary["quarantined"]) == (1, 1, {})
    assert summary["duplicates"]["same_pixels"] == 1


def test_volumes_go_on_to_arrays_and_a_changed_slice_stops_them(tmp_path):
    plain = next(case for case in CASES if case.name == "oblique")
    archive = Archive(tmp_path, card=make_card(patient_id="patient"))
    labels = []
    for number in range(30):
        folder = archive.studies / f"{number}"
        folder.mkdir(parents=True)
        planes = [replace(plane, add=np.cos(number * plane.number) * 9000) for plane in plain.planes]
        write_case(replace(plain, name=f"oblique {number}", planes=planes), folder)
        labels.append({"patient": dcmread(next(folder.iterdir())).PatientID, "label": "ill" if number % 2 else "well"})
    archive.label(labels)
    archive.run("ingest", near_duplicates=False).run("split", fractions=FRACTIONS, seed=1)
    archive.run("preprocess", image_size=[16, 16, 16])
    array = np.load(archive.work("preprocess") / "train-000.npy", mmap_mode="r")
    assert array.shape[1:] == (1, 16, 16, 16)
    assert archive.summary("preprocess")["counts"]["train"] == len(array)
    path = next((archive.studies / "7").iterdir())
    path.write_bytes(path.read_bytes()[:-2] + b"\0\1")
    with pytest.raises(ValueError, match="the file has changed since ingest"):
        archive.run("preprocess", image_size=[16, 16, 16])


def test_slices_can_stay_pictures(tmp_path):
    archive = Archive(tmp_path)
    archive.studies.mkdir()
    write_case(CASES[0], archive.studies)
    archive.run("ingest", min_side=1, slices="separate", near_duplicates=False)
    assert archive.table("ingest", "images")["axes"].tolist() == [2] * len(CASES[0].planes)


def test_a_header_and_its_voxels_in_two_files_are_one_image(tmp_path):
    archive = Archive(tmp_path, card=make_card(path="file", patient_id="who"))
    archive.studies.mkdir()
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    nib.save(nib.Nifti1Pair(voxels, affine), archive.studies / "a.img")
    nib.save(nib.Nifti1Image(voxels, affine), archive.studies / "b.nii")
    (archive.studies / "alone.hdr").write_bytes((archive.studies / "a.hdr").read_bytes())
    (archive.studies / "disk.img").write_bytes(b"no voxels")
    archive.label([{"file": name, "who": name, "label": "ill"} for name in ("a.img", "b.nii", "alone.hdr", "disk.img")])
    archive.run("ingest", near_duplicates=False)
    images, files = archive.table("ingest", "images"), archive.table("ingest", "files")
    assert images["pixel_hash"].nunique() == 1 == images["spacing_mm"].map(tuple).nunique()
    assert sorted(files.groupby("image_id").size()) == [1, 2]
    assert quarantined(archive) == {"damaged_pixels": 1, "unknown_format": 1}


# ---------------------------------------------------------------- arrays


def test_an_archive_of_medmnist_brings_its_own_labels_and_split(tmp_path):
    numbers = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 150), ("val", 100), ("test", 60)):
        arrays[f"{name}_images"] = numbers.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{name}_labels"] = (np.arange(count)[:, None] % 2).astype(np.uint8)
    splits = {"train": ["train", "tune"], "val": ["calibration"], "test": ["test"]}
    card = make_card(path="path", patient_id="path", split="split", splits=splits, positive=["1"], negative=["0"])
    archive = Archive(tmp_path, card=card, sources=("set.npz",), label_table="set.npz")
    np.savez(tmp_path / "set.npz", **arrays)
    archive.run("ingest", min_side=28).run("split", fractions=FRACTIONS)
    images, table = archive.table("ingest", "images"), archive.table("split", "split")
    assert len(images) == 310 == images["patient_id"].nunique()
    assert set(images["format"]) == {"array"}
    assert (table["label"] == 1).sum() == 155
    assert set(table.loc[table["given"] == "val", "split"]) == {"calibration"}
    archive.run("preprocess", image_size=[28, 28], lower_percentile=0.0, upper_percentile=100.0)
    shown = np.load(archive.work("preprocess") / "test-000.npy")
    assert shown.shape == (60, 1, 28, 28)
    arrays["test_images"][3] = arrays["train_images"][5]  # the same picture on both sides
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match="1 group of patients, 2 patients in all, is in more than one split"):
        archive.run("ingest", min_side=28).run("split", fractions=FRACTIONS)


# ---------------------------------------------------------------- what is new alone is read


def test_a_second_ingest_reads_what_is_new_and_gives_what_a_fresh_one_gives(tmp_path, monkeypatch):
    archive = Archive(tmp_path / "a")
    for number in range(12):
        archive.add(f"{number}.dcm", study(number, PatientID=f"P{number % 5}", StudyDate=f"201503{number + 1:02d}"))
    archive.add("cut.dcm", study(20)[:-100])
    for number, case in enumerate(CASES[:3]):
        (archive.studies / f"series{number}").mkdir()
        write_case(case, archive.studies / f"series{number}")
    archive.run("ingest", **SETTINGS)
    before = archive.folder / "before"
    archive.work("ingest").rename(before)
    archive.previous = Artifact("ingest", "0" * 16, before)

    archive.add("new.dcm", study(30, PatientID="P1", StudyDate="20150220"))
    archive.add("3.dcm", study(40, PatientID="P3", SOPInstanceUID="2.25.4"))
    (archive.studies / "7.dcm").unlink()
    changed = sorted((archive.studies / "series1").iterdir())[0]
    changed.unlink()
    read = []
    monkeypatch.setattr("pipeline.imaging.archive.journal.each_batch", lambda *a: _noted(read, *a))
    log = RunLog("ingest", quiet=True)
    archive.run("ingest", log=log, **SETTINGS)
    assert sorted(read[0]) == ["3.dcm", "new.dcm"]
    assert {name.split("/")[0] for name in read[1]} == {"series1"}
    again = archive.files("ingest")
    fresh = Archive(tmp_path / "b")
    fresh.folder.mkdir()
    archive.studies.rename(fresh.studies)
    assert fresh.run("ingest", **SETTINGS).files("ingest") == again


@pytest.mark.parametrize("refuse", [[], ["unexpected_view"]])
def test_what_the_card_expects_changes_flags_and_reads_no_file_that_keeps_its_verdict(tmp_path, monkeypatch, refuse):
    settings = SETTINGS | {"refuse": refuse}
    archive = Archive(
        tmp_path / "a", card=make_card(path="path", expected={"views": ["PA"], "modalities": ["DX", "CT"]})
    )
    for number, view in enumerate(("PA", "AP", "", "LL", "AP", "PA")):
        archive.add(f"{number}.dcm", study(number, PatientID=f"P{number}", ViewPosition=view))
    for number, case in enumerate(CASES[:2]):
        (archive.studies / f"series{number}").mkdir()
        write_case(case, archive.studies / f"series{number}")
    archive.run("ingest", **settings)
    before = archive.folder / "before"
    archive.work("ingest").rename(before)
    archive.previous = Artifact("ingest", "0" * 16, before)
    archive.card = make_card(path="path", expected={"views": ["AP"], "modalities": ["MR"]})
    read = []
    monkeypatch.setattr("pipeline.imaging.archive.journal.each_batch", lambda *a: _noted(read, *a))
    again = archive.run("ingest", **settings).files("ingest")
    # What was refused before, and what is to be refused now, is read: a refusal keeps no facts of the image.
    assert sorted(read[0]) == ([] if not refuse else ["0.dcm", "1.dcm", "3.dcm", "4.dcm", "5.dcm"])
    flags = archive.table("ingest", "images").set_index("view")["quality_flags"]
    assert not flags["AP"].str.contains("unexpected_view").any()
    assert "PA" not in flags if refuse else flags["PA"].str.contains("unexpected_view").all()
    assert flags["AP"].str.contains("unexpected_modality").all()
    fresh = Archive(tmp_path / "b", card=archive.card)
    fresh.folder.mkdir()
    archive.studies.rename(fresh.studies)
    assert fresh.run("ingest", **settings).files("ingest") == again


def test_what_was_read_before_a_kill_is_not_taken_for_other_files(tmp_path, monkeypatch):
    """After the kill an earlier ingest of a part of the archive is at hand, so that batches hold other files."""
    archive = Archive(tmp_path / "a")
    for number in range(4):
        archive.add(f"{number}.dcm", study(number))
    archive.run("ingest", **SETTINGS)
    part = archive.folder / "part"
    archive.work("ingest").rename(part)
    for number in range(4, 14):
        archive.add(f"{number}.dcm", study(number))
    with monkeypatch.context() as killed:
        killed.setattr("pipeline.stages.ingest.merge_pages", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            archive.run("ingest", **SETTINGS)
    archive.previous = Artifact("ingest", "0" * 16, part)
    again = archive.run("ingest", **SETTINGS).files("ingest")
    fresh = Archive(tmp_path / "b")
    fresh.folder.mkdir()
    archive.studies.rename(fresh.studies)
    assert fresh.run("ingest", **SETTINGS).files("ingest") == again


def _noted(read: list[list[str]], task, batches, pool, scratch):
    items = [item for batch in batches.values() for item in batch]
    members = [[item[0]] if isinstance(item[0], Source) else item[0] for item in items]
    found = [[one if isinstance(one, Source) else one.source for one in group] for group in members]
    read.append([source.path for sources in found for source in sources])
    return each_batch(task, batches, pool, scratch)


def test_a_file_that_changes_while_the_pipeline_runs_is_refused(archive):
    class Meanwhile(SourceHashes):
        def as_planned(self, path):
            return "0" * 64 if path.name == "3.dcm" else super().as_planned(path)

    archive.hashes = Meanwhile()
    archive.run("ingest", **SETTINGS)
    table = archive.table("ingest", "quarantine")
    assert table[["reason", "detail"]].to_numpy().tolist() == [["unreadable", "changed while the pipeline ran"]]


# ---------------------------------------------------------------- quality


def test_near_duplicates_negatives_and_the_unexpected_are_found(tmp_path):
    archive = Archive(tmp_path, card=make_card(path="path", expected={"views": ["PA"], "body_parts": ["CHEST"]}))
    pictures = [radiograph(number) for number in range(30)]
    for number, picture in enumerate(pictures):
        elements = {"PixelSpacing": [0.2, 0.2], "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
        archive.add(f"{number}.dcm", study(number, pixels=picture, **elements))
    archive.add(
        "other.dcm", study(90, pixels=radiograph(90), BodyPartExamined="KNEE", ViewPosition="LL", PixelSpacing=[40, 40])
    )
    archive.add("negative.dcm", study(91, pixels=4095 - radiograph(91), BodyPartExamined="CHEST", ViewPosition="PA"))
    darker = (pictures[0] * 0.8 + 100).astype(np.uint16)
    archive.add("copy.dcm", study(92, pixels=darker, BodyPartExamined="CHEST", ViewPosition="PA"))
    archive.add("mirror.dcm", study(93, pixels=pictures[1][:, ::-1], BodyPartExamined="CHEST", ViewPosition="PA"))
    log = RunLog("ingest", quiet=True)
    archive.run("ingest", log=log, min_side=8)
    near = archive.table("ingest", "near_duplicates")
    assert sorted(near["how"]) == ["copy", "mirrored"]
    assert near["across_patients"].all()
    flags = archive.summary("ingest")["flags"]
    assert flags["inversion_suspected"] == flags["unexpected_view"] == flags["unexpected_body_part"] == 1
    assert flags["spacing_implausible"] == 1
    assert flags["near_duplicate_across_patients"] == 4
    assert any("2 pairs of images of different patients" in warning for warning in log.warnings)
    quality = archive.table("ingest", "quality").set_index("image_id")
    assert quality["likeness"].min() < -0.3
    with Image.open(archive.work("ingest") / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 1000
        assert len(sheet.getcolors(1 << 16)) > 50  # pictures, not a blank page


def radiograph(number: int) -> np.ndarray:
    """Return a bright oval on black, as different from its like as two chests are."""
    y, x = np.mgrid[:96, :96] / 48 - 1
    bumps = np.random.default_rng(number).normal(size=(6, 6)) * 0.5
    rough = np.asarray(Image.fromarray(bumps.astype(np.float32)).resize((96, 96), Image.Resampling.BICUBIC))
    return (
        ((np.clip(1.2 - x**2 - 1.4 * y**2 + rough * (x**2 + y**2 < 0.9), 0, 2)) * 2000).clip(0, 4095).astype(np.uint16)
    )


# ---------------------------------------------------------------- identifiers


def test_a_hundred_planted_identifiers_come_out_nowhere(tmp_path, capfd):
    """In every text element that a header may have, in sequences, private blocks, file meta and names of files."""
    archive = Archive(tmp_path / "a")
    planted = []

    def identifier() -> str:
        planted.append(f"Zz{len(planted):03d}Hollerbusch")
        return planted[-1]

    dataset = make_dataset(np.random.default_rng(5).integers(0, 4096, (40, 48)).astype(np.uint16))
    texts = [tag for tag, entry in DicomDictionary.items() if entry[0] in TEXT_VRS]
    for tag in [tag for tag in texts if 0x0008_0000 <= tag < 0x0040_0000][::3][:100]:
        dataset.add_new(tag, dictionary_VR(tag), identifier())
    dataset.private_block(0x0011, "HOLLERBUSCH", create=True).add_new(1, "LO", identifier())
    item = Dataset()
    item.PatientName = identifier()
    dataset.OtherPatientIDsSequence = [item]
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.SourceApplicationEntityTitle = identifier()[:16]
    planted[-1] = planted[-1][:16]
    for number in range(8):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.77{number}"
        content = to_bytes(dataset)
        archive.add(f"{identifier()}/{number}.dcm", content if number % 2 else content[: 200 + 150 * number])
    write_case(CASES[0], archive.studies)
    for path in archive.studies.glob("*.dcm"):
        header = dcmread(path)
        header.PatientName, header.ImageComments, header.PatientID = planted[0], planted[1], planted[2]
        path.write_bytes(to_bytes(header))
    assert len(planted) >= 100
    archive.run("ingest", log=RunLog("ingest"), min_side=1)
    assert archive.summary("ingest")["volumes"] == 1
    said = "".join(capfd.readouterr())
    out = b"".join(path.read_bytes() for path in archive.work("ingest").rglob("*") if path.is_file())
    tables = str([archive.table("ingest", name).to_dict() for name in TABLES])
    names = str([path.name for path in archive.folder.rglob("*") if "studies" not in path.parts])
    found = [value for value in planted if value in said + tables + names or value.encode() in out]
    assert found == []
