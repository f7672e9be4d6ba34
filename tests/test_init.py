"""`maescreen init`, as a new user meets it: a folder, a table, a card and a config that lead to a split."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from imaging.files import make_dicom
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.class_folders import read_class_folders
from pipeline.commands.fingerprint import Fingerprint, sample
from pipeline.commands.label_capacity import FRACTIONS, TARGETS, capacity
from pipeline.commands.label_table import Answers, InitError, counts, describe
from pipeline.commands.machine_speed import MachineSpeed, TimedStep
from pipeline.commands.proposal import propose
from pipeline.commands.studies_glance import Glance
from pipeline.imaging.image import Identity
from pipeline.models.arm_registry import ARMS
from pipeline.orchestration.work import Items
from pipeline.settings.load import load
from pipeline.statistics.threshold import min_positives

NOTHING_SEEN = Glance(files=[])
NOTHING_SAID = Answers()
CT = "1.2.840.10008.5.1.4.1.1.2"


def fixed_key(folder: Path) -> Path:
    """Return a key that is the same each time, so that the split is."""
    key = folder / "own.key"
    key.write_text("5e" * 32)
    key.chmod(0o600)
    return key


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def table(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def described(tmp_path, column, answers=NOTHING_SAID, files=()):
    cells = "\n".join(f"{number}.png,{value}" for number, value in enumerate(column))
    return describe(table(tmp_path, f"path,label\n{cells}\n"), answers, Glance(files=files))


def test_every_value_is_shown_with_its_count_and_what_it_means(tmp_path):
    found = described(tmp_path, ["1.0", "0.0", "-1.0", "", "1.0"])
    assert [line.split() for line in found.lines()[2:]] == [
        ["1", "-1.0", "not", "used:", "no", "answer"],
        ["1", "0.0", "negative"],
        ["2", "1.0", "positive"],
        ["1", "(empty)", "no", "label"],
    ]


@pytest.mark.parametrize(
    "unsure",
    ["-1", "-1.0", "U", "uncertain", "Unknown", "?", "n/a", "NA", "indeterminate", "possible", "yes?", "-99", "#N/A"],
)
def test_what_looks_as_if_nobody_knew_is_nothing_until_somebody_says_so(tmp_path, unsure):
    found = described(tmp_path, ["yes", "no", unsure], Answers(positive=["yes"]))
    assert (found.positive, found.negative, found.unused) == (["yes"], ["no"], [unsure])
    found = described(tmp_path, ["yes", unsure], Answers(positive=["yes"], negative=[unsure]))
    assert (found.positive, found.negative, found.unused) == (["yes"], [unsure], [])


def test_other_spellings_of_a_positive_value_are_never_negative(tmp_path):
    found = described(
        tmp_path, ["malignant", "Malignant", "MALIGNANT", "benign", "naevus"], Answers(positive=["malignant"])
    )
    assert found.positive == ["MALIGNANT", "Malignant", "malignant"]
    assert found.negative == ["benign", "naevus"]
    assert described(tmp_path, ["1", "1.0", "0"], Answers(positive=["1"])).positive == ["1", "1.0"]


def test_letters_composed_and_decomposed_are_one_value(tmp_path):
    column = ["b\u00f6sartig", "bo\u0308sartig", "gutartig"]
    assert sorted(described(tmp_path, column, Answers(positive=["bo\u0308sartig"])).positive) == sorted(column[:2])


@pytest.mark.parametrize("several", ["Mass; Nodule", "Nodule/mass", '"Nodule, Mass"', "Nodule and Mass", "Mass+Nodule"])
def test_a_cell_that_names_a_positive_value_beside_others_is_not_negative_unless_somebody_says_so(tmp_path, several):
    column, plain = ["Mass", "Nodule", several], several.strip('"')
    with pytest.raises(InitError, match=f"a positive one beside others: {re.escape(plain)}"):
        described(tmp_path, column, Answers(positive=["Mass"]))
    found = described(tmp_path, column, Answers(positive=["Mass", plain]))
    assert (sorted(found.positive), found.negative) == (sorted(["Mass", plain]), ["Nodule"])
    assert described(tmp_path, column, Answers(positive=["Mass"], negative=["Nodule", plain])).positive == ["Mass"]


def test_a_class_that_denies_something_is_no_example_of_a_positive_one(tmp_path):
    with pytest.raises(InitError, match=r"DR \(1\), no DR \(1\).*as in --positive DR;"):
        described(tmp_path, ["DR", "no DR"])


def test_two_columns_that_are_called_alike_and_differ_are_refused(tmp_path):
    twins = table(tmp_path, "path,Label,label \na.png,1,0\nb.png,0,1\n")
    with pytest.raises(InitError, match="columns Label and label of the label table have names that differ in nothing"):
        describe(twins, Answers(), NOTHING_SEEN)
    assert describe(twins, Answers(label="label"), NOTHING_SEEN).label == "label"
    same = table(tmp_path, "path,label,Label,note,Note\na.png,1,1,x,y\nb.png,0,0,,\n")
    assert describe(same, Answers(), NOTHING_SEEN).label == "label"


def test_a_value_is_said_to_mean_one_thing(tmp_path):
    with pytest.raises(InitError, match="said to mean two things: 1; name each value once"):
        described(tmp_path, ["1", "0"], Answers(positive=["1"], negative=["1.0"]))


def test_none_can_be_a_class(tmp_path):
    with pytest.raises(InitError, match=r"None \(2\), lesion \(1\).*--positive lesion"):
        described(tmp_path, ["None", "None", "lesion"])
    assert described(tmp_path, ["None", "lesion"], Answers(positive=["lesion"])).negative == ["None"]


@pytest.mark.parametrize(
    ("column", "answers", "words"),
    [
        (["a", "b"], Answers(), "None of them means positive or negative"),
        (["1", "0"], Answers(positive=["2"]), r"has no value 2; its values: 0 \(1\), 1 \(1\)"),
        (["1", "1"], Answers(), "None of them means negative"),
        (["a", "b", "c"], Answers(positive=["a"], negative=["b"]), "Say which values"),
        (["", ""], Answers(), "column label is empty"),
        ([str(n) for n in range(30)], Answers(), "30 different values"),
        (["Mass|Nodule", "Mass", "No Finding"], Answers(), "separated by bars: Mass, Nodule.*get_dummies"),
        (["1", "0"], Answers(label="other"), "no column other; its columns: path, label"),
    ],
)
def test_what_has_to_be_said_is_asked_for(tmp_path, column, answers, words):
    with pytest.raises(InitError, match=words):
        described(tmp_path, column, answers)


def test_several_columns_of_labels_are_named_for_what_they_are(tmp_path):
    path = table(tmp_path, "path,mass,nodule,age\na.png,1,0,40\nb.png,0,1,50\n")
    with pytest.raises(InitError, match=r"2 columns could be the label: mass, nodule; .* --label.*further_labels"):
        describe(path, Answers(), NOTHING_SEEN)
    found = describe(path, Answers(label="mass"), NOTHING_SEEN)
    assert found.label == "mass"
    assert found.others == {"nodule": (["1"], ["0"])}


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("Image Index", "path"),
        ("image_path", "path"),
        ("Patient ID", "patient_id"),
        ("PatientID", "patient_id"),
        ("StudyInstanceUID", "study_instance_uid"),
        ("sop_instance_uid", "sop_instance_uid"),
    ],
)
def test_columns_are_known_by_the_names_that_tables_have(tmp_path, header, field):
    found = describe(table(tmp_path, f"{header},Finding Labels\na,1\nb,0\n"), Answers(), NOTHING_SEEN)
    assert found.joins == {field: header}
    assert found.label == "Finding Labels"


def test_a_column_id_is_what_the_studies_say(tmp_path):
    path = table(tmp_path, "id,label\n0007,1\n0008,0\n")
    assert describe(path, Answers(), Glance(files=["x/0007.png", "x/0008.png"])).joins == {"path": "id"}
    with pytest.raises(InitError, match="no column of the label table says which image or patient"):
        describe(path, Answers(), Glance(files=["x/a.png"]))


def test_a_column_of_files_is_known_by_its_values_whatever_it_is_called(tmp_path):
    path = table(tmp_path, "ruta,patient_id,subject,paciente,label\nx/a.png,,P1,7,1\nx/b.png,,P2,8,0\n")
    seen = Glance(files=["x/a.png", "x/b.png", "x/7.png", "x/8.png"], identities=[Identity(), Identity()])
    assert describe(path, Answers(), seen).joins == {"path": "ruta", "patient_id": "subject"}


def test_patients_that_no_file_names_join_nothing(tmp_path):
    path = table(tmp_path, "patient_id,label\nP1,1\nP2,0\n")
    with pytest.raises(InitError, match="column patient_id names patients, but the files opened name none"):
        describe(path, Answers(), Glance(files=["a.png", "b.png"], identities=[Identity(), Identity()]))


@pytest.mark.parametrize(
    ("cells", "rules"),
    [
        (["a.png", "b.png"], {"path_within": "'x/'"}),
        (["a", "b"], {"path_within": "'x/'", "path_ignore": "[suffix]"}),
        (["images/x/a.png", "images/x/b.png"], {"path_without": "'images/'"}),
        (["x/a.png", "x/b.png"], {}),
    ],
)
def test_what_paths_differ_in_is_written_into_the_card(tmp_path, cells, rules):
    path = table(tmp_path, "path,label\n" + "".join(f"{cell},{n}\n" for n, cell in enumerate(cells)))
    assert describe(path, Answers(), Glance(files=["x/a.png", "x/b.png", "notes.txt"])).rules == rules


def test_leading_zeros_that_the_table_lost_are_left_out_of_account(tmp_path):
    path = table(tmp_path, "id,label\n7,1\n8,0\n")
    seen = Glance(files=["a.dcm"], identities=[Identity(patient="0007"), Identity(patient="0008")])
    found = describe(path, Answers(), seen)
    assert (found.joins, found.rules) == ({"patient_id": "id"}, {"id_ignore": "[leading_zeros]"})


def initialise(tmp_path):
    """Return the config's path and what was said."""
    arguments = ("--labels", tmp_path / "labels.csv", "--output", tmp_path / "out", "--name", "own")
    done = call("init", tmp_path / "studies", *arguments)
    assert done.exit_code == 0, done.stderr
    return tmp_path / "out" / "configs" / "own.yaml", done.stderr


