"""The attentive probe: one patch of many is found, the encoder stays frozen, and it is run once over each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.models import attentive_probe
from pipeline.models.arms import ArmData, Start
from pipeline.models.attentive_probe import train_attentive_probe
from pipeline.models.checkpoints import read_weights
from pipeline.models.classifier import Classifier
from pipeline.models.images import Images
from pipeline.models.training import Hardware
from pipeline.models.vit import EncoderSpec, build_encoder
from pipeline.settings.training import FinetuneSettings
from pipeline.store.files import read_json
from pipeline.store.runlog import RunLog

CPU = torch.device("cpu")
SPEC = EncoderSpec((16, 16), (4, 4), 1, 32, 1, 2, (0.5,), (0.25,))


def spotted(count: int, seed: int) -> Images:
    """Noise with one patch of upright stripes (1) or level ones (0), somewhere."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    shown = generator.integers(90, 166, (count, 1, 16, 16))
    stripes = np.tile(np.array([0, 255]), (4, 2))
    for image, label in zip(shown, labels, strict=True):
        row, column = 4 * generator.integers(0, 4, 2)
        image[0, row : row + 4, column : column + 4] = stripes if label else stripes.T
    index = pd.DataFrame({"label": pd.array(labels, "Int64"), "shard": "made", "row": np.arange(count)})
    return Images(index, {"made": shown.astype(np.uint8)})


@pytest.fixture(scope="module")
def data() -> ArmData:
    torch.manual_seed(0)
    tensors = build_encoder(SPEC).state_dict()
    start = Start(tensors, "a test", len(tensors))
    return ArmData(spotted(120, 1), spotted(60, 2), SPEC, {"attentive_probe": start}, Hardware(CPU))


def test_it_finds_the_one_patch_that_tells_with_one_pass_of_the_encoder(data, tmp_path, monkeypatch):
    seen: list[int] = []
    encode = Classifier.tokens
    monkeypatch.setattr(Classifier, "tokens", lambda self, p, b=None: seen.append(len(p)) or encode(self, p, b))
    settings, log = FinetuneSettings(batch_size=40), RunLog("finetune", quiet=True)
    train_attentive_probe("attentive_probe", 1, settings, data, tmp_path / "attentive", log)
    assert sum(seen) == 120 + 60
    record = read_json(tmp_path / "attentive" / "model.json")
    assert record["tune_auc"] > 0.85, record["tune_auc"]
    tensors = read_weights(tmp_path / "attentive" / "model.safetensors")
    frozen = data.starts["attentive_probe"].tensors
    assert all(torch.equal(tensors[f"encoder.{name}"], tensor) for name, tensor in frozen.items())
    assert record["trainable_parameters"] == 8 * 32 + 32 * 32 + 2 * 32 + 32 + 1
    assert record["queries"] == 8
    assert [row["weight_decay"] for row in read_json(tmp_path / "attentive" / "history.json")] == [0.01, 0.1, 1.0]


def test_nothing_is_left_of_the_kept_patches_after_a_kill(data, tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["train_tokens.npy", "tune_tokens.npy"]
        raise KeyboardInterrupt

    monkeypatch.setattr(attentive_probe, "_fit", killed)
    with pytest.raises(KeyboardInterrupt):
        train_attentive_probe("attentive_probe", 1, FinetuneSettings(), data, tmp_path, RunLog("f", quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_drawing_either_class_alike_and_a_budget_of_steps_are_kept_to(data, tmp_path, monkeypatch):
    taken: list[int] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: taken.append(1) or step(self))
    settings = FinetuneSettings(batch_size=32, sampling="balanced", max_steps=5)
    train_attentive_probe("attentive_probe", 1, settings, data, tmp_path, RunLog("finetune", quiet=True))
    assert len(taken) == 3 * 5
