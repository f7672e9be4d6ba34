"""The summary of a batch: what became of its studies, which to look at first, and what the model promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reporting import pdf
from pipeline.reporting.document import printable, shortened
from pipeline.reporting.numbers import count, missing, number, probability, share
from pipeline.reporting.study_page import ELSEWHERE, NO_DECISION, RESEARCH_ONLY, VERDICTS, Verdict, moment, tail
from pipeline.store.wording import counted

HIGHEST_SCORES, NOT_ASSESSABLE = 30, 10  # rows of the two tables
REFUSALS = 12  # reasons of refused files
TEXT, NAME, CELL = 700, 110, 60  # characters


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """A study of the batch: `study` as the user named it, and the first of the reasons for its decision, if any."""

    study: str
    decision: Verdict
    score: float | None = None
    probability: float | None = None
    typical: bool | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is said of all studies together.

    `refused` counts the files that were not read by reason in words. `certificate` and `threshold` are sentences, as
    on the pages. `shift` warns that the batch differs from the studies of the certificate; empty when it does not.
    `predicted_at` is ISO 8601. When the model is not `usable`, no decision, threshold, certificate or probability is
    shown whatever the fields hold.
    """

    model_title: str
    version: str
    model_hash: str
    predicted_at: str
    usable: bool
    why_not: str = ""
    files_read: int = 0
    refused: Mapping[str, int]
    threshold: str = ""
    certificate: str = ""
    shift: str = ""
    not_for: Sequence[str] = ()


@dataclass
class _Seen:
    """What is kept of the rows: counts, and the few that are shown, so that memory does not grow with the batch."""

    decisions: Counter[str]
    unlike: int
    highest: list[SummaryRow]
    without_score: list[SummaryRow]


def render_summary(rows: Iterable[SummaryRow], batch: Batch) -> bytes:
    """Return the summary as PDF/A-2a and PDF/UA-1, the same bytes for the same batch in whatever order.

    `rows` are every study of the batch, read once. Raises ValueError when a decision or the time is none.
    """
    seen = _read(rows)
    return pdf.typeset("batch_summary.typ", printable(_content(seen, batch)), {}, moment(batch.predicted_at))


def _read(rows: Iterable[SummaryRow]) -> _Seen:
    seen = _Seen(Counter(), 0, [], [])
    for row in rows:
        if row.decision not in VERDICTS:
            raise ValueError(f"{row.decision!r} is no decision; there are {', '.join(VERDICTS)}")
        seen.decisions[row.decision] += 1
        seen.unlike += row.typical is False
        if row.decision == "not assessable" or missing(row.score):
            _keep(seen.without_score, row, NOT_ASSESSABLE)
        else:
            _keep(seen.highest, row, HIGHEST_SCORES)
    _sort(seen.highest, HIGHEST_SCORES)
    _sort(seen.without_score, NOT_ASSESSABLE)
    return seen


def _keep(kept: list[SummaryRow], row: SummaryRow, most: int) -> None:
    kept.append(row)
    if len(kept) > 10 * most:  # sorting after every row would take most of the time
        _sort(kept, most)


def _sort(kept: list[SummaryRow], most: int) -> None:
    kept.sort(key=lambda row: (-(row.score or 0.0), row.study))
    del kept[most:]


def _content(seen: _Seen, batch: Batch) -> dict[str, Any]:
    return {
        "title": "Summary of a batch of studies",
        "research_only": RESEARCH_ONLY,
        "shift": shortened(batch.shift, TEXT),
        "withheld": _withheld(batch),
        "boxes": _boxes(seen) if batch.usable else [],
        "studies": _studies(seen, batch.usable),
        "files": _files(batch),
        "refused": _refused(batch.refused),
        "promise": [shortened(text, TEXT) for text in (batch.threshold, batch.certificate) if text]
        if batch.usable
        else [],
        "tables": _tables(seen, batch.usable),
        "not_for": [shortened(text, TEXT) for text in batch.not_for[:REFUSALS]],
        "identity": [
            [name, tail(printable(value), NAME)]
            for name, value in (
                ("Model", batch.model_title),
                ("Model hash", batch.model_hash),
                ("maescreen", batch.version),
                ("Predicted at", batch.predicted_at),
            )
        ],
    }


def _withheld(batch: Batch) -> list[str]:
    """Return why there are no decisions, its title first; nothing when there are."""
    if batch.usable:
        return []
    _, large, meaning = NO_DECISION
    return [large, meaning, shortened(batch.why_not or "its gate failed", TEXT)]


def _boxes(seen: _Seen) -> list[dict[str, str]]:
    """Return the number of studies by decision, as large boxes; those that could not be scored count as referred."""
    return [
        {"look": VERDICTS[name][0], "number": count(seen.decisions[name]), "name": VERDICTS[name][1], "what": what}
        for name, what in (
            ("refer", "score at or above the threshold"),
            ("not assessable", "not scored; counts as referred"),
            ("no refer", "score below the threshold"),
        )
    ]


def _studies(seen: _Seen, usable: bool) -> str:
    total, without = seen.decisions.total(), seen.decisions["not assessable"]
    unlike = f"{share(seen.unlike, total)} are unlike those that the model was made on"
    if not usable:
        return f"{_counted(total)}: {count(total - without)} scored, {count(without)} not; {unlike}."
    look = share(seen.decisions["refer"] + without, total)
    return f"{_counted(total)}; {look} to be looked at; {unlike}, so that the certificate does not speak for them."


def _counted(studies: int) -> str:
    return f"{count(studies)} {'study' if studies == 1 else 'studies'}"


def _files(batch: Batch) -> str:
    refused = sum(batch.refused.values())
    return f"{counted(batch.files_read + refused, 'file')}: {count(batch.files_read)} read, {count(refused)} refused."


def _refused(refused: Mapping[str, int]) -> list[list[str]]:
    """Return reasons with their counts, the most frequent first, the rarest together."""
    ordered = sorted(refused.items(), key=lambda one: (-one[1], one[0]))
    rows = [[shortened(reason, CELL), count(number)] for reason, number in ordered[:REFUSALS]]
    if rest := ordered[REFUSALS:]:
        rows.append(
            [f"{counted(len(rest), 'other reason')}, in quarantine.csv", count(sum(number for _, number in rest))]
        )
    return rows


def _tables(seen: _Seen, usable: bool) -> list[dict[str, Any]]:
    scored = seen.decisions.total() - seen.decisions["not assessable"]
    columns = ["Study", "Decision", "Score", "Probability", "Like the model's?"] if usable else ["Study", "Score"]
    found = [
        {
            "caption": _caption("The highest scores", len(seen.highest), scored),
            "columns": columns,
            "rows": [_row(row, usable) for row in seen.highest],
        },
        {
            "caption": _caption("Not scored", len(seen.without_score), seen.decisions["not assessable"]),
            "columns": ["Study", "Reason"],
            "rows": [[_named(row), shortened(row.reason, 2 * CELL) or "no reason given"] for row in seen.without_score],
        },
    ]
    return [table for table in found if table["rows"]]


def _caption(what: str, shown: int, all_of_them: int) -> str:
    return what if shown == all_of_them else f"{what}: {count(shown)} of {count(all_of_them)}; all are in {ELSEWHERE}"


def _row(row: SummaryRow, usable: bool) -> list[str]:
    score = number(row.score, 2)
    if not usable:
        return [_named(row), score]
    like = "not checked" if row.typical is None else "yes" if row.typical else "no"
    return [_named(row), VERDICTS[row.decision][1], score, probability(row.probability), like]


def _named(row: SummaryRow) -> str:
    return tail(printable(row.study), CELL)
