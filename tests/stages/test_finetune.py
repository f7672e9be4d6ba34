"""Fine-tuning: every arm on the same terms, the encoder that was pretrained, and no byte changed by a kill."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from models.timm_layout import timm_weights
from safetensors.torch import load_file, save_file
from stages.training_run import SETTINGS, Killed, inputs, killer, make_images, publish, run_stage

from pipeline.models import engine, finetuning
from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import Start, load_pretrained
from pipeline.models.baseline import auc
from pipeline.models.checkpoints import WeightsError, read_weights, require_equal, save_weights
from pipeline.models.classifier import Classifier
from pipeline.models.formats import import_encoder
from pipeline.models.reading import read_model
from pipeline.models.training import TrainingError
from pipeline.models.vit import EncoderSpec, build_encoder
from pipeline.reporting.evidence import EARLIER_NAMES
from pipeline.settings.common import Arm
from pipeline.settings.training import FinetuneAugmentation
from pipeline.stages import finetune as stage
from pipeline.store.artifacts import StoreError
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.lineage import SourceHashes
from pipeline.store.runlog import RunLog
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import SCORES

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

    def first_epoch(training, order, batch_loss):
        require_equal(training.model.encoder, encoder)
        seen.append(len(training.history))
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
    start = Start(encoder, "pretraining 3f9a", len(encoder))
    load_pretrained(model, start, RunLog("finetune").info)
    parameters = sum(tensor.numel() for tensor in encoder.values())
    line = f"encoder: {len(encoder)} of {len(encoder)} tensors ({parameters:,} parameters) from pretraining 3f9a"
    assert line in capsys.readouterr().err
    # A loader that forgets a tensor does not get through.
    monkeypatch.setattr(Classifier, "load_state_dict", lambda *_, **__: None)
    monkeypatch.setattr(type(model.encoder), "load_state_dict", lambda *_, **__: None)
    with pytest.raises(WeightsError, match=r"cls_token"):
        load_pretrained(Classifier(spec, "norm_linear"), start, RunLog("finetune", quiet=True).info)


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

    def pretrained_start(data, head, seed, *others):
        model = build(data, head, seed, *others)
        model.encoder.load_state_dict(data.starts["mae"].tensors)
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

    def first_epoch(training, *_):
        seen["bias"] = training.model.head.bias.item()
        raise Killed

    monkeypatch.setattr(finetuning, "train_epoch", first_epoch)
    with pytest.raises(Killed):
        run_stage(copy, "finetune", arms=["scratch"])
    # Every second patient is positive and has two images, the others one: 40 of 60.
    assert seen["bias"] == pytest.approx(np.log(2))


# ---------------------------------------------------------------- which weights are kept


@pytest.mark.parametrize(
    ("aucs", "patience", "best", "trained"),
    [
        ([0.6, 0.8, 0.8, 0.7, 0.8, 0.9, 0.9], 3, 2, 5),  # a tie is no improvement, and the earlier epoch is kept
        ([0.6, 0.5, 0.7, 0.6, 0.8, 0.7, 0.6], 3, 5, 7),  # patience starts anew at each improvement
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], 1, 1, 2),
    ],
)
def test_early_stopping_keeps_the_best_epochs_weights(copy, monkeypatch, aucs, patience, best, trained):
    after = {}

    def saved(folder, epochs_done, state, steps_done):
        after[epochs_done] = {name: tensor.clone() for name, tensor in state["model"].items()}

    monkeypatch.setattr(engine, "save_checkpoint", saved)
    left = iter(aucs)
    monkeypatch.setattr(finetuning, "auc", lambda *_: next(left))
    choices = {"arms": ["mae"], "seeds": [1], "epochs": len(aucs), "early_stopping_epochs": patience}
    run_stage(copy, "finetune", **choices)
    folder = copy / "finetune" / "mae" / "seed1"
    record, kept = read_json(folder / "model.json"), load_file(folder / "model.safetensors")
    assert (record["best_epoch"], record["epochs_trained"], record["tune_auc"]) == (best, trained, aucs[best - 1])
    assert len(read_json(folder / "history.json")) == trained
    assert all(torch.equal(kept[name], tensor) for name, tensor in after[best].items())
    assert not torch.equal(kept["head.weight"], after[trained]["head.weight"])
    rule = read_json(copy / "finetune" / "summary.json")["arms"]["mae"]["selection"]
    assert "epoch with the highest AUC on the tuning images, the earlier of equals" in rule


def test_the_averaged_weights_are_those_that_are_kept_and_judged(copy, monkeypatch):
    steps, judged = [], []
    build, adamw, logits = finetuning.build_classifier, finetuning.adamw, finetuning._logits

    def watched(groups, betas):
        optimiser = adamw(groups, betas)
        optimiser.register_step_post_hook(lambda *_: steps.append(built[0].head.weight.detach().double().clone()))
        return optimiser

    def judge(model, *rest):
        judged.append(model.head.weight.detach().clone())
        return logits(model, *rest)

    built = []
    monkeypatch.setattr(finetuning, "build_classifier", lambda *given: built.append(build(*given)) or built[-1])
    monkeypatch.setattr(finetuning, "adamw", watched)
    monkeypatch.setattr(finetuning, "_logits", judge)
    run_stage(copy, "finetune", arms=["mae"], seeds=[1], ema_decay=0.8)
    shares = 0.8 ** torch.arange(len(steps) - 1, -1, -1, dtype=torch.float64)
    mean = (torch.stack(steps) * (shares / shares.sum()).view(-1, 1, 1)).sum(dim=0)
    kept = load_file(copy / "finetune" / "mae" / "seed1" / "model.safetensors")["head.weight"]
    assert torch.allclose(kept.double(), mean, atol=1e-6)
    assert torch.equal(kept, judged[-1])
    assert not torch.allclose(kept.double(), steps[-1], atol=1e-5)
    rule = read_json(copy / "finetune" / "summary.json")["arms"]["mae"]["selection"]
    assert rule.endswith("averaged over the steps (exponential moving average, decay 0.8)")


@pytest.mark.parametrize("blocks", [0, 1])
def test_frozen_tensors_keep_the_bytes_of_pretraining(copy, blocks):
    choices = {"arms": ["mae", "scratch"], "seeds": [1], "epochs": 2, "ema_decay": 0.9}
    run_stage(copy, "finetune", trainable_blocks=blocks, **choices)
    encoder = load_file(copy / "pretrain" / "encoder.safetensors")
    tuned = load_file(copy / "finetune" / "mae" / "seed1" / "model.safetensors")
    changed = {name for name, tensor in encoder.items() if not torch.equal(tuned[f"encoder.{name}"], tensor)}
    assert all(name.startswith(("blocks.1.", "norm.")) for name in changed)
    assert {"norm.weight", "blocks.1.mlp.linear1.weight"} <= changed if blocks else not changed
    arms = read_json(copy / "finetune" / "summary.json")["arms"]
    assert arms["mae"]["trainable_parameters"] < arms["scratch"]["trainable_parameters"]
    assert ("the head alone trained" if blocks == 0 else "the last block and the head trained") in (
        arms["mae"]["description"]
    )


# ---------------------------------------------------------------- public weights


@pytest.fixture
def public(copy) -> dict[str, torch.Tensor]:
    """Random weights of the same network in timm's layout, for three channels and a larger grid; what they become."""
    record = {**read_json(copy / "pretrain" / "model.json"), "image_size": [24, 24], "channels": 3}
    spec = EncoderSpec.from_json({**record, "pixel_mean": [0.5] * 3, "pixel_std": [0.2] * 3})
    save_weights(copy / "weights.safetensors", timm_weights(spec, seed=8))
    ours = EncoderSpec.from_json(read_json(copy / "pretrain" / "model.json"))
    return import_encoder(read_weights(copy / "weights.safetensors"), ours).tensors


