"""What a label table says of the images of an archive, in terms of pseudonyms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.labels.joining import COLUMNS, contradicting_rows, row_keys
from pipeline.labels.path_rules import PathRule
from pipeline.labels.table_file import encoding_remark
from pipeline.labels.values import LabelsError, meanings, read_labels
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.labels.archive import Archive
    from pipeline.settings.card import Card, CardLabel
    from pipeline.store.runlog import RunLog


@dataclass(frozen=True)
class LabelTable:
    """A label table, the card that explains its columns, and the secret that makes pseudonyms of its identifiers."""

    path: Path
    card: Card
    secret: bytes


@dataclass(frozen=True)
class Labels:
    """0 or 1, and the dataset's own split (empty when it names none), by values of the pseudonym `column`.

    `rows` are the labelled rows of the table: their `value` in the column that joins, and its `key`, the pseudonym.
    `other` counts the rows that have neither a positive nor a negative value.
    """

    column: str
    label: pd.Series
    given: pd.Series
    rows: pd.DataFrame
    other: int


def labels_of(table: LabelTable, archive: Archive, meaning: CardLabel, value_column: str, log: RunLog) -> Labels:
    """Return one label of the table in terms of pseudonyms.

    Raises LabelsError with all problems, none of them quoting the table.
    """
    card, columns = table.card, table.card.columns
    join = getattr(columns, columns.join)
    cells = read_labels(table.path, [join, value_column, *filter(None, [columns.split])])
    if meaning is card.label and (remark := encoding_remark(table.path)):
        log.warn(remark)
    label, explained = meanings(cells[value_column], meaning.positive, meaning.negative, meaning.unused)
    given = cells[columns.split].fillna("") if columns.split else pd.Series("", index=cells.index)
    other = int((~explained).sum())
    unknown = other if meaning is card.label else 0  # of a further label, other values are no answer
    nameless = int(cells[join].isna().sum())
    strange = sorted({*given} - {*card.splits, ""})
    labelled = cells[join].notna() & label.notna()
    rule = PathRule(**columns.path_rule)
    values = cells.loc[labelled, join]
    keys = row_keys(values, columns.join, table.secret, archive.present[columns.join], rule, columns.id_ignore)
    label, given = label[labelled].astype(int), given[labelled]
    contradicting = contradicting_rows(partial(read_labels, table.path), keys, label, columns.join)
    if contradicting and columns.several_rows == "any_positive":
        log.info(f"{contradicting.partition(' in several rows')[0]}; any positive row makes them positive")
        contradicting = ""
    label, given = label.set_axis(keys), given.set_axis(keys)
    unsplit = int((given == "").sum()) if columns.split else 0
    divided = int((given.groupby(level=0).nunique() > 1).sum())
    problems = [
        text
        for count, text in (
            (
                unknown,
                f"{unknown} of {counted(len(cells), 'row')} {'has' if unknown == 1 else 'have'} a value in column "
                f"{value_column} that is neither positive ({', '.join(meaning.positive)}) nor negative "
                f"({', '.join(meaning.negative)}); add it to label.positive, label.negative or label.unused",
            ),
            (nameless, f"{counted(nameless, 'row has', 'rows have')} nothing in column {join}"),
            (contradicting, contradicting),
            (label.empty, "no row has a label"),
            (
                len(strange),
                f"{counted(len(strange), 'value')} of column {columns.split} {'is' if len(strange) == 1 else 'are'} "
                "not explained by the card's splits",
            ),
            (
                unsplit,
                f"{counted(unsplit, 'labelled row has', 'labelled rows have')} nothing in column {columns.split}",
            ),
            (
                divided,
                f"{counted(divided, 'value')} of column {join} {'is' if divided == 1 else 'are'} in several splits of "
                f"column {columns.split}",
            ),
        )
        if count
    ]
    if problems:
        raise LabelsError("label table: " + "; ".join(problems) + "; correct the table or the dataset card")
    rows = pd.DataFrame({"value": values, "key": keys})
    return Labels(COLUMNS[columns.join], label.groupby(level=0).max(), given.groupby(level=0).first(), rows, other)
