"""From studies of two NIfTI files each to a report: what is ill shows in the second channel, on a grid of its own."""

import gzip
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from project import SETTINGS, Project
from stages.sources_run import make_card

from pipeline import Model, write_results
from pipeline.commands.predict import predict
from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.inference.export import export
from pipeline.inference.model import StudiesError
from pipeline.inference.outline import shown
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.run import run
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.tables.ingest import IMAGES, QUARANTINE
from pipeline.store.tables.io import read_table

SIZE_MM = np.array([20, 28, 22])  # right, anterior, superior, as NIfTI has them
IMAGE_SIZE = [24, 32, 24]
PATIENTS = 60
# Of the second channel: other voxels, turned about the first axis, and a corner elsewhere.
FINER = nib.affines.from_matvec(np.diag([-0.8, 1.0, 1.25]), [20.1, -0.3, 0.2])
CHANNELS = [{"name": "t1", "suffix": "_t1.nii.gz"}, {"name": "t2", "suffix": "_t2.nii.gz"}]
ODD = {"lacks": "missing_channel", "apart": "fields_of_view_apart"}


def saved(values: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 1)


def channel(generator: np.random.Generator, ball: bool, affine: np.ndarray, top: float) -> bytes:
    """Return noise, brighter in the lower half of the body, with a bright ball, on a scale of its own."""
    shape = np.ceil(SIZE_MM / np.abs(np.diag(affine)[:3])).astype(int) + 1
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = nib.affines.apply_affine(affine, places)
    distance = np.linalg.norm(mm - SIZE_MM * generator.uniform(0.4, 0.6, 3), axis=-1)
    values = generator.uniform(40, 80, shape) + 30 * (mm[..., 2] < SIZE_MM[2] / 2) + 120 * (ball & (distance < 5))
    return saved(values * top, affine)


def write_study(folder, name: str, generator: np.random.Generator, ill: bool) -> None:
    for channel_name, ball, affine, top in (("t1", False, np.eye(4), 1.0), ("t2", ill, FINER, 700.0)):
        (folder / f"{name}_{channel_name}.nii.gz").write_bytes(channel(generator, ball, affine, top))


@pytest.fixture(scope="module")
def finished_channels(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("channels"))
    studies, generator = project.folder / "studies", np.random.default_rng(5)
    rows = ["path,patient,label"]
    for patient in range(PATIENTS):
        folder = studies / f"{patient:03d}"
        folder.mkdir(parents=True)
        write_study(folder, "scan", generator, patient % 2 == 0)
        rows.append(f"{patient:03d}/scan_t1.nii.gz,{patient},{'ill' if patient % 2 == 0 else 'well'}")
    for name in ODD:
        (studies / name).mkdir()
        write_study(studies / name, "scan", generator, True)
        rows.append(f"{name}/scan_t1.nii.gz,{name},ill")
    (studies / "lacks" / "scan_t2.nii.gz").unlink()
    far = nib.affines.from_matvec(np.eye(3), [0, 0, 11])
    (studies / "apart" / "scan_t2.nii.gz").write_bytes(channel(generator, True, far, 1.0))
    (studies / "000" / "scan_seg.nii.gz").write_bytes(saved(np.zeros((4, 4, 4)), np.eye(4)))
    project.labels.write_text("\n".join(rows) + "\n")
    key = project.folder / "channels.key"
    key.write_text("7f" * 32 + "\n")
    key.chmod(0o600)
    card = make_card(path="path", patient_id="patient").model_dump() | {"channels": CHANNELS}
    (project.folder / "card.yaml").write_text(yaml.safe_dump(card))
    settings = {
        **SETTINGS,
        "machine": {**SETTINGS["machine"], "workers": 1},
        "data": {**SETTINGS["data"], "studies": ["../studies"], "key_file": "../channels.key"},
        "preprocess": {"image_size": IMAGE_SIZE, "spacing_mm": [1.0, 1.0, 1.0]},
        "pretrain": {
            **SETTINGS["pretrain"],
            "encoder": {**SETTINGS["pretrain"]["encoder"], "patch_size": [8, 8, 8]},
            "max_steps": 6,
        },
        "finetune": {"arms": ["mae"], "seeds": [1], "epochs": 4, "warmup_epochs": 1.0},
        "calibrate": {"recall_targets": [0.7], "confidence": 0.9, "arm": "mae"},
        "report": {"title": "Two channels", "examples": 2},
    }
    project.config.parent.mkdir()
    project.config.write_text("# channels\n" + yaml.safe_dump(settings))
    run(*project.load(), say=lambda line: None)
    return project


def told_by_a_table(content: dict) -> dict:
    """Return the JSON of a model whose channels a table told."""
    told = [{"name": name, "column": name} for name in ("t1", "t2")]
    accepts = content["accepts"]
    return content | {"accepts": accepts | {"policy": accepts["policy"] | {"channels": told}}}


def artifact(project: Project, stage: str):
    (found,) = Store(project.store).all(stage)
    return found.path