def test_small_photographs_in_colour_lead_to_a_split(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "studies").mkdir()
    for n in range(200):
        pixels = generator.integers(0, 255, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "studies" / f"{n:03d}.png")
    rows = "".join(f"{n:03d}.png;p{n};{'yes' if n % 2 else 'no'}\n" for n in range(200))
    table(tmp_path, "image;patient;referable\n" + rows)
    config, said = initialise(tmp_path)
    assert "pictures in colour" in said
    assert "small pictures" in said
    assert (load(config)[0].preprocess.channels, load(config)[0].ingest.min_side) == ("colour", 16)
    where = (f"data.key_file={fixed_key(tmp_path)}", "machine.workers=1", "--store", tmp_path / "store")
    run = call("run", config, "--until", "split", *where)
    assert run.exit_code == 0, run.stderr
    assert "200 images of 200 patients accepted" in run.stderr


@pytest.mark.parametrize(
    ("columns", "several"),
    [
        ("patient_id", True),
        ("patient_id,study_instance_uid", True),
        ("patient_id,path", False),
        ("patient_id,sop_instance_uid", False),
        ("path", False),
    ],
)
def test_a_row_speaks_of_several_images_where_it_names_patients_and_no_image(tmp_path, columns, several):
    cells = ["1.2.3" if "uid" in column else "a" for column in columns.split(",")]
    labels = table(tmp_path, f"{columns},label\n{','.join(cells)},1\n{','.join(cells).replace('a', 'b')},0\n")
    assert counts(labels, describe(labels, NOTHING_SAID, NOTHING_SEEN)).of_patients == several


