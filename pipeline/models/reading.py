"""Any finished model as a function from pixels to logits, found by the arm that its model.json names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.models.arm_registry import ARMS
from pipeline.models.checkpoints import WeightsError, read_weights
from pipeline.models.finished import Finished
from pipeline.store.files import read_json, sha256_file


def read_model(record: Path, weights: Path, device: torch.device) -> Finished:
    """Return a finished model; `record` is its model.json, `weights` its model.safetensors.

    Raises WeightsError when the weights are not those that the record names by SHA-256, or do not fit, or when no arm
    of this version is called as the record says.
    """
    content: dict[str, Any] = read_json(record)
    if sha256_file(weights) != content["sha256"]:
        raise WeightsError(f"{weights.name} of arm {content['arm']} is not the file named in model.json (SHA-256)")
    if content["arm"] not in ARMS:
        raise WeightsError(f"model.json names arm {content['arm']}; this version of maescreen knows {', '.join(ARMS)}")
    return ARMS[content["arm"]].read(content, read_weights(weights), device)
