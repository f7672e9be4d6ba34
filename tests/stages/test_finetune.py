"""Fine-tuning: every arm on the same terms, the encoder that was pretrained, and no byte changed by a kill."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from stages.training_run import SETTINGS, Killed, inputs, killer, make_images, publish, run_stage

from pipeline.models import finetuning
from pipeline.models.arms import load_pretrained
from pipeline.models.baseline import auc
from pipeline.models.checkpoints import WeightsError, read_weights, require_equal
from pipeline.models.classifier import Classifier, read_model
from pipeline.models.training import TrainingError
from pipeline.models.vit import EncoderSpec
from pipeline.stages import finetune as stage
from pipeline.store.artifacts import StoreError
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables import INDEX, read_table, write_table

FILES = ("history.json", "model.json", "model.safetensors")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = make_images(tmp_path_factory.mktemp("pretrained"))
    run_stage(folder, "pretrain")
    return folder


@pytest.fixture(scope="module")
def trained(pretrained) -> tuple[Path, dict[str, str]]:
    return pretrained, run_stage(pretrained, "finetune")[0]


@pytest.fixture
def copy(pretrained, tmp_path) -> Path:
    """Images and encoder in a folder of their own."""
    for name in ("preprocess", "pretrain"):
        shutil.copytree(pretrained / name, tmp_path / name)
    return tmp_path


def test_it_leaves_three_files_per_model_and_a_summary(trained):
    models = ["hog/seed1", "linear_probe/seed1", "mae/seed1", "mae/seed2", "scratch/seed1", "scratch/seed2"]
    expected = ["artifact.json", *(f"{model}/{name}" for model in models for name in FILES), "summary.json"]
    assert sorted(trained[1]) == sorted(expected)


def test_summary_counts_patients_images_and_parameters(trained):
    summary = read_json(trained[0] / "finetune" / "summary.json")
    assert (summary["train_patients"], summary["train_images"]) == (40, 60)
    # 14 patients with 21 images; one has no label, and was all that its patient had.
    assert (summary["tune_patients"], summary["tune_images"]) == (13, 20)
    for arm, record in summary["arms"].items():
        for seed, result in record["seeds"].items():
            folder = trained[0] / "finetune" / arm / f"seed{seed}"
            assert result["model_sha256"] == sha256_file(folder / "model.safetensors")
            assert result["tune_auc"] >= 0.9, (arm, seed)
    assert summary["arms"]["linear_probe"]["trainable_parameters"] == 16 + 1
    assert summary["arms"]["mae"]["parameters"] == summary["arms"]["scratch"]["parameters"]


def test_pretrained_arms_say_how_many_tensors_came_from_pretraining(trained):
    arms = read_json(trained[0] / "finetune" / "summary.json")["arms"]
    total = len(load_file(trained[0] / "pretrain" / "encoder.safetensors"))
    loaded = {arm: record["seeds"]["1"]["encoder_tensors_loaded"] for arm, record in arms.items()}
    assert loaded == {"mae": total, "scratch": 0, "linear_probe": total, "hog": 0}


# ---------------------------------------------------------------- the encoder that was pretrained


def test_every_encoder_tensor_is_pretrainings_before_the_first_step(copy, monkeypatch):
    """Looks at the model that the loop is handed, before it takes a step."""
    encoder = read_weights(copy / "pretrain" / "encoder.safetensors")
    seen = []

    def first_epoch(model, optimiser, schedule, epoch, order, batch_loss):
        require_equal(model.encoder, encoder)
        seen.append(epoch)
        raise Killed

    monkeypatch.setattr(finetuning, "train_epoch", first_epoch)
    with pytest.raises(Killed):
        run_stage(copy, "finetune", arms=["mae"])
    with pytest.raises(WeightsError, match="tensors are not those of pretraining"):
        run_stage(copy, "finetune", arms=["scratch"])
    assert seen == [0]


def test_loading_proves_itself(pretrained, monkeypatch, capsys):
    spec = EncoderSpec.from_json(read_json(pretrained / "pretrain" / "model.json"))
    encoder = read_weights(pretrained / "pretrain" / "encoder.safetensors")
    model = Classifier(spec, "norm_linear")
    load_pretrained(model, encoder, "3f9a", RunLog("finetune").info)
    parameters = sum(tensor.numel() for tensor in encoder.values())
    line = f"encoder: {len(encoder)} of {len(encoder)} tensors ({parameters:,} parameters) from pretraining 3f9a"
    assert line in capsys.readouterr().err
    # A loader that forgets a tensor does not get through.
    monkeypatch.setattr(Classifier, "load_state_dict", lambda *_, **__: None)
    monkeypatch.setattr(type(model.encoder), "load_state_dict", lambda *_, **__: None)
    with pytest.raises(WeightsError, match=r"cls_token"):
        load_pretrained(Classifier(spec, "norm_linear"), encoder, "3f9a", RunLog("finetune", quiet=True).info)


def test_the_frozen_encoder_stays_as_it_was(trained):
    probe = load_file(trained[0] / "finetune" / "linear_probe" / "seed1" / "model.safetensors")
    encoder = load_file(trained[0] / "pretrain" / "encoder.safetensors")
    assert all(torch.equal(probe[f"encoder.{name}"], tensor) for name, tensor in encoder.items())
    tuned = load_file(trained[0] / "finetune" / "mae" / "seed1" / "model.safetensors")
    assert not torch.equal(tuned["encoder.cls_token"], encoder["cls_token"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), "norm.weight is missing"),
        (lambda t: t.update(stranger=torch.zeros(2)), "stranger is unexpected"),
        (lambda t: t.update({"cls_token": torch.zeros(1, 1, 17)}), r"cls_token has shape \(1, 1, 17\) instead of"),
    ],
)
def test_an_encoder_that_does_not_fit_stops_the_run_with_the_tensors_name(copy, change, message):
    path = copy / "pretrain" / "encoder.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    publish(copy / "pretrain")
    with pytest.raises(WeightsError, match=message):
        run_stage(copy, "finetune", arms=["mae"])


def test_an_encoder_that_changed_on_disk_is_not_loaded(copy):
    path = copy / "pretrain" / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"encoder\.safetensors has changed"):
        run_stage(copy, "finetune")


# ---------------------------------------------------------------- the same terms


def test_arms_of_a_seed_differ_in_their_start_and_layer_decay_alone(copy, monkeypatch):
    """With the same start and no layer decay, `mae` and `scratch` end in the same weights."""
    build = finetuning.build_classifier

    def pretrained_start(data, head, seed):
        model = build(data, head, seed)
        model.encoder.load_state_dict(data.encoder)
        return model

    monkeypatch.setattr(finetuning, "build_classifier", pretrained_start)
    files, _ = run_stage(copy, "finetune", arms=["mae", "scratch"], layer_decay=1.0, epochs=2)
    for seed in (1, 2):
        assert files[f"mae/seed{seed}/model.safetensors"] == files[f"scratch/seed{seed}/model.safetensors"]
    assert files["mae/seed1/model.safetensors"] != files["mae/seed2/model.safetensors"]


def test_tuning_images_choose_nothing_in_the_networks(copy, trained):
    """Labels of the tuning images are turned round: the networks' weights stay."""
    path = copy / "preprocess" / "index_tune.parquet"
    index = read_table(path, INDEX)
    write_table(path, index.assign(label=1 - index["label"]), INDEX)
    publish(copy / "preprocess")
    files, _ = run_stage(copy, "finetune", arms=["mae"], seeds=[1])
    assert files["mae/seed1/model.safetensors"] == trained[1]["mae/seed1/model.safetensors"]


