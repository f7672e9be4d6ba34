"""The strongest classical model: what its kinds of features are, and that the best on the tuning images is kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData
from pipeline.models.classical import KINDS, binary_patterns, fit_kind, statistics
from pipeline.models.images import Images
from pipeline.models.training import Hardware
from pipeline.settings.training import FinetuneSettings
from pipeline.store.files import read_json
from pipeline.store.runlog import RunLog

SIDES = (32, 32)


@pytest.mark.parametrize("shape", [(3, 40, 33), (1, 20, 24, 18)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_finite_also_of_blank_images(kind, shape):
    pixels = torch.rand(3, *shape)
    pixels[1] = 0.0
    features = KINDS[kind].features(pixels, SIDES)
    assert features.shape[0] == 3
    assert features.dtype == np.float64
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])


def test_texture_of_a_chessboard_is_known():
    """Neighbours always differ by all 15 grey levels: contrast 225, correlation -1, two equal entries."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    contrast, homogeneity, energy, entropy, correlation = statistics(board[None, None].float(), SIDES)[0][-10:-5]
    assert contrast == 225
    assert homogeneity == pytest.approx(1 / 226)
    assert energy == pytest.approx(0.5)
    assert entropy == pytest.approx(np.log(2))
    assert correlation == pytest.approx(-1)


def test_patterns_of_each_cell_and_radius_are_shares():
    patterns = binary_patterns(torch.rand(2, 1, 64, 64), SIDES).reshape(2, 3, 16, 10)
    assert np.allclose(patterns.sum(axis=3), 1)
    flat = binary_patterns(torch.full((1, 1, 64, 64), 0.5), SIDES).reshape(3, 16, 10)
    # All neighbours are as bright as the middle: the pattern of eight ones, inside the image.
    assert (flat[:, 5, 8] == 1).all()


def test_a_regression_on_components_is_one_on_the_picture():
    generator = np.random.default_rng(0)
    x, y = generator.normal(2, 1, (30, 200)), np.arange(30) % 2
    x[:, :5] += 3 * y[:, None]
    targets = y[:, None].astype(float)
    (fitted,), aucs = fit_kind(KINDS["principal_components"], (x, targets), (x, targets))
    assert fitted.weight.shape == (200,)
    assert max(aucs.values()) == 1.0
    centred = x - x.mean(axis=0)
    assert np.linalg.matrix_rank(np.vstack([centred, fitted.weight])) == np.linalg.matrix_rank(centred)


def images(make, count: int, seed: int) -> Images:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = np.stack([make(label, generator) for label in labels])[:, None]
    index = pd.DataFrame({"label": pd.array(labels, "Int64"), "shard": "made", "row": np.arange(count)})
    return Images(index, {"made": np.clip(pixels, 0, 255).astype(np.uint8)})


def finer(label, generator):
    """Grains of one pixel or of two, of the same brightness, in no place of their own."""
    side = 32 >> label
    return 128 + 40 * np.kron(generator.normal(size=(side, side)), np.ones((1 + label, 1 + label)))


def placed(label, generator):
    """A lighter corner, faint in much noise: it takes every pixel of it to be seen."""
    picture = generator.normal(128, 30, (32, 32))
    picture[:16, :16] += 12 * label
    return picture


@pytest.mark.parametrize("make", [finer, placed])
def test_the_kind_that_is_best_on_the_tuning_images_is_kept_and_all_are_recorded(make, tmp_path):
    data = ArmData(images(make, 60, 1), images(make, 40, 2), None, {}, Hardware(torch.device("cpu")))
    settings = FinetuneSettings(arms=["hog", "classical"], hog_image_size=[32, 32])
    for arm in settings.arms:
        ARMS[arm].train(arm, 1, settings, data, tmp_path / arm, RunLog("finetune", quiet=True))
    record = read_json(tmp_path / "classical" / "model.json")
    assert set(record["kinds"]) == set(KINDS)
    assert record["kinds"]["hog"] == read_json(tmp_path / "hog" / "model.json")["tune_auc"]
    best = max(record["kinds"], key=lambda kind: record["kinds"][kind])
    assert record["classical"]["kind"] == best != "hog"
    assert record["tune_auc"] == record["kinds"][best] > 0.8
    assert KINDS[best].words in record["compared_as"]
    assert all(KINDS[kind].words in record["description"] for kind in KINDS)
