"""Task segmentation through the stages: masks beside arrays in, trained arms, logits, masks and marks out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models.segmented_images import SIDE, STRUCTURES, balls, images_of, settings_of
from stages.training_run import Killed, inputs, killer, publish, run_stage

from pipeline.inference.ensemble import Ensemble
from pipeline.inference.model_folder import ModelError, check_golden, write_golden
from pipeline.models.dice import dice
from pipeline.models.images import ImagesError
from pipeline.models.training import TrainingError
from pipeline.stages import finetune as stage
from pipeline.store.files import read_json, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.masks import NOT_ANNOTATED
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import MARKS, SCORES
from pipeline.store.versions import package_versions, runtime_versions

CHOICES = settings_of(
    arms=["mae", "scratch", "classical"], seeds=[1, 2], epochs=2, warmup_epochs=0.5, batch_size=12,
    segmentation={"decoder_width": 16, "marks_per_image": 3, "mark_threshold": 0.02},
).model_dump()  # fmt: skip
SHARDS = {"train": 36, "tune": 8, "calibration": 6, "test": 9, "pretrain": 2}
CPU = torch.device("cpu")


def settings(**changes):
    return dict(settings_of(**{**CHOICES, **changes}))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """Images and masks as preprocess leaves them, one of the test images without a label, and an encoder."""
    folder = tmp_path_factory.mktemp("segmented")
    work = folder / "preprocess"
    work.mkdir()
    for seed, (split, count) in enumerate(SHARDS.items()):
        pixels, masks, labels = balls(count, 2, seed)
        index = images_of(split, pixels, labels).index.assign(padding=[[0.0] * 4] * count)
        if split == "test":
            index.loc[4, "label"] = pd.NA
        np.save(work / f"{split}-000.npy", pixels)
        np.save(work / f"masks-{split}-000.npy", masks)
        write_table(work / f"index_{split}.parquet", index, INDEX)
    structures = {str(number): name for number, name in STRUCTURES.items()}
    write_json(work / "summary.json", {"image_size": [SIDE, SIDE], "masks": {"structures": structures}})
    publish(work)
    run_stage(folder, "pretrain", max_steps=4)
    return folder


@pytest.fixture(scope="module")
def scored(pretrained) -> tuple[Path, dict[str, str], dict[str, str]]:
    trained = run_stage(pretrained, "finetune", **settings())[0]
    return pretrained, trained, run_stage(pretrained, "score")[0]


@pytest.fixture
def copy(pretrained, tmp_path) -> Path:
    for name in ("preprocess", "pretrain"):
        shutil.copytree(pretrained / name, tmp_path / name)
    return tmp_path


def ensemble(folder: Path, arm: str) -> Ensemble:
    seeds = [1] if arm == "classical" else [1, 2]
    place = {seed: folder / "finetune" / arm / f"seed{seed}" for seed in seeds}
    return Ensemble.load({s: (p / "model.json", p / "model.safetensors") for s, p in place.items()}, CPU)


def test_the_summary_says_what_was_learnt_and_how_well(scored):
    summary = read_json(scored[0] / "finetune" / "summary.json")
    assert summary["task"] == "segmentation"
    assert summary["structures"] == {"1": "ball", "2": "core"}
    assert summary["arms"]["mae"]["selection"] == "weights after the last epoch"
    assert summary["arms"]["classical"]["title"] == "classical baseline (pixels, logistic regression)"
    assert "highest mean Dice on the tuning images" in summary["arms"]["classical"]["selection"]
    for arm in ("mae", "scratch"):
        for one in summary["arms"][arm]["seeds"].values():
            assert {"tune_auc", "tune_dice", "encoder_test", "model_sha256"} <= one.keys()
            assert one["encoder_test"].keys() == {"tune_dice", "tune_dice_with_noise", "least_fall", "used"}
    assert summary["arms"]["classical"]["seeds"]["1"]["tune_dice"] > 0.9


def test_an_encoder_that_is_not_used_is_warned_of(copy):
    """One step with nearly no rate: nothing is found, and nothing can be said."""
    warned: list[str] = []
    log = RunLog("finetune", quiet=True)
    object.__setattr__(log, "warn", warned.append)
    (copy / "finetune").mkdir()
    chosen = settings_of(**{**CHOICES, "arms": ["mae"], "seeds": [1], "max_steps": 1, "learning_rate": 1e-9})
    stage.finetune(chosen, inputs(copy, "finetune"), copy / "finetune", log)
    assert any("mae seed 1: the mean Dice of the tuning images is 0; nothing can be said" in line for line in warned)


def test_every_labelled_image_is_scored_by_every_model(scored):
    folder, _, files = scored
    scores = read_table(folder / "score" / "scores_test.parquet", SCORES)
    assert len(scores) == 8 * 5
    own = scores[(scores["arm"] == "mae")].groupby("image_id")["logit"].mean()
    pixels = np.load(folder / "preprocess" / "test-000.npy")[np.arange(9) != 4]
    assert np.allclose(own.to_numpy(), ensemble(folder, "mae").logits(pixels)[:, 0])
    assert len(set(scores["logit"])) == len(scores), "no ties"
    assert {f"predicted_masks/{arm}-{split}-000.npy" for arm in ("mae", "scratch", "classical")
            for split in ("tune", "calibration", "test")} <= files.keys()  # fmt: skip
    assert not any(name.startswith("scratch/") for name in files)


def test_masks_lie_as_the_arrays_do_and_marks_are_where_they_are_suspected(scored):
    folder = scored[0]
    pixels, reference = (np.load(folder / "preprocess" / f"{name}test-000.npy") for name in ("", "masks-"))
    masks = np.load(folder / "score" / "predicted_masks" / "classical-test-000.npy")
    assert masks.shape == reference.shape
    assert (masks[4] == NOT_ANNOTATED).all(), "no label, not scored"
    found = ensemble(folder, "classical").segment(pixels)
    rows = [row for row in range(9) if row != 4]
    assert np.array_equal(masks[rows], found.masks[rows])
    assert np.nanmean([dice(masks[row], reference[row], [1, 2]) for row in rows]) > 0.9
    marks = read_table(folder / "score" / "marks.parquet", MARKS)
    assert marks.groupby(["arm", "image_id"]).size().max() <= 3
    assert marks["z"].isna().all()
    own = marks[(marks["arm"] == "classical") & (marks["image_id"] == "test-001")]
    assert own["mark"].tolist() == [*range(1, len(own) + 1)]
    first = own.iloc[0]
    assert reference[1, first["y"], first["x"]] == first["structure"]
    summary = read_json(folder / "score" / "summary.json")
    assert summary["marks"] == len(marks)
    assert summary["marks_left_out"] >= 0


def test_images_without_a_mask_are_counted(copy):
    path = copy / "preprocess" / "masks-train-000.npy"
    masks = np.load(path)
    masks[[0, 2, 3]] = NOT_ANNOTATED
    np.save(path, masks)
    publish(copy / "preprocess")
    warned: list[str] = []
    log = RunLog("finetune", quiet=True)
    object.__setattr__(log, "warn", warned.append)
    stage._read(settings_of(**CHOICES), inputs(copy, "finetune"), log)
    (said,) = warned
    assert said.startswith("1 of 18 positive and 2 of 18 negative training images have no mask")


@pytest.mark.parametrize("at", [1, 3])
def test_interrupted_training_leaves_the_same_bytes(copy, scored, at):
    with pytest.raises(Killed):
        run_stage(copy, "finetune", sink=killer(at), **settings())
    assert run_stage(copy, "finetune", **settings())[0] == scored[1]


def test_interrupted_scoring_leaves_the_same_bytes(copy, scored, monkeypatch):
    shutil.copytree(scored[0] / "finetune", copy / "finetune")
    segment, calls = Ensemble.segment, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 12:
            raise Killed
        return segment(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Ensemble, "segment", dies)
        with pytest.raises(Killed):
            run_stage(copy, "score")
    assert run_stage(copy, "score")[0] == scored[2]


def test_fewer_labelled_patients_learn_masks_too(copy):
    run_stage(copy, "finetune", **settings(arms=["mae", "classical"], seeds=[1], labelled_patients=[8], max_steps=2))
    fewer = read_json(copy / "finetune" / "summary.json")["labelled_patients"]["8"]
    assert fewer["patients"] == 8
    assert "tune_dice" in fewer["arms"]["mae"]["seeds"]["1"]
    run_stage(copy, "score")
    assert (copy / "score" / "label_fractions_test.parquet").is_file()


def test_what_masks_lack_is_said(copy):
    path = copy / "preprocess" / "masks-tune-000.npy"
    masks = np.load(path)
    np.save(path, np.zeros_like(masks))
    publish(copy / "preprocess")
    with pytest.raises(TrainingError, match="split tune has no image in whose mask there is a structure"):
        run_stage(copy, "finetune", **settings())
    path.unlink()
    publish(copy / "preprocess")
    with pytest.raises(ImagesError, match=r"masks-tune-000.npy is missing"):
        run_stage(copy, "finetune", **settings())
    write_json(copy / "preprocess" / "summary.json", {"image_size": [SIDE, SIDE]})
    publish(copy / "preprocess")
    with pytest.raises(TrainingError, match="have no masks; say in the card where they are"):
        run_stage(copy, "finetune", **settings())


def test_a_packaged_copy_scores_its_golden_images_or_is_refused(scored, tmp_path):
    pixels = np.load(scored[0] / "preprocess" / "test-000.npy")[:3]
    own = ensemble(scored[0], "mae")
    write_golden(tmp_path, pixels, own)
    content = {"made_by": {"versions": {**runtime_versions(), **package_versions()}}}
    check_golden(tmp_path, own, content, print)
    np.save(tmp_path / "golden" / "logits.npy", own.logits(pixels) + 0.01)
    with pytest.raises(ModelError, match="gives other scores here"):
        check_golden(tmp_path, own, content, print)


def test_mirrored_scoring_is_the_mean_of_both_ways(scored):
    folder = scored[0] / "finetune" / "mae" / "seed1"
    files = {1: (folder / "model.json", folder / "model.safetensors")}
    plain, both = (Ensemble.load(files, CPU, flips=flips) for flips in (False, True))
    pixels = np.load(scored[0] / "preprocess" / "test-000.npy")[:2]
    turned = np.ascontiguousarray(pixels[..., ::-1])
    assert np.allclose(both.logits(pixels), (plain.logits(pixels) + plain.logits(turned)) / 2)
    assert np.array_equal(both.segment(pixels).masks[..., ::-1], both.segment(turned).masks)
