"""The tuberculosis task on made-up folders of the published names and forms; the films themselves were never here."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.settings.load import load, read_card

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "data_manifests" / "tuberculosis"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tuberculosis_make_tables", MANIFESTS / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names of their fields
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "sex", "age", "normal"),
    [
        ("male 45yrs\nright PTB\n", "M", 45, False),
        ("Female , 30yrs\r\nnormal\r\n", "F", 30, True),
        ("female24yrs\n\nbilateral PTB", "F", 24, False),
        ("Male, 8 months\nPTB in the right upper field", "M", 0.67, False),
        ("male\nnormal", "M", None, True),
        ("Patient's Sex: F\nPatient's Age: 027Y\nnormal\n", "F", 27, True),
        ("Patient's Sex: M \nPatient's Age: 064Y \nmale-sized cavity in the left upper lobe, abnormal", "M", 64, False),
        ("Patients Sex: O\nPatient's Age: \nnormal", None, None, True),
        ("", None, None, False),
    ],
)
def test_readings_of_both_forms_say_sex_and_age(script, text, sex, age, normal):
    assert script.read_reading(text) == script.Reading(sex, age, normal)


def film(path, generator, positive=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.normal(110, 25, (48, 40)).clip(0, 255)
    pixels[8:20, 8:20] += 90 * positive
    Image.fromarray(np.repeat(pixels.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)).save(path)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders as they are published, 120 films of Shenzhen and 24 of Montgomery, 10 images of NIH."""
    root, generator = tmp_path_factory.mktemp("tuberculosis"), np.random.default_rng(1)
    for folder, prefix, count in (("ChinaSet_AllFiles", "CHNCXR", 120), ("MontgomerySet", "MCUCXR", 24)):
        for number in range(1, count + 1):
            name = f"{prefix}_{number:04d}_{number % 2}"
            film(root / folder / "CXR_png" / f"{name}.png", generator, bool(number % 2))
            finding = "right PTB" if number % 2 else "normal"
            text = f"male {20 + number % 60}yrs\n{finding}"
            if prefix == "MCUCXR":
                text = f"Patient's Sex: F\nPatient's Age: {20 + number:03d}Y\n{finding}\n"
            reading = root / folder / "ClinicalReadings" / f"{name}.txt"
            reading.parent.mkdir(exist_ok=True)
            reading.write_text(text)
    film(root / "MontgomerySet" / "ManualMask" / "leftMask" / "MCUCXR_0001_1.png", generator)
    (root / "ChinaSet_AllFiles" / "CXR_png" / "Thumbs.db").write_bytes(b"x")
    (root / "ChinaSet_AllFiles" / "CXR_png" / "._CHNCXR_0001_1.png").write_bytes(b"x")
    film(root / "ChinaSet_AllFiles" / "CXR_png" / "CHNCXR_0001.png", generator)
    for patient in range(1, 6):
        for number in range(2):
            film(root / "ChestXray14" / "images_001" / "images" / f"{patient:08d}_{number:03d}.png", generator)
    return root


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_are_made_from_the_folders_as_published(script, published):
    (published / "ChinaSet_AllFiles" / "ClinicalReadings" / "CHNCXR_0001_1.txt").write_text("male 21yrs\nnormal")
    said = script.make_tables(published, published)
    assert "shenzhen: 120 films, 60 with tuberculosis" in said
    assert "shenzhen: 1 names of another form, left out" in said
    assert "shenzhen: 1 whose text does not fit the name, which decides" in said
    assert "nih: 10 images of 5 patients, without labels" in said
    first = rows_of(published / "shenzhen.csv")[0]
    assert first == {
        "path": "ChinaSet_AllFiles/CXR_png/CHNCXR_0001_1.png",
        "patient_id": "shenzhen_0001",
        "label": "1",
        "sex": "M",
        "age_years": "21.0",
    }
    assert rows_of(published / "montgomery.csv")[0]["sex"] == "F"
    assert len({row["patient_id"] for row in rows_of(published / "mixed.csv")}) == 144
    *_, last = rows_of(published / "nih.csv")
    assert last == {"path": "images_001/images/00000005_001.png", "patient_id": "nih_00000005"}


def test_without_the_archives_the_script_says_what_is_missing(script, tmp_path):
    with pytest.raises(SystemExit, match="neither ChinaSet_AllFiles nor MontgomerySet"):
        script.make_tables(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["shenzhen", "montgomery", "mixed"])
def test_the_cards_can_be_read_and_say_what_was_never_done(name):
    assert read_card(MANIFESTS / f"{name}.yaml").label.positive == ["1"]
    assert "ever run on the films" in (MANIFESTS / f"{name}.yaml").read_text()


def test_the_config_divides_shenzhen_keeps_nih_for_pretraining_and_montgomery_for_testing(script, published, tmp_path):
    script.make_tables(published, published)
    config = ROOT / "configs" / "tuberculosis.yaml"
    external = (
        f"{{name: montgomery, studies: [{published}], labels: {published / 'montgomery.csv'}, "
        f"card: {MANIFESTS / 'montgomery.yaml'}, include: ['MontgomerySet/CXR_png/**']}}"
    )
    words = [
        f"data.studies=[{published}]",
        f"data.labels={published / 'shenzhen.csv'}",
        f"data.unlabelled=[{published / 'ChestXray14'}]",
        f"data.unlabelled_patients={published / 'nih.csv'}",
        f"data.external=[{external}]",
        f"data.key_file={tmp_path / 'own.key'}",
        f"store={tmp_path / 'store'}",
        "machine.workers=1",
    ]
    settings, _ = load(config, words)
    assert settings.calibrate.recall_targets[0] == 0.9
    done = CliRunner().invoke(app, ["run", str(config), *words, "--until", "split@unlabelled"])
    assert done.exit_code == 0, done.stderr
    folders = [path.parent for path in (tmp_path / "store").glob("split/*/artifact.json")]
    found = [[json.loads((one / f"{name}.json").read_text()) for name in ("artifact", "summary")] for one in folders]
    counts = {record["step"]: summary["splits"] for record, summary in found}
    nih, own, other = (counts[f"split{of}"] for of in ("@unlabelled", "", "@montgomery"))
    assert nih["pretrain"] == nih["pretrain"] | {"images": 10, "patients": 5, "labelled_patients": 0}
    assert sum(own[name]["images"] for name in ("train", "tune", "calibration", "test")) == 120
    assert other["test"]["images"] == other["test"]["patients"] == 24