def test_the_head_starts_at_the_training_images_log_odds(copy, monkeypatch):
    seen = {}

    def first_epoch(model, *_):
        seen["bias"] = model.head.bias.item()
        raise Killed

    monkeypatch.setattr(finetuning, "train_epoch", first_epoch)
    with pytest.raises(Killed):
        run_stage(copy, "finetune", arms=["scratch"])
    # Every second patient is positive and has two images, the others one: 40 of 60.
    assert seen["bias"] == pytest.approx(np.log(2))


CHANGES = [
    {"learning_rate": 1e-3}, {"layer_decay": 0.5}, {"weight_decay": 0.5}, {"drop_path": 0.0}, {"warmup_epochs": 0.0},
    {"crop_min": 0.5}, {"rotate_degrees": 0.0}, {"intensity": 0.3}, {"flip_horizontal": True}, {"batch_size": 20},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_has_an_effect(copy, trained, change):
    files, _ = run_stage(copy, "finetune", arms=["mae"], seeds=[1], **change)
    assert files["mae/seed1/model.safetensors"] != trained[1]["mae/seed1/model.safetensors"]


def test_the_probe_is_the_logistic_regression_that_was_fitted(trained):
    """Folded into the network's head, the regression still ranks tuning images as its record says."""
    folder = trained[0] / "finetune" / "linear_probe" / "seed1"
    model = read_model(folder / "model.json", folder / "model.safetensors", torch.device("cpu"))
    tune = stage._read(SETTINGS["finetune"], inputs(trained[0], "finetune"), RunLog("finetune")).tune
    logits = model(tune.pixels(np.arange(len(tune)), torch.device("cpu")))
    assert auc(tune.labels, logits) == pytest.approx(read_json(folder / "model.json")["tune_auc"])
    tried = read_json(folder / "history.json")
    assert max(entry["tune_auc"] for entry in tried) == read_json(folder / "model.json")["tune_auc"]


# ---------------------------------------------------------------- interruptions and errors


@pytest.mark.parametrize("deaths", [(1,), (6, 3), (13,)])
def test_interrupted_training_leaves_the_same_bytes(copy, trained, deaths):
    """Deaths at an epoch of the first, the second and a later training."""
    for at in deaths:
        with pytest.raises(Killed):
            run_stage(copy, "finetune", sink=killer(at))
    assert run_stage(copy, "finetune")[0] == trained[1]


def test_finished_trainings_are_not_repeated(copy, trained):
    with pytest.raises(Killed):
        run_stage(copy, "finetune", sink=killer(SETTINGS["finetune"].epochs + 1))
    done = (copy / "finetune" / "mae" / "seed1" / "model.json").stat().st_mtime_ns
    epochs = []
    run_stage(copy, "finetune", sink=lambda values, step: epochs.append(next(iter(values))))
    assert (copy / "finetune" / "mae" / "seed1" / "model.json").stat().st_mtime_ns == done
    assert not any(name.startswith("mae.seed1.") for name in epochs)


def test_a_split_with_one_class_is_refused(copy):
    path = copy / "preprocess" / "index_tune.parquet"
    index = read_table(path, INDEX)
    write_table(path, index.assign(label=pd.array([1] * len(index), dtype="Int64")), INDEX)
    publish(copy / "preprocess")
    with pytest.raises(TrainingError, match="split tune has no negative image"):
        run_stage(copy, "finetune")


def test_volumes_train_every_arm_but_hog(tmp_path):
    make_images(tmp_path, shape=(1, 8, 16, 16))
    encoder = SETTINGS["pretrain"].encoder.model_copy(update={"patch_size": [4, 8, 8]})
    run_stage(tmp_path, "pretrain", encoder=encoder, epochs=1)
    run_stage(tmp_path, "finetune", arms=["mae", "scratch", "linear_probe"], seeds=[1], epochs=1)


def test_an_encoder_of_smaller_images_is_fitted_to_larger_ones(copy):
    """Positions are interpolated; every other tensor is pretraining's."""
    record = read_json(copy / "pretrain" / "model.json")
    small = EncoderSpec.from_json({**record, "image_size": [8, 16]})
    torch.manual_seed(0)
    save_file(Classifier(small, "linear").encoder.state_dict(), copy / "pretrain" / "encoder.safetensors")
    write_json(copy / "pretrain" / "model.json", {**record, "image_size": [8, 16]})
    publish(copy / "pretrain")
    run_stage(copy, "finetune", arms=["linear_probe"])
    spec = read_json(copy / "finetune" / "linear_probe" / "seed1" / "model.json")["spec"]
    assert spec["image_size"] == [16, 16]
