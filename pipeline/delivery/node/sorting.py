"""From images to studies: what the spool holds goes into the queue, and a study is whole when no more of it comes."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.delivery.dicom.source import subject_of, text_of
from pipeline.delivery.dicom.studies import Studies
from pipeline.delivery.node.receiver import SUFFIX, spool_of
from pipeline.delivery.queue import FAILED, FINISHED, Entry, Queue
from pipeline.imaging.formats.dicom import header_of_file
from pipeline.store.files import flush_directory, write_text

SOURCE = "dicom"
SUBJECT = "subject"
WANTED = ("PatientID", "StudyInstanceUID", "SOPInstanceUID")


@dataclass
class Open:
    """A study that is coming: its entry, and when its last image came (monotonic, in s)."""

    entry: Entry
    last_s: float


class Sorter:
    """Sorts images into studies. What is in the spool or in an entry survives every crash; nothing is in both."""

    def __init__(self, queue: Queue, quiet_s: float, keep_hours: float, clock: Callable[[], float] = time.monotonic):
        self.queue, self.quiet_s, self.keep_hours, self.clock = queue, quiet_s, keep_hours, clock
        self.spool = spool_of(queue.root)
        self.studies = Studies(queue.root)
        self._open: dict[str, Open] = {}
        self._cleaned: set[str] = set()
        for entry in queue.unfinished(SOURCE):
            subject = _kept_subject(entry)
            if any(entry.files.iterdir()) and subject not in self._open:
                self._open[subject] = Open(entry, clock())
            elif any(entry.files.iterdir()):
                self._submit(subject, entry)
            else:
                queue.discard(entry)

    @property
    def receiving(self) -> int:
        """How many studies are coming."""
        return len(self._open)

    def step(self, everything: bool = False) -> list[str]:
        """Sort what has come, let studies that are whole wait for their turn; return the ids of these.

        With `everything`, those that may not be whole, too.
        """
        for path in sorted(self.spool.glob(f"*{SUFFIX}")):
            self._sort(path)
        submitted = []
        for subject, one in list(self._open.items()):
            if everything or self.clock() - one.last_s >= self.quiet_s:
                del self._open[subject]
                if self._submit(subject, one.entry):
                    submitted.append(one.entry.id)
        return submitted

    def _sort(self, path: Path) -> None:
        uid, study, subject = "", "", ""
        try:
            header = header_of_file(path, WANTED)
            uid, study = (text_of(header, name) for name in ("SOPInstanceUID", "StudyInstanceUID"))
            subject = subject_of(study, header) if study else ""
        except ValueError:
            pass  # no header: a study of its own, which is not assessable
        subject = subject or hashlib.sha256(path.name.encode()).hexdigest()
        # An image that is sent again takes the place of the first, whatever it is called by its sender.
        name = hashlib.sha256((uid or path.name).encode()).hexdigest()[:40]
        if subject not in self._open:
            entry = self.queue.receive(SOURCE, study)
            write_text(entry.folder / SUBJECT, subject)
            self._open[subject] = Open(entry, 0.0)
        one = self._open[subject]
        os.replace(path, one.entry.files / f"{name}{SUFFIX}")
        flush_directory(one.entry.files)
        flush_directory(self.spool)
        one.last_s = self.clock()

    def _submit(self, subject: str, entry: Entry) -> bool:
        """Submit a study with the images that came of it before; False when it is what came before, and no more."""
        while (earlier := self._earlier(subject, entry)) is not None:
            try:
                if earlier.state != FAILED and _same(entry.files, earlier.files):
                    self.queue.discard(entry)
                    return False
                for file in earlier.files.iterdir():
                    if not (entry.files / file.name).exists():
                        os.link(file, entry.files / file.name)
                break
            except FileNotFoundError:  # it moved on while it was looked at
                continue
        self.studies.add(subject, entry.id)
        self.queue.submit(entry)
        return True

    def _earlier(self, subject: str, entry: Entry) -> Entry | None:
        """Return the latest entry about the same study whose images are still there."""
        for entry_id in reversed(self.studies.entries(subject)):
            found = self.queue.find(entry_id) if entry_id != entry.id else None
            if found is not None and found.files.is_dir():
                return found
        return None

    def clean(self) -> None:
        """Remove the images of finished studies that are too old for a late image to come."""
        oldest = datetime.now(UTC) - timedelta(hours=self.keep_hours)
        for entry_id in self.queue.ids(FINISHED):
            if entry_id in self._cleaned:
                continue
            if datetime.strptime(entry_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) > oldest:
                break  # ids rise with time
            entry = self.queue.find(entry_id)
            if entry is not None and entry.source == SOURCE and entry.state == FINISHED:
                shutil.rmtree(entry.files, ignore_errors=True)
            self._cleaned.add(entry_id)


def _kept_subject(entry: Entry) -> str:
    try:
        return (entry.folder / SUBJECT).read_text("ascii")
    except FileNotFoundError:  # its receiver ended right after it was begun, or before it was submitted
        return hashlib.sha256(entry.id.encode()).hexdigest()


def _same(these: Path, those: Path) -> bool:
    names = sorted(path.name for path in these.iterdir())
    return all((those / name).is_file() and filecmp.cmp(these / name, those / name, shallow=False) for name in names)
