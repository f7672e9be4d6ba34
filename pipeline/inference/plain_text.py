"""Text that people wrote, on pages of ours: on one line, cut to a length, and with nothing in it but text."""

from __future__ import annotations

import re

RESEARCH_USE = "Research use only — not for diagnosis"
# What Markdown or HTML would read as more than text; bars would divide a table's cells.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def ended(text: str) -> str:
    """Return `text` with a full stop, unless it ends a sentence already or was cut."""
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def shortened(text: str, length: int = 160) -> str:
    """Return `text` cut to about `length` characters: after a sentence, else after a word with an ellipsis."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    cut = text[: length - 1]
    if ". " in cut[length // 2 :]:
        return cut.rsplit(". ", 1)[0] + "."
    return (cut.rsplit(" ", 1)[0] if " " in cut[length // 2 :] else cut) + "…"


def markdown(text: str) -> str:
    """Return `text` on one line so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
