"""What a stage says while it works: lines, progress and metrics. Knows nothing of MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
# Less time or a smaller share says nothing of the rest; items are of different sizes, and come in batches.
LEAST_S, LEAST_SHARE = 5.0, 0.02
Sink = Callable[[Mapping[str, float], int], None]


@dataclass
class RunLog:
    """Prints lines and progress for one stage to stderr and hands metrics to `sink`.

    A terminal gets a progress bar; anything else gets a plain line every few seconds. With `progress_only` that is all;
    with `quiet` nothing is printed.
    """

    stage: str
    sink: Sink | None = None
    quiet: bool = False
    progress_only: bool = False
    interval_s: float = 10.0
    warnings: list[str] = field(default_factory=list)

    def info(self, message: str) -> None:
        """Print one line."""
        if not self.progress_only:
            self._print(message)

    def _print(self, message: str) -> None:
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
        pace, said = Pace(total, start), time.monotonic()
        for done, item in enumerate(items, start + 1):
            yield item
            pace.reached(done)
            if time.monotonic() - said >= self.interval_s and done < total:
                said = time.monotonic()
                self._print(f"{description} {done} of {total}{pace.left()}")

    def _bar(self, items: Iterable[T], description: str, total: int, start: int) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        pace = Pace(total, start)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{self.stage}: {description}", total=total, completed=start, left="")
            for done, item in enumerate(items, start + 1):
                yield item
                pace.reached(done)
                progress.update(task, completed=done, left=pace.left())


class Pace:
    """How long the rest will take, told only once it means something."""

    def __init__(self, total: int, start: int = 0) -> None:
        self.total, self.start, self.done = total, start, start
        self.first = self.last = time.monotonic()

    def reached(self, done: int) -> None:
        """Note that so many items are done."""
        self.done, self.last = done, time.monotonic()
        if done == self.start + 1:
            self.first = self.last  # the first item waits for processes to start, which says nothing about the rest

    def left(self) -> str:
        """Return `, about 3 min left`; an empty text while too little is done to say, or for the last seconds."""
        counted, passed = self.done - self.start - 1, self.last - self.first
        if passed < LEAST_S or counted < LEAST_SHARE * (self.total - self.start):
            return ""
        left = passed / counted * (self.total - self.done)
        return f", about {_duration(left)} left" if left >= LEAST_S else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