def test_a_study_becomes_one_image_and_what_makes_none_is_refused_by_name(finished_channels):
    folder = artifact(finished_channels, "ingest")
    images = read_table(folder / "images.parquet", IMAGES)
    assert len(images) == PATIENTS
    assert images["quality_flags"].str.contains("channels_resampled").all()
    files = pd.read_parquet(folder / "files.parquet")
    assert (files.groupby("image_id")["part"].max() == 1).all()
    quarantine = read_table(folder / "quarantine.parquet", QUARANTINE)
    assert quarantine["reason"].value_counts().to_dict() == {
        "fields_of_view_apart": 2, "missing_channel": 1, "no_channel": 1,
    }  # fmt: skip
    (detail,) = set(quarantine.loc[quarantine["reason"] == "fields_of_view_apart", "detail"])
    assert detail == "t2 of t1: 52% of its volume"
    assert set(quarantine.loc[quarantine["reason"] == "missing_channel", "detail"]) == {"t2"}


def test_arrays_hold_both_channels_on_one_grid_each_between_its_own_percentiles(finished_channels):
    assert [name for name in NAMES if not Store(finished_channels.store).all(name)] == []
    arrays = np.concatenate([np.load(p) for p in artifact(finished_channels, "preprocess").glob("*-000.npy")])
    assert arrays.shape[1:] == (2, *IMAGE_SIZE)
    inside = arrays[:, :, 3:-3, 4:-4, 4:-4].astype(float)
    lower, upper = inside[:, :, :7].mean((0, 2, 3, 4)), inside[:, :, -7:].mean((0, 2, 3, 4))
    assert (lower > upper + 20).all()  # the same half is brighter in both, although their files lie differently
    encoder = read_json(artifact(finished_channels, "pretrain") / "model.json")
    assert encoder["channels"] == len(encoder["pixel_mean"]) == 2


def test_what_the_second_channel_alone_shows_is_learnt(finished_channels):
    metrics = read_json(artifact(finished_channels, "evaluate") / "metrics.json")
    assert metrics["discrimination"]["auc"]["value"] > 0.9
    report = (artifact(finished_channels, "report") / "report.json").read_text("utf-8")
    assert "24 × 32 × 24 pixels in the channels t1 and t2 of 1 × 1 × 1 mm" in report
    assert "grey values of each channel between percentiles 0.5 and 99.5" in report
    assert "each volume by its coronal, sagittal and axial middle plane in channel t1" in report


def test_the_packaged_model_joins_new_files_alike_and_its_graph_scores_alike(finished_channels, tmp_path):
    folder = artifact(finished_channels, "package") / "model"
    content = json.loads((folder / "model.json").read_text())
    assert content["rendering"]["channel_names"] == ["t1", "t2"]
    assert content["accepts"]["policy"]["channels"] == CHANNELS
    assert np.load(folder / "golden" / "arrays.npy").shape == (3, 2, *IMAGE_SIZE)
    model = Model.load(folder, device="cpu", threads=1, say=lambda line: None)
    new, generator = tmp_path / "new", np.random.default_rng(77)
    new.mkdir()
    for name, ill in (("ill", True), ("well", False), ("lacks", True)):
        write_study(new, name, generator, ill)
    (new / "lacks_t1.nii.gz").unlink()
    (new / "ill_seg.nii.gz").write_bytes(saved(np.zeros((4, 4, 4)), np.eye(4)))
    predictions = model.predict([new], workers=1, pictures=True)
    rows = {row["study"]: row for row in write_results(predictions, tmp_path / "out").rows}
    assert sorted(rows) == ["ill", "ill_seg", "lacks", "well"]
    assert rows["ill_seg"]["decision"] == "not assessable"  # somebody's image, as far as its name tells
    assert rows["ill"]["score"] > rows["well"]["score"]
    assert rows["ill"]["images"] == 1
    assert rows["lacks"]["decision"] == "not assessable"
    assert rows["lacks"]["score"] is None
    assert "missing_channel" in (tmp_path / "out" / "quarantine.csv").read_text()
    (ill,) = (one for one in predictions.of(predictions.found.groups) if one.study == "ill")
    image, _ = shown(ill.picture.array, ill.picture.shares)
    assert image.shape == three_planes(ill.picture.array[0]).shape
    stored = np.concatenate([np.load(p) for p in artifact(finished_channels, "preprocess").glob("*-000.npy")])
    again = model.read(sorted((finished_channels.folder / "studies" / "007").iterdir())).to_array(model.rendering)
    assert (stored == again).all(axis=(1, 2, 3, 4)).sum() == 1
    retold = replace(model, content=told_by_a_table(content))
    (new / "ill_t1.nii.gz").rename(new / "x.nii.gz")
    (new / "ill_t2.nii.gz").rename(new / "y.nii.gz")
    with pytest.raises(StudiesError, match="give --table with the columns path, study and channel"):
        predict(retold, [new], tmp_path / "told")
    table = tmp_path / "table.csv"
    table.write_text("path,study,channel\nx.nii.gz,s1,t1\ny.nii.gz,s1,other\n")
    with pytest.raises(StudiesError, match="1 row with another channel than the model's: t1, t2"):
        predict(retold, [new], tmp_path / "told", table=table)
    table.write_text("path,study,channel\nx.nii.gz,s1,t1\ny.nii.gz,s1,t2\n")
    written = predict(retold, [new], tmp_path / "told", table=table, workers=1, pages=False, say=lambda line: None)
    found = {row["study"]: row["score"] for row in written.rows}
    assert found["s1"] == rows["ill"]["score"]
    assert found["well_t1"] is None  # no table names it
    pytest.importorskip("onnxruntime")
    compared = export(folder, tmp_path / "exported", onnx=True, say=lambda line: None)["compared"]
    assert compared["largest_difference"] < 1e-4
    assert compared["pixels_that_differ"] == 0
