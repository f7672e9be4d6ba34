"""What the statistics say when a number cannot be given: warnings with a stable code, and one error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class ScreenWarning(UserWarning):
    """A quantity is undefined or must be read with care. `code` is stable; the text may change."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {self.args[0]}"


class NotEnoughData(ValueError):
    """A guarantee or a fit was asked of too little data.

    `positives` patients with the condition are there and `needed` would be enough; `certifiable_recall` is
    the highest recall that they can certify, NaN where no recall was asked for.
    """

    def __init__(self, message: str, *, positives: int, needed: int, certifiable_recall: float = float("nan")) -> None:
        super().__init__(message)
        self.positives = positives
        self.needed = needed
        self.certifiable_recall = certifiable_recall


def warn(code: str, message: str) -> None:
    """Emit a ScreenWarning."""
    warnings.warn(ScreenWarning(code, message), stacklevel=3)


@contextmanager
def collect_warnings() -> Iterator[list[ScreenWarning]]:
    """Yield a list that receives each distinct ScreenWarning of the block; other warnings pass through."""
    collected: list[ScreenWarning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield collected
    seen: set[str] = set()
    for record in caught:
        if not isinstance(record.message, ScreenWarning):
            warnings.warn_explicit(record.message, record.category, record.filename, record.lineno)
        elif str(record.message) not in seen:
            seen.add(str(record.message))
            collected.append(record.message)
