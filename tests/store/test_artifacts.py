"""An artifact is complete or absent, and read only as it was written."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store.artifacts import RECORD, Artifact, Inputs, Store, StoreError


def publish(store: Store, stage: str, key: str, files: dict[str, bytes]) -> Artifact:
    work = store.begin(stage, key)
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    return store.publish(stage, key, {"stage": stage, "key": key, "created": "2026-01-01T00:00:00+00:00"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_unfinished_work_is_not_an_artifact(store):
    (store.begin("fit", "k") / "weights").write_bytes(b"half")
    assert store.find("fit", "k") is None
    assert store.all("fit") == []


def test_publishing_lists_every_file_with_its_hash(store):
    artifact = publish(store, "fit", "k", {"a.txt": b"a", "deep/b.txt": b"b"})
    assert set(artifact.record["files"]) == {"a.txt", "deep/b.txt"}
    assert store.find("fit", "k") == artifact
    assert not store.partial("fit", "k").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused_with_its_name(store, damage):
    artifact = publish(store, "fit", "k", {"weights": b"\x00" * 100})
    path = artifact.path / "weights"
    if damage == "flip":
        path.write_bytes(b"\x00" * 50 + b"\x01" + b"\x00" * 49)
    elif damage == "cut":
        path.write_bytes(b"\x00" * 99)
    else:
        path.unlink()
    with pytest.raises(StoreError, match=r"fit k: weights .*--rebuild fit"):
        artifact.file("weights")


def test_torn_temporary_files_of_a_killed_process_are_not_published(store):
    work = store.begin("fit", "k")
    (work / ".weights.123.tmp.npy").write_bytes(b"half")
    store.begin("fit", "k")
    assert list(store.publish("fit", "k", {"created": ""}).record["files"]) == []


def test_a_stage_reads_only_what_it_may(store):
    scores = publish(store, "score", "k", {"scores_calibration.parquet": b"c", "scores_test.parquet": b"t"})
    inputs = Inputs(None, None, {"score": scores}, {"score": ("scores_calibration.parquet",)})  # pyrefly: ignore
    assert inputs.file("score", "scores_calibration.parquet").read_bytes() == b"c"
    with pytest.raises(StoreError, match="not an input"):
        inputs.file("score", "scores_test.parquet")
    assert [path.name for path in inputs.files("score", "*")] == ["scores_calibration.parquet"]


def test_the_kernel_frees_the_lock_of_a_killed_process(store, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipeline.store.artifacts import Store\n"
        f"with Store(Path({str(store.root)!r})).lock('fit', 'k'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    waited = []
    holder_killed = time.monotonic()

    def waiting() -> None:
        waited.append(True)
        holder.kill()
        holder.wait()

    with store.lock("fit", "k", waiting):
        assert waited == [True]
    assert time.monotonic() - holder_killed < 30


def test_republishing_replaces_the_artifact(store):
    publish(store, "fit", "k", {"a": b"1"})
    store.discard("fit", "k")
    assert publish(store, "fit", "k", {"b": b"2"}).record["files"].keys() == {"b"}
    assert RECORD in {path.name for path in (store.root / "fit" / "k").iterdir()}
