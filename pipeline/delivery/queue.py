"""A queue of studies on disk: the state of a study is the folder it lies in, and `ls` is the dashboard.

    ROOT/incoming/.ID/    being received; nobody takes it
    ROOT/incoming/ID/     waiting
    ROOT/processing/ID/   being judged
    ROOT/finished/ID/     judged: result.json and what else was written
    ROOT/failed/ID/       given up: failure.json says why

Each move is one rename, flushed to disk, so that a crash at any moment leaves a study in exactly one folder. Who
receives or judges a study holds a lock of the kernel on its folder, which ends with the process: what nobody holds was
interrupted. Several processes may share a queue.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.store.files import flush_directory, read_json, write_json

INCOMING, PROCESSING, FINISHED, FAILED = STATES = ("incoming", "processing", "finished", "failed")
RECEIVING = "receiving"
FILES, NOTE, ATTEMPTS, FAILURE = "files", "entry.json", "attempts", "failure.json"
ID = re.compile(r"\d{8}T\d{9}Z-[0-9a-f]{16}")
BIN = ".bin"  # what is being removed
# One interruption can be a power cut. A study that was being judged at each of three is what interrupts.
MOST_ATTEMPTS = 3


class QueueError(RuntimeError):
    """The queue cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """A study in the queue: its `folder` now, where it came from, how its sender called it, when it came (ISO 8601).

    `attempts` counts how often judging it was begun. `name` is the sender's word: show it, never build a path of it.
    """

    id: str
    folder: Path
    source: str
    name: str
    received: str
    attempts: int = 0

    @property
    def files(self) -> Path:
        """The folder of what was received."""
        return self.folder / FILES

    @property
    def state(self) -> str:
        """The folder of the queue that it lies in, or `receiving`."""
        return RECEIVING if self.folder.name.startswith(".") else self.folder.parent.name


