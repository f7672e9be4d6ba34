"""Series of a study as channels, through ingest and preprocess: one image, its files, and no word of a description."""

import gzip
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
from imaging.phantom import Case, Grid, write_case
from stages.sources_run import Archive, make_card

from pipeline.settings.card import CardChannel
from pipeline.store.artifacts import Artifact
from pipeline.store.files import write_json
from pipeline.store.tables.io import write_table
from pipeline.store.tables.split import SPLIT

FIRST = Grid(shape=(8, 20, 24))
FINER = Grid((-13.0, 6.0, -32.0), spacing_mm=(3.1, 0.5, 0.4), shape=(8, 40, 50))
SECRET_WORD = "Zacharias"
CHANNELS = [CardChannel(name="t1", description=["T1"]), CardChannel(name="flair", description=["FLAIR"])]
PLENTY = {"min_side": 8, "near_duplicates": False, "axes": 3}


def add_study(archive: Archive, name: str, *series: tuple[Grid, str], add: float) -> None:
    folder = archive.studies / name
    folder.mkdir(parents=True)
    planes = []
    for number, (grid, words) in enumerate(series, 1):
        said = {"SeriesDescription": f"{words} {SECRET_WORD}", "FrameOfReferenceUID": "2.25.1"}
        own = grid.planes(first_number=100 * number, series=number, add=add)
        planes += [replace(plane, elements=said) for plane in own]
    write_case(Case(name, planes), folder)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    card = make_card(study_instance_uid="study").model_copy(update={"channels": CHANNELS})
    archive = Archive(tmp_path_factory.mktemp("series"), card=card, workers=1)
    add_study(archive, "whole", (FIRST, "ax T1"), (FINER, "FLAIR"), (FIRST, "localizer"), add=0)
    add_study(archive, "lacks", (FIRST, "T1_3mm"), add=500)
    add_study(archive, "twice", (FIRST, "T1"), (FINER, "FLAIR"), (FINER, "flair again"), add=900)
    archive.label([{"study": "2.25.1", "label": "ill"}])
    return archive.run("ingest", **PLENTY)


def test_each_study_is_one_image_or_all_its_files_have_the_reason(archive):
    images, files = archive.table("ingest", "images"), archive.table("ingest", "files")
    assert len(images) == 1
    assert images.loc[0, "slices"] == FIRST.shape[0]
    assert len(files) == FIRST.shape[0] + FINER.shape[0]
    summary = archive.summary("ingest")
    assert summary["received"] == 3 * 8 + 8 + 3 * 8
    assert summary["quarantined"] == {"ambiguous_channel": 24, "missing_channel": 8, "no_channel": 8}
    details = set(archive.table("ingest", "quarantine")["detail"])
    assert details == {"2 volumes are channel flair", "flair", ""}


def test_no_word_of_a_description_is_in_what_ingest_leaves(archive):
    text = b"".join(path.read_bytes() for path in archive.work("ingest").rglob("*") if path.is_file())
    tables = "".join(archive.table("ingest", n).to_csv() for n in ("images", "quarantine", "examined", "assembled"))
    assert SECRET_WORD.encode() not in text
    assert SECRET_WORD not in tables
    assert "FLAIR" not in tables


def test_a_later_ingest_takes_over_what_is_unchanged_and_joins_what_became_whole(archive, tmp_path):
    later = replace(archive, folder=tmp_path, previous=Artifact("ingest", "0" * 16, archive.work("ingest")))
    (tmp_path / "studies").symlink_to(archive.studies)
    (tmp_path / "labels.csv").write_bytes((archive.folder / "labels.csv").read_bytes())
    later.run("ingest", **PLENTY, missing_channels="refuse")
    again, before = later.table("ingest", "images"), archive.table("ingest", "images")
    pd.testing.assert_frame_equal(again, before)


def all_train(archive: Archive) -> None:
    """Leave the split of an archive of which all images train."""
    rows = archive.table("ingest", "images")[["image_id", "patient_id"]]
    labels = pd.array([number % 2 for number in range(1, len(rows) + 1)], "Int64")
    rows = rows.assign(label=labels, label_source="", split="train", unit="", given="")
    archive.work("split").mkdir()
    write_table(archive.work("split") / "split.parquet", rows, SPLIT)
    write_json(archive.work("split") / "artifact.json", {"files": archive.files("split")})


