"""The studies of a queue as a list for people: read once, filtered and ordered as asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.delivery.outcomes import Outcomes
from pipeline.delivery.queue import FAILED, FAILURE, FINISHED, INCOMING, PROCESSING, Entry, Queue
from pipeline.store.files import read_json

RESULT, MASKS = "result.json", "masks.json"
# As many of the newest are kept in memory, at about 1 kB each.
MOST_ROWS = 20_000
BY_HAND = "it was put here by hand"
Order = Literal["suspicion", "time"]


@dataclass(frozen=True)
class Row:
    """A study in the list: `state` is its folder in the queue, `why` why it failed or is not assessable."""

    id: str
    name: str
    received: str
    state: str
    decision: str = ""
    score: float | None = None
    probability: float | None = None
    typical: bool | None = None
    usable: bool = True
    why: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """Return the sender's name of the study, its id when there is none."""
        return self.name or self.id

    @classmethod
    def of(cls, entry: Entry, content: Mapping[str, Any]) -> Row:
        """Return the row of a finished study; `content` is its result.json."""
        found = content["result"]
        numbers = (found["score"], found["probability"], found["typical"])
        usable, why = content["model"]["usable"], tuple(content["why"])
        return cls(entry.id, entry.name, entry.received, entry.state, found["decision"], *numbers, usable, why)


class ReadingList:
    """The rows of a queue, of each state; a study that is finished or failed is read once."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.outcomes = Outcomes(queue.root)
        self._settled: dict[str, dict[str, Row]] = {FINISHED: {}, FAILED: {}}
        self._lock = threading.Lock()

    def settled(self, state: str) -> dict[str, Row]:
        """Return the newest rows of `finished` or `failed`, by id."""
        with self._lock:
            known = self._settled[state]
            ids = self.queue.ids(state)[-MOST_ROWS:]
            rows = {one: known.get(one) or self._read(state, one) for one in ids}
            self._settled[state] = {one: row for one, row in rows.items() if row is not None}
            return self._settled[state]

    def waiting(self) -> list[Row]:
        """Return the studies that have no result yet, the oldest first."""
        found = (self.queue.find(one) for state in (PROCESSING, INCOMING) for one in self.queue.ids(state))
        return [Row(e.id, e.name, e.received, e.state) for e in found if e and e.state in (PROCESSING, INCOMING)]

    def counts(self) -> Counter[str]:
        """Return how many finished studies have which decision."""
        return Counter(row.decision for row in self.settled(FINISHED).values())

    def latest_outcomes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the last recorded outcome of each study."""
        with self._lock:
            return dict(self.outcomes.latest())

    def _read(self, state: str, entry_id: str) -> Row | None:
        entry = self.queue.find(entry_id)
        if entry is None or entry.state != state:
            return None
        if state == FAILED:
            return Row(entry.id, entry.name, entry.received, state, why=(why_failed(entry),))
        try:
            return Row.of(entry, read_json(entry.folder / RESULT))
        except (OSError, ValueError):
            return None


def why_failed(entry: Entry) -> str:
    """Return why a study was given up."""
    path = entry.folder / FAILURE
    return read_json(path)["reason"] if path.is_file() else BY_HAND


def chosen(rows: Iterable[Row], decision: str = "", name: str = "", order: Order = "suspicion") -> list[Row]:
    """Return the rows of one decision, all when it is empty, whose name or id holds `name`, in an order.

    By suspicion: what could not be judged, then the highest score; by time: the newest.
    """
    wanted = name.casefold().strip()
    kept = [
        row
        for row in rows
        if (not decision or row.decision == decision) and (wanted in row.name.casefold() or wanted in row.id)
    ]
    kept.sort(key=lambda row: row.id, reverse=True)
    if order == "suspicion":
        kept.sort(key=lambda row: (row.score is not None, -(row.score or 0.0)))
    return kept