class Queue:
    """A queue in the folder `root`, which is made, for its owner alone, when it is not there.

    Raises QueueError when the folder holds something else, or lies where a folder cannot be locked.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        if root.is_dir() and any(root.iterdir()) and not (root / INCOMING).is_dir():
            raise QueueError(f"{root} holds other files; name a new or empty folder, or one that is a queue")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for state in (*STATES, BIN):
            (self.root / state).mkdir(mode=0o700, exist_ok=True)
        flush_directory(self.root)
        self._held: dict[str, int] = {}

    # ------------------------------------------------------------ receiving

    def receive(self, source: str, name: str = "", flushed: bool = True) -> Entry:
        """Return a new entry; write the study's files into `entry.files`, then `submit` or `discard` it.

        `source` says by what it came: `http`, `dicom`. Files are to be named by the receiver, never by the sender. With
        `flushed` the entry survives a power cut before it is submitted, as where each file is acknowledged by itself.
        """
        while True:
            now = datetime.now(UTC)
            entry_id = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}Z-{secrets.token_hex(8)}"
            folder = self.root / INCOMING / f".{entry_id}"
            folder.mkdir(mode=0o700)
            # Another process that starts can take a folder without a lock for an abandoned one, and remove it.
            if self._hold(entry_id, folder):
                break
        (folder / FILES).mkdir(mode=0o700)
        note = {"source": source, "name": name, "received": now.isoformat(timespec="milliseconds")}
        _write(folder / NOTE, json.dumps(note, ensure_ascii=False).encode())
        if flushed:
            _flush(folder / NOTE)
            flush_directory(folder)
            flush_directory(folder.parent)
        return _read(folder)

    def submit(self, entry: Entry) -> Entry:
        """Let a received study wait for its turn: once this returns, no crash loses it.

        Raises QueueError when it is not being received.
        """
        if not entry.files.is_dir():
            raise QueueError(f"{entry.id} is no longer {entry.state}")
        for folder, _, names in os.walk(entry.files):
            for name in names:
                _flush(Path(folder) / name)
            flush_directory(Path(folder))
        _flush(entry.folder / NOTE)
        flush_directory(entry.folder)
        return self._move(entry, INCOMING)

    def discard(self, entry: Entry) -> None:
        """Remove an entry that is being received."""
        if entry.state != RECEIVING:
            raise QueueError(f"{entry.id} is {entry.state}: what was received is not discarded")
        self._remove(entry.folder, entry.id)
        self._release(entry.id)

    def unfinished(self, source: str) -> list[Entry]:
        """Return, and hold from now on, the entries of a source whose receiver has ended before it submitted them."""
        found = []
        for folder in sorted((self.root / INCOMING).glob(".*")):
            entry_id = folder.name[1:]
            if not ID.fullmatch(entry_id) or entry_id in self._held or not self._hold(entry_id, folder):
                continue
            if not _noted(folder):  # ended before anything was received for good
                self._remove(folder, entry_id)
            elif (entry := _read(folder)).source == source:
                found.append(entry)
                continue
            self._release(entry_id)
        return found

    # ------------------------------------------------------------ judging

    def take(self, most: int) -> list[Entry]:
        """Return up to `most` waiting studies, the oldest first; they are this process's from now on.

        A study whose judging was interrupted before is taken alone, since it may be what interrupts.
        """
        taken: list[Entry] = []
        for entry_id in self.ids(INCOMING):
            if len(taken) == most:
                break
            folder = self.root / INCOMING / entry_id
            again = _attempts(folder)
            if (again and taken) or not self._hold(entry_id, folder):
                continue
            try:
                _write(folder / ATTEMPTS, f"{again + 1}\n".encode())
                # Not flushed: after a power cut it waits again, with nothing lost.
                entry = _read(folder)
                entry.folder.rename(self.root / PROCESSING / entry_id)
                taken.append(replace(entry, folder=self.root / PROCESSING / entry_id))
            except FileNotFoundError:  # another process was faster
                self._release(entry_id)
                continue
            if again:
                break
        return taken

    def finish(self, entry: Entry, results: Mapping[str, bytes], keep_files: bool = False) -> Entry:
        """Write the files of a study's result, by their names, and move it to `finished`.

        What was received is then removed unless `keep_files`.
        """
        for name, content in results.items():
            (entry.folder / name).write_bytes(content)
            _flush(entry.folder / name)
        flush_directory(entry.folder)
        finished = self._move(entry, FINISHED)
        if not keep_files:
            self._remove(finished.files, entry.id)
        return finished

    def fail(self, entry: Entry, reason: str) -> Entry:
        """Give a study up: it lies in `failed`, with its files and the reason, a sentence that quotes no file."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(entry.folder / FAILURE, {"reason": reason, "time": at})
        return self._move(entry, FAILED)

    def requeue_interrupted(self) -> list[Entry]:
        """Let studies wait again whose judging ended with its process, and return them; to be called at the start.

        What was judged `MOST_ATTEMPTS` times without an end is failed. Half-removed files are removed.
        """
        for rest in (self.root / BIN).iterdir():
            shutil.rmtree(rest, ignore_errors=True)
        moved = []
        for entry_id in self.ids(PROCESSING):
            folder = self.root / PROCESSING / entry_id
            if entry_id in self._held or not self._hold(entry_id, folder):
                continue
            entry = _read(folder)
            if entry.attempts >= MOST_ATTEMPTS:
                self.fail(entry, f"judging it was interrupted {entry.attempts} times; it may be what interrupts")
                continue
            moved.append(self._back(entry, (FILES, NOTE, ATTEMPTS)))
        return moved

    def give_back(self, entry: Entry) -> Entry:
        """Let a taken study wait again as if it had not been taken, as when the judging process is to end."""
        return self._back(entry, (FILES, NOTE))

    def _back(self, entry: Entry, kept: tuple[str, ...]) -> Entry:
        for path in entry.folder.iterdir():
            if path.name not in kept:
                path.unlink()
        return self._move(entry, INCOMING)

    # ------------------------------------------------------------ looking

    def ids(self, state: str) -> list[str]:
        """Return the ids of the studies in a folder, the oldest first."""
        return sorted(name for name in os.listdir(self.root / state) if ID.fullmatch(name))

    def find(self, entry_id: str) -> Entry | None:
        """Return an entry wherever it is; None when there is no such id."""
        if not ID.fullmatch(entry_id):
            return None
        # It may move while it is looked for: forward once at most between two looks, or back.
        for state in (*STATES, *STATES):
            try:
                return _read(self.root / state / entry_id)
            except FileNotFoundError:
                continue
        return None

    def counts(self) -> dict[str, int]:
        """Return how many studies are in each state, `receiving` among them."""
        found = {state: len(self.ids(state)) for state in STATES}
        hidden = (name[1:] for name in os.listdir(self.root / INCOMING) if name.startswith("."))
        return {RECEIVING: sum(bool(ID.fullmatch(name)) for name in hidden), **found}

    # ------------------------------------------------------------ locks and moves

    def _hold(self, entry_id: str, folder: Path) -> bool:
        """Lock an entry's folder for this process; False when another one has it, or it is not there any more."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, whoever had it may have moved it on.
            same = os.path.samestat(os.fstat(descriptor), folder.stat())
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            os.close(descriptor)
            return False
        self._held[entry_id] = descriptor
        return True

    def _release(self, entry_id: str) -> None:
        descriptor = self._held.pop(entry_id, None)
        if descriptor is not None:
            os.close(descriptor)

    def _move(self, entry: Entry, state: str) -> Entry:
        """Move an entry into a folder, flush both, and let go of it."""
        target = self.root / state / entry.id
        try:
            entry.folder.rename(target)
        except FileNotFoundError:
            raise QueueError(f"{entry.id} is no longer {entry.state}") from None
        for folder in {target.parent, entry.folder.parent}:
            flush_directory(folder)
        self._release(entry.id)
        return replace(entry, folder=target)

    def _remove(self, folder: Path, entry_id: str) -> None:
        """Remove a folder: out of sight by one rename, then file by file."""
        gone = self.root / BIN / f"{entry_id}-{secrets.token_hex(4)}"
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _read(folder: Path) -> Entry:
    note = read_json(folder / NOTE)
    return Entry(
        folder.name.lstrip("."), folder, note["source"], note["name"], note["received"], attempts=_attempts(folder)
    )


def _noted(folder: Path) -> bool:
    try:
        return bool(read_json(folder / NOTE))
    except (FileNotFoundError, ValueError):
        return False


def _attempts(folder: Path) -> int:
    try:
        return int((folder / ATTEMPTS).read_text("ascii"))
    except (FileNotFoundError, ValueError):  # a power cut can leave it empty
        return 0


def _write(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent whenever a process ends; flushed to disk only by who needs that."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
