"""Scoring: every labelled image by every model, the same bytes each time, and no model that was changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from stages.training_run import Killed, make_images, publish, run_stage

from pipeline.models.checkpoints import WeightsError
from pipeline.models.reading import read_model
from pipeline.stages import score as stage
from pipeline.store.files import read_json
from pipeline.store.tables.io import read_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import SCORES

SPLITS = ("tune", "calibration", "test")


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = make_images(tmp_path_factory.mktemp("scored"))
    run_stage(folder, "pretrain", max_steps=8)
    run_stage(folder, "finetune", epochs=3)
    return folder, run_stage(folder, "score")[0]


@pytest.fixture
def copy(scored, tmp_path) -> Path:
    for name in ("preprocess", "finetune"):
        shutil.copytree(scored[0] / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("split", SPLITS)
def test_every_labelled_image_is_scored_once_by_every_model(scored, split):
    scores = read_table(scored[0] / "score" / f"scores_{split}.parquet", SCORES)
    index = read_table(scored[0] / "preprocess" / f"index_{split}.parquet", INDEX).dropna(subset="label")
    models = {(arm, int(seed)) for arm, seed in scores.groupby(["arm", "seed"]).groups}
    networks = {(arm, seed) for arm in ("mae", "scratch") for seed in (1, 2)}
    assert models == networks | {("linear_probe", 1), ("hog", 1)}
    for _, rows in scores.groupby(["arm", "seed"]):
        assert rows["image_id"].tolist() == sorted(index["image_id"])
        labels = dict(zip(index["image_id"], index["label"], strict=True))
        assert [labels[image] for image in rows["image_id"]] == rows["label"].tolist()
    assert np.isfinite(scores["logit"]).all()


def test_unlabelled_images_are_counted_and_not_scored(scored):
    summary = read_json(scored[0] / "score" / "summary.json")["splits"]
    assert {split: summary[split]["unlabelled_images_not_scored"] for split in SPLITS} == {
        "tune": 1, "calibration": 0, "test": 0
    }  # fmt: skip
    assert summary["tune"]["images"] == 20


def test_a_logit_is_what_the_model_says_of_that_image(scored):
    folder = scored[0] / "finetune" / "scratch" / "seed2"
    model = read_model(folder / "model.json", folder / "model.safetensors", torch.device("cpu")).logits
    index = read_table(scored[0] / "preprocess" / "index_test.parquet", INDEX)
    scores = read_table(scored[0] / "score" / "scores_test.parquet", SCORES)
    ours = scores[(scores["arm"] == "scratch") & (scores["seed"] == 2)].set_index("image_id")["logit"]
    for row in index.itertuples():
        pixels = np.load(scored[0] / "preprocess" / row.shard)[row.row][None] / np.float32(255)
        assert model(torch.from_numpy(pixels))[0] == pytest.approx(ours[row.image_id], abs=1e-5)


def test_with_flips_a_logit_is_the_mean_over_an_image_and_its_mirror_image(scored, copy):
    plain = read_table(scored[0] / "score" / "scores_test.parquet", SCORES)
    run_stage(copy, "score", flips=True)
    scores = read_table(copy / "score" / "scores_test.parquet", SCORES)
    index = read_table(copy / "preprocess" / "index_test.parquet", INDEX).set_index("image_id")
    pixels = np.stack([np.load(copy / "preprocess" / r.shard)[r.row] for r in index.itertuples()]) / np.float32(255)
    for arm, seed in (("mae", 2), ("hog", 1)):
        folder = copy / "finetune" / arm / f"seed{seed}"
        model = read_model(folder / "model.json", folder / "model.safetensors", torch.device("cpu")).logits
        own = scores[(scores["arm"] == arm) & (scores["seed"] == seed)].set_index("image_id")["logit"]
        mirrored = (model(torch.from_numpy(pixels)) + model(torch.from_numpy(pixels[..., ::-1].copy()))) / 2
        assert own[index.index].to_numpy() == pytest.approx(mirrored[:, 0], abs=1e-5)
    assert not np.allclose(scores["logit"], plain["logit"], atol=1e-3)
    assert read_json(copy / "score" / "summary.json")["flips"] is True


def test_twice_gives_the_same_bytes(scored, copy):
    assert run_stage(copy, "score")[0] == scored[1]


@pytest.mark.parametrize("split", SPLITS)
def test_interrupted_scoring_leaves_the_same_bytes(scored, copy, monkeypatch, split):
    write = stage.write_table

    def dies(path, frame, table):
        if split in path.name:
            raise Killed
        write(path, frame, table)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "write_table", dies)
        with pytest.raises(Killed):
            run_stage(copy, "score")
    assert run_stage(copy, "score")[0] == scored[1]


def test_a_model_that_is_not_the_one_recorded_is_refused(copy):
    weights = copy / "finetune" / "mae" / "seed1" / "model.safetensors"
    shutil.copyfile(copy / "finetune" / "mae" / "seed2" / "model.safetensors", weights)
    publish(copy / "finetune")
    with pytest.raises(WeightsError, match="arm mae is not the file named in"):
        run_stage(copy, "score")


def test_scores_tell_the_classes_apart(scored):
    scores = read_table(scored[0] / "score" / "scores_test.parquet", SCORES)
    hog = scores[scores["arm"] == "hog"]
    assert hog[hog["label"] == 1]["logit"].min() > hog[hog["label"] == 0]["logit"].max()
