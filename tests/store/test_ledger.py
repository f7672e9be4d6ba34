"""The ledger only grows, notices when it was touched, and counts people, not keys."""

import json
import shutil

import pytest

from pipeline.store.artifacts import Store
from pipeline.store.files import write_json
from pipeline.store.ledger import Ledger, LedgerError


@pytest.fixture
def read(tmp_path):
    """Return a function that publishes an artifact which read some patients, and enters it."""
    store = Store(tmp_path)

    def made(key, patients, arm="mae", stage="calibrate"):
        with store.lock(stage, key):
            work = store.begin(stage, key)
            if patients is not None:
                write_json(work / "reading.json", {"patients": Ledger.hashed(patients), "setting": {"arm": arm}})
            else:
                write_json(work / "other.json", {})
            artifact = store.publish(stage, key, {"created": "2026-01-01", "stage": stage, "key": key})
        Ledger(tmp_path).append([artifact])
        return artifact

    return made


def key(number):
    return f"{number:016d}"


def test_readings_are_found_by_overlap_of_patients(read, tmp_path):
    read(key(1), ["a", "b"])
    read(key(2), ["b", "c"], arm="hog")
    read(key(3), ["x"])
    read(key(4), ["a"], stage="evaluate")
    ledger = Ledger(tmp_path)
    assert [one.key for one in ledger.earlier("calibrate", ["b"])] == [key(1), key(2)]
    assert [one.key for one in ledger.earlier("calibrate", ["c", "q"], key(2))] == []
    assert [one.key for one in ledger.earlier("evaluate", ["a"])] == [key(4)]
    assert ledger.earlier("calibrate", ["nobody"]) == []
    assert ledger.distinct(ledger.earlier("calibrate", ["b"]), {"arm": "mae"}) == 2
    assert ledger.distinct(ledger.earlier("calibrate", ["b"]), {"arm": "scratch"}) == 3


def test_deleting_artifacts_does_not_empty_it_and_entering_them_again_adds_nothing(read, tmp_path):
    artifact = read(key(1), ["a"])
    Ledger(tmp_path).append([artifact])
    shutil.rmtree(tmp_path / "calibrate")
    assert len(Ledger(tmp_path).lines()) == 1
    assert [one.key for one in Ledger(tmp_path).earlier("calibrate", ["a"])] == [key(1)]


def test_an_artifact_without_a_reading_adds_nothing(read, tmp_path):
    read(key(1), None)
    assert not (tmp_path / "ledger").exists()
    assert Ledger(tmp_path).head == "0" * 64


@pytest.mark.parametrize("change", ["edit", "remove", "swap", "cut"])
def test_a_line_that_was_touched_is_noticed(read, tmp_path, change):
    for number in range(3):
        read(key(number), ["a"])
    path = tmp_path / "ledger" / "readings.jsonl"
    lines = path.read_text().splitlines()
    touched = {
        "edit": [lines[0], lines[1].replace("mae", "hog"), lines[2]],
        "remove": [lines[0], lines[2]],
        "swap": [lines[1], lines[0], lines[2]],
        "cut": [lines[0], lines[1], lines[2][:40]],
    }[change]
    path.write_text("\n".join(touched) + "\n")
    with pytest.raises(LedgerError, match="was changed, removed or moved"):
        Ledger(tmp_path).lines()


def test_pseudonyms_are_not_in_it(read, tmp_path):
    read(key(1), ["patient-pseudonym"])
    everything = "".join(path.read_text() for path in (tmp_path / "ledger").rglob("*.json*"))
    assert "patient-pseudonym" not in everything
    assert json.loads((tmp_path / "ledger" / "readings.jsonl").read_text())["count"] == 1


def test_a_file_of_patients_that_is_gone_counts_against_the_reader(read, tmp_path):
    read(key(1), ["a"])
    shutil.rmtree(tmp_path / "ledger" / "patients")
    assert len(Ledger(tmp_path).earlier("calibrate", ["z"])) == 1