def test_a_study_that_lacks_a_channel_is_taken_with_zeros_where_the_setting_says_so(archive, tmp_path):
    lenient = replace(archive, folder=tmp_path)
    (tmp_path / "studies").symlink_to(archive.studies)
    lenient.label([{"study": "2.25.1", "label": "ill"}])
    lenient.run("ingest", **PLENTY, missing_channels="zero")
    images = lenient.table("ingest", "images")
    assert len(images) == 2
    assert lenient.summary("ingest")["flags"]["zeros_for_channel"] == 1
    all_train(lenient)
    lenient.run("preprocess", image_size=[16, 32, 32])
    arrays = np.load(lenient.work("preprocess") / "train-000.npy")
    assert arrays.shape == (2, 2, 16, 32, 32)
    blank = [bool((array[1] == 0).all()) for array in arrays]
    assert sorted(blank) == [False, True]
    assert all(array[0].std() > 20 for array in arrays)
    summary = lenient.summary("preprocess")
    assert (summary["channels"], summary["channel_names"]) == (2, ["t1", "flair"])


def test_a_mask_of_several_channels_lies_on_the_first_ones_grid(tmp_path):
    channels = [CardChannel(name="t1", suffix="_t1.nii.gz"), CardChannel(name="t2", suffix="_t2.nii.gz")]
    rule = {"image": r"(.+)_t1\.nii\.gz", "mask": r"\1_seg.nii.gz"}
    card = make_card(path="path", patient_id="patient", mask={"rule": rule})
    archive = Archive(tmp_path, card=card.model_copy(update={"channels": channels}))
    first, second = np.diag([1.0, 1, 1, 1]), np.diag([0.5, 0.5, 2, 1])
    rng, reference = np.random.default_rng(0), np.zeros((20, 24, 16), np.uint8)
    reference[4:9, 6:12, 3:8] = 1
    rows = []
    for number in range(8):
        for name, shape, affine in (("t1", (20, 24, 16), first), ("t2", (40, 48, 8), second)):
            volume = nibabel.Nifti1Image(rng.normal(100, 20, shape).astype(np.float32), affine)
            archive.add(f"p{number}/p{number}_{name}.nii.gz", gzip.compress(volume.to_bytes()))
        archive.add(f"p{number}/p{number}_seg.nii.gz", gzip.compress(nibabel.Nifti1Image(reference, first).to_bytes()))
        label = "ill" if number % 2 else "well"
        rows.append({"path": f"p{number}/p{number}_t1.nii.gz", "patient": f"P{number}", "label": label})
    archive.label(rows)
    archive.run("ingest", min_side=8, axes=3, near_duplicates=False)
    all_train(archive)
    assert archive.summary("ingest")["quarantined"] == {}
    assert archive.summary("ingest")["masks"]["accepted"] == 8
    archive.run("preprocess", image_size=[16, 24, 20])
    masks = np.concatenate([np.load(path) for path in sorted(archive.work("preprocess").glob("masks-*.npy"))])
    assert masks.shape == (8, 16, 24, 20)
    assert (masks == np.transpose(reference, (2, 1, 0))).all()


def test_a_table_tells_the_channels_of_files_whose_names_say_nothing(tmp_path):
    channels = [CardChannel(name="t1", column="first"), CardChannel(name="t2", column="second")]
    card = make_card(path="first", patient_id="patient").model_copy(update={"channels": channels})
    archive = Archive(tmp_path, card=card)
    rng, rows = np.random.default_rng(0), []
    for number, (one, two) in enumerate(("dc", "ab", "fe", "gh", "ij", "kk")):
        for name, add in ((one, 100), (two, 900)):
            volume = nibabel.Nifti1Image(rng.normal(add, 20, (16, 18, 12)).astype(np.float32), np.eye(4))
            archive.add(f"{name}.nii.gz", gzip.compress(volume.to_bytes()))
        told = {"first": f"{one}.nii.gz", "second": "" if one == "g" else f"{two}.nii.gz"}
        rows.append({**told, "patient": f"P{number}", "label": "ill" if number % 2 else "well"})
    archive.label(rows)
    archive.run("ingest", min_side=8, axes=3, near_duplicates=False)
    # g has no second channel, nobody names h, and both cells of the last row name k.
    assert archive.summary("ingest")["quarantined"] == {"ambiguous_channel": 1, "missing_channel": 1, "no_channel": 1}
    assert len(archive.table("ingest", "images")) == 4
    all_train(archive)
    archive.run("preprocess", image_size=[16, 24, 24], upper_percentile=100.0, window=[0.0, 1000.0])
    arrays = np.load(archive.work("preprocess") / "train-000.npy")
    inside = arrays[:, :, 4:12, 6:18, 6:18].mean(axis=(2, 3, 4))
    assert (inside[:, 0] < 50).all()
    assert (inside[:, 1] > 200).all()
