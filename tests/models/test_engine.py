"""Steps: the same whatever the memory, the parts of a batch and the interruptions; faults that stop and say why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.models import engine
from pipeline.models.decoders import DecoderSpec
from pipeline.models.engine import Stopped, Training, begin, epochs_left, record, save, train_epoch
from pipeline.models.images import Images
from pipeline.models.mae import MaskedAutoencoder
from pipeline.models.masking import make_mask
from pipeline.models.training import Hardware, Schedule, TrainingError, adamw, batches, parameter_groups
from pipeline.models.vit import EncoderSpec
from pipeline.store.runlog import RunLog

COUNT, BATCH, EPOCHS = 22, 6, 3
CPU = Hardware(torch.device("cpu"))
SPEC = EncoderSpec((16, 16), (4, 4), 1, 16, 3, 2, (0.5,), (0.25,))
IMAGES = Images(
    pd.DataFrame(
        {"image_id": [f"image-{i:02d}" for i in range(COUNT)], "shard": "a", "row": range(COUNT), "label": [0, 1] * 11}
    ),
    {"a": np.random.default_rng(0).integers(0, 256, (COUNT, 1, 16, 16), dtype=np.uint8)},
)
Hook = Callable[[np.ndarray], None]


def autoencoder() -> MaskedAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskedAutoencoder(SPEC, DecoderSpec(16, 2, 2), normalise_targets=True)


def loss_of(model: MaskedAutoencoder, rows: np.ndarray) -> Tensor:
    noise = torch.from_numpy(np.random.default_rng(7).random((COUNT, 16))[rows])
    return model(IMAGES.pixels(rows, CPU.device), make_mask("random", noise, SPEC.grid, 0.75))


def train(
    folder: Path,
    hardware: Hardware = CPU,
    before: Hook = lambda rows: None,
    max_steps: int | None = None,
    factor: float = 1.0,
) -> tuple[dict[str, Tensor], list[float], RunLog]:
    """Train, going on from `folder`; `before` is called with the rows of each pass. Returns weights, losses and log."""
    model, log = autoencoder(), RunLog("test", quiet=True)
    optimiser = adamw(parameter_groups(model, 0.05), (0.9, 0.95))
    losses: list[float] = []
    schedule = Schedule(1e-2, 1.0, EPOCHS).within(max_steps, 4)
    with begin(model, optimiser, schedule, hardware, IMAGES, folder, log, "training") as training:
        for epoch in epochs_left(training, "epoch"):

            def batch_loss(rows: np.ndarray) -> Tensor:
                before(rows)
                return loss_of(model, rows) * factor

            done = train_epoch(training, batches(COUNT, BATCH, 1, epoch), batch_loss)
            losses += done.losses
            record(training, {"loss": done.loss, "rate": done.learning_rate})
            save(training)
    return model.state_dict(), losses, log


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    """Keys' biases left out: the loss does not depend on them, so that Adam moves them by the sign of rounding."""
    names = [name for name in one if not name.endswith(("qkv.bias", "key_value.bias"))]
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in names)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, Tensor], list[float], RunLog]:
    return train(tmp_path_factory.mktemp("whole"))


# ---------------------------------------------------------------- the same result


def test_parts_of_a_batch_add_up_to_its_gradient(whole, tmp_path):
    sizes = set[int]()
    weights, losses, _ = train(tmp_path, replace(CPU, images_per_pass=4), lambda rows: sizes.add(len(rows)))
    assert sizes == {2, 3}  # batches of 5 and 6 images, in two parts each
    assert losses == pytest.approx(whole[1], abs=1e-6)
    assert close(weights, whole[0], 1e-4)


