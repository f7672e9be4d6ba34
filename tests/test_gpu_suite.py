"""The script for a GPU, on a CPU: each kind of piece runs, what is there is not run again, a missing GPU is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.settings.load import load

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu_suite.py"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_suite

    return gpu_suite


def test_without_a_gpu_it_says_so_and_leaves_with_another_code(suite, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.main(["--out", str(tmp_path / "out")]) == 2
    assert "torch finds no GPU: nothing was measured" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_kind_of_piece_measures_something(suite, tmp_path):
    options = suite.arguments(["--out", str(tmp_path), "--cpu", "--tiny"])
    assert {name.split("-")[0] for name in suite.names(options)} == {"peak", "step", "inference"}
    assert suite.PRECISIONS.keys() == {"fp32", "bf16"}
    for piece in ("step-monai-fp32", "step-cross_attention-bf16", "inference-tiny-fp32"):
        found = suite.result(piece, options, 1.0)
        batches = [value for name, value in found.items() if name.startswith("batch_")]
        assert len(batches) == 2, piece
        assert all(value["images_per_s"] > 0 for value in batches)


@pytest.mark.slow
def test_it_goes_on_with_what_is_missing_and_records_what_failed(tmp_path):
    """Two pieces in processes of their own, one of them there already."""
    (tmp_path / "step-monai-fp32.json").write_text('{"batch_2": {"step_s": 1.0}}')
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--cpu", "--tiny", "--pieces", "step-monai-fp32",
               "inference-tiny-fp32"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["inference-tiny-fp32 …"]
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "gpu_suite.json").read_text())
    assert found["pieces"]["step-monai-fp32"] == {"batch_2": {"step_s": 1.0}}
    assert (found["missing"], found["failed"], found["machine"]["device"]) == ([], {}, "cpu")


def test_a_piece_that_fails_is_named_with_its_last_line_and_missing(suite, tmp_path, monkeypatch, capsys):
    def fails(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "first\nRuntimeError: the driver is gone\n")

    monkeypatch.setattr(subprocess, "run", fails)
    words = ["--out", str(tmp_path), "--cpu", "--tiny", "--pieces", "peak"]
    assert suite.main(words) == 75
    content = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert content["failed"] == {"peak": "RuntimeError: the driver is gone"}
    assert content["missing"] == ["peak"]
    assert "missing: peak; the same command goes on" in capsys.readouterr().err


def test_the_whole_config_is_run_for_what_is_left_and_its_figures_are_kept(suite, tmp_path, monkeypatch):
    told: list[list[str]] = []
    (tmp_path / "labels.csv").write_text("path,patient_id,label\n")

    def runs(command, **_):
        told.append(command)
        made = tmp_path / "out" / "store" / "report" / "abc"
        made.mkdir(parents=True, exist_ok=True)
        (made / "report.json").write_text('{"auc": 0.99}')
        stopped = len(told) == 1
        return subprocess.CompletedProcess(command, 75 if stopped else 0, '{"step": 1}', "stopped: saved\n")

    monkeypatch.setattr(subprocess, "run", runs)
    options = suite.arguments(["--out", str(tmp_path / "out"), "--cpu", "--data", str(tmp_path)])
    assert suite.names(options)[-1] == "chest_xray"
    with pytest.raises(SystemExit, match="stopped: saved"):
        suite.result("chest_xray", options, 7.5)
    found = suite.result("chest_xray", options, 7.5)
    assert (found["report"], found["run"]) == ({"auc": 0.99}, {"step": 1})
    config, overrides = Path(told[0][4]), told[0][5:-1]
    loaded, _ = load(config, overrides)
    assert loaded.machine.max_minutes == 7.5
    assert loaded.store == tmp_path / "out" / "store"


def test_a_piece_that_is_not_there_is_refused(suite, tmp_path):
    with pytest.raises(SystemExit, match="there is no piece step-tensorflow; there are peak, step-monai-fp32"):
        suite.main(["--out", str(tmp_path), "--cpu", "--tiny", "--pieces", "step-tensorflow"])
