"""Sites are called A, B, C wherever a report may go; which is which stays with the artifact.

A site's pseudonym is the same in every run with the same key, so that reports of several runs could be joined by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import ascii_uppercase
from typing import Any

import pandas as pd

SHORTENED = 12  # characters of a pseudonym that evaluate names a group of patients by


class Sites:
    """The letter of each site, in the order of their pseudonyms; a site that is not stated has none."""

    def __init__(self, pseudonyms: Iterable[str]) -> None:
        names = sorted({name for name in pseudonyms if name})
        self.letters: Mapping[str, str] = {name: letter(at) for at, name in enumerate(names)}
        spelled = {name[:SHORTENED]: letter for name, letter in self.letters.items()} | dict(self.letters)
        self._spelled = spelled
        found = "|".join(re.escape(name) for name in sorted(spelled, key=len, reverse=True))
        # A pseudonym is 26 letters and digits by chance: it occurs in no text by accident.
        self._pattern = re.compile(rf"(?<!\w)(?:{found})(?!\w)") if found else None

    def of(self, pseudonym: str) -> str:
        """Return a site's letter; nothing for one that is not stated."""
        return self.letters.get(pseudonym, "")

    def lettered(self, value: Any) -> Any:
        """Return JSON, text or a data frame with every pseudonym of a site replaced by its letter."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._spelled[found[0]], value) if self._pattern else value
        if isinstance(value, Mapping):
            return {self.lettered(key): self.lettered(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.lettered(item) for item in value]
        return value

    def lettered_groups(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a table of groups, columns `attribute` and `group`, with the sites' letters."""
        if "group" not in frame:
            return frame
        # What is no site's name stays: a patient of several, or of an unknown one.
        lettered = frame["group"].map(lambda group: self.letters.get(str(group), group))
        return frame.assign(group=frame["group"].where(frame["attribute"] != "site", lettered))


def letter(at: int) -> str:
    """Return the name of the `at`-th of many, from 0: A, B, ... Z, AA, AB, ..."""
    name = ""
    at += 1
    while at:
        at, rest = divmod(at - 1, len(ascii_uppercase))
        name = ascii_uppercase[rest] + name
    return name