def test_recomputing_blocks_changes_no_bit(whole, tmp_path, monkeypatch):
    recomputed = []
    from pipeline.models import vit

    real = vit.checkpoint
    monkeypatch.setattr(vit, "checkpoint", lambda *a, **k: recomputed.append(a) or real(*a, **k))
    weights, losses, _ = train(tmp_path, replace(CPU, gradient_checkpointing=True))
    assert len(recomputed) == EPOCHS * 4 * (3 + 2)  # blocks of encoder and decoder
    assert losses == whole[1]
    assert same(weights, whole[0])


def killer(at: int) -> Hook:
    left = [at]

    def before(rows: np.ndarray) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    return before


@pytest.mark.parametrize("deaths", [(1,), (4,), (5, 1, 2), tuple(np.random.default_rng(3).integers(1, 4, 5))])
def test_stopped_at_any_step_and_gone_on_leaves_the_same_bits(whole, tmp_path, deaths):
    for at in deaths:
        with pytest.raises(Stopped, match="SIGTERM; saved after"):
            train(tmp_path, before=killer(at))
    weights, _, log = train(tmp_path)
    assert same(weights, whole[0])
    assert not log.warnings


def test_at_the_time_limit_it_saves_and_leaves(whole, tmp_path):
    for _ in range(3):
        with pytest.raises(Stopped, match="max_minutes"):
            train(tmp_path, replace(CPU, deadline=0.0))
    assert same(train(tmp_path)[0], whole[0])


def test_signals_act_as_before_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        train(tmp_path, before=killer(2))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_budget_of_steps_ends_inside_an_epoch(tmp_path):
    assert len(train(tmp_path, max_steps=6)[1]) == 6


def test_half_precision_scales_the_loss_and_goes_on_with_the_same_bits(whole, tmp_path):
    """A loss so large that its scaled gradient overflows: steps are left out until the scale has come down."""
    half = replace(CPU, precision=torch.float16)
    weights, losses, _ = train(tmp_path / "whole", half, factor=1e33)
    assert not same(weights, whole[0])
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert losses[0] == losses[1] or losses[0] == pytest.approx(losses[1], rel=0.5)
    for at in (3, 4):
        with pytest.raises(Stopped):
            train(tmp_path / "torn", half, killer(at), factor=1e33)
    assert same(train(tmp_path / "torn", half, factor=1e33)[0], weights)


def test_further_state_is_saved_and_given_back(tmp_path):
    model = autoencoder()
    optimiser = adamw(parameter_groups(model, 0.05), (0.9, 0.95))
    arguments = (model, optimiser, Schedule(1e-2, 1.0, 1), CPU, IMAGES, tmp_path, RunLog("test", quiet=True), "it")
    with begin(*arguments, extra=lambda: {"average": torch.ones(2)}) as training:
        save(training)
    with begin(*arguments, extra=lambda: {"average": torch.zeros(2)}) as training:
        assert torch.equal(training.restored["average"], torch.ones(2))


# ---------------------------------------------------------------- memory


def no_more_than(most: int) -> Hook:
    def before(rows: np.ndarray) -> None:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    return before


def test_too_little_memory_is_told_with_the_setting_to_change(tmp_path):
    with pytest.raises(TrainingError, match=r"memory for 6 images at once; set machine.images_per_pass to 3 or less"):
        train(tmp_path, before=no_more_than(4))


def test_too_little_memory_halves_the_pass_and_takes_the_same_step(whole, tmp_path):
    weights, losses, log = train(tmp_path, replace(CPU, halve_when_out_of_memory=True), no_more_than(2))
    assert losses == pytest.approx(whole[1], abs=1e-6)
    assert close(weights, whole[0], 1e-4)
    assert [warning.split(":")[1] for warning in log.warnings] == [
        " machine.images_per_pass is 3 from here on", " machine.images_per_pass is 1 from here on"
    ]  # fmt: skip


def test_memory_too_small_for_one_image_is_an_error_also_when_halving(tmp_path):
    with pytest.raises(TrainingError, match="memory for 1 images at once; use a smaller network"):
        train(tmp_path, replace(CPU, halve_when_out_of_memory=True), no_more_than(0))


