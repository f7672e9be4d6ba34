"""Which files under the studies are which channel of which study, where columns of the label table name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.imaging.archive.sources import Source
from pipeline.imaging.quarantine import Refusal
from pipeline.labels.path_rules import PathRule
from pipeline.labels.values import LabelsError, read_labels

if TYPE_CHECKING:
    from pipeline.settings.card import Card


def with_channels(sources: Sequence[Source], card: Card, labels: Path | None) -> list[Source]:
    """Return the sources, each that the label table names with its channel and its study; as they are where the card
    tells channels otherwise.

    What two rows or two columns name is refused: it could be either. Raises LabelsError without the columns.
    """
    if not (named := named_channels(card, labels)):
        return list(sources)
    rule = PathRule(**card.columns.path_rule)
    found = []
    for source in sources:
        channels = named.get(rule.of_file(source.path), [])
        if len(channels) > 1 and source.refusal is None:
            refusal = Refusal("ambiguous_channel", "the label table names one file more than once")
            source = replace(source, refusal=refusal)
        elif channels:
            channel, study = channels[0]
            source = replace(source, channel=channel, study=study)
        found.append(source)
    return found


def named_channels(card: Card, labels: Path | None) -> dict[str, list[tuple[str, str]]]:
    """Return channel and study of each path in the label table; a study is called by the paths of its row."""
    columns = {one.column: one.name for one in card.channels if one.column}
    if not columns:
        return {}
    if labels is None:
        raise LabelsError(
            "channels are told by columns of the label table, and images of data.unlabelled are in none; tell "
            "channels by description, suffix or axis, or name no such images"
        )
    rule = PathRule(**card.columns.path_rule)
    named: dict[str, list[tuple[str, str]]] = {}
    for row in read_labels(labels, [*columns]).drop_duplicates().to_dict("records"):
        paths = {name: rule.of_row(row[column]) for column, name in columns.items() if isinstance(row[column], str)}
        study = "\0".join(paths.get(name, "") for name in columns.values())
        for name, path in paths.items():
            named.setdefault(path, []).append((name, study))
    return named