def test_images_that_the_table_does_not_name_are_no_labelled_ones(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "studies").mkdir()
    for n in range(120):
        pixels = generator.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "studies" / f"{n:03d}.png")
    rows = "".join(f"{n:03d}.png,p{n // 2},{n // 2 % 2}\n" for n in range(40))
    table(tmp_path, "path,patient_id,label\n" + rows)
    config, _ = initialise(tmp_path)
    text, own = config.read_text(), load(config)[0]
    seen = [int(found.replace(",", "")) for found in re.findall(r"epochs: \d+ +# ([\d,]+) pictures seen", text)]
    train = round(40 * own.split.fractions.train)
    assert seen == [own.pretrain.epochs * (train + 80), own.finetune.epochs * train]


def test_images_are_those_of_the_file_that_has_their_labels_whatever_lies_beside_it(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "studies").mkdir()
    for name in ("first", "second"):
        arrays = {}
        for part, count in (("train", 60), ("val", 10), ("test", 10)):
            arrays[f"{part}_images"] = generator.integers(0, 255, (count, 28, 28), dtype=np.uint8)
            arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
        np.savez(tmp_path / "studies" / f"{name}.npz", **arrays)
    labels = tmp_path / "studies" / "second.npz"
    done = call("init", tmp_path / "studies", "--labels", labels, "--output", tmp_path / "out", "--name", "own")
    assert done.exit_code == 0, done.stderr
    assert "data.studies names it alone" in done.stderr
    config = tmp_path / "out" / "configs" / "own.yaml"
    assert load(config)[0].data.studies == [labels]
    where = (f"data.key_file={fixed_key(tmp_path)}", "machine.workers=1", "--store", tmp_path / "store")
    run = call("run", config, "--until", "split", *where)
    assert run.exit_code == 0, run.stderr
    assert "80 of 80 labelled rows of the label table matched 80 of 80 images" in run.stderr
    # Of a config that somebody wrote, the folder holds these images, too.
    folder = f"data.studies=[{tmp_path / 'studies'}]"
    run = call("run", config, "--until", "split", folder, *where)
    assert run.exit_code == 1
    assert "80 would be with columns.path_within" in run.stderr