def test_arm_imported_starts_from_exactly_the_public_weights(copy, public, monkeypatch):
    theirs = read_weights(copy / "weights.safetensors")
    seen = []

    def first_epoch(training, *_):
        require_equal(training.model.encoder, public)
        state = training.model.encoder.state_dict()
        assert torch.equal(state["blocks.1.attn.qkv.weight"], theirs["blocks.1.attn.qkv.weight"])
        summed = theirs["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
        assert torch.equal(state["patch_embedding.patch_embeddings.weight"], summed)
        seen.append(training)
        raise Killed

    monkeypatch.setattr(finetuning, "train_epoch", first_epoch)
    with pytest.raises(Killed):
        run_stage(copy, "finetune", arms=["imported"])
    assert len(seen) == 1


def test_arm_imported_is_trained_scored_and_accounted_for(copy, public, capsys):
    log = RunLog("finetune")
    settings = SETTINGS["finetune"].model_copy(update={"arms": ["imported", "mae"], "seeds": [1, 2], "epochs": 2})
    stage.finetune(settings, inputs(copy, "finetune"), copy / "finetune", log)
    publish(copy / "finetune")
    said = capsys.readouterr().err
    assert "3 channels summed to one: grey is all of them alike" in said
    assert "resampled from 6 by 6 to 4 by 4 patches" in said
    assert sha256_file(copy / "weights.safetensors")[:16] in said
    arms = read_json(copy / "finetune" / "summary.json")["arms"]
    made = sum("norm_cross_attn" in name or "classification_head" in name for name in public)
    result = arms["imported"]["seeds"]["1"]
    assert (result["encoder_tensors_loaded"], result["encoder_tensors"]) == (len(public) - made, len(public))
    assert arms["imported"]["description"].endswith("public weights that were trained elsewhere, all layers trained")
    assert "mean logit of 2 networks" in arms["imported"]["score"]
    run_stage(copy, "score")
    scores = read_table(copy / "score" / "scores_test.parquet", SCORES)
    assert {(arm, int(seed)) for arm, seed in scores.groupby(["arm", "seed"]).groups} == {
        (arm, seed) for arm in ("imported", "mae") for seed in (1, 2)
    }


def test_public_weights_of_another_network_are_refused_by_name(copy, public):
    theirs = read_weights(copy / "weights.safetensors")
    del theirs["blocks.1.norm1.bias"]
    save_weights(copy / "weights.safetensors", theirs)
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm1\.bias is missing"):
        run_stage(copy, "finetune", arms=["imported"])
    (copy / "weights.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"arm imported needs data\.imported_weights"):
        run_stage(copy, "finetune", arms=["imported"])


def test_public_weights_that_changed_after_the_plan_are_refused(copy, public):
    path = copy / "weights.safetensors"
    hashes = SourceHashes(b"key", copy / "hashes.sqlite")
    hashes.of(path)
    hashes.remember()
    save_weights(path, {**read_weights(path), "head.bias": torch.zeros(2)})
    settings = SETTINGS["finetune"].model_copy(update={"arms": ["imported"]})
    with pytest.raises(TrainingError, match="was changed while the run was going on"):
        stage.finetune(settings, replace(inputs(copy, "finetune"), hashes=hashes), copy / "finetune", RunLog("x"))


def test_every_arm_is_described_named_and_documented():
    arms = set(get_args(Arm))
    (column,) = [column for column in SCORES.columns if column.name == "arm"]
    assert arms == set(ARMS) == set(re.split(", | or ", column.meaning))
    assert {name: ARMS[name].title for name in EARLIER_NAMES} == EARLIER_NAMES
    assert all(arm.description for arm in ARMS.values())


CHANGES = [
    {"learning_rate": 1e-3}, {"layer_decay": 0.5}, {"weight_decay": 0.5}, {"drop_path": 0.0}, {"warmup_epochs": 0.0},
    {"batch_size": 20},
    *({"augmentation": FinetuneAugmentation(**change)} for change in (
        {"crop_min": 0.5}, {"rotate_degrees": 0.0}, {"contrast": 0.3}, {"flips": ["horizontal"]}, {"noise": 0.1},
    )),
    {"loss": "weighted"}, {"loss": "focal"}, {"loss": "focal", "focal_gamma": 1.0}, {"label_smoothing": 0.1},
    {"sampling": "balanced"}, {"mixup": 0.2}, {"ema_decay": 0.9}, {"trainable_blocks": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_has_an_effect(copy, trained, change):
    files, _ = run_stage(copy, "finetune", arms=["mae"], seeds=[1], **change)
    assert files["mae/seed1/model.safetensors"] != trained[1]["mae/seed1/model.safetensors"]


def test_the_probe_is_the_logistic_regression_that_was_fitted(trained):
    """Folded into the network's head, the regression still ranks tuning images as its record says."""
    folder = trained[0] / "finetune" / "linear_probe" / "seed1"
    model = read_model(folder / "model.json", folder / "model.safetensors", torch.device("cpu")).logits
    tune = stage._read(SETTINGS["finetune"], inputs(trained[0], "finetune"), RunLog("finetune")).tune
    logits = model(tune.pixels(np.arange(len(tune)), torch.device("cpu")))
    assert auc(tune.labels, logits) == pytest.approx(read_json(folder / "model.json")["tune_auc"])
    tried = read_json(folder / "history.json")
    assert max(entry["tune_auc"] for entry in tried) == read_json(folder / "model.json")["tune_auc"]


# ---------------------------------------------------------------- interruptions and errors


# Every random draw and everything that is kept beside the weights; the tuning AUC is 1 at once, so that it stops early.
RICH = {"arms": ["mae"], "seeds": [1], "epochs": 10, "early_stopping_epochs": 2, "ema_decay": 0.9, "mixup": 0.4,
        "sampling": "balanced", "label_smoothing": 0.1, "trainable_blocks": 1}  # fmt: skip


@pytest.fixture(scope="module")
def rich(pretrained, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rich")
    for name in ("preprocess", "pretrain"):
        shutil.copytree(pretrained / name, folder / name)
    return run_stage(folder, "finetune", **RICH)[0]


@pytest.mark.parametrize("at", [2, 5, "end"])
def test_interrupted_averaging_and_early_stopping_leave_the_same_bytes(copy, rich, monkeypatch, at):
    """Deaths before the checkpoint of an epoch, and after the last one, when nothing is left but to write the model."""
    with monkeypatch.context() as patched:
        if at == "end":
            patched.setattr(finetuning, "finish", lambda *_: killer(1)({}, 0))
        with pytest.raises(Killed):
            run_stage(copy, "finetune", sink=None if at == "end" else killer(at), **RICH)
    assert run_stage(copy, "finetune", **RICH)[0] == rich
    record = read_json(copy / "finetune" / "mae" / "seed1" / "model.json")
    assert record["epochs_trained"] == record["best_epoch"] + 2 < 10, record


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
    run_stage(tmp_path, "pretrain", encoder=encoder, max_steps=4)
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


# ---------------------------------------------------------------- what the head is given


def test_the_default_of_pooling_is_in_no_key_and_in_no_file(trained):
    assert "pooling" not in SETTINGS["finetune"].model_dump()
    assert SETTINGS["finetune"].model_copy(update={"pooling": "attention"}).model_dump()["pooling"] == "attention"
    record = read_json(trained[0] / "finetune" / "mae" / "seed1" / "model.json")
    assert not {"pooling", "queries"} & set(record)
    assert "registers" not in record["spec"]


@pytest.mark.parametrize(("pooling", "said"), [("attention", {"queries": 8}), ("class_token", {})])
def test_the_head_is_given_what_pooling_says_and_the_encoder_is_still_pretrainings(copy, pooling, said):
    run_stage(copy, "finetune", arms=["mae", "scratch"], seeds=[1], epochs=2, pooling=pooling)
    for arm in ("mae", "scratch"):
        folder = copy / "finetune" / arm / "seed1"
        record = read_json(folder / "model.json")
        assert record.items() >= {"pooling": pooling, **said}.items()
        model = read_model(folder / "model.json", folder / "model.safetensors", torch.device("cpu"))
        tune = stage._read(SETTINGS["finetune"], inputs(copy, "finetune"), RunLog("finetune")).tune
        logits = model.logits(tune.pixels(np.arange(len(tune)), torch.device("cpu")))[:, 0]
        assert auc(tune.labels, logits) == pytest.approx(record["tune_auc"], abs=0.02)
    assert read_json(copy / "finetune" / "mae" / "seed1" / "model.json")["encoder_tensors_loaded"] > 0


def test_weights_with_registers_are_fine_tuned_with_them(copy):
    """In the layout of DINOv2: as many register tokens as the file has stand in the trained network."""
    spec = EncoderSpec.from_json(read_json(copy / "pretrain" / "model.json"))
    encoder = replace(spec, registers=2)
    torch.manual_seed(0)
    weights = {name: tensor.clone() for name, tensor in build_encoder(encoder).state_dict().items()}
    converted = import_encoder(weights, spec)
    assert converted.registers == 2
    start = Start(converted.tensors, "a test", len(weights), converted.registers)
    data = stage._read(SETTINGS["finetune"].model_copy(update={"arms": ["mae"]}), inputs(copy, "finetune"),
                       RunLog("finetune", quiet=True))  # fmt: skip
    settings = SETTINGS["finetune"].model_copy(update={"epochs": 1, "warmup_epochs": 0.5})
    folder = copy / "trained"
    ARMS["imported"].train("imported", 1, settings, replace(data, starts={"imported": start}), folder,
                           RunLog("finetune", quiet=True))  # fmt: skip
    tensors = load_file(folder / "model.safetensors")
    assert tensors["encoder.register_tokens"].shape == (1, 2, spec.width)
    assert not torch.equal(tensors["encoder.register_tokens"], weights["register_tokens"])
    assert read_json(folder / "model.json")["spec"]["registers"] == 2
