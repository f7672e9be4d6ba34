"""From NIfTI volumes to a report: the three-dimensional path from end to end, on made-up volumes."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from project import Project
from pypdf import PdfReader
from small_projects import IMAGE_SIZE, VOLUMES, make_volumes, volume

from pipeline import Model, write_results
from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.inference.outline import shown
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.run import run
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json

PANEL = IMAGE_SIZE[0] + IMAGE_SIZE[1] + 4 + 4  # two planes, their gaps, the panel's margin


@pytest.fixture(scope="module")
def finished_volumes(tmp_path_factory) -> Project:
    project = make_volumes(tmp_path_factory.mktemp("volumes") / "project")
    run(*project.load(), say=lambda line: None)
    return project


def artifact(project: Project, stage: str):
    (found,) = Store(project.store).all(stage)
    return found.path


def test_every_stage_takes_volumes_and_a_report_comes_out(finished_volumes):
    assert [name for name in NAMES if not Store(finished_volumes.store).all(name)] == []
    assert read_json(artifact(finished_volumes, "ingest") / "summary.json")["volumes"] == VOLUMES
    metrics = read_json(artifact(finished_volumes, "evaluate") / "metrics.json")
    assert metrics["discrimination"]["auc"]["value"] > 0.9
    assert (artifact(finished_volumes, "report") / "report.pdf").read_bytes().startswith(b"%PDF")
    report = (artifact(finished_volumes, "report") / "report.json").read_text("utf-8")
    assert json.loads(report)["usable"]
    assert "24 × 32 × 24 pixels of 1 × 1 × 1 mm" in report
    assert "patches of 8 × 8 × 8 pixels" in report
    assert "each volume by its coronal, sagittal and axial middle plane" in report


def test_reconstructions_show_three_planes_original_masked_and_filled_in(finished_volumes):
    content = (artifact(finished_volumes, "pretrain") / "reconstructions.png").read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.shape[1] == 3 * PANEL
    original, masked, filled = (pixels[2 : PANEL - 2, at * PANEL + 2 : (at + 1) * PANEL - 2] for at in range(3))
    stored = np.load(artifact(finished_volumes, "preprocess") / "train-000.npy")
    assert any(np.array_equal(original, three_planes(one[0])) for one in stored)
    depth, width = IMAGE_SIZE[0] + 2, IMAGE_SIZE[2] + 2
    planes = (np.s_[:depth, :width], np.s_[:depth, width:], np.s_[depth:, :width])
    for plane in planes:
        hidden = masked[plane] != original[plane]
        assert 0 < hidden.mean() < 1
        # What was visible stays as it was, but for hidden voxels that happen to have the grey of the mask; what was
        # hidden is filled with something else.
        assert (filled[plane] == original[plane])[~hidden].mean() > 0.8
        assert (filled[plane][hidden] != masked[plane][hidden]).mean() > 0.9


def test_predict_judges_new_volumes_and_shows_each_by_three_planes(finished_volumes, tmp_path):
    model = Model.load(artifact(finished_volumes, "package") / "model", device="cpu", threads=1, say=lambda line: None)
    new, generator = tmp_path / "new", np.random.default_rng(77)
    new.mkdir()
    for name, ill in (("ill", True), ("well", False)):
        (new / f"{name}.nii").write_bytes(volume(generator, ill, np.float32))
    predictions = model.predict([new], workers=1, pictures=True)
    rows = write_results(predictions, tmp_path / "out").rows
    assert [(row["study"], row["images"], row["reasons"]) for row in rows] == [("ill", 1, []), ("well", 1, [])]
    assert rows[0]["score"] > rows[1]["score"]
    (ill,) = (one for one in predictions.of(predictions.found.groups) if one.study == "ill")
    image, outlined = shown(ill.picture.array, ill.picture.shares)
    assert image.shape == outlined.shape == three_planes(ill.picture.array[0]).shape
    # The ball is what is bright, and in each of the three planes.
    down, right = (side // 2 for side in image.shape)
    for plane in (image[:down, :right], image[:down, right:], image[down:, :right]):
        assert plane.max() > 200
    for page in sorted((tmp_path / "out" / "pages").iterdir()):
        (sheet,) = PdfReader(page).pages
        text = " ".join(sheet.extract_text().split())
        assert "coronal, sagittal and axial plane" in text
        assert "of the volume" in text
