"""Every file received has one verdict; nothing that identifies comes out; a kill costs one batch."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from imaging.files import gradient, make_dataset, make_dicom, to_bytes
from stages.sources_run import SECRET, Archive, make_card

from pipeline.imaging.labels import LabelsError
from pipeline.imaging.pseudonyms import patient_pseudonym
from pipeline.imaging.sources import SourcesError
from pipeline.store.runlog import RunLog

DEMO = Path(__file__).parents[2] / "data_manifests" / "demo_chest_xray"
SETTINGS = {"min_side": 8, "batch_size": 4}
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


def study(number: int, **elements) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 4096, (40, 48)).astype(np.uint16)
    return make_dicom(pixels, **{"SOPInstanceUID": f"2.25.{number + 1}", "PatientID": f"P{number}"} | elements)


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
    (archive.studies / "labels.csv").write_text("path,label\n")
    archive.run("ingest", **SETTINGS)
    assert archive.summary("ingest")["received"] == 10


def test_nothing_accepted_is_an_error_that_says_why(tmp_path):
    archive = Archive(tmp_path)
    archive.add("a.txt", b"text")
    with pytest.raises(ValueError, match=r"none of 1 files was accepted; 1 unknown_format \(neither DICOM"):
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
    from PIL import Image

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
        while process.poll() is None and len(list(journal.glob("files-0*.parquet"))) < pages:
            time.sleep(0.005)
        assert process.poll() is None, "it was finished before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list(journal.glob("files-0*.parquet"))) >= 8
    archive.run("ingest", min_side=8, batch_size=10)
    assert archive.files("ingest") == expected


def test_the_same_path_under_two_roots_is_an_error_when_labels_join_by_path(archive):
    inputs = archive.inputs("ingest")
    from dataclasses import replace

    from pipeline.config import IngestSettings
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
