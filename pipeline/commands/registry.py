"""model register, promote, history: finished models under names, with a memory of what was in use when, and why."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline import inference
from pipeline.inference.model_folder import ModelError, verified
from pipeline.inference.table import columns
from pipeline.store.alias_history import History, Move
from pipeline.store.registry import Packaged, Registry, Version
from pipeline.store.served_model import Serving

CODE = Path(inference.__file__).with_name("mlflow_model.py")
EXAMPLE_SIDE = 64
ABSENT = ("none", "not installed")


def packaged(folder: Path) -> Packaged:
    """Return a model folder as the registry takes it, every file of it checked. Raises ModelError."""
    content, sha256 = verified(folder)
    versions = content["made_by"]["versions"]
    # A local version, as of a build of torch, is on no index.
    pins = [f"{name}=={v.partition('+')[0]}" for name, v in versions.items() if name not in ("python", "cuda")]
    return Packaged(
        folder=folder,
        sha256=sha256,
        title=content["title"].strip().rstrip("."),
        usable=content["rule"]["usable"],
        not_usable_because=tuple(content["rule"]["not_usable_because"]),
        requirements=tuple(pin for pin in pins if not pin.endswith(tuple(f"=={word}" for word in ABSENT))),
    )


def _serving() -> Serving:
    return Serving(CODE, example(), columns())


def register(registry: Registry, folder: Path, name: str) -> Version:
    """Register a model folder under a name; return its version, an earlier one when the model has one already."""
    return registry.register(packaged(folder), name, _serving())


def restore(registry: Registry, folders: Iterable[Path]) -> tuple[list[Version], list[Version]]:
    """Fill a registry that was lost from the store's memory and the model folders in it; see `Registry.restore`.

    A folder that is not whole is as good as gone.
    """
    models: dict[str, Packaged] = {}
    for folder in folders:
        with suppress(ModelError):
            one = packaged(folder)
            models[one.sha256] = one
    return registry.restore(models, _serving())


def restored_lines(made: Sequence[Version], gone: Sequence[Version]) -> list[str]:
    """Return what was restored as lines for people; nothing when nothing was."""
    said = []
    for one in made:
        said.append(f"{one.reference} is registered again" + "".join(f", @{alias}" for alias in one.aliases))
    said += [
        f"{one.reference} ({one.sha256[:16] or 'unknown'}) keeps its number, but its model is not in the store any more"
        for one in gone
    ]
    return said


def example() -> pd.DataFrame:
    """Return a table as a served model takes it: one drawn picture, of nobody, as the bytes of a PNG file."""
    falling = np.linspace(255, 0, EXAMPLE_SIDE)[:, None] * np.linspace(1, 0, EXAMPLE_SIDE)
    stream = io.BytesIO()
    Image.fromarray(falling.astype(np.uint8)).save(stream, "PNG")
    return pd.DataFrame({"content": [stream.getvalue()], "study": ["example"]})


def check_same(folder: Path, version: Version) -> None:
    """Raise ModelError when a folder is not the model that was registered."""
    _, sha256 = verified(folder)
    if sha256 != version.sha256:
        raise ModelError(
            f"the files of {version.reference} are of model {sha256[:16]}, but {version.sha256[:16]} was registered"
        )


def promote(registry: Registry, name: str, version: str, alias: str, why: str, force: bool) -> Move:
    """Let an alias lead to a version; what its own model.json says decides whether that needs `force`."""
    found = registry.find(f"models:/{name}/{version}")
    with registry.folder(found) as folder:
        check_same(folder, found)
        reasons = packaged(folder).not_usable_because
    return registry.promote(found, alias, why, reasons, force)


def of_version(version: Version) -> dict[str, Any]:
    """Return what `model info` says of a model's place in the registry."""
    return {"name": version.name, "version": version.version, "aliases": list(version.aliases)}


def forced(registry: Registry, sha256: str, version: Version | None) -> list[dict[str, Any]]:
    """Return every promotion of a model that was forced; what only MLflow knows of one, when the history is gone."""
    moves = [asdict(move) for move in registry.history().forced(sha256)]
    if not moves and version is not None and version.forced:
        moves = [{"why": version.forced, "problem": "the history does not say so any more"}]
    return moves


def forced_lines(moves: list[dict[str, Any]]) -> list[str]:
    """Return forced promotions as lines for people."""
    return [
        f"FORCED       {move.get('when', '')} @{move.get('alias', '?')} by {move.get('account', '?')}, although the "
        f"model is not usable; reason given: {move['why']}" + (f" ({move['problem']})" if "problem" in move else "")
        for move in moves
    ]


def history_json(history: History, name: str) -> dict[str, Any]:
    """Return what `model history --json` prints."""
    return {"name": name, "moves": [asdict(move) for move in history.of(name)], "problems": list(history.problems)}


def history_lines(history: History, name: str) -> list[str]:
    """Return the moves of a model's aliases, oldest first, as lines for people."""
    lines = []
    for move in history.of(name):
        before = f"version {move.from_version} ({move.from_sha256[:16]})" if move.from_version else "nothing"
        to = f"version {move.to_version} ({move.to_sha256[:16]})"
        lines.append(f"{move.when}  @{move.alias}: {before} -> {to}  by {move.account}: {move.why}")
        if move.forced:
            lines.append(f"    FORCED: the model is not usable: {'; '.join(move.not_usable_because)}")
    return lines or [f"no alias of {name} was ever moved"]
