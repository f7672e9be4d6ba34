"""Arrays are what the transforms say, in a fixed order, the same after a kill; changed sources stop the stage."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imaging.files import POLICY, make_dicom
from stages.sources_run import Archive, make_card

from pipeline.imaging.read import read_image
from pipeline.imaging.transforms import Rendering, render

REAL = Path(os.environ.get("MAESCREEN_REAL_DATA", Path(__file__).parents[2] / "../shared/data")) / "hippocampus_nifti"
FRACTIONS = {"train": 0.4, "tune": 0.2, "calibration": 0.2, "test": 0.2}
SETTINGS = {"image_size": [32, 32], "shard_size": 7}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Archive:
    """Sixty images of sixty patients, ingested and split."""
    archive = Archive(tmp_path_factory.mktemp("prepared"))
    labels = []
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 4096, (30 + number % 7, 40)).astype(np.uint16)
        archive.add(f"{number}.dcm", make_dicom(pixels, SOPInstanceUID=f"2.25.{number + 1}", PatientID=f"P{number}"))
        labels.append({"path": f"{number}.dcm", "label": "ill" if number % 2 else "well"})
    archive.label(labels)
    return archive.run("ingest", min_side=8).run("split", fractions=FRACTIONS)


@pytest.fixture
def archive(prepared, tmp_path) -> Archive:
    """A fresh folder for the stage's output beside the shared input."""
    for name in ("ingest", "split", "studies", "labels.csv"):
        (tmp_path / name).symlink_to(prepared.folder / name)
    return Archive(tmp_path)


def test_rows_are_the_rendered_images_in_the_order_of_the_index(archive):
    archive.run("preprocess", **SETTINGS)
    images = archive.table("ingest", "images").set_index("image_id")
    by_hash = {}
    for path in archive.studies.iterdir():
        image = read_image(path.read_bytes(), POLICY)
        by_hash[image.pixel_hash()] = render(image, Rendering((32, 32), None, 0.5, 99.5))
    seen = 0
    for name in ("train", "tune", "calibration", "test"):
        index = archive.table("preprocess", f"index_{name}")
        assert index["image_id"].is_monotonic_increasing
        for row in index.itertuples():
            array = np.load(archive.work("preprocess") / row.shard, mmap_mode="r")
            expected = by_hash[images.loc[row.image_id, "pixel_hash"]]
            assert array.dtype == np.uint8
            assert array.shape[1:] == (1, 32, 32)
            assert np.array_equal(array[row.row], expected.pixels)
            assert tuple(row.padding) == expected.padding
            seen += 1
        assert index.groupby("shard").size().max() <= 7
    assert seen == 60
    summary = archive.summary("preprocess")
    assert sum(summary["counts"].values()) == 60
    assert summary["padded_images"] > 50
    assert not (archive.work("preprocess") / "scratch").exists()


def test_workers_change_nothing(archive, prepared, tmp_path):
    archive.run("preprocess", **SETTINGS)
    expected = archive.files("preprocess")
    archive.workers = 1
    assert archive.run("preprocess", **SETTINGS).files("preprocess") == expected


@pytest.mark.parametrize("crop", ["none", "field_of_view"])
def test_other_labels_and_splits_render_nothing_again_and_a_new_file_itself_alone(
    crop, prepared, tmp_path, monkeypatch
):
    from pipeline.imaging.archive.workers import each_batch
    from pipeline.store.artifacts import Artifact

    archive, settings = Archive(tmp_path / "a"), SETTINGS | {"crop": crop}
    shutil.copytree(prepared.folder, archive.folder)
    before = archive.run("preprocess", **settings).folder / "before"
    archive.work("preprocess").rename(before)
    table = pd.read_csv(archive.folder / "labels.csv").rename(columns={"label": "finding"})
    table["finding"] = ["ill" if number % 3 else "well" for number in range(60)]
    pixels = np.random.default_rng(99).integers(0, 4096, (30, 40)).astype(np.uint16)
    archive.add("60.dcm", make_dicom(pixels, SOPInstanceUID="2.25.99", PatientID="P60"))
    archive.add("7.dcm", make_dicom(pixels + 1, SOPInstanceUID="2.25.8", PatientID="P7"))
    archive.label([*table.to_dict("records"), {"path": "60.dcm", "finding": "ill"}])
    archive.card = make_card(path="path", label="finding")
    archive.run("ingest", min_side=8).run("split", fractions=FRACTIONS, seed=5)
    archive.previous = Artifact("preprocess", "0" * 16, before)
    rendered = []

    def noted(task, batches, *rest):
        rendered.extend(source.path for batch in batches.values() for parts, *_ in batch for source, _ in parts)
        return each_batch(task, batches, *rest)

    monkeypatch.setattr("pipeline.stages.preprocess.each_batch", noted)
    again = archive.run("preprocess", **settings).files("preprocess")
    assert sorted(rendered) == ["60.dcm", "7.dcm"]
    shutil.rmtree(archive.work("preprocess"))
    archive.previous = None
    assert archive.run("preprocess", **settings).files("preprocess") == again


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from stages.sources_run import Archive
if __name__ == "__main__":
    Archive(Path({folder!r})).run("preprocess", image_size=[32, 32], shard_size=7)
