"""What is sent as a study, before anything decodes it: named by its content, its archives within limits."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

from pipeline.store.wording import counted

ZIP = b"PK\x03\x04", b"PK\x05\x06"
# Python reads the directory of an archive whole, at some ten times its size in memory.
MOST_DIRECTORY_BYTES = 4 * 1024**2
LONGEST_NAME = 120
UNSHOWN = re.compile(r"[^\w .,:;+=@()\[\]#&-]+")
END, END_BYTES, COMMENT_BYTES = b"PK\x05\x06", 22, 1 << 16
LOCATOR, LOCATOR_BYTES, RECORD_BYTES = b"PK\x06\x07", 20, 56


class Refusal(ValueError):
    """A study is not judged at all; the message says why, and quotes nothing of it."""


def sanitised(name: str) -> str:
    """Return a sender's name of a study as it may be shown: one short line, without slashes or control characters."""
    return " ".join(UNSHOWN.sub("_", name).split())[:LONGEST_NAME].strip()


def settled(file: Path) -> Path:
    """Give a received file the suffix that its content asks for, where archives are known by suffix; return it."""
    with file.open("rb") as stream:
        begins = stream.read(4)
    return file.rename(file.with_suffix(".zip")) if begins in ZIP else file


def check(folder: Path, most_files: int, most_bytes: int) -> None:
    """Raise Refusal when a study holds more files, or more bytes once unpacked, than it may."""
    files = total = 0
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        if path.suffix == ".zip":
            inside, size = _inside(path)
        else:
            inside, size = 1, path.stat().st_size
        files, total = files + inside, total + size
        if files > most_files:
            raise Refusal(f"it holds more than {counted(most_files, 'file')}, the limit for one study")
        if total > most_bytes:
            raise Refusal(f"its files unpack to more than {most_bytes >> 20} MB, the limit for one study")


def _inside(path: Path) -> tuple[int, int]:
    """Return how many files an archive says that it holds, and their bytes; a damaged one counts as a file."""
    if (directory := _directory_bytes(path)) > MOST_DIRECTORY_BYTES:
        raise Refusal(f"its archive has a directory of {directory >> 20} MB, more than any study needs")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [member.file_size for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return 1, path.stat().st_size  # the reader says what is wrong with it
    # What a member unpacks to beyond what it says is not read.
    return len(sizes), sum(sizes)


def _directory_bytes(path: Path) -> int:
    """Return the size that an archive states of its directory, 0 when it has none, as zipfile looks for it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - COMMENT_BYTES - END_BYTES - LOCATOR_BYTES - RECORD_BYTES))
        tail = stream.read()
        at = tail.rfind(END)
        if tail[-END_BYTES:][:4] == END and tail[-2:] == b"\0\0":
            at = len(tail) - END_BYTES
        if at < 0 or at + END_BYTES > len(tail):
            return 0
        stated = [struct.unpack("<L", tail[at + 12 : at + 16])[0]]
        locator = tail[max(0, at - LOCATOR_BYTES) : at]
        if locator.startswith(LOCATOR):
            # Versions of Python differ in whether they look where the locator points, or right before it.
            stream.seek(min(struct.unpack("<Q", locator[8:16])[0], size))
            records = stream.read(RECORD_BYTES), tail[: at - LOCATOR_BYTES][-RECORD_BYTES:]
            stated += [struct.unpack("<Q", record[40:48])[0] for record in records if len(record) == RECORD_BYTES]
        return max(stated)