# ---------------------------------------------------------------- faults


def linear(folder: Path, losses: list[float]) -> Training:
    """Train a single weight whose loss is given for each step and whose gradient is 1000."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimiser = torch.optim.SGD([{"params": [model.weight], "scale": 0.5}], lr=0)
    given = iter(losses)
    order = [np.arange(1), np.arange(3)]

    def batch_loss(rows: np.ndarray) -> Tensor:
        weight = (1000 * model.weight).sum()
        return weight - weight.detach() + next(given)

    log = RunLog("test", quiet=True)
    with begin(model, optimiser, Schedule(0.1, 0, 10**9), CPU, IMAGES, folder, log, "it") as training:
        while True:
            try:
                done = train_epoch(training, order, batch_loss)
            except StopIteration:
                return training
            record(training, {"loss": done.loss, "rate": done.learning_rate, **done.measured})
            training.restored["weight"] = model.weight.item()


def test_gradients_are_clipped_and_the_mean_loss_is_per_image(tmp_path):
    training = linear(tmp_path, [4.0, 8.0])
    entry = training.history[0]
    assert entry["loss"] == (4 + 3 * 8) / 4
    assert entry["rate"] == pytest.approx(0.1)
    assert entry["gradient_norm"] == pytest.approx(1000)
    # Two steps of rate 0.1 and scale 0.5 along a gradient of 1000 clipped to 1.
    assert training.restored["weight"] == pytest.approx(-2 * 0.05, rel=1e-4)


def test_speed_and_memory_are_measured(tmp_path):
    entry = linear(tmp_path, [1.0, 1.0]).history[0]
    assert entry["images_per_second"] > 0
    assert entry["peak_memory_mb"] > 50
    assert 0 <= entry["data_wait_share"] < 1


@pytest.mark.parametrize("every", [1, 50])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_images(tmp_path, monkeypatch, every):
    """Also where losses are read from the device only now and then, as on a GPU."""
    monkeypatch.setitem(engine.STEPS_BETWEEN_READS, "cpu", every)
    message = r"nan at step 3 \(epoch 2, batch 2 of 2: images image-00, image-01, image-02\)"
    with pytest.raises(TrainingError, match=message):
        linear(tmp_path, [1.0, 1.0, 1.0, float("nan"), 1.0])
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    optimiser = adamw(parameter_groups(model, 0.0), (0.9, 0.95))
    log = RunLog("test", quiet=True)
    nn.init.zeros_(model.weight)
    with (
        pytest.raises(TrainingError, match=r"the gradient's norm is nan at step 0 \(epoch 1, batch 1 of 1: images"),
        begin(model, optimiser, Schedule(1e-2, 1.0, 1), CPU, IMAGES, tmp_path, log, "it") as training,
    ):
        train_epoch(training, [np.arange(3)], lambda rows: model.weight.abs().sqrt().sum() + model.weight.sum().sqrt())


@pytest.mark.parametrize(("slow_down", "warned"), [(1.0, True), (0.0, False)])
def test_compilation_that_costs_more_than_it_saves_is_told(whole, tmp_path, monkeypatch, slow_down, warned):
    """The compiler is stood in for: it takes the time given, or makes a step faster at no cost."""
    calls = []

    def compiled(self, dynamic):
        real = type(self).forward
        calls.append(dynamic)

        def forward(*inputs):
            time.sleep(slow_down if len(calls) == 1 else 0.0)
            calls.append(None)
            return real(self, *inputs)

        self.forward = forward

    monkeypatch.setattr(nn.Module, "compile", compiled)
    ours = replace(CPU, compile=True)
    weights, losses, log = train(tmp_path, ours, lambda rows: None if calls else time.sleep(0.05 * (1 - slow_down)))
    assert same(weights, whole[0])  # trials take no step
    assert losses == whole[1]
    assert bool(log.warnings) == warned
