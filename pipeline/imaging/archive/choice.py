"""Which of the files under the studies are meant: glob patterns on their paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

ARRAYS_SUFFIX = ".npz"


@dataclass(frozen=True)
class Choice:
    """Takes a path that fits one of `include`, or any when there is none, and none of `exclude`.

    In a pattern, `*` and `?` stand for anything within a name, `[...]` for one of some characters, `**` for whole
    folders. A pattern fits a folder with all that is in it, and without a slash at any depth, as git has it; `./` in
    front and a slash at the end change nothing. Upper and lower case differ.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, path: str) -> bool:
        """Say whether the file at `path`, its folders divided by slashes, is meant."""
        path = normalize("NFC", path.replace("\\", "/"))
        return (not self.include or bool(self._included.match(path))) and not self._excluded.match(path)

    @cached_property
    def _included(self) -> re.Pattern[str]:
        return _compiled(self.include)

    @cached_property
    def _excluded(self) -> re.Pattern[str]:
        return _compiled(self.exclude)


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    # Without a pattern, an expression that nothing fits.
    return re.compile("|".join(map(_expression, patterns)) or r"(?!)", re.DOTALL)


def _expression(pattern: str) -> str:
    parts = [part for part in normalize("NFC", pattern).replace("\\", "/").split("/") if part not in ("", ".")]
    anywhere = len(parts) == 1
    text = "(?:[^/]+/)*" if anywhere else ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            text += ".+" if last else "(?:[^/]+/)*"
        else:
            text += _name(part) + ("" if last else "/")
    return f"(?:{text}(?:/.*)?\\Z)"


def _name(part: str) -> str:
    """Return the expression of a pattern within one name."""
    text, at = "", 0
    while at < len(part):
        end = part.find("]", at + 2)
        if part[at] == "[" and end > 0:
            inside = re.sub(r"([\\\[&~|])", r"\\\1", part[at + 1 : end])
            text += f"[^/{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
            at = end
        else:
            text += {"*": "[^/]*", "?": "[^/]"}.get(part[at], re.escape(part[at]))
        at += 1
    return text


def has_images(labels: Path) -> bool:
    """Say whether a label table may hold the images, too, as MedMNIST's do."""
    return labels.suffix.lower() == ARRAYS_SUFFIX