def test_pictures_of_ct_get_a_window_proposed_that_can_be_taken_as_it_stands(tmp_path):
    (tmp_path / "studies").mkdir()
    place = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    for n in range(3):
        content = make_dicom(SOPClassUID=CT, Modality="CT", PatientID=f"P{n}", SOPInstanceUID=f"2.25.1{n}", **place)
        (tmp_path / "studies" / f"{n}.dcm").write_bytes(content)
    table(tmp_path, "PatientID,label\nP0,1\nP1,0\nP2,0\n")
    config, said = initialise(tmp_path)
    assert "modality: CT 3" in said
    assert load(config)[1].expected.modalities == ["CT"]
    assert load(config)[0].preprocess.window is None
    text = config.read_text().replace("# preprocess:", "preprocess:").replace("#  window", "  window")
    config.write_text(text)
    assert load(config)[0].preprocess.window == [-1000, 400]


def test_series_with_labels_by_patient_get_a_config_of_three_axes(tmp_path):
    (tmp_path / "studies").mkdir()
    for patient in range(3):
        for z in range(4):
            path = tmp_path / "studies" / f"{patient}_{z}.dcm"
            place = {"ImagePositionPatient": [0, 0, 2 * z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            uids = {"SOPInstanceUID": f"2.25.1{patient}{z}", "SeriesInstanceUID": f"2.25.2{patient}"}
            path.write_bytes(
                make_dicom(SOPClassUID=CT, Modality="CT", PatientID=f"P{patient}", PixelSpacing=[1, 1], **place, **uids)
            )
    table(tmp_path, "PatientID,label\nP0,1\nP1,0\nP2,0\n")
    config, said = initialise(tmp_path)
    assert "volumes: the config has three axes" in said
    assert "CT: the config proposes a window" in said
    assert "\n#  window: [-1000, 400]" in config.read_text()
    settings, _ = load(config)
    # 4 slices of 2 mm, 40 × 48 pixels of 1 mm
    assert (settings.preprocess.image_size, settings.preprocess.spacing_mm) == ([16, 40, 48], [1.0, 1.0, 1.0])
    assert settings.pretrain.encoder.patch_size == [8, 8, 8]
    assert "hog" not in settings.finetune.arms


@pytest.mark.parametrize("first", ["0.png,1", "who,1.0", "x/scan,sick"])
def test_a_row_where_the_names_of_columns_should_be_is_refused_and_not_quoted(tmp_path, first):
    path = table(tmp_path, f"{first}\n1.png,0\n")
    with pytest.raises(InitError, match="line 1 of the label table looks like a row") as refused:
        describe(path, Answers(), Glance(files=["x/scan", "1.png"]))
    assert first.partition(",")[0] not in str(refused.value)


def test_a_table_as_a_spreadsheet_writes_it_is_read_right(tmp_path):
    """With a mark in front, semicolons, decimal commas, words for yes and no, and identifiers that lost their zeros."""
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffid;volume;large\r\n7;2948,5;True\r\n8;3001,0;yes\r\n9;12,5;0,0\r\n".encode())
    seen = Glance(files=["a.dcm"], identities=[Identity(patient=f"000{n}") for n in (7, 8, 9)])
    found = describe(path, Answers(), seen)
    assert (found.joins, found.rules) == ({"patient_id": "id"}, {"id_ignore": "[leading_zeros]"})
    assert (found.label, found.positive, found.negative) == ("large", ["True", "yes"], ["0,0"])
    assert (counts(path, found).positive, counts(path, found).negative) == (2, 1)


# ---------------------------------------------------------------- folders by class


def films(folder, count, side=40, nested=False):
    generator = np.random.default_rng(len(str(folder)))
    for n in range(count):
        path = folder / (f"p{n // 2}/{n}.png" if nested else f"{n}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (side, side), dtype=np.uint8)).save(path)


def test_folders_by_class_need_no_table_and_lead_to_a_plan(tmp_path):
    for name in ("normal", "sick"):
        films(tmp_path / "studies" / name, 6, nested=True)
    ask = ("init", tmp_path / "studies", "--classes", "--output", tmp_path / "out", "--name", "own", "--minutes", "5")
    done = call(*ask)
    assert done.exit_code == 1
    assert "None of them means positive by itself" in done.stderr
    assert "--positive sick" in done.stderr
    assert not list((tmp_path / "out").rglob("*.csv"))
    done = call(*ask, "--positive", "sick", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert "each folder inside a class is taken to be one patient" in done.stderr
    config = tmp_path / "out" / "configs" / "own.yaml"
    rows = (config.parent / "own_labels.csv").read_text().splitlines()
    assert rows[:2] == ["path,patient_id,label", "normal/p0/0.png,normal/p0,normal"]
    settings, card = load(config)
    assert (card.label.positive, card.label.negative) == (["sick"], ["normal"])
    assert found["fingerprint"]["labels"]["positive"] == 3
    assert found["fingerprint"]["studies"]["images"] == 12
    assert {one["key"]: one["value"] for one in found["plan"]["settings"]}[
        "finetune.epochs"
    ] == settings.finetune.epochs
    # The plan knows what init has timed, and finds its files.
    where = (f"data.key_file={tmp_path / 'no.key'}", "--json")
    steps = {step["stage"]: step["estimate"] for step in json.loads(call("plan", config, *where).stdout)}
    assert {name: steps[name]["basis"] for name in ("ingest", "pretrain")} == {
        "ingest": "files timed by init",
        "pretrain": "a step timed by init",
    }


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["sick/a.png"], "takes 2 to 20 folders with files, one for each class; here is 1: sick"),
        (["sick/a.png", "normal/b.png", "c.png"], "1 file lies beside the folders of the classes"),
    ],
)
def test_what_is_no_folder_per_class_is_refused(tmp_path, files, words):
    for file in files:
        films(tmp_path / "studies" / file.rpartition("/")[0], 1)
        (tmp_path / "studies" / file.rpartition("/")[0] / "0.png").rename(tmp_path / "studies" / file)
    done = call("init", tmp_path / "studies", "--classes", "--output", tmp_path / "out")
    assert done.exit_code == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("files", "headers", "patients", "said"),
    [
        (["n/1/a", "n/1/b", "s/1/c"], False, ["n/1", "n/1", "s/1"], "one patient (column"),
        (["n/1/a", "n/1/x/b", "s/c"], False, ["n/1", "n/1", "s/c"], "each of 1 file in no such folder another one"),
        (["n/a", "n/b", "s/a"], False, ["n/a", "n/b", "s/a"], "nothing names the patients"),
        (["n/1/a", "s/b"], True, None, "2 files in folders by class: n, s"),
    ],
)
def test_pictures_in_one_folder_inside_a_class_are_one_patient_s(tmp_path, files, headers, patients, said):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    found = read_class_folders(tmp_path, headers)
    found.write(tmp_path.parent / "labels.csv")
    rows = list(csv.DictReader((tmp_path.parent / "labels.csv").open()))
    assert [row["path"] for row in rows] == files
    assert [row.get("patient_id") for row in rows] == (patients or [None] * len(files))
    assert said in found.lines()[-1]


