"""Discs planted in pictures, from a folder to the report and to the masks of new pictures: one run of everything."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from evaluation.planted import planted
from PIL import Image as pillow
from project import DEMO, SETTINGS
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.imaging.pseudonyms import load_key
from pipeline.orchestration.run import run
from pipeline.settings.load import load
from pipeline.statistics.froc import lesions_of
from pipeline.store.files import read_json

PATIENTS = 80

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project of pictures, every second with bright discs in it and a mask; the others, well, have none."""
    place = tmp_path_factory.mktemp("masks")
    some = planted(PATIENTS // 2, PATIENTS // 2, seed=5, contrast=(0.3, 0.6), real=False)
    rows = ["path,patient_id,label"]
    for at, (pixels, mask) in enumerate(zip(some.images, some.masks, strict=True)):
        for name, values in (("images", (255 * pixels.clip(0, 1))), ("masks", 255 * mask)):
            (place / "studies" / name).mkdir(parents=True, exist_ok=True)
            if name == "masks" and not mask.any():
                continue
            pillow.fromarray(values.astype(np.uint8)).save(place / "studies" / name / f"{at:03d}.png")
        rows.append(f"images/{at:03d}.png,p{at:03d},{'sick' if mask.any() else 'well'}")
    (place / "labels.csv").write_text("\n".join(rows) + "\n")
    card = yaml.safe_load((DEMO / "card.yaml").read_text())
    card |= {"columns": {"path": "path", "patient_id": "patient_id", "label": "label"}, "further_labels": []}
    card["label"] |= {"positive": ["sick"], "negative": ["well"]}
    card["label"]["mask"] = {"rule": {"image": r"images/(.+)", "mask": r"masks/\1"}, "structures": {"nonzero": "disc"},
                             "missing": "empty"}  # fmt: skip
    card.pop("expected", None)
    (place / "card.yaml").write_text(yaml.safe_dump(card))
    (place / "demo.key").write_bytes((DEMO / "demo.key").read_bytes())
    settings = SETTINGS | {
        "data": SETTINGS["data"] | {"studies": ["../studies"]},
        "ingest": {"near_duplicates": False},
        "preprocess": {"image_size": [64, 64], "shard_size": 50},
        "finetune": {"task": "segmentation", "arms": ["classical"], "seeds": [1]},
        "calibrate": {"recall_targets": [0.6], "confidence": 0.8, "arm": "classical"},
    }
    settings.pop("pretrain")
    (place / "configs").mkdir()
    (place / "configs" / "mini.yaml").write_text(yaml.safe_dump(settings))
    return place


@pytest.fixture(scope="module")
def done(folder):
    config, card = load(folder / "configs" / "mini.yaml", ["machine.workers=1"])
    key = load_key(config.data.key_file, identifiers=card.identifiers)
    return run(config, card, key, until="report", say=lambda line: None)


def test_every_test_image_is_judged_by_its_mask(done):
    evaluated = done.artifacts["evaluate"]
    summary = read_json(evaluated.file("segmentation.json"))
    metrics = read_json(evaluated.file("metrics.json"))
    assert summary["arm"] == "classical"
    assert (summary["images"], summary["images_not_annotated"]) == (metrics["images"], 0)
    assert summary["label"]["positive_with_empty_mask"] == summary["label"]["negative_with_a_mask"] == 0
    disc = summary["arms"]["classical"]["disc"]
    shards = done.artifacts["preprocess"].record["files"]
    masks = [np.load(done.artifacts["preprocess"].file(name)) for name in shards if name.startswith("masks-test-")]
    assert disc["lesions"] == sum(lesions_of(mask == 1)[1] for shard in masks for mask in shard)
    assert disc["lesions_found"] > 0.8 * disc["lesions"]
    assert disc["dice"]["value"] > 0.4
    assert disc["nsd"]["value"] is None, "pictures without a spacing have no millimetres"
    assert summary["images_without_spacing"] == summary["images"]


def test_the_report_tells_where_and_the_certificate_who(done):
    report = read_json(done.artifacts["report"].file("report.json"))
    (section,) = [one for one in report["sections"] if one["name"] == "localisation"]
    assert section["blocks"][0]["items"][0].startswith("disc: of ")
    assert report["numbers"]["threshold"]["recall_target"] == 0.6
    text = done.artifacts["report"].file("report.json").read_text("utf-8")
    assert f"with {PATIENTS // 2} masks, {PATIENTS // 2} assumed empty" in text
    assert f"{PATIENTS // 2} images without the condition and without a mask were taken to show none" in text


def test_new_pictures_get_masks(done, folder):
    model = done.artifacts["package"].path / "model"
    paths = [str(folder / "studies" / "images" / f"{at:03d}.png") for at in (0, 1, 2, 3, PATIENTS - 1)]
    result = CliRunner().invoke(
        app, ["predict", str(model), *paths, "--out", str(folder / "out"), "--masks",
              "--no-pages", "--threads", "1"]
    )  # fmt: skip
    assert result.exit_code in (0, 3), result.output
    rows = json.loads((folder / "out" / "results.json").read_text())["results"]
    assert len(rows) == len(paths)
    overlaps = []
    for row in rows:
        (name,) = row["masks_of"]
        mask = np.asarray(pillow.open(folder / "out" / row["masks"][0])) > 0
        if (drawn := folder / "studies" / "masks" / name).exists():
            reference = np.asarray(pillow.open(drawn)) > 0
            overlaps.append(2 * (mask & reference).sum() / (mask.sum() + reference.sum()))
    assert np.mean(overlaps) > 0.4
