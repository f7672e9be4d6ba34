"""Weights load whole or not at all; a damaged checkpoint is passed over for the one before it."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.checkpoints import (
    POSITIONS,
    WeightsError,
    fit_positions,
    load_checkpoint,
    load_strict,
    read_weights,
    require_equal,
    save_checkpoint,
    save_weights,
)
from pipeline.models.vit import EncoderSpec, build_encoder, position_table
from pipeline.store.files import sha256_file

SPEC = EncoderSpec((16, 16), (4, 4), 1, 16, 2, 2, (0.5,), (0.25,))
CPU = torch.device("cpu")


def encoder(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_encoder(SPEC)


def test_weights_survive_the_file_bit_for_bit_and_the_file_is_reproducible(tmp_path):
    source, other = encoder(1), encoder(2)
    save_weights(tmp_path / "a.safetensors", source.state_dict())
    save_weights(tmp_path / "b.safetensors", dict(reversed(source.state_dict().items())))
    assert sha256_file(tmp_path / "a.safetensors") == sha256_file(tmp_path / "b.safetensors")

    loaded = load_strict(other, read_weights(tmp_path / "a.safetensors"))
    require_equal(other, source.state_dict())
    assert loaded.tensors == loaded.tensors_expected == len(source.state_dict())
    assert loaded.parameters == sum(tensor.numel() for tensor in source.state_dict().values())


def test_every_missing_extra_and_mis_shaped_tensor_is_named_and_nothing_is_loaded():
    tensors = dict(encoder(1).state_dict())
    del tensors["blocks.0.attn.qkv.weight"]
    tensors["stranger"] = torch.zeros(1)
    tensors["norm.weight"] = torch.zeros(17)
    tensors["norm.bias"] = torch.full((16,), float("nan"))
    target = encoder(2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_strict(target, tensors)
    for words in (
        "blocks.0.attn.qkv.weight is missing",
        "stranger is unexpected",
        "norm.weight has shape (17,) instead of (16,)",
        "norm.bias holds values that are not finite",
    ):
        assert words in str(error.value)
    require_equal(target, before)


def test_a_single_changed_value_is_found_and_named():
    source, target = encoder(1), encoder(1)
    require_equal(target, source.state_dict())
    with torch.no_grad():
        target.blocks[1].mlp.linear1.weight[3, 2] += 1e-6
    with pytest.raises(WeightsError, match=r"1 of 36 .*: blocks.1.mlp.linear1.weight$"):
        require_equal(target, source.state_dict())


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04not tensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors cannot be read"):
        read_weights(tmp_path / "w.safetensors")


# ---------------------------------------------------------------- positions


def test_positions_of_another_grid_are_interpolated():
    # A table linear in its place is resampled exactly, away from the borders.
    line = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
    fitted = fit_positions({POSITIONS: line, "norm.weight": torch.ones(1)}, (4, 4), (8, 8))
    column = fitted[POSITIONS].reshape(8, 8)[:, 0]
    assert torch.allclose(column[1:-1], torch.arange(0.25, 3, 0.5))
    assert torch.equal(fitted["norm.weight"], torch.ones(1))


def test_equal_grids_leave_positions_untouched():
    tensors = dict(encoder(1).state_dict())
    assert torch.equal(fit_positions(tensors, SPEC.grid, SPEC.grid)[POSITIONS], tensors[POSITIONS])


def test_an_encoder_moves_to_larger_volumes():
    table = position_table((2, 2, 2), 12)
    assert fit_positions({POSITIONS: table}, (2, 2, 2), (3, 4, 2))[POSITIONS].shape == (1, 24, 12)


@pytest.mark.parametrize(("start", "end"), [((4, 5), (8, 8)), ((4, 4), (4, 4, 4))])
def test_positions_that_do_not_belong_to_the_grid_are_refused(start, end):
    with pytest.raises(WeightsError, match="position_embeddings"):
        fit_positions({POSITIONS: torch.zeros(1, 16, 8)}, start, end)


# ---------------------------------------------------------------- training state


def state(epoch: int) -> dict:
    return {"model": {"w": torch.full((3,), float(epoch))}, "history": [{"epoch": epoch}]}


def test_the_newest_checkpoint_comes_back_and_two_are_kept(tmp_path):
    for epoch in (1, 2, 3, 10):
        save_checkpoint(tmp_path, epoch, state(epoch))
    assert [path.name[:6] for path in sorted(tmp_path.iterdir())] == ["000003", "000010"]
    assert load_checkpoint(tmp_path, CPU, pytest.fail)["history"] == [{"epoch": 10}]


@pytest.mark.parametrize("damage", ["flipped bit", "torn", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path, damage):
    save_checkpoint(tmp_path, 4, state(4))
    save_checkpoint(tmp_path, 5, state(5))
    newest = max(tmp_path.iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"flipped bit": content, "torn": content[:100], "empty": b""}[damage])
    warnings: list[str] = []
    assert load_checkpoint(tmp_path, CPU, warnings.append)["history"] == [{"epoch": 4}]
    assert "after epoch 5 is damaged" in warnings[0]


def test_without_an_intact_checkpoint_training_starts_anew(tmp_path):
    assert load_checkpoint(tmp_path / "absent", CPU, pytest.fail) is None


def test_a_checkpoint_never_runs_code(tmp_path):
    """Objects that need pickle's power are refused on reading."""

    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    save_checkpoint(tmp_path, 1, {"trap": Trap()})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_checkpoint(tmp_path, CPU, pytest.fail)
