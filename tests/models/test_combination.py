"""The ensemble of arms: what its score is, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData
from pipeline.models.images import Images
from pipeline.models.reading import read_model
from pipeline.models.training import Hardware, TrainingError
from pipeline.models.vit import EncoderSpec
from pipeline.settings.training import FinetuneSettings
from pipeline.store.files import read_json
from pipeline.store.runlog import RunLog

CPU = torch.device("cpu")
SETTINGS = FinetuneSettings(
    arms=["hog", "classical", "ensemble"], ensemble=["hog", "classical"], hog_image_size=[16, 16]
)


def images(count: int, seed: int) -> Images:
    """Bright (1) or dark (0) noise with a ramp: statistics see the label, gradients hardly."""
    generator, labels = np.random.default_rng(seed), np.arange(count) % 2
    pixels = generator.normal(110, 25, (count, 1, 24, 24)) + 12 * labels[:, None, None, None]
    index = pd.DataFrame({"label": pd.array(labels, "Int64"), "shard": "made", "row": np.arange(count)})
    return Images(index, {"made": np.clip(pixels, 0, 255).astype(np.uint8)})


def train(data: ArmData, folder, arms=SETTINGS.arms) -> None:
    for arm in arms:
        ARMS[arm].train(arm, 1, SETTINGS, data, folder / arm / "seed1", RunLog("finetune", quiet=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    data = ArmData(images(50, 1), images(30, 2), None, {}, Hardware(CPU))
    folder = tmp_path_factory.mktemp("arms")
    train(data, folder)
    return data, folder


def logits(folder, arm: str, pixels: torch.Tensor) -> np.ndarray:
    place = folder / arm / "seed1"
    return read_model(place / "model.json", place / "model.safetensors", CPU).logits(pixels)[:, 0]


def test_its_score_is_the_mean_of_scores_standardised_on_the_tuning_images(made):
    data, folder = made
    tune, new = data.tune.pixels(np.arange(30), CPU), images(20, 3).pixels(np.arange(20), CPU)
    each, scales = [], []
    for arm in SETTINGS.ensemble:
        of_tune = logits(folder, arm, tune)
        each.append((logits(folder, arm, new) - of_tune.mean()) / of_tune.std())
        scales.append((of_tune.mean(), of_tune.std()))
    centre, spread = np.mean(scales, axis=0)
    combined = logits(folder, "ensemble", new)
    assert np.allclose(combined, np.mean(each, axis=0) * spread + centre)
    assert np.array_equal(rankdata(combined), rankdata(np.sum(each, axis=0)))


def test_an_ensemble_of_networks_is_a_weighted_sum_of_them(tmp_path):
    spec = EncoderSpec((24, 24), (8, 8), 1, 32, 1, 2, (0.45,), (0.2,))
    data = ArmData(images(50, 1), images(30, 2), spec, {}, Hardware(CPU))
    settings = FinetuneSettings(
        arms=["cnn", "scratch", "ensemble"], ensemble=["cnn", "scratch"], epochs=2, batch_size=16,
        cnn={"depth": 10, "width": 8},
    )  # fmt: skip
    for arm in settings.arms:
        for seed in (1,) if arm == "ensemble" else (1, 2):
            folder = tmp_path / arm / f"seed{seed}"
            ARMS[arm].train(arm, seed, settings, data, folder, RunLog("finetune", quiet=True))
    place = tmp_path / "ensemble" / "seed1"
    model = read_model(place / "model.json", place / "model.safetensors", CPU)
    weighted, pixels = model.weighted, images(9, 3).pixels(np.arange(9), CPU)
    assert weighted is not None
    assert [type(one).__name__ for one in weighted.networks] == ["ResNetClassifier"] * 2 + ["Classifier"] * 2
    with torch.no_grad():
        each = [network(pixels).double().numpy() for network in weighted.networks]
    found = sum(one * weight for one, weight in zip(each, weighted.weights, strict=True)) + weighted.offset
    assert np.allclose(found, model.logits(pixels), atol=1e-6)


def test_its_record_says_what_it_is_made_of(made):
    record = read_json(made[1] / "ensemble" / "seed1" / "model.json")
    others = [read_json(made[1] / arm / "seed1" / "model.json") for arm in SETTINGS.ensemble]
    assert record["title"] == "ensemble of hog and classical"
    assert record["parameters"] == sum(one["parameters"] for one in others)
    assert [one["arm"] for one in record["ensemble"]] == SETTINGS.ensemble


def test_an_arm_that_tells_no_image_from_another_is_refused(made, tmp_path):
    data, _ = made
    train(data, tmp_path, ["hog", "classical"])
    blank = np.full((30, 1, 24, 24), 128, np.uint8)
    with pytest.raises(TrainingError, match="arm hog gives all tuning images one logit"):
        train(replace(data, tune=Images(data.tune.index, {"made": blank})), tmp_path, ["ensemble"])


@pytest.mark.parametrize(
    ("arms", "ensemble", "message"),
    [
        (["hog", "ensemble"], ["hog", "classical"], "ensemble names classical, which arms does not"),
        (["hog", "ensemble"], ["hog", "ensemble"], "cannot be one of its own arms"),
        (["hog", "ensemble"], ["hog"], "at least 2 items"),
        (["hog", "ensemble"], ["hog", "hog"], "values must be distinct"),
    ],
)
def test_arms_that_cannot_be_combined_are_refused(arms, ensemble, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(arms=arms, ensemble=ensemble)


def test_settings_of_an_arm_that_is_not_trained_are_kept_nowhere():
    plain = FinetuneSettings().model_dump(mode="json")
    assert not {"cnn", "ensemble"} & plain.keys()
    assert FinetuneSettings(ensemble=["mae", "scratch"], cnn={"depth": 34}).model_dump(mode="json") == plain
    assert FinetuneSettings(arms=["cnn"]).model_dump(mode="json")["cnn"] == {"depth": 18, "width": 64}
