"""Pretraining: what it leaves, that it learnt, and that a kill changes no byte."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from stages.training_run import SETTINGS, Killed, inputs, killer, make_images, run_stage

from pipeline.models.checkpoints import WeightsError, require_equal
from pipeline.models.mae import MaskedAutoencoder
from pipeline.models.training import TrainingError
from pipeline.models.vit import EncoderSpec, build_encoder
from pipeline.settings.training import PretrainAugmentation
from pipeline.stages import pretrain as stage
from pipeline.store.artifacts import StoreError
from pipeline.store.files import read_json, sha256_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = make_images(tmp_path_factory.mktemp("pretrain"))
    return folder, run_stage(folder, "pretrain")[0]


def test_it_leaves_its_files_and_nothing_else(trained):
    assert sorted(trained[1]) == [
        "artifact.json", "encoder.safetensors", "history.json", "model.json", "reconstructions.png", "summary.json"
    ]  # fmt: skip


def test_the_encoder_can_be_rebuilt_from_model_json_alone(trained):
    folder = trained[0] / "pretrain"
    record = read_json(folder / "model.json")
    encoder = build_encoder(EncoderSpec.from_json(record))
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)
    assert record["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert record["sha256"] == sha256_file(folder / "encoder.safetensors")


def test_it_learnt_something_on_patients_that_it_did_not_see(trained):
    summary = read_json(trained[0] / "pretrain" / "summary.json")
    history = read_json(trained[0] / "pretrain" / "history.json")
    assert summary["held_out_loss"] < summary["predict_zero_loss"]
    assert summary["held_out_loss"] == history[-1]["held_out_loss"]
    assert [entry["epoch"] for entry in history] == list(range(1, 13))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    # 49 patients in the pool: 40 to train, 9 without labels.
    assert summary["training_patients"] + summary["held_out_patients"] == 49
    assert summary["held_out_patients"] == 2


def test_pixels_are_normalised_by_the_images_learnt_from(trained):
    pool = stage.read_images(
        [trained[0] / "preprocess" / f"index_{s}.parquet" for s in ("train", "pretrain")],
        sorted((trained[0] / "preprocess").glob("*train-*.npy")),
    )
    held_out, training = stage.hold_out(pool, SETTINGS["pretrain"].seed)
    assert not set(held_out.index["patient_id"]) & set(training.index["patient_id"])
    pixels = training.raw(np.arange(len(training))).numpy() / 255
    record = read_json(trained[0] / "pretrain" / "model.json")
    assert record["pixel_mean"] == pytest.approx([pixels.mean()], abs=1e-9)
    assert record["pixel_std"] == pytest.approx([pixels.std()], abs=1e-9)


def test_tuning_calibration_and_test_images_cannot_be_read(trained):
    for split in ("tune", "calibration", "test"):
        with pytest.raises(StoreError, match="not an input"):
            inputs(trained[0], "pretrain").file("preprocess", f"index_{split}.parquet")


def test_picture_shows_original_masked_and_reconstructed_without_metadata(trained):
    with Image.open(trained[0] / "pretrain" / "reconstructions.png") as picture:
        assert picture.info == {}
        pixels = np.asarray(picture)
    # Two held-out patients have three images; each panel is 16 pixels in a margin of 2.
    assert pixels.shape == (3 * 20, 3 * 20)
    original, masked = pixels[2:18, 2:18], pixels[2:18, 22:38]
    same = (original == masked).reshape(4, 4, 4, 4).all(axis=(1, 3))
    assert same.sum() == 4  # a quarter of 16 patches is visible


@pytest.mark.parametrize("deaths", [(1,), (4,), (2, 1, 2)])
def test_interrupted_training_leaves_the_same_bytes(trained, tmp_path, deaths):
    folder = make_images(tmp_path)
    for at in deaths:
        with pytest.raises(Killed):
            run_stage(folder, "pretrain", sink=killer(at))
    assert run_stage(folder, "pretrain")[0] == trained[1]


def test_a_damaged_checkpoint_costs_an_epoch_and_no_byte(trained, tmp_path):
    folder = make_images(tmp_path)
    with pytest.raises(Killed):
        run_stage(folder, "pretrain", sink=killer(5))
    newest = max((folder / "pretrain" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-50])
    files, log = run_stage(folder, "pretrain")
    assert files == trained[1]
    assert "after epoch 4 is damaged" in log.warnings[0]


CROSS = {"decoder": "cross_attention", "mask": "block", "decoded_share": 0.5, "epochs": 4}


def test_cross_attention_with_block_masks_goes_on_after_a_kill_with_the_same_bytes(tmp_path):
    encoder = SETTINGS["pretrain"].encoder.model_copy(update={"positions": "learned"})
    whole, torn = make_images(tmp_path / "whole"), make_images(tmp_path / "torn")
    with pytest.raises(Killed):
        run_stage(torn, "pretrain", sink=killer(3), encoder=encoder, **CROSS)
    files, log = run_stage(torn, "pretrain", encoder=encoder, **CROSS)
    assert files == run_stage(whole, "pretrain", encoder=encoder, **CROSS)[0]
    assert not log.warnings


@pytest.mark.parametrize("change", [{"decoder": "cross_attention"}, {"mask": "block"}, {"mask": "grid"}])
def test_every_decoder_and_mask_learns(tmp_path, change):
    log = run_stage(make_images(tmp_path), "pretrain", **change)[1]
    summary = read_json(tmp_path / "pretrain" / "summary.json")
    assert summary["held_out_loss"] < summary["predict_zero_loss"]
    assert not log.warnings


@pytest.mark.slow
def test_kill_9_in_the_middle_of_training_leaves_the_same_bytes(trained, tmp_path):
    folder = make_images(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; from stages.training_run import run_stage\n"
        "def sink(values, step):\n"
        "    if step == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run_stage(Path(sys.argv[1]), 'pretrain', sink=sink)\n"
    )
    tests = Path(__file__).parents[1]
    paths = {"PYTHONPATH": f"{tests}:{tests.parent}", "PATH": ""}
    process = subprocess.run([sys.executable, "-c", code, str(folder)], env=paths, check=False)
    assert process.returncode == -signal.SIGKILL
    assert list((folder / "pretrain").iterdir())
    assert run_stage(folder, "pretrain")[0] == trained[1]


def test_volumes_of_two_channels(tmp_path):
    folder = make_images(tmp_path, shape=(2, 8, 16, 16))
    encoder = SETTINGS["pretrain"].encoder.model_copy(update={"patch_size": [4, 4, 8]})
    run_stage(folder, "pretrain", encoder=encoder, epochs=1)
    record = read_json(folder / "pretrain" / "model.json")
    assert (record["channels"], record["image_size"]) == (2, [8, 16, 16])


def test_predictions_that_ignore_position_stop_the_run_before_its_first_step(tmp_path, monkeypatch):
    """The fault of a published from-scratch implementation: position tables of zeros."""
    build = MaskedAutoencoder.__init__

    def without_positions(self, *arguments):
        build(self, *arguments)
        self.decoder_positions.zero_()

    monkeypatch.setattr(MaskedAutoencoder, "__init__", without_positions)
    steps: list[int] = []
    with pytest.raises(TrainingError, match=r"nothing was trained.*do not depend on their position"):
        run_stage(make_images(tmp_path), "pretrain", sink=lambda values, step: steps.append(step))
    assert steps == []


def test_an_encoder_that_learnt_nothing_goes_no_further(tmp_path):
    slow = {"min_learning_rate": 1e-9, "base_learning_rate": 1e-9}
    with pytest.raises(TrainingError, match=r"learnt nothing: held-out loss .*set pretrain\.max_steps"):
        run_stage(make_images(tmp_path / "whole"), "pretrain", epochs=1, **slow)
    assert not (tmp_path / "whole" / "pretrain" / "encoder.safetensors").exists()
    log = run_stage(make_images(tmp_path / "cut"), "pretrain", max_steps=3, **slow)[1]
    assert "pretraining learnt nothing" in log.warnings[0]


def test_an_image_that_is_no_multiple_of_the_patch_is_refused(tmp_path):
    encoder = SETTINGS["pretrain"].encoder.model_copy(update={"patch_size": [5, 4]})
    with pytest.raises(ValueError, match=r"\(16, 16\) is not a multiple of patch size \(5, 4\)"):
        run_stage(make_images(tmp_path), "pretrain", encoder=encoder)


def test_decoding_a_share_of_the_hidden_patches_is_another_training_with_the_same_check(tmp_path, trained):
    files = run_stage(make_images(tmp_path), "pretrain", decoded_share=0.5)[0]
    assert files["encoder.safetensors"] != trained[1]["encoder.safetensors"]
    ours, theirs = (read_json(f / "pretrain" / "summary.json") for f in (tmp_path, trained[0]))
    assert ours["predict_zero_loss"] == pytest.approx(theirs["predict_zero_loss"])


CHANGES: list[dict[str, Any]] = [
    {"seed": 18}, {"mask_ratio": 0.5}, {"normalise_targets": False},
    *({"augmentation": PretrainAugmentation(**change)} for change in ({"crop_min": 1.0}, {"flips": ["horizontal"]})),
    {"weight_decay": 1.0}, {"warmup_epochs": 0.0}, {"decoder": "cross_attention"}, {"mask": "block"}, {"mask": "grid"},
    {"encoder": SETTINGS["pretrain"].encoder.model_copy(update={"positions": "learned"})},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_setting_has_an_effect(tmp_path, trained, change):
    files = run_stage(make_images(tmp_path), "pretrain", **change)[0]
    assert files["encoder.safetensors"] != trained[1]["encoder.safetensors"]


def test_checkpoints_less_often_change_nothing_in_the_result(tmp_path, trained):
    assert run_stage(make_images(tmp_path), "pretrain", checkpoint_every_epochs=4)[0] == trained[1]


# ---------------------------------------------------------------- from an earlier encoder


def test_the_first_step_is_taken_from_the_earlier_encoder_and_none_of_it_is_lost(trained, tmp_path, monkeypatch):
    earlier = trained[0] / "pretrain" / "encoder.safetensors"
    folder = make_images(tmp_path / "second", seed=1)
    (folder / "weights.safetensors").write_bytes(earlier.read_bytes())
    seen = []

    def first_epoch(training, *_):
        require_equal(training.model.encoder, load_file(earlier))
        seen.append(len(training.history))
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(stage, "train_epoch", first_epoch)
        with pytest.raises(Killed):
            run_stage(folder, "pretrain", start="imported")
        with pytest.raises(WeightsError, match="tensors are not those of pretraining"):
            run_stage(folder, "pretrain")
    assert seen == [0]
    run_stage(folder, "pretrain", start="imported", max_steps=4)
    assert not torch.equal(load_file(folder / "pretrain" / "encoder.safetensors")["cls_token"],
                           load_file(earlier)["cls_token"])  # fmt: skip


def test_an_encoder_that_does_not_fit_or_has_registers_is_refused_by_name(trained, tmp_path):
    folder = make_images(tmp_path / "second", seed=1)
    with pytest.raises(TrainingError, match=r"needs data\.imported_weights"):
        run_stage(folder, "pretrain", start="imported")
    tensors = load_file(trained[0] / "pretrain" / "encoder.safetensors")
    save_file({**tensors, "register_tokens": torch.zeros(1, 2, 16)}, folder / "weights.safetensors")
    with pytest.raises(WeightsError, match="has register tokens, which pretraining does not start from"):
        run_stage(folder, "pretrain", start="imported")
    del tensors["norm.weight"]
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"norm\.weight is missing"):
        run_stage(folder, "pretrain", start="imported")


def test_a_start_from_random_weights_is_in_no_key(trained):
    assert "start" not in SETTINGS["pretrain"].model_dump()
    assert SETTINGS["pretrain"].model_copy(update={"start": "imported"}).model_dump()["start"] == "imported"
