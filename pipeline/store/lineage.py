"""What an artifact depends on: the digest of the code that makes it, of the sources it reads, and its key."""

from __future__ import annotations

import ast
import hashlib
import hmac
import os
import re
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.store.files import read_json, sha256_bytes, sha256_file, sha256_json, write_json

PACKAGE = "pipeline"
PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
KEY_LENGTH = 16
# A function that is imported when it is called, as arm_registry.py names those of the arms.
LAZY = re.compile(rf"({PACKAGE}(?:\.\w+)+):\w+")
HASHES_PER_COMMIT = 500
UNREADABLE = "unreadable"
# What is said for readers alone, by the call that says it: which argument it is, by place (none) or name.
PROSE = {"Column": (2, "meaning"), "Field": (-1, "description")}

Parsed = tuple[str, list[str]]  # the digest of a module, and what it imports


def artifact_key(
    stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str], sources: Mapping[str, str], code: str
) -> str:
    """Return the key of an artifact: a hash of all that may change its content."""
    return sha256_json([stage, settings, inputs, sources, code])[:KEY_LENGTH]


# ---------------------------------------------------------------- code


class Code:
    """The modules of this package as they are now, each read once.

    Parsing all takes seconds, so that digest and imports are remembered by the SHA-256 of a module's text, in a JSON
    file. Without one, or where none can be written, every module is parsed.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._parsed: dict[str, Parsed] = {}
        self._modules: dict[str, bool] = {}
        self._data: dict[Path, dict[str, str]] = {}
        self._known: dict[str, Parsed] = {}
        self._used: dict[str, Parsed] = {}
        # What is done here to a text is part of what is remembered.
        self._scheme = sha256_file(Path(__file__))
        if memory is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                self._known = read_json(memory)[self._scheme]

    def parsed(self, module: str) -> Parsed:
        """Return the digest of a module, and what it imports from this package: modules, and names in them."""
        if module not in self._parsed:
            text = _file(module).read_bytes()
            sha256 = sha256_bytes(text)
            self._parsed[module] = self._used[sha256] = self._known[sha256] if sha256 in self._known else _parsed(text)
        return self._parsed[module]

    def is_module(self, name: str) -> bool:
        """Return whether there is a module or a package of this name."""
        if name not in self._modules:
            self._modules[name] = _file(name).is_file()
        return self._modules[name]

    def data_files(self, folder: Path) -> dict[str, str]:
        """Return the SHA-256 of each file in a folder of the package that is no module, by its path there."""
        if folder not in self._data:
            self._data[folder] = {
                str(path.relative_to(PACKAGE_FOLDER)): sha256_file(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
            }
        return self._data[folder]

    def remember(self) -> None:
        """Write down what was used; modules of earlier code are forgotten."""
        if self._memory is not None and self._memory.parent.is_dir() and not self._used.keys() <= self._known.keys():
            with suppress(OSError):
                write_json(self._memory, {self._scheme: self._used})


def code_digests(module: str, code: Code | None = None) -> dict[str, str]:
    """Return the digest of `module` and of every module and data file of this package that it uses at run time.

    Modules that a text names as `module:function` are used, too.

    Comments, docstrings, formatting, imports for type checking only, the meanings of columns and the descriptions of
    settings do not count.
    """
    code = code or Code()
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name], imported = code.parsed(name)
        waiting += [one for one in imported if one not in found and code.is_module(one)]
    for folder in {_file(name).parent for name in found}:
        found |= code.data_files(folder)
    return {name.removeprefix(f"{PACKAGE}."): found[name] for name in sorted(found)}


def _file(module: str) -> Path:
    path = PACKAGE_FOLDER.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _parsed(text: bytes) -> Parsed:
    stripped = _Stripped().visit(ast.parse(text))
    return sha256_json(_canonical(stripped)), _imports(stripped)


def _canonical(node: Any) -> Any:
    """Return a syntax tree as nested lists, the same under each version of Python: what is empty or absent is left out,
    since later versions add fields, and `ast.unparse` writes quotes otherwise."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return [type(node).__name__, *([name, _canonical(value)] for name, value in fields)]
    return [_canonical(item) for item in node] if isinstance(node, list) else repr(node)


class _Stripped(ast.NodeTransformer):
    """Removes what cannot change an artifact: docstrings, imports under `if TYPE_CHECKING`, and what is said of columns
    and settings."""

    def _without_docstring(self, node: Any) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_Call(self, node: ast.Call) -> Any:
        prose = PROSE.get(ast.unparse(node.func))
        if prose is not None:
            place, name = prose
            node.args = [argument for at, argument in enumerate(node.args) if at != place]
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != name]
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        # Early releases of Python 3.12 end a nested format with an empty text.
        node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        return self.generic_visit(node)

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
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (lazy := LAZY.fullmatch(node.value)):
            names.append(lazy[1])
    return [name for name in names if name.startswith(f"{PACKAGE}.")]


# ---------------------------------------------------------------- sources


