"""The classical baseline: separable data are separated, and the file holds the whole model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.models.baseline import (
    REGULARISATIONS,
    HogSpec,
    Logistic,
    all_logits,
    auc,
    fit_each,
    fit_logistic,
    logistic_tensors,
    logistics,
)
from pipeline.models.checkpoints import read_weights, save_weights
from pipeline.models.reading import read_model
from pipeline.store.files import sha256_file, write_json

HOG = HogSpec((32, 24))


def stripes(count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Noisy images with stripes across (label 0) or along (label 1): only gradients tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    waves = (torch.arange(40.0) * 0.9).sin().mul(0.2).add(0.5).expand(40, 40)
    images = torch.stack([waves if label else waves.T for label in labels])[:, None]
    return (images + 0.15 * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels.numpy().astype(float)


def fitted() -> Logistic:
    train, tune = stripes(40, 1), stripes(20, 2)
    return fit_logistic((HOG.features(train[0]), train[1]), (HOG.features(tune[0]), tune[1]))[0]


def test_gradients_tell_stripes_apart_where_mean_grey_cannot():
    pixels, labels = stripes(30, 3)
    assert auc(labels, fitted().logits(HOG.features(pixels))) == 1.0
    assert auc(labels, pixels.mean(dim=(1, 2, 3)).numpy()) < 0.8


def test_hog_has_the_published_number_of_features():
    """Dalal and Triggs 2005: overlapping blocks of 2 by 2 cells with 9 orientations; 3 by 2 blocks here."""
    assert HOG.features(torch.rand(2, 3, 40, 40)).shape == (2, 3 * 2 * 2 * 2 * 9)


def test_hog_round_trip_through_the_files(tmp_path):
    model, pixels = fitted(), stripes(6, 4)[0]
    save_weights(tmp_path / "model.safetensors", model.tensors())
    restored = Logistic.from_tensors(read_weights(tmp_path / "model.safetensors"))
    assert np.array_equal(restored.logits(HOG.features(pixels)), model.logits(HOG.features(pixels)))
    sha256 = sha256_file(tmp_path / "model.safetensors")
    write_json(tmp_path / "model.json", {"arm": "hog", "hog": HOG.to_json(), "sha256": sha256})
    whole = read_model(tmp_path / "model.json", tmp_path / "model.safetensors", torch.device("cpu")).logits
    # Whole blocks of rows are multiplied, so that the last bit may differ from that of these rows alone.
    np.testing.assert_allclose(whole(pixels)[:, 0], model.logits(HOG.features(pixels)), rtol=1e-12)


def test_models_of_several_labels_come_back_from_one_file_in_their_order(tmp_path):
    (features, labels), unknown = (HOG.features(stripes(30, 1)[0]), stripes(30, 1)[1]), np.arange(30) % 5 == 0
    other = np.where(unknown, np.nan, (np.arange(30) // 2 % 2).astype(float))
    targets = np.column_stack([labels, other, 1 - labels])
    models, aucs = fit_each((features, targets), (features, targets))
    alone, tried = fit_logistic((features, labels), (features, labels))
    assert aucs == tried
    assert np.array_equal(models[0].weight, alone.weight)
    assert np.array_equal(models[1].weight, fit_logistic(*[(features[~unknown], other[~unknown])] * 2)[0].weight)
    save_weights(tmp_path / "model.safetensors", logistic_tensors(models, ["b", "mean"]))
    restored = logistics(read_weights(tmp_path / "model.safetensors"), ["b", "mean"])
    assert np.array_equal(all_logits(restored, features), all_logits(models, features))
    assert np.allclose(all_logits(models, features)[:, 2], -all_logits(models, features)[:, 0], atol=1e-6)


def test_logits_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    x = generator.normal(3, [0.1, 5, 2], (80, 3))
    y = (x[:, 0] * 10 + x[:, 1] + generator.normal(size=80) * 5 > 33).astype(float)
    model, aucs = fit_logistic((x, y), (x, y))
    chosen = max(aucs, key=lambda strength: (aucs[strength], -float(strength)))
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=float(chosen)).fit(scaler.transform(x), y)
    assert np.allclose(model.logits(x), reference.decision_function(scaler.transform(x)), atol=1e-3)
    weight, bias = model.linear()
    assert np.allclose(x @ weight + bias, model.logits(x))
    assert list(aucs) == [f"{strength:g}" for strength in REGULARISATIONS]


def test_a_constant_feature_does_no_harm():
    x = np.column_stack([np.linspace(-1, 1, 20), np.full(20, 7.0)])
    y = (x[:, 0] > 0).astype(float)
    assert np.isfinite(fit_logistic((x, y), (x, y))[0].logits(x)).all()


def test_auc_of_known_ranks_and_of_one_class():
    assert auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))


def test_volumes_are_refused():
    with pytest.raises(ValueError, match="2-D images"):
        HOG.features(torch.rand(1, 1, 8, 8, 8))


def test_of_several_channels_hog_takes_the_largest_gradient_at_each_pixel():
    generator = np.random.default_rng(3)
    spec = HogSpec((16, 16), pixels_per_cell=8, cells_per_block=1)
    steep = torch.from_numpy(generator.random((1, 1, 16, 16))).float()
    flat = 0.01 * steep.flip(-1)
    both = torch.cat([flat, steep, flat], dim=1)
    assert np.array_equal(spec.features(both), spec.features(steep))
    assert np.array_equal(spec.features(steep.expand(-1, 3, -1, -1)), spec.features(steep))
    assert not np.allclose(spec.features(both.mean(dim=1, keepdim=True)), spec.features(steep))
