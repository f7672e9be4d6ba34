"""A finished model as a folder: what is in it, written once by `package`, checked in full whenever it is loaded.

Beside model.json lie `members/seed<k>/` with record and weights, `golden/` with arrays and their logits,
`typicality.npz`, MODEL_CARD.md, and SHA256SUMS, which names all others. The SHA-256 of SHA256SUMS is the model's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.store.files import atomic, read_json, sha256_bytes, sha256_file
from pipeline.store.versions import package_versions, runtime_versions

if TYPE_CHECKING:
    from pipeline.inference.ensemble import Ensemble

SCHEMA = "model/1"
CONTENT, SUMS, MEMBERS, GOLDEN, CARD = "model.json", "SHA256SUMS", "members", "golden", "MODEL_CARD.md"
TYPICALITY = "typicality.npz"
SUFFIXES = (".json", ".safetensors", ".npy", ".npz", ".md")
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
GOLDEN_TOLERANCE = 1e-5  # of a logit


class ModelError(ValueError):
    """A model folder cannot be used; the message names the file and says what was expected."""


def seal(folder: Path) -> str:
    """Write SHA256SUMS of all other files of a folder; return the model's hash."""
    lines = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in _files(folder) if name != SUMS)
    with atomic(folder / SUMS) as temporary:
        temporary.write_text(lines, "utf-8")
    return sha256_bytes(lines.encode())


def verified(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the content of model.json and the model's hash, after reading every file of the folder.

    Raises ModelError, with every problem: a file that is missing, changed or not named, of a kind that no model has, or
    a name that leads out of the folder.
    """
    sums = folder / SUMS
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder with a model: expected {CONTENT} and {SUMS}")
    if not sums.is_file() or sums.is_symlink():
        raise ModelError(f"{folder} has no {SUMS}: it is no finished model, or was copied in part")
    text = sums.read_bytes()
    expected, problems = _parsed(text)
    present = set(_files(folder)) - {SUMS}
    problems += [f"{name} is not in {SUMS}" for name in sorted(present - expected.keys())]
    for name, sha256 in expected.items():
        if name not in present:
            problems.append(f"{name} is missing")
        elif (folder / name).is_symlink():
            problems.append(f"{name} is a link")
        elif sha256_file(folder / name) != sha256:
            problems.append(f"{name} is not the file that was packaged (SHA-256 differs)")
    if CONTENT not in expected:
        problems.append(f"{CONTENT} is not named")
    if problems:
        raise ModelError(f"the model cannot be trusted: {'; '.join(problems)}")
    content = _content(folder / CONTENT)
    return content, sha256_bytes(text)


def _parsed(text: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the files that SHA256SUMS names with their hashes, and what is wrong with it."""
    expected: dict[str, str] = {}
    problems = []
    for line in text.decode("utf-8", "replace").splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            problems.append(f"{SUMS} has a line that is no hash and name")
            continue
        name = found[2]
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or "\\" in name:
            problems.append(f"{name} leads out of the folder")
        elif not name.endswith(SUFFIXES):
            problems.append(f"{name} is of a kind that no model has")
        else:
            expected[name] = found[1]
    return expected, problems


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{CONTENT} is not JSON") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ModelError(f"{CONTENT} has schema {str(schema)[:40]!r}; this version of maescreen reads {SCHEMA}")
    if outward := sorted({text for text in _texts(content.get("files", {})) if text.startswith(("/", "..", "~"))}):
        raise ModelError(f"{CONTENT} names paths that lead out of the folder: {', '.join(outward)}")
    return content


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _texts(item)]


# ---------------------------------------------------------------- golden arrays


def write_golden(folder: Path, arrays: np.ndarray, ensemble: Ensemble) -> None:
    """Write images (N, C, ...) uint8 and the logits that this model gives for them, exactly."""
    (folder / GOLDEN).mkdir()
    np.save(folder / GOLDEN / "arrays.npy", arrays, allow_pickle=False)
    np.save(folder / GOLDEN / "logits.npy", ensemble.logits(arrays), allow_pickle=False)


def check_golden(folder: Path, ensemble: Ensemble, content: dict[str, Any], say: Callable[[str], None]) -> None:
    """Compute the golden logits again, and say which packages are others than when the model was made.

    Raises ModelError when a logit differs by more than GOLDEN_TOLERANCE.
    """
    made, now = content["made_by"]["versions"], {**runtime_versions(), **package_versions()}
    others = [f"{name} {made[name]} there, {now[name]} here" for name in now if made.get(name) not in (None, now[name])]
    arrays, expected = (np.load(folder / GOLDEN / f"{name}.npy", allow_pickle=False) for name in ("arrays", "logits"))
    off = float(np.abs(ensemble.logits(arrays) - expected).max())
    differences = f"; versions that differ: {', '.join(others)}" if others else "; all recorded versions are the same"
    if not off <= GOLDEN_TOLERANCE:
        raise ModelError(
            f"the model gives other scores here than where it was made: its golden images differ by {off:.2g}, "
            f"{GOLDEN_TOLERANCE:g} is allowed{differences}"
        )
    if others:
        say(f"versions other than where the model was made: {', '.join(others)}; golden images score alike")
