"""Two real processes under torchrun: the same numbers as one, and an end for both when one dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import torchrun_script
from safetensors.torch import load_file
from stages.training_run import make_images

from pipeline.models import distributed
from pipeline.store.artifacts import Store

TESTS = Path(__file__).parents[1]


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *command], env=paths, capture_output=True, text=True, check=False, timeout=500)


def largest_difference(one: Path, other: Path) -> float:
    """Keys' biases left out: the loss does not depend on them, so that Adam moves them by the sign of rounding."""
    ours, theirs = load_file(one), load_file(other)
    names = [name for name in ours if not name.endswith("qkv.bias")]
    return max((ours[name] - theirs[name]).abs().max().item() for name in names)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batches(tmp_path, monkeypatch):
    """Batches of 13 to 15 images, so that shares are unequal."""
    for module, name in ((torchrun_script.pretrain, "train_epoch"), (torchrun_script.finetuning, "train_epoch")):
        monkeypatch.setattr(module, name, getattr(module, name))
    one, two = make_images(tmp_path / "one"), make_images(tmp_path / "two")
    expected = torchrun_script.train(one)
    done = torchrun(str(TESTS / "models" / "torchrun_script.py"), str(two))
    assert done.returncode == 0, done.stderr
    found = json.loads((two / "losses.json").read_text())
    for stage in ("pretrain", "finetune"):
        assert len(found[stage]) == len(expected[stage]) > 4
        assert found[stage] == pytest.approx(expected[stage], abs=1e-5)
    for name in ("pretrain/encoder.safetensors", "finetune/mae/seed1/model.safetensors"):
        assert largest_difference(one / name, two / name) < 1e-3, name
    # Only one process wrote, and nothing was left behind.
    assert {path.relative_to(one) for path in one.rglob("*")} == {
        path.relative_to(two) for path in two.rglob("*") if path.name != "losses.json"
    }


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path):
    done = torchrun(str(TESTS / "models" / "torchrun_script.py"), str(make_images(tmp_path)), "1")
    assert done.returncode != 0
    # torchrun, which says who died, may end the other process before it has noticed.
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    if "PeerError" in done.stderr:
        assert "another process of this training has ended without a word; was it killed?" in done.stderr


@pytest.mark.slow
def test_the_command_runs_under_torchrun_and_leaves_one_artifact(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    # The other process has a config and the store, and neither studies, labels, card nor key.
    alone = tmp_path / "follower" / "configs" / project.config.name
    alone.parent.mkdir(parents=True)
    alone.write_text(f"store: {project.store}\n" + project.config.read_text())
    script = tmp_path / "command.py"
    script.write_text(
        "import os, sys; from pipeline.cli import app\n"
        f"config = {str(project.config)!r} if os.environ['RANK'] == '0' else {str(alone)!r}\n"
        "app(['pretrain', config, *sys.argv[1:]])"
    )
    done = torchrun(str(script), "pretrain.seed=3", "pretrain.max_steps=6")
    assert done.returncode == 0, done.stderr
    newest, earlier = Store(project.store).all("pretrain")
    assert newest.record["settings"]["seed"] == 3
    assert sorted(newest.record["files"]) == sorted(earlier.record["files"])
    assert not list(project.store.glob("*/*.partial"))


def test_alone_everything_is_that_of_one_process():
    rows, tensor = np.arange(5), torch.ones(2)
    assert (distributed.processes(), distributed.leads(), distributed.local_rank()) == (1, True, 0)
    assert distributed.own_share(rows) is rows
    assert distributed.from_leader({"a": 1}) == {"a": 1}
    assert (distributed.any_process(True), distributed.any_process(False)) == (True, False)
    distributed.add_up([tensor])
    assert torch.equal(tensor, torch.ones(2))
