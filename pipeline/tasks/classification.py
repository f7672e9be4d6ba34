"""Classification: an image has a label, yes or no, and further ones; every arm of the registry learns it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.arm_registry import ARMS
from pipeline.models.arms import ArmData
from pipeline.tasks.task import Task

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog


def train(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Train an arm as its entry in the registry says."""
    ARMS[arm].train(arm, seed, settings, data, folder, log)


CLASSIFICATION = Task("classification", "AUC", train)