def test_a_table_or_classes_must_be_named(tmp_path):
    assert call("init", tmp_path).exit_code == 2


def test_the_column_of_patients_can_be_named(tmp_path):
    path = table(tmp_path, "path,who,label\na.png,1,1\nb.png,2,0\n")
    assert describe(path, Answers(), NOTHING_SEEN).joins == {"path": "path"}
    assert describe(path, Answers(patient="who"), NOTHING_SEEN).joins == {"path": "path", "patient_id": "who"}
    with pytest.raises(InitError, match="no column whom; its columns: path, who, label"):
        describe(path, Answers(patient="whom"), NOTHING_SEEN)


# ---------------------------------------------------------------- what labels can carry, and what is proposed


@pytest.mark.parametrize("positives", [10, 40, 90, 150, 240, 400, 3000])
def test_a_proposed_target_can_be_certified_even_by_an_unlucky_split(positives):
    found = capacity(positives, positives)
    if found.target is None:
        assert positives * max(shares[2] for shares in FRACTIONS) < 1.5 * min_positives(TARGETS[-1], 0.95)
        return
    assert found.positives_per_split["calibration"] > min_positives(found.target, 0.95)
    assert sum(found.fractions.values()) == pytest.approx(1)
    assert 0 <= found.chance_confirmed <= 1
    assert found.target == 0.95 or positives < 400


