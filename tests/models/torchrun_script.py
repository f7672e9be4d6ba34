"""What each process of a torchrun test does: pretrain and fine-tune a tiny network, and note every step's loss."""

from __future__ import annotations

import json
import os
import signal
import sys
import weakref
from pathlib import Path

import torch.distributed as dist
from stages.training_run import SETTINGS, inputs, publish

from pipeline.models import distributed, finetuning
from pipeline.models.engine import train_epoch
from pipeline.stages import finetune, pretrain
from pipeline.store.runlog import RunLog

PRETRAIN = SETTINGS["pretrain"].model_copy(update={"max_steps": 8, "batch_size": 15})
FINETUNE = SETTINGS["finetune"].model_copy(
    update={"epochs": 2, "batch_size": 15, "arms": ["linear_probe", "mae"], "seeds": [1]}
)


def train(folder: Path, die_at_epoch: int | None = None) -> dict[str, list[float]]:
    """Run both stages on the images in `folder`; return the losses of each."""
    losses: dict[str, list[float]] = {"pretrain": [], "finetune": []}

    def watched(training, order, batch_loss):
        if len(training.history) == die_at_epoch and not distributed.leads():
            os.kill(os.getpid(), signal.SIGKILL)
        done = train_epoch(training, order, batch_loss)
        losses[stage] += done.losses
        return done

    pretrain.train_epoch = finetuning.train_epoch = watched
    for stage, function, settings in (
        ("pretrain", pretrain.pretrain, PRETRAIN),
        ("finetune", finetune.finetune, FINETUNE),
    ):
        work = folder / stage
        work.mkdir(exist_ok=True)
        function(settings, inputs(folder, stage), work, RunLog(stage, quiet=True))
        if distributed.leads():
            publish(work)
        distributed.from_leader("published")
    return losses


if __name__ == "__main__":
    with distributed.joined("cpu"):
        group = weakref.ref(dist.group.WORLD)
        result = train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
        if distributed.leads():
            Path(sys.argv[1], "losses.json").write_text(json.dumps(result))
    # Its threads end with it. Those that outlive the interpreter abort the process, now and then.
    assert group() is None, "the process group is still held by somebody"
