"""The changes of the robustness benchmark on known answers, and its losses on made-up scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import robustness as benchmark
from benchmarks.corruptions import CORRUPTIONS, blurred, compressed, corrupted, cropped, gamma, noisy, stretched
from stages.training_run import make_images, run_stage

from pipeline.store.files import write_json


def ramp() -> np.ndarray:
    return np.tile(np.arange(0, 256, 4, dtype=np.uint8), (1, 64, 1))


def test_gamma_keeps_the_ends_and_moves_the_middle_as_the_formula_says():
    image = np.array([[[0, 64, 128, 255]]], np.uint8)
    assert gamma(image, 1.0).tolist() == image.tolist()
    assert gamma(image, 0.7).tolist() == [[[0, 97, 157, 255]]]  # 255 (64/255)^0.7 = 96.9, 255 (128/255)^0.7 = 157.4
    assert gamma(image, 1.4).tolist() == [[[0, 37, 97, 255]]]


def test_a_blurred_point_is_a_gaussian_of_one_pixel():
    image = np.zeros((1, 21, 21), np.uint8)
    image[0, 10, 10] = 255
    found = blurred(image)[0].astype(float)
    assert found[10, 10] == pytest.approx(255 / (2 * np.pi), abs=1.5)
    assert found[10, 11] / found[10, 10] == pytest.approx(np.exp(-0.5), abs=0.03)
    assert found.sum() == pytest.approx(255, rel=0.03)


def test_a_crop_shows_the_middle_larger_and_a_constant_stays():
    found = cropped(ramp())[0]
    assert found.shape == (64, 64)
    # 58 of 64 columns are kept, from the third on; grey rises by 58/64 as much per pixel.
    assert np.diff(found[0].astype(float)).mean() == pytest.approx(4 * 58 / 64, rel=0.02)
    assert found[0, 0] == 12
    assert (cropped(np.full((1, 20, 30), 77, np.uint8)) == 77).all()


def test_stretching_makes_percentiles_black_and_white():
    found = stretched(ramp())[0, 0]
    assert (found == 0).mean() == pytest.approx(0.05, abs=0.02)
    assert (found == 255).mean() == pytest.approx(0.05, abs=0.02)
    assert (stretched(np.full((1, 8, 8), 9, np.uint8)) == 9).all()


def test_noise_has_two_percent_and_is_the_same_again():
    image = np.full((1, 200, 200), 128, np.uint8)
    found = noisy(image, 3).astype(float)
    assert found.std() == pytest.approx(0.02 * 255, rel=0.03)
    assert (noisy(image, 3) == noisy(image, 3)).all()
    assert (noisy(image, 3) != noisy(image, 4)).any()


def test_compression_costs_fine_detail_more_than_a_slope():
    assert np.ptp(constant := compressed(np.full((1, 16, 16), 100, np.uint8))) == 0
    assert abs(int(constant[0, 0, 0]) - 100) <= 3  # the mean of a block is rounded, too
    speckled = np.random.default_rng(0).integers(0, 256, (1, 32, 32)).astype(np.uint8)
    fine, smooth = (np.abs(compressed(image).astype(int) - image).mean() for image in (speckled, ramp()))
    assert fine > 5 > smooth > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 24, 20), (3, 24, 20), (1, 8, 24, 20)], ids=["grey", "colour", "volume"])
def test_every_change_keeps_shape_and_type_and_does_something(name, shape):
    images = np.random.default_rng(1).integers(20, 236, (2, *shape)).astype(np.uint8)
    before = images.copy()
    found = corrupted(images, name)
    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    assert (found != images).any()
    assert (images == before).all()


def test_losses_are_those_of_known_scores():
    labels = np.repeat([0, 1], 50)
    sure, turned = labels.astype(float), 1 - labels.astype(float)
    same = dict.fromkeys((benchmark.AS_IS, *CORRUPTIONS), sure)
    found = benchmark.robustness(labels, {"mae": same, "hog": same | {"gamma 0.7": turned}}, "mae", resamples=20)
    assert found["arms"]["mae"]["worst_loss"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["arms"]["hog"]["worst_loss"]["value"] == 1.0
    assert found["arms"]["hog"]["worst_change"] == "gamma 0.7"
    assert found["goal"]["reached"]
    assert found["goal"]["worst_loss_minus_half_of_hogs"]["value"] == -0.5
    text = benchmark.table(found)
    assert "the worst loss of mae is at most half of that of hog: reached" in text
    assert "hog" in text


def test_intervals_are_paired():
    """A change that costs every patient alike costs the AUC nothing, in every resample."""
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], 60)
    before = generator.normal(labels)
    scores = dict.fromkeys((benchmark.AS_IS, *CORRUPTIONS), before) | {"gamma 1.4": before - 3}
    found = benchmark.robustness(labels, {"mae": scores}, "mae", resamples=50)
    assert found["arms"]["mae"]["loss"]["gamma 1.4"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "goal" not in found


def test_it_reads_a_finished_run(tmp_path, capsys, monkeypatch):
    make_images(tmp_path)
    run_stage(tmp_path, "pretrain", max_steps=2)
    run_stage(tmp_path, "finetune", arms=["hog"], seeds=[1])
    run_stage(tmp_path, "score")
    for stage, inputs in (("preprocess", {}), ("finetune", {"preprocess": "k"}), ("score", {"finetune": "k"})):
        (tmp_path / "store" / stage).mkdir(parents=True)
        (tmp_path / stage).rename(tmp_path / "store" / stage / "k")
        write_json(tmp_path / "store" / stage / "k" / "artifact.json", {"inputs": inputs, "files": {}})
    run = tmp_path / "store" / "score" / "k"
    monkeypatch.setattr(sys, "argv", ["robustness.py", str(run), "--resamples", "20"])
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found["arms"]) == ["hog"]
    assert (found["patients"], found["arms"]["hog"]["auc"]) == (14, 1.0)
    monkeypatch.setattr(sys, "argv", ["robustness.py", str(Path(tmp_path / "store" / "preprocess" / "k"))])
    with pytest.raises(SystemExit, match="does not rest on finetune"):
        benchmark.main()
