"""What a stage says while it works: lines, progress and metrics. Knows nothing of MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Sink = Callable[[Mapping[str, float], int], None]


@dataclass
class RunLog:
    """Prints lines and progress for one stage to stderr and hands metrics to `sink`.

    A terminal gets a progress bar; anything else gets a plain line every few seconds.
    """

    stage: str
    sink: Sink | None = None
    quiet: bool = False
    interval_s: float = 10.0
    warnings: list[str] = field(default_factory=list)

    def info(self, message: str) -> None:
        """Print one line."""
        if not self.quiet:
            print(f"{self.stage}: {message}", file=sys.stderr, flush=True)  # noqa: T201

    def warn(self, message: str) -> None:
        """Print one warning line and keep it for the artifact's record, which the report shows."""
        self.warnings.append(message)
        self.info(f"warning: {message}")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Hand a batch of metrics of one epoch or step to the tracker."""
        if self.sink is not None:
            self.sink(values, step)

    def track(self, items: Iterable[T], description: str, total: int, start: int = 0) -> Iterator[T]:
        """Yield `items`, showing how many of `total` are done and how long the rest will take.

        `start` items were done in an earlier, interrupted run.
        """
        if sys.stderr.isatty() and not self.quiet:
            yield from self._bar(items, description, total, start)
            return
        first = said = time.monotonic()
        for done, item in enumerate(items, start + 1):
            yield item
            now = time.monotonic()
            if done == start + 1:
                first = now  # the first item waits for processes to start, which says nothing about the rest
            elif now - said >= self.interval_s and done < total:
                said = now
                left = (now - first) / (done - start - 1) * (total - done)
                self.info(f"{description} {done} of {total}, about {_duration(left)} left")

    def _bar(self, items: Iterable[T], description: str, total: int, start: int) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{self.stage}: {description}", total=total, completed=start)
            for item in items:
                yield item
                progress.advance(task)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
