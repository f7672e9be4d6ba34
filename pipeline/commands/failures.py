"""What of an exception may be printed: what this package said of it, never what a library quotes.

A library's message can hold a cell of a table, a header's text or the path of a study.
"""

from __future__ import annotations

import dis
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
RAISE = dis.opmap["RAISE_VARARGS"]
# Code that is given arrays and pseudonyms: what it says, of memory, shapes and devices, is numbers.
NUMBERS_ALONE = ("torch", "pipeline.models")


@dataclass
class Nameable:
    """Paths that may be printed: those that the user named, and what lies in folders whose names are all ours."""

    files: set[Path] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)

    def __contains__(self, path: Path) -> bool:
        resolved = path.resolve()
        return resolved in self.files or any(folder in (resolved, *resolved.parents) for folder in self.folders)

    def add(self, *files: Path | None) -> None:
        """Add files that the user named."""
        self.files.update(file.resolve() for file in files if file is not None)


def described(error: Exception, nameable: Nameable) -> str:
    """Return the message of an error, its type and its place, or an empty text when it may quote patients' data."""
    if isinstance(error, OSError) and error.errno is not None:
        message = _of_system(error, nameable)
    else:
        message = str(error) if _is_safe(error) else ""
    return f"{message} ({_raised_at(error)})" if message else ""


def frames(error: BaseException) -> str:
    """Return the traceback of an error and of those that led to it: places and code; messages where they are safe."""
    parts = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        parts.append(frames(before) + "\nwhich led to\n\n")
    parts += ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    text = str(error) if _is_safe(error) else "its text is not shown, since it may quote the data"
    parts.append(f"{type(error).__module__}.{type(error).__qualname__}: {text}\n")
    return "".join(parts)


def _of_system(error: OSError, nameable: Nameable) -> str:
    if not isinstance(error.filename, str):
        return error.strerror or ""
    name = error.filename if Path(error.filename) in nameable else "a file or folder"
    return f"{name}: {error.strerror}"


def _is_safe(error: BaseException) -> bool:
    """Say whether the message was written here, or by somebody who has numbers alone to quote."""
    ours = _within(type(error).__module__, ("pipeline", *NUMBERS_ALONE))
    return ours or isinstance(error, MemoryError) or _raised_here(error.__traceback__)


def _raised_here(trace: TracebackType | None) -> bool:
    """Say whether a `raise` of this package raised the error, not a call into something else, or numbers alone did."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    if _within(trace.tb_frame.f_globals.get("__name__", ""), NUMBERS_ALONE):
        return True
    code = trace.tb_frame.f_code
    return PACKAGE_FOLDER in Path(code.co_filename).parents and code.co_code[trace.tb_lasti] == RAISE


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _raised_at(error: BaseException) -> str:
    """Return type and place of an error, for the engineer: the deepest line of this package that it passed."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE_FOLDER in Path(f.filename).parents]
    place = f" at {Path(ours[-1].filename).relative_to(PACKAGE_FOLDER)}:{ours[-1].lineno}" if ours else ""
    return type(error).__name__ + place
