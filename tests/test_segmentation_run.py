"""From pictures and their masks to a report that tells where, and a packaged model that scores an image by its most
suspicious lesion and draws it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from project import SETTINGS, Project
from stages.sources_run import make_card
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.inference.export import ExportError, export
from pipeline.inference.model import Model
from pipeline.models.dice import dice
from pipeline.orchestration.run import run
from pipeline.statistics.froc import lesions_of
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.tables.io import read_table
from pipeline.store.tables.score import MARKS, SCORES

PATIENTS = 90
SIDE = 32


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def segmented(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("segmented"))
    generator = np.random.default_rng(4)
    rows, studies = ["path,patient,label"], project.folder / "studies"
    for folder in ("images", "masks"):
        (studies / folder).mkdir(parents=True)
    across, down = np.meshgrid(np.arange(40), np.arange(40))
    for patient in range(PATIENTS):
        ill = patient % 2 == 0
        row, column = generator.integers(9, 31, 2)
        lesion = ((across - column) ** 2 + (down - row) ** 2 <= 30) & ill
        values = 90 + 90 * lesion + generator.normal(0, 15, lesion.shape)
        (studies / "images" / f"{patient:03d}.png").write_bytes(png(values.clip(0, 255).astype(np.uint8)))
        if ill:
            (studies / "masks" / f"{patient:03d}.png").write_bytes(png(255 * lesion.astype(np.uint8)))
        rows.append(f"images/{patient:03d}.png,{patient},{'ill' if ill else 'well'}")
    project.labels.write_text("\n".join(rows) + "\n")
    key = project.folder / "segmented.key"
    key.write_text("7f" * 32 + "\n")
    key.chmod(0o600)
    card = make_card(path="path", patient_id="patient").model_dump()
    card["label"]["mask"] = {"rule": {"image": r"images/(.+)", "mask": r"masks/\1"}, "missing": "empty"}
    (project.folder / "card.yaml").write_text(yaml.safe_dump(card))
    settings = {
        **SETTINGS,
        "machine": {**SETTINGS["machine"], "workers": 1},
        "data": {**SETTINGS["data"], "studies": ["../studies"], "key_file": "../segmented.key"},
        "preprocess": {"image_size": [SIDE, SIDE]},
        "pretrain": {**SETTINGS["pretrain"], "max_steps": 12},
        "finetune": {
            **SETTINGS["finetune"], "task": "segmentation", "seeds": [1, 2], "epochs": 5, "learning_rate": 5e-3,
            "batch_size": 8, "arms": ["mae", "scratch", "classical"], "segmentation": {"decoder_width": 32},
        },
        "calibrate": {"recall_targets": [0.7], "confidence": 0.9, "arm": "mae"},
        "report": {"title": "Lesions", "examples": 2},
    }  # fmt: skip
    project.config.parent.mkdir()
    project.config.write_text("# segmentation\n" + yaml.safe_dump(settings))
    run(*project.load(), say=lambda line: None)
    return project


def artifact(project: Project, stage: str):
    (found,) = Store(project.store).all(stage)
    return found.path


def test_the_lesions_score_is_certified_like_any_other(segmented):
    threshold = read_json(artifact(segmented, "calibrate") / "threshold.json")
    assert (threshold["arm"], threshold["certified"]) == ("mae", True)
    metrics = read_json(artifact(segmented, "evaluate") / "metrics.json")
    assert metrics["discrimination"]["auc"]["value"] > 0.95
    assert (artifact(segmented, "report") / "report.json").is_file()


def test_masks_of_test_patients_are_found_by_every_arm(segmented):
    reference = np.load(artifact(segmented, "preprocess") / "masks-test-000.npy")
    for arm, least in (("mae", 0.4), ("scratch", 0.0), ("classical", 0.8)):
        found = np.load(artifact(segmented, "score") / "predicted_masks" / f"{arm}-test-000.npy")
        assert found.shape == reference.shape
        each = [dice(one, other, [1])[0] for one, other in zip(found, reference, strict=True)]
        assert np.nanmean(each) >= least, arm
    marks = read_table(artifact(segmented, "score") / "marks.parquet", MARKS)
    assert set(marks["structure"]) == {1}


def test_the_packaged_model_scores_new_studies_as_the_run_did_and_segments_them(segmented, tmp_path):
    folder = artifact(segmented, "package") / "model"
    model = Model.load(folder, device="cpu", threads=1, say=lambda line: None)
    arrays = np.load(artifact(segmented, "preprocess") / "test-000.npy")
    scores = read_table(artifact(segmented, "score") / "scores_test.parquet", SCORES)
    expected = scores[scores["arm"] == "mae"].groupby("image_id")["logit"].mean().to_numpy()
    logits = model.ensemble.logits(arrays)[:, 0]
    assert np.array_equal(np.sort(logits), np.sort(expected))
    found = np.load(artifact(segmented, "score") / "predicted_masks" / "mae-test-000.npy")
    assert np.array_equal(model.ensemble.segment(arrays).masks, found)
    assert dict(model.ensemble.structures) == {1: "lesion"}
    shots = [segmented.folder / "studies" / "images" / name for name in ("000.png", "001.png")]
    ill, well = sorted(model.predict(shots, pictures=True, workers=1), key=lambda result: result.path)
    assert ill.judgement.score > well.judgement.score
    with pytest.raises(ExportError, match="a model that segments"):
        export(folder, tmp_path / "graph", onnx=True, say=lambda line: None)


def test_every_test_image_is_judged_by_its_mask(segmented):
    evaluated = artifact(segmented, "evaluate")
    summary, metrics = read_json(evaluated / "segmentation.json"), read_json(evaluated / "metrics.json")
    assert summary["arm"] == "mae"
    assert (summary["images"], summary["images_not_annotated"]) == (metrics["images"], 0)
    assert summary["label"]["positive_with_empty_mask"] == summary["label"]["negative_with_a_mask"] == 0
    lesion = summary["arms"]["classical"]["lesion"]
    masks = [np.load(shard) for shard in sorted(artifact(segmented, "preprocess").glob("masks-test-*.npy"))]
    assert lesion["lesions"] == sum(lesions_of(mask == 1)[1] for shard in masks for mask in shard)
    assert lesion["lesions_found"] > 0.8 * lesion["lesions"]
    assert lesion["dice"]["value"] > 0.4
    assert lesion["nsd"]["value"] is None, "pictures without a spacing have no millimetres"
    assert summary["images_without_spacing"] == summary["images"]


def test_the_report_tells_where_and_the_certificate_who(segmented):
    text = (artifact(segmented, "report") / "report.json").read_text("utf-8")
    report = json.loads(text)
    (section,) = [one for one in report["sections"] if one["name"] == "localisation"]
    assert section["blocks"][0]["items"][0].startswith("lesion: of ")
    assert report["numbers"]["threshold"]["recall_target"] == 0.7
    assert f"with {PATIENTS // 2} masks, {PATIENTS // 2} assumed empty" in text
    assert f"{PATIENTS // 2} images without the condition and without a mask were taken to show none" in text


def test_new_pictures_get_masks(segmented):
    model, out = artifact(segmented, "package") / "model", segmented.folder / "out"
    studies = segmented.folder / "studies"
    paths = [str(studies / "images" / f"{at:03d}.png") for at in (0, 1, 2, 3, PATIENTS - 2)]
    words = ["predict", str(model), *paths, "--out", str(out), "--masks", "--no-pages", "--threads", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (0, 3), result.output
    rows = json.loads((out / "results.json").read_text())["results"]
    assert len(rows) == len(paths)
    overlaps = []
    for row in rows:
        (name,) = row["masks_of"]
        mask = np.asarray(Image.open(out / row["masks"][0])) > 0
        if (drawn := studies / "masks" / name).exists():
            reference = np.asarray(Image.open(drawn)) > 0
            overlaps.append(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
    assert len(overlaps) == 3
    assert np.mean(overlaps) > 0.4
