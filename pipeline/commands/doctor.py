"""What this machine has: versions, device, codecs, disk, store. Each finding says what to do."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.store.indexed import DATABASE, readable
from pipeline.store.versions import package_versions
from pipeline.store.wording import counted

FREE_GB_WANTED = 5.0
# Of the drivers of NVIDIA, Windows' Linux, AMD and Jetson: without one of them, Linux has no GPU for torch.
GPU_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap", "/dev/nvhost-ctrl")
FULL_PRECISION = "leave pretrain.precision and finetune.precision at fp32"


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    state: Literal["ok", "note", "problem"]
    detail: str


def examine(store: Path, tracking_uri: str | None = None) -> list[Check]:
    """Look at everything; nothing is changed."""
    return [
        _python(),
        *_versions(),
        _device(),
        *_codecs(),
        _disk(store),
        _store(store),
        _tracking(store, tracking_uri),
    ]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _versions() -> list[Check]:
    return [
        Check(name, "problem", f"{version}; install maescreen again")
        if version == "not installed"
        else Check(name, "ok", version)
        for name, version in package_versions().items()
    ]


def _device() -> Check:
    cores = counted(os.cpu_count() or 1, "CPU core")
    none = Check("device", "note", f"no GPU that torch can use; {cores}; {FULL_PRECISION}")
    if platform.system() == "Linux" and not any(Path(node).exists() for node in GPU_NODES):
        return none
    import torch  # takes seconds

    if torch.cuda.is_available():
        bf16 = "bf16 supported" if torch.cuda.is_bf16_supported() else f"no bf16; {FULL_PRECISION}"
        return Check("device", "ok", f"{torch.cuda.get_device_name()}, {bf16}; {cores}")
    return none


def _codecs() -> list[Check]:
    from pipeline.imaging.formats.decoding import PLUGINS, can_decode

    missing = [syntax.name for syntax in PLUGINS if not can_decode(syntax)]
    if missing:
        return [Check("transfer syntaxes", "problem", f"not decoded: {', '.join(missing)}; install maescreen again")]
    return [Check("transfer syntaxes", "ok", f"uncompressed, and {len(PLUGINS)} compressed ones")]


def _disk(store: Path) -> Check:
    folder = next(path for path in (store, *store.parents) if path.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    free = f"{free_gb:.{0 if free_gb >= 10 else 1}f} GB free where the store is"
    if free_gb < FREE_GB_WANTED:
        return Check(
            "disk", "problem", f"{free}; at least {FREE_GB_WANTED:g} GB are wanted: make room, or move `store`"
        )
    return Check("disk", "ok", free)


def _store(store: Path) -> Check:
    if not store.exists():
        return Check("store", "note", "not made yet; the first run makes it")
    if not store.is_dir():
        return Check("store", "problem", "a file, not a folder; name another with --store, or as `store` in the config")
    if not os.access(store, os.W_OK):
        return Check("store", "problem", "this user cannot write there; name another with --store, or get the right")
    unfinished = len(list(store.glob("*/*.partial")))
    return Check("store", "ok", f"{counted(_artifacts(store), 'artifact')}, and {unfinished} unfinished")


def _artifacts(store: Path) -> int:
    return sum("." not in path.parent.name for path in store.glob("*/*/artifact.json"))


def _tracking(store: Path, uri: str | None) -> Check:
    if uri is None and not (store / DATABASE).exists():
        lost = "; that of the artifacts is lost: maescreen reindex CONFIG makes it again" if _artifacts(store) else ""
        return Check("tracking", "note", f"SQLite in the store, made by the first run{lost}")
    problem = readable(store) if uri is None else _answer(uri)
    return Check("tracking", "problem" if problem else "ok", problem or "answers; telemetry is off")


def _answer(uri: str) -> str:
    from pipeline.store.tracking import reachable  # takes seconds

    return reachable(uri)
