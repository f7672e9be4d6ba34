"""What an artifact depends on: the digest of the code that makes it, of the sources it reads, and its key."""

from __future__ import annotations

import ast
import hashlib
import hmac
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.store.files import read_json, sha256_file, sha256_json, write_json

PACKAGE = "pipeline"
PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
KEY_LENGTH = 16
RECORDED_PACKAGES = ("torch", "monai", "pydicom", "nibabel", "pillow", "numpy", "scipy", "scikit-learn",
                     "scikit-image", "pandas", "pyarrow", "mlflow", "matplotlib", "typst")  # fmt: skip


def artifact_key(
    stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str], sources: Mapping[str, str], code: str
) -> str:
    """Return the key of an artifact: a hash of all that may change its content."""
    return sha256_json([stage, settings, inputs, sources, code])[:KEY_LENGTH]


# ---------------------------------------------------------------- code


def code_digests(module: str) -> dict[str, str]:
    """Return the digest of `module` and of every module and data file of this package that it uses at run time.

    Comments, docstrings, formatting and imports for type checking only do not count.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name], imported = _module(name)
        waiting += imported
    for folder in {_file(name).parent for name in found}:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith("."):
                found[str(path.relative_to(PACKAGE_FOLDER))] = sha256_file(path)
    return {name.removeprefix(f"{PACKAGE}."): found[name] for name in sorted(found)}


def _file(module: str) -> Path:
    path = PACKAGE_FOLDER.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _module(name: str) -> tuple[str, list[str]]:
    tree = ast.parse(_file(name).read_text("utf-8"))
    stripped = _Stripped().visit(tree)
    return sha256_json(ast.unparse(stripped)), _imports(stripped)


class _Stripped(ast.NodeTransformer):
    """Removes what cannot change behaviour: docstrings and imports under `if TYPE_CHECKING`."""

    def _without_docstring(self, node: Any) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def _imports(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith(f"{PACKAGE}.") and _file(name).is_file()]


# ---------------------------------------------------------------- sources


def studies_digest(roots: Sequence[Path], secret: bytes, cache_file: Path | None, leave_out: Path | None = None) -> str:
    """Return a digest of all files under `roots`: relative paths and contents, never where the roots are.

    `leave_out`, the label table, is no study: a corrected label must not read the archive again.

    With a cache, a file is read again only when its size or modification time changed. The cache holds keyed hashes
    instead of paths, since file names can carry patients' names.
    """
    known = read_json(cache_file) if cache_file and cache_file.is_file() else {}
    fresh: dict[str, list] = {}
    digest = hashlib.sha256()
    for number, root in enumerate(roots):
        for path in _files(root):
            if path == leave_out:
                continue
            relative = str(path.relative_to(root)) if path != root else ""
            name = hmac.new(secret, f"source\0{path}".encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:32]
            status = path.stat()
            seen = known.get(name)
            if seen is None or seen[:2] != [status.st_size, status.st_mtime_ns]:
                seen = [status.st_size, status.st_mtime_ns, sha256_file(path)]
            fresh[name] = seen
            digest.update(f"{number}\0{relative}\0{seen[2]}\n".encode("utf-8", "surrogateescape"))
    if cache_file and any(known.get(name) != seen for name, seen in fresh.items()):
        write_json(cache_file, {**known, **fresh})
    return digest.hexdigest()


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        found += [Path(folder) / name for name in sorted(names)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


# ---------------------------------------------------------------- surroundings


def git_commit() -> str:
    """Return the commit of the checkout that runs, with `+changes` when files differ from it; empty outside git."""
    git = ["git", "-C", str(PACKAGE_FOLDER)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+changes" if changes.strip() else "")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results can depend on."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
