"""The lights of a running service: what `monitor` would say of its queue, looked at again every few minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.delivery.followup import FollowupError, read_places
from pipeline.delivery.monitoring import Light, lights
from pipeline.delivery.streams import MonitorError, Watched

REFRESH_S = 300.0


@dataclass(frozen=True)
class Seen:
    """The lights as they were at `at`, ISO 8601; when there are none, `why` says why."""

    lights: Sequence[Light] = ()
    why: str = "Not looked at yet."
    at: str = ""


class StandingLights:
    """The lights of a queue and a model; pages show what was seen last, and never wait for it."""

    def __init__(self, root: Path, watched: Watched | None, why_not: str = "") -> None:
        """`watched` is None when there is nothing to hold results against; `why_not` says why."""
        self.seen = Seen(why=why_not) if watched is None else Seen()
        self._root, self._watched = root, watched

    @classmethod
    def of(
        cls, root: Path, model: Path, content: Mapping[str, Any], sha256: str, prevalence: float | None
    ) -> StandingLights:
        """Return the lights of the queue at `root` for a checked model folder."""
        try:
            return cls(root, Watched.of(model, content, sha256, prevalence))
        except MonitorError as error:
            return cls(root, None, f"Nothing can be watched: {error}.")

    def look(self) -> None:
        """Read the results and outcomes of the queue, and say what they show; takes seconds when there are many."""
        if self._watched is None:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            studies, outcomes = read_places([str(self._root)])
            own = [one for one in studies if one.model in (self._watched.sha256, "")]
            if not any(one.model for one in own):
                self.seen = Seen(why="No study was judged by this model yet.", at=at)
                return
            self.seen = Seen(lights(own, outcomes, self._watched), "", at)
        except FollowupError as error:
            self.seen = Seen(why=f"The results in the queue cannot be read: {error}.", at=at)
