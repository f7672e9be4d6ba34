"""The channels that a dataset's card lists, and how it is known which of them a series or a file is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.imaging.quarantine import Refused

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Channel:
    """A channel, and what tells it: words of the series' description, the end of the file's name, a place along the
    last axis of a four-dimensional volume, or a column of a table with paths; then sources say which channel they are.

    A description fits when it has all words of one of `description` and none of those of any of `without`.
    """

    name: str
    description: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    suffix: str = ""
    axis: int | None = None
    column: str = ""

    @classmethod
    def from_settings(cls, channel: Mapping[str, Any]) -> Channel:
        """Return a channel as the card, or a model's JSON, has it."""
        return cls(
            name=channel["name"],
            description=tuple(channel.get("description") or ()),
            without=tuple(channel.get("without") or ()),
            suffix=channel.get("suffix") or "",
            axis=channel.get("axis"),
            column=channel.get("column") or "",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values without what says nothing."""
        said = {
            "description": list(self.description),
            "without": list(self.without),
            "suffix": self.suffix,
            "column": self.column,
        }
        axis = {} if self.axis is None else {"axis": self.axis}
        return {"name": self.name, **{name: value for name, value in said.items() if value}, **axis}

    def fits(self, description: str) -> bool:
        """Say whether a series with this description is the channel."""
        words = _words(description)
        return any(_words(one) <= words for one in self.description) and not any(
            _words(one) <= words for one in self.without
        )


def channels_of(card: Mapping[str, Any]) -> tuple[Channel, ...]:
    """Return the channels of a dumped card, none where it lists none."""
    return tuple(Channel.from_settings(one) for one in card.get("channels", ()))


def by_axis(channels: Sequence[Channel]) -> bool:
    """Say whether the channels lie in one file, along its fourth axis."""
    return any(one.axis is not None for one in channels)


def by_file(channels: Sequence[Channel]) -> bool:
    """Say whether each channel is a file of its own, told by its name or by a table."""
    return any(one.suffix or one.column for one in channels)


def by_table(channels: Sequence[Channel]) -> bool:
    """Say whether a table says which files are which channel."""
    return any(one.column for one in channels)


def of_description(description: str, channels: Sequence[Channel]) -> str:
    """Return the name of the channel that a series with this description is.

    Raises Refused, without a word of the description, when it is none or several.
    """
    fitting = [one.name for one in channels if one.fits(description)]
    if not fitting:
        raise Refused("no_channel")
    if len(fitting) > 1:
        raise Refused("ambiguous_channel", f"one series is {' and '.join(fitting)}")
    return fitting[0]


def of_path(path: str, channels: Sequence[Channel]) -> tuple[str, str]:
    """Return the channel that a file with this name is, and the path without its suffix; two empty texts for none."""
    for one in channels:
        if one.suffix and path.lower().endswith(one.suffix.lower()):
            return one.name, path[: -len(one.suffix)]
    return "", ""


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.casefold()))
