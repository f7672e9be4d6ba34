"""Numbers and their nouns agree."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, thousands separated: `1 image`, `2 images`, `5,216 images`."""
    return f"{number:,} {agreeing(number, noun, plural or noun + 's')}"


def agreeing(number: int, one: str, several: str) -> str:
    """Return the word that agrees with a number: `was` with 1, `were` with any other."""
    return one if number == 1 else several
