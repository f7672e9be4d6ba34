"""The comparison of two stores: keys and dates may differ, nothing else."""

import json
from pathlib import Path

import numpy as np
from benchmarks.same_bytes import contents, differences


def store(folder: Path, key: str, weights: bytes, **more: object) -> Path:
    artifact = folder / "finetune" / key
    artifact.mkdir(parents=True)
    (artifact / "artifact.json").write_text(json.dumps({"created": str(folder), "key": key}))
    (artifact / "summary.json").write_text(json.dumps({"read": key, "git_commit": folder.name, **more}))
    (artifact / "weights.npy").write_bytes(weights)
    return folder


def test_what_follows_from_the_code_alone_is_no_difference(tmp_path):
    weights = np.arange(3.0).tobytes()
    before = store(tmp_path / "a", "0" * 16, weights)
    assert differences(before, store(tmp_path / "b", "1" * 16, weights)) == []
    assert contents(before).total() == 2


def test_other_bytes_and_files_that_only_one_store_has_are_named(tmp_path):
    before = store(tmp_path / "a", "0" * 16, b"1")
    after = store(tmp_path / "b", "1" * 16, b"2", auc=0.5)
    (after / "finetune" / ("1" * 16) / "more.png").write_bytes(b"")
    assert differences(before, after) == [
        "finetune/more.png: after alone", "finetune/summary.json: other bytes", "finetune/weights.npy: other bytes",
    ]  # fmt: skip
