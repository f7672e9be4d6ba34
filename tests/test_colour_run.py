"""From colour pictures of several formats to a report: red spots are ill, green ones of the same luminance are not."""

import io
import json

import numpy as np
import pytest
import yaml
from imaging.files import make_dicom
from PIL import Image
from project import SETTINGS, Project
from stages.sources_run import make_card

from pipeline.delivery.pages import now, page
from pipeline.imaging.colour import luminance
from pipeline.inference.export import export
from pipeline.inference.model import Model
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.run import run
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import read_table

PATIENTS = 90
SIDE = 32
BLUE_SKY = (40, 60, 200)  # R < G < B in every picture: channels in another order would show
RED, GREEN = (200, 50, 40), (62, 120, 40)  # of equal luminance
OPHTHALMIC = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
FORMATS = ("png", "jpg", "tif", "dcm")


def picture(generator: np.random.Generator, ill: bool) -> np.ndarray:
    """Return uint8 (40, 36, 3): noise about a blue ground, and a spot whose hue tells ill from well."""
    values = np.array(BLUE_SKY) + generator.uniform(-15, 15, (40, 36, 1))
    row, column = generator.integers(4, 16, 2)
    values[row : row + 16, column : column + 16] = RED if ill else GREEN
    return values.round().clip(0, 255).astype(np.uint8)


def saved(pixels: np.ndarray, suffix: str, patient: int) -> bytes:
    if suffix == "dcm":
        return make_dicom(
            pixels, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, Modality="OP",
            PatientID=f"{patient}", SOPClassUID=OPHTHALMIC, SOPInstanceUID=f"2.25.{patient + 1}",
        )  # fmt: skip
    stream = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(pixels).save(stream, {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[suffix], **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def finished_colour(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("colour"))
    generator = np.random.default_rng(5)
    rows = ["path,patient,label"]
    (project.folder / "studies").mkdir()
    for patient in range(PATIENTS):
        ill, suffix = patient % 2 == 0, FORMATS[patient // 2 % len(FORMATS)]
        name = f"{patient:03d}.{suffix}"
        (project.folder / "studies" / name).write_bytes(saved(picture(generator, ill), suffix, patient))
        rows.append(f"{name},{patient},{'ill' if ill else 'well'}")
    grey = generator.integers(0, 255, (40, 36), np.uint8)
    (project.folder / "studies" / "grey.png").write_bytes(saved(grey, "png", 0))
    rows.append("grey.png,grey,well")
    project.labels.write_text("\n".join(rows) + "\n")
    key = project.folder / "colour.key"
    key.write_text("7f" * 32 + "\n")
    key.chmod(0o600)
    (project.folder / "card.yaml").write_text(yaml.safe_dump(make_card(path="path", patient_id="patient").model_dump()))
    settings = {
        **SETTINGS,
        "machine": {**SETTINGS["machine"], "workers": 1},
        "data": {**SETTINGS["data"], "studies": ["../studies"], "key_file": "../colour.key"},
        "preprocess": {"image_size": [SIDE, SIDE], "channels": "colour"},
        "pretrain": {**SETTINGS["pretrain"], "max_steps": 12},
        "finetune": {**SETTINGS["finetune"], "seeds": [1], "epochs": 4, "arms": ["mae", "linear_probe", "hog"]},
        "calibrate": {"recall_targets": [0.7], "confidence": 0.9, "arm": "linear_probe"},
        "report": {"title": "Spots", "examples": 2},
    }
    project.config.parent.mkdir()
    project.config.write_text("# colour\n" + yaml.safe_dump(settings))
    run(*project.load(), say=lambda line: None)
    return project


def artifact(project: Project, stage: str):
    (found,) = Store(project.store).all(stage)
    return found.path


def test_every_stage_keeps_three_channels_in_their_order(finished_colour):
    assert [name for name in NAMES if not Store(finished_colour.store).all(name)] == []
    assert Store(finished_colour.store).all("ingest")[0].record["settings"]["colour"] == "keep"
    arrays = [np.load(path) for path in artifact(finished_colour, "preprocess").glob("*-000.npy")]
    assert all(array.shape[1:] == (3, SIDE, SIDE) and array.dtype == np.uint8 for array in arrays)
    red, green, blue = np.concatenate(arrays)[:, :, :, 5].mean(axis=2).T
    repeated = (red == blue) & (green == blue)
    assert repeated.sum() == 1
    assert ((red < green) & (green < blue))[~repeated].mean() > 0.8
    assert (blue > red)[~repeated].all()
    encoder = read_json(artifact(finished_colour, "pretrain") / "model.json")
    assert encoder["channels"] == len(encoder["pixel_mean"]) == 3
    assert encoder["pixel_mean"][2] > 2 * encoder["pixel_mean"][0]


def test_the_one_grey_picture_is_flagged_and_no_other(finished_colour):
    images = read_table(artifact(finished_colour, "ingest") / "images.parquet", IMAGES)
    flagged = images["quality_flags"].str.contains("grey_repeated")
    assert flagged.sum() == 1
    assert read_json(artifact(finished_colour, "ingest") / "summary.json")["flags"]["grey_repeated"] == 1


def test_what_grey_cannot_tell_is_learnt_from_colour(finished_colour):
    assert np.ptp(luminance(np.array([RED, GREEN], float))) < 5
    metrics = read_json(artifact(finished_colour, "evaluate") / "metrics.json")
    assert metrics["discrimination"]["auc"]["value"] > 0.9


def test_report_and_reconstructions_are_in_colour(finished_colour):
    report = artifact(finished_colour, "report")
    assert "32 × 32 pixels in three channels" in (report / "report.json").read_text("utf-8")
    content = (artifact(finished_colour, "pretrain") / "reconstructions.png").read_bytes()
    original = np.asarray(Image.open(io.BytesIO(content)))[2 : 2 + SIDE, 2 : 2 + SIDE]
    shards = artifact(finished_colour, "preprocess").glob("train-*.npy")
    stored = np.concatenate([np.load(path) for path in shards])
    assert any(np.array_equal(original, np.moveaxis(one, 0, -1)) for one in stored)


def test_the_packaged_model_predicts_in_colour_and_its_graph_scores_alike(finished_colour, tmp_path):
    folder = artifact(finished_colour, "package") / "model"
    content = json.loads((folder / "model.json").read_text())
    assert content["rendering"]["channels"] == "colour"
    assert content["accepts"]["policy"]["keep_colour"]
    golden = np.load(folder / "golden" / "arrays.npy")
    assert golden.shape == (3, 3, SIDE, SIDE)
    assert not np.array_equal(golden[:, 0], golden[:, 2])
    model = Model.load(folder, device="cpu", threads=1, say=lambda line: None)
    shots = [finished_colour.folder / "studies" / name for name in ("000.png", "001.png")]
    predictions = model.predict(shots, workers=1, pictures=True)
    ill, well = sorted(predictions, key=lambda result: result.path)
    assert ill.judgement.score > well.judgement.score
    assert ill.picture is not None
    assert ill.picture.array.shape == (3, SIDE, SIDE)
    assert page(ill, predictions, now()).startswith(b"%PDF")
    pytest.importorskip("onnxruntime")
    compared = export(folder, tmp_path / "out", onnx=True, say=lambda line: None)["compared"]
    assert compared["largest_difference"] < 1e-4
    assert compared["pixels_that_differ"] == 0