class SourceHashes:
    """The SHA-256 of files on disk, remembered: a file is read again only when its size or modification time changed.

    The memory is a SQLite file that holds keyed hashes instead of paths, since file names can carry patients' names.
    Without one, or where none can be written, every file is read.
    """

    def __init__(self, secret: bytes = b"", file: Path | None = None) -> None:
        self._secret = secret
        self._new: list[tuple[str, int, int, str]] = []
        self._memory = None
        if file is not None:
            with suppress(OSError, sqlite3.OperationalError):  # a store that can only be read
                self._memory = _opened(file)

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes as hex. Raises OSError when it cannot be read now, whatever is known."""
        if self._memory is None:
            return sha256_file(path)
        status = path.stat()
        seen, known = (status.st_size, status.st_mtime_ns), self._known(path)
        if known is not None and known[:2] == seen and _may_read(path):
            return known[2]
        sha256 = sha256_file(path)
        self._new.append((self._name(path), *seen, sha256))
        if len(self._new) >= HASHES_PER_COMMIT:
            self.remember()
        return sha256

    def as_planned(self, path: Path) -> str:
        """Return the SHA-256 that `of` gave last, whatever has become of the file since."""
        known = self._known(path)
        return self.of(path) if known is None else known[2]

    def derived(self, what: Any, compute: Callable[[], str]) -> str:
        """Return a digest that depends on nothing but `what`, plain data; `compute` is asked once."""
        if self._memory is None:
            return compute()
        name = self._hashed(f"derived\0{sha256_json(what)}".encode())
        query = "SELECT sha256 FROM hashes WHERE name = ?"
        known = self._memory.execute(query, (name,)).fetchone()
        if known is not None:
            return known[0]
        digest = compute()
        self._new.append((name, 0, 0, digest))
        self.remember()
        return digest

    def _name(self, path: Path) -> str:
        return self._hashed(f"source\0{path}".encode("utf-8", "surrogateescape"))

    def _hashed(self, message: bytes) -> str:
        return hmac.new(self._secret, message, "sha256").hexdigest()[:32]

    def _known(self, path: Path) -> tuple[int, int, str] | None:
        if self._memory is None:
            return None
        query = "SELECT size, modified_ns, sha256 FROM hashes WHERE name = ?"
        return self._memory.execute(query, (self._name(path),)).fetchone()

    def remember(self) -> None:
        """Write down what was learned since the last time, in one short transaction, so that no other run waits."""
        if self._memory is not None and self._new:
            with suppress(sqlite3.OperationalError), self._memory:
                self._memory.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", self._new)
            self._new.clear()


def _opened(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(file, timeout=60)
    memory.execute(
        "CREATE TABLE IF NOT EXISTS hashes"
        " (name TEXT PRIMARY KEY, size INTEGER, modified_ns INTEGER, sha256 TEXT) WITHOUT ROWID"
    )
    return memory


def studies_digest(
    roots: Sequence[Path],
    hashes: SourceHashes,
    leave_out: Path | None = None,
    track: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> str:
    """Return a digest of all files under `roots`: relative paths and contents, never where the roots are.

    `leave_out`, the label table, is no study: a corrected label must not read the archive again. `track` yields the
    files it is given and may show progress. What cannot be read counts as such, and is tried again every time.
    """
    digest = hashlib.sha256()
    for number, root in enumerate(roots):
        for path in track([path for path in _files(root) if path == root or path != leave_out]):
            relative = str(path.relative_to(root)) if path != root else ""
            content = _content(path, hashes)
            digest.update(f"{number}\0{relative}\0{content}\n".encode("utf-8", "surrogateescape"))
    hashes.remember()
    return digest.hexdigest()


def _may_read(path: Path) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def _content(path: Path, hashes: SourceHashes) -> str:
    try:
        return hashes.of(path)
    except OSError:  # its text names the file, and with it a patient
        return UNREADABLE


def _files(root: Path) -> list[Path]:
    """Return the files under a root, and the folders that cannot be listed."""
    if not os.path.isdir(root):
        return [root]
    found: list[Path] = []
    closed: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=closed.append, followlinks=False):
        folders.sort()
        found += [path for name in sorted(names) if _is_file(path := Path(folder) / name)]
    return found + sorted(Path(error.filename) for error in closed)


def _is_file(path: Path) -> bool:
    """Say whether this is a file and no link; one that may not even be looked at is taken for one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return True


# ---------------------------------------------------------------- surroundings


def git_commit() -> str:
    """Return the commit of the checkout that runs, with `+changes` when files differ from it.

    Empty outside git, and inside the repository of somebody else, as when installed into an environment there: the
    package must be tracked, and lie at the top.
    """
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != PACKAGE_FOLDER.parent:
            return ""
        return _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*command: str) -> str:
    # Inside a hook of another repository, variables like GIT_DIR would lead there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = ["git", "-C", str(PACKAGE_FOLDER), *command]
    return subprocess.run(git, env=environment, capture_output=True, text=True, check=True).stdout.strip()