def studies_like(images=1000, **values):
    known = {"files": images, "megabytes": images / 10, "examined": images, "images": images, "volumes": 0}
    known |= {"patients": None, "quarantined": {}, "flags": {}, "duplicates": {}, "stated": {}, "age_years": None}
    known |= {
        "colour": False,
        "channels": "grey",
        "median_size": (300, 300),
        "spacing_mm": None,
        "extent_mm": None,
        "seconds": 1.0,
    }
    return Fingerprint(**known | values)


def speed_of(factor):
    steps = [TimedStep([64, 64], 96, 4, 6.4e7, 0.0, 0.0, 0.0, factor, factor)]
    return MachineSpeed(2, 8.0, "", 1.0, steps, {"ingest": factor})


@pytest.mark.parametrize("volumes", [False, True])
@pytest.mark.parametrize("minutes", [5, 30, 240])
def test_a_larger_budget_never_buys_less_and_is_kept(minutes, volumes):
    spaced = {"volumes": 200, "spacing_mm": [1.0, 1.0, 1.0], "extent_mm": [60, 80, 60], "median_size": (60, 80, 60)}
    studies = studies_like(images=200 if volumes else 1000, **(spaced if volumes else {}))
    n = studies.images
    items = Items(n, n / 10, n, n // 2, n // 10, n // 5, n // 5)
    proposed = [propose(studies, capacity(400, 400), items, speed_of(1.0), m) for m in (minutes, 2 * minutes)]
    for proposal in proposed:
        assert proposal.total_s <= 60 * proposal.minutes or "does not fit" in proposal.lines()[-1]
        values = {one.key: one.value for one in proposal.settings}
        assert all(len(values["preprocess.image_size"]) in ARMS[arm].axes for arm in values["finetune.arms"])
        assert values["calibrate.recall_targets"] == [0.95]
        assert values["calibrate.arm"] == ("ensemble" if "ensemble" in values["finetune.arms"] else "mae")
        assert "cnn" in values["finetune.arms"] or "does not fit" in proposal.lines()[-1] or proposal.given_up
        assert all(one.reason for one in proposal.settings)
    pixels = [np.prod({one.key: one.value for one in p.settings}["preprocess.image_size"]) for p in proposed]
    assert pixels[0] <= pixels[1]


def test_a_slow_machine_gets_a_smaller_plan_and_is_told_what_was_given_up():
    items = Items(1000, 100, 1000, 500, 100, 200, 200)
    quick, slow = (propose(studies_like(), capacity(400, 400), items, speed_of(f), 60) for f in (0.1, 30.0))
    assert quick.given_up == []
    assert any("arms scratch" in one or "seeds" in one for one in slow.given_up)
    assert slow.lines()[1].startswith("given up to fit: ")


def test_a_busy_machine_is_allowed_more_time_for_less():
    items = Items(1000, 100, 1000, 500, 100, 200, 200)
    idle = speed_of(2.0)
    found = [propose(studies_like(), capacity(400, 400), items, s, 30) for s in (idle, replace(idle, busy=8.0))]
    first, second = ({one.key: one.value for one in proposal.settings} for proposal in found)
    assert second["preprocess.image_size"] < first["preprocess.image_size"]
    assert "the plan allows 8.0 times as long" in replace(idle, busy=8.0).lines()[-1]


def test_of_a_large_archive_whole_series_are_opened():
    series = [f"s{n}/{z}.dcm" for n in range(400) for z in range(20)]
    chosen = sample(series, 2000)
    opened = {path.partition("/")[0] for path in chosen}
    assert len(chosen) == 20 * len(opened)
    assert 1500 <= len(chosen) <= 2500
    assert len(sample([f"{n}.png" for n in range(9000)], 2000)) in range(1500, 2500)


@pytest.mark.parametrize("several", [False, True])
def test_a_column_with_a_value_of_its_own_for_each_image_may_name_no_person(tmp_path, several):
    lesions = [number - (several and number == 2) for number in range(1, 9)]
    rows = "".join(f"{number}.png,L{lesion},{number % 2}\n" for number, lesion in enumerate(lesions))
    answers, seen = Answers(label="sick", patient="lesion"), Glance(files=[f"{number}.png" for number in range(8)])
    found = describe(table(tmp_path, f"path,lesion,sick\n{rows}"), answers, seen)
    assert any("promised of each lesion, not of each person" in line for line in found.lines()) is not several
