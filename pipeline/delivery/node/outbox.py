"""Results on their way to the archive: kept on disk and tried again until each object is acknowledged.

Beside a result lies undelivered.json, written with it, until the archive has acknowledged every object of the study;
then it is delivered.json. A crash between acknowledgement and rename sends the same objects again, under the same UIDs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.delivery.dicom.studies import DELIVERED, OBJECTS, UNDELIVERED
from pipeline.delivery.queue import FAILED, FAILURE, FINISHED, Queue
from pipeline.store.files import read_json, write_json
from pipeline.store.wording import counted

PAUSES_S = (5.0, 15.0, 60.0, 300.0, 900.0)
LOOK_S = 0.5
SOURCE = "dicom"


class NotReached(RuntimeError):
    """The archive does not answer, or not as one: no study can be delivered now. The message says why."""


class Refused(RuntimeError):
    """The archive answers and does not take an object of this study. The message says why."""


class Destination(Protocol):
    """Where results go."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def send(self, files: Sequence[Path]) -> None:
        """Deliver objects; once this returns, each of them is acknowledged. Raises NotReached and Refused."""


@dataclass
class Outbox:
    """Delivers what a queue has finished. Nothing else may deliver from this queue."""

    queue: Queue
    destination: Destination
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    pauses_s: Sequence[float] = PAUSES_S
    _settled: set[str] = field(default_factory=set)
    _not_before: dict[str, float] = field(default_factory=dict)
    _reached_again: float = 0.0
    _unreached: int = 0
    delivered: int = 0

    def waiting(self) -> list[str]:
        """Return the ids of finished studies whose objects are not acknowledged yet, the oldest first."""
        found = []
        for entry_id in self.queue.ids(FINISHED):
            if entry_id in self._settled:
                continue
            folder = self.queue.root / FINISHED / entry_id
            if (folder / UNDELIVERED).is_file():
                found.append(entry_id)
                continue
            self._settled.add(entry_id)
            if not (folder / DELIVERED).is_file():
                self._say_silent(entry_id, folder)
        return found

    def _say_silent(self, entry_id: str, folder: Path) -> None:
        entry = self.queue.find(entry_id)
        if entry is None or entry.source != SOURCE:
            return
        made = read_json(folder / OBJECTS) if (folder / OBJECTS).is_file() else {}
        why = "; ".join(made.get("missing", ())) or "its objects could not be written; result.json says what was"
        self.say(f"listen: study {entry_id} has a result and no DICOM object: {why}")

    def step(self) -> None:
        """Deliver what is due."""
        self._say_failed()
        for entry_id in self.waiting():
            now = self.clock()
            if now < self._reached_again:
                return
            if now >= self._not_before.get(entry_id, 0.0):
                self._deliver(entry_id)

    def _say_failed(self) -> None:
        for entry_id in self.queue.ids(FAILED):
            key = f"{FAILED} {entry_id}"
            if key not in self._settled:
                self._settled.add(key)
                reason = read_json(self.queue.root / FAILED / entry_id / FAILURE)["reason"]
                self.say(f"listen: study {entry_id} could not be judged and has no result: {reason}")

    def _deliver(self, entry_id: str) -> None:
        folder = self.queue.root / FINISHED / entry_id
        note: dict[str, Any] = read_json(folder / UNDELIVERED)
        try:
            self.destination.send(sorted(folder.glob("*.dcm")))
        except NotReached as error:
            pause = _pause(self.pauses_s, self._unreached)
            self._unreached += 1
            self._reached_again = self.clock() + pause
            write_json(folder / UNDELIVERED, note | {"last": str(error)})
            many = counted(len(self.waiting()), "study", "studies")
            self.say(f"listen: {many} not delivered: {self.destination.name}: {error}; again in {pause:g} s")
            return
        except Refused as error:
            pause = _pause(self.pauses_s, note["attempts"])
            self._not_before[entry_id] = self.clock() + pause
            write_json(folder / UNDELIVERED, note | {"attempts": note["attempts"] + 1, "last": str(error)})
            self.say(f"listen: study {entry_id} not delivered: {self.destination.name}: {error}; again in {pause:g} s")
            return
        self._unreached = 0
        done = {"to": self.destination.name, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        write_json(folder / UNDELIVERED, note | {"last": ""} | done)
        (folder / UNDELIVERED).rename(folder / DELIVERED)
        self._settled.add(entry_id)
        self.delivered += 1

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop`; whatever goes wrong with one study is said, and the others go on."""
        while not stop.wait(LOOK_S):
            try:
                self.step()
            except Exception as error:
                self.say(f"listen: results cannot be delivered now: {type(error).__name__}")
                stop.wait(_pause(self.pauses_s, 1))


def _pause(pauses_s: Sequence[float], before: int) -> float:
    return pauses_s[min(before, len(pauses_s) - 1)]


def acknowledged(wanted: Mapping[str, str], stored: Sequence[str]) -> None:
    """Raise Refused when not every object, by UID and file name, is among those that were stored."""
    if missing := [name for uid, name in wanted.items() if uid not in stored]:
        raise Refused(f"{', '.join(missing)} not acknowledged")
