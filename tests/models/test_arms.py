"""The contracts of an arm, held by every arm of the registry in every number of axes that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData, Start
from pipeline.models.baseline import auc
from pipeline.models.checkpoints import WeightsError, read_weights, save_weights
from pipeline.models.finished import Finished
from pipeline.models.images import Images
from pipeline.models.reading import read_model
from pipeline.models.training import Hardware
from pipeline.models.vit import EncoderSpec, build_encoder
from pipeline.settings.training import FinetuneSettings, ResNetSettings
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.runlog import RunLog

CPU = torch.device("cpu")
SIDE = 16
FILES = ("model.safetensors", "model.json", "history.json")
CASES = [(arm.name, axes) for arm in ARMS.values() for axes in arm.axes]


@dataclass(frozen=True)
class Trained:
    """An arm as it was trained: its folder, and the images that it was trained and judged on."""

    arm: str
    folder: Path
    data: ArmData

    def read(self) -> Finished:
        return read_model(self.folder / "model.json", self.folder / "model.safetensors", CPU)

    def pixels(self) -> torch.Tensor:
        return self.data.tune.pixels(np.arange(len(self.data.tune)), CPU)


def gratings(count: int, axes: int, seed: int) -> Images:
    """Images with stripes across (0) or along (1), and a further label that half of them have: bright or not."""
    generator = np.random.default_rng(seed)
    labels, bright = np.arange(count) % 2, np.arange(count) // 2 % 2
    wave = np.sin(np.arange(SIDE) * 1.3 + generator.uniform(0, 1, (count, 1)))
    along = np.broadcast_to(wave.reshape(count, *[1] * axes, SIDE), (count, 1, *[SIDE] * axes))
    pictures = np.where((labels == 1).reshape(-1, *[1] * (axes + 1)), along, np.swapaxes(along, -1, -2))
    lift = (20 * bright).reshape(-1, *[1] * (axes + 1))
    pixels = np.clip(110 + lift + 40 * pictures + generator.normal(0, 12, pictures.shape), 0, 255)
    index = pd.DataFrame({
        "image_id": [f"image-{at:03d}" for at in range(count)],
        "patient_id": [f"patient-{at:03d}" for at in range(count)],
        "label": pd.array(labels, "Int64"),
        "shard": "made",
        "row": np.arange(count),
    })  # fmt: skip
    further = pd.DataFrame({"bright": np.where(np.arange(count) % 3 == 0, np.nan, bright)})
    return Images(index, {"made": pixels.astype(np.uint8)}, further)


def settings_of(axes: int) -> FinetuneSettings:
    """Settings that train every arm of as many axes in seconds."""
    arms = [arm.name for arm in ARMS.values() if axes in arm.axes]
    return FinetuneSettings(arms=arms, seeds=[1, 2], epochs=2, batch_size=16, warmup_epochs=0.5, learning_rate=3e-3,
                            hog_image_size=[16, 16], ensemble=["mae", "classical"],
                            cnn=ResNetSettings(depth=10, width=8))  # fmt: skip


def data_of(axes: int) -> ArmData:
    """Return made-up patients, and a random encoder in the place of a pretrained one."""
    spec = EncoderSpec((SIDE,) * axes, (4,) * axes, 1, 16, 2, 2, (0.45,), (0.15,))
    torch.manual_seed(0)
    tensors = build_encoder(spec).state_dict()
    start = Start(tensors, "a test", len(tensors))
    starts = {name: start for name, arm in ARMS.items() if arm.encoder in ("pretrained", "imported")}
    return ArmData(gratings(40, axes, 1), gratings(22, axes, 2), spec, starts, Hardware(CPU))


def train_all(axes: int, folder: Path) -> dict[str, Trained]:
    """Train every arm of as many axes, those that are made of others last."""
    settings, data = settings_of(axes), data_of(axes)
    made = {}
    for name in sorted(settings.arms, key=lambda name: ARMS[name].of_others):
        for seed in settings.seeds if ARMS[name].network else settings.seeds[:1]:
            place = folder / name / f"seed{seed}"
            ARMS[name].train(name, seed, settings, data, place, RunLog("finetune", quiet=True))
        made[name] = Trained(name, folder / name / "seed1", data)
    return made


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> dict[tuple[str, int], Trained]:
    made = {axes: train_all(axes, tmp_path_factory.mktemp(f"axes{axes}")) for axes in (2, 3)}
    return {(name, axes): made[axes][name] for name, axes in CASES}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]}-D")
def trained(request: pytest.FixtureRequest, every) -> Trained:
    return every[request.param]


def test_logits_of_a_batch_are_those_of_its_images_one_by_one(trained: Trained):
    model, pixels = trained.read(), trained.pixels()
    together = model.logits(pixels)
    assert together.shape == (len(pixels), 2)
    assert together.dtype == np.float64
    one_by_one = np.concatenate([model.logits(pixels[at : at + 1]) for at in range(len(pixels))])
    assert np.array_equal(together, one_by_one)
    assert np.array_equal(together, np.concatenate([model.logits(part) for part in pixels.split(7)]))


def test_images_in_another_order_have_the_same_logits(trained: Trained):
    model, pixels = trained.read(), trained.pixels()
    order = np.random.default_rng(3).permutation(len(pixels))
    assert np.array_equal(model.logits(pixels)[order], model.logits(pixels[order]))


def test_what_is_read_back_is_what_training_judged(trained: Trained):
    logits = trained.read().logits(trained.pixels())[:, 0]
    record = read_json(trained.folder / "model.json")
    assert record["arm"] == trained.arm
    history = read_json(trained.folder / "history.json")
    assert all(isinstance(value, int | float) for row in history for value in row.values()), "MLflow takes numbers"
    # The gap of two logits may be smaller than rounding.
    assert auc(trained.data.tune.labels, logits) == pytest.approx(record["tune_auc"], abs=0.01)


@pytest.mark.parametrize("change", ["one missing", "one too many", "another shape"])
def test_weights_that_do_not_fit_are_refused(trained: Trained, tmp_path, change: str):
    tensors = read_weights(trained.folder / "model.safetensors")
    name = max(tensors)
    if change == "one missing":
        del tensors[name]
    elif change == "one too many":
        tensors["stranger"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(2, 3, 4)
    save_weights(tmp_path / "model.safetensors", tensors)
    record = read_json(trained.folder / "model.json") | {"sha256": sha256_file(tmp_path / "model.safetensors")}
    write_json(tmp_path / "model.json", record)
    with pytest.raises(WeightsError, match=r"do not fit.* (is missing|is unexpected|has shape \(.*\) instead of)"):
        read_model(tmp_path / "model.json", tmp_path / "model.safetensors", CPU)


def test_trained_again_it_has_the_same_bytes(every, tmp_path):
    again = train_all(2, tmp_path)
    for name, one in again.items():
        first = every[name, 2].folder
        assert [sha256_file(one.folder / file) for file in FILES] == [sha256_file(first / file) for file in FILES], name


def test_every_trained_parameter_of_a_network_gets_a_gradient(trained: Trained):
    model = trained.read()
    assert bool(model.networks) or not ARMS[trained.arm].network
    for network in model.networks:
        network.train()
        network.zero_grad()
        network(trained.pixels()[:4]).square().sum().backward()
        without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
        assert not without


def test_a_network_says_where_it_looked_and_what_it_found(trained: Trained):
    pixels = trained.pixels()[:3]
    for network in trained.read().networks:
        shares = network.shares(pixels)
        assert shares.shape[0] == 3
        assert shares.ndim == pixels.ndim - 1
        assert np.allclose(shares.reshape(3, -1).sum(axis=1), 1)
        assert (shares >= 0).all()
        assert np.allclose(network.shares(pixels[1:2]), shares[1:2], atol=1e-6)
        found = network.depths(pixels)
        assert all(one.shape[0] == 3 and one.dtype == torch.float64 and one.isfinite().all() for one in found)


def test_one_pass_gives_the_logits_and_what_the_first_network_found_to_the_last_bit(trained: Trained):
    model, pixels = trained.read(), trained.pixels()
    assert bool(model.look) == bool(model.networks)
    if model.look:
        logits, depths = model.look(pixels)
        assert np.array_equal(logits, model.logits(pixels))
        alone = [model.networks[0].depths(one) for one in pixels.split(1)]
        assert all(
            torch.equal(one, torch.cat(parts)) for one, parts in zip(depths, zip(*alone, strict=True), strict=True)
        )


def test_an_arm_that_this_version_does_not_know_is_named(every, tmp_path):
    folder = every["hog", 2].folder
    write_json(tmp_path / "model.json", read_json(folder / "model.json") | {"arm": "stranger"})
    with pytest.raises(WeightsError, match="names arm stranger; this version of maescreen knows mae, scratch"):
        read_model(tmp_path / "model.json", folder / "model.safetensors", CPU)