"""


@pytest.mark.slow
def test_killed_and_started_again(archive, tmp_path):
    archive.run("preprocess", **SETTINGS)
    expected = archive.files("preprocess")
    for path in archive.work("preprocess").iterdir():
        path.unlink()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    while process.poll() is None and len(list(archive.work("preprocess").glob("train-*.npy"))) < 2:
        time.sleep(0.002)
    assert process.poll() is None, "it was finished before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for torn in archive.work("preprocess").rglob(".*.tmp*"):  # as the store does
        torn.unlink()
    kept = {path: path.stat().st_mtime_ns for path in archive.work("preprocess").glob("*-0*.npy")}
    archive.run("preprocess", **SETTINGS)
    assert archive.files("preprocess") == expected
    assert sum(path.stat().st_mtime_ns == before for path, before in kept.items()) >= len(kept) - 1 >= 1


def test_a_source_changed_or_gone_since_ingest_stops_the_stage(archive, prepared):
    archive.studies.unlink()
    shutil.copytree(prepared.studies, archive.studies)
    changed = archive.studies / "3.dcm"
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-2] + b"\0\1")
    with pytest.raises(
        ValueError, match=r"1 images: the file has changed since ingest; run ingest again \(first: [a-z2-7]{26}\)"
    ):
        archive.run("preprocess", **SETTINGS)
    assert not list(archive.work("preprocess").glob(".*.tmp*"))
    changed.unlink()
    with pytest.raises(ValueError, match="1 of 60 files are gone since ingest"):
        archive.run("preprocess", **SETTINGS)
    changed.write_bytes(whole)
    archive.run("preprocess", **SETTINGS)


def test_images_that_do_not_fit_the_settings_are_refused_before_anything_is_read(archive):
    with pytest.raises(ValueError, match="60 two-dimensional images"):
        archive.run("preprocess", image_size=[32, 32, 32])
    with pytest.raises(ValueError, match="60 images without pixel spacing"):
        archive.run("preprocess", image_size=[32, 32], spacing_mm=[1.0, 1.0])


@pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")
def test_real_volumes(tmp_path):
    archive = Archive(tmp_path, card=make_card(path="path", patient_id="patient"))
    archive.studies.mkdir()
    labels = []
    for number, path in enumerate(sorted((REAL / "images").iterdir())[:40]):
        (archive.studies / path.name).write_bytes(path.read_bytes())
        labels.append({"path": path.name, "patient": path.name, "label": "ill" if number % 2 else "well"})
    archive.label(labels)
    archive.run("ingest").run("split", fractions=FRACTIONS, seed=3)
    archive.run("preprocess", image_size=[48, 64, 48], spacing_mm=[1.0, 1.0, 1.0])
    index = archive.table("preprocess", "index_train")
    array = np.load(archive.work("preprocess") / "train-000.npy", mmap_mode="r")
    assert array.shape == (len(index), 1, 48, 64, 48)
    images = archive.table("ingest", "images").set_index("image_id")
    for row in index.itertuples():
        before = [images.loc[row.image_id, side] for side in ("slices", "rows", "columns")]
        added = np.reshape(row.padding, (3, 2)).sum(axis=1)
        assert (before + added == (48, 64, 48)).all()
        assert array[row.row].max() == 255


def test_what_was_cut_out_is_recorded_for_each_image_and_where_nothing_was(archive):
    archive.run("preprocess", **SETTINGS, crop="field_of_view")
    fields = archive.table("preprocess", "field_of_view")
    images = archive.table("ingest", "images").set_index("image_id")
    assert archive.summary("preprocess")["field_of_view"] == {"found": 0, "not_found": len(images)}
    assert not fields["found"].any(), "these are noise"
    assert list(fields["bottom"]) == list(images.loc[fields["image_id"], "rows"])
    assert not (archive.work("preprocess") / "scratch").exists()
