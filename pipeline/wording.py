"""Numbers and their nouns agree."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 image`, `2 images`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
