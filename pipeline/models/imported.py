"""Encoder weights from a file that a user names: checked against the plan, converted, and told tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.models.arms import Start
from pipeline.models.formats import import_encoder, read_foreign
from pipeline.models.training import TrainingError
from pipeline.models.vit import EncoderSpec
from pipeline.store.files import sha256_file


def imported_start(path: Path, planned_sha256: str, spec: EncoderSpec, say: Callable[[str], None]) -> Start:
    """Return the weights of a file for the encoder of `spec`, and say what became of each tensor.

    Their positions are learned on or stay as they are as `pretrain.encoder.positions` says of the network.
    Raises TrainingError when the file is not the planned one, WeightsError naming every tensor that does not fit.
    """
    sha256 = sha256_file(path)
    if sha256 != planned_sha256:
        raise TrainingError(f"{path.name} was changed while the run was going on; start the run again")
    converted = import_encoder(read_foreign(path), spec)
    say(f"imported weights, {converted.account}")
    loaded = len(converted.tensors) - len(converted.account.made)
    return Start(converted.tensors, f"imported weights, SHA-256 {sha256[:16]}", loaded, converted.registers)
