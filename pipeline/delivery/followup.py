"""What became of studies: results of predict and of the queue, by site and day, and the outcomes that came back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.delivery.outcomes import TABLE
from pipeline.delivery.queue import FAILED, FAILURE, FINISHED
from pipeline.delivery.reading_list import RESULT
from pipeline.labels.table_file import read_table_file
from pipeline.labels.values import meanings
from pipeline.store.files import read_json
from pipeline.store.wording import counted

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results.json"
SCHEMAS = {RESULTS: "results/1", RESULT: "study/1"}
DAY_IN_NAME = re.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)")
WEEK_IN_NAME = re.compile(r"(?<!\d)(\d{4})-?W(\d{2})(?!\d)")
# Decisions after which somebody looks; the others go home.
LOOKED_AT = ("refer", "not assessable")
FOUND = ("condition found", "found", "positive", "yes", "true", "1")
NOT_FOUND = ("condition not found", "not found", "negative", "no", "false", "0")
UNKNOWN = ("unknown", "unclear", "not known")
COLUMNS = "study, outcome, date, study_date, site"


class FollowupError(ValueError):
    """Results or outcomes cannot be used; the message lists all problems and quotes no patient's data."""


@dataclass(frozen=True)
class Judged:
    """A study that was judged: where, on which day, and what was said. `score` and `typicality` are None without."""

    study: str
    site: str
    day: date
    decision: str
    score: float | None
    typicality: float | None
    model: str
    study_uid: str = ""

    @property
    def looked_at(self) -> bool:
        """Whether somebody looks at it whatever the score."""
        return self.decision in LOOKED_AT


@dataclass(frozen=True)
class Outcome:
    """Whether a study's patient had the condition; None when unknown. `day` is when that was recorded."""

    study: str
    found: bool | None
    day: date | None = None
    site: str = ""


@dataclass(frozen=True)
class Followup:
    """Studies in the order of their days, the outcomes of some of them by place in that order, and remarks."""

    studies: Sequence[Judged]
    outcomes: Mapping[int, Outcome]
    remarks: Sequence[str] = ()


# ---------------------------------------------------------------- results


def read_places(places: Sequence[str]) -> tuple[list[Judged], list[Outcome]]:
    """Return the studies in folders, each named as DIR or SITE=DIR, and the outcomes that readers recorded there.

    A folder is what predict wrote or a queue. The day of a study of a queue is when it came; of predict, the date or
    week in the folder's name (2026-11-29, 2026-W48), else the day on which results.json was written. A study that a
    queue gave up counts as not assessable. Raises FollowupError naming every folder that cannot be used.
    """
    studies: list[Judged] = []
    outcomes: list[Outcome] = []
    problems = []
    for place in places:
        site, equals, path = place.partition("=")
        site, folder = (site, Path(path)) if equals and not Path(place).exists() else ("", Path(place))
        try:
            own, back = _read_folder(folder, site)
        except FollowupError as error:
            problems.append(f"{folder}: {error}")
            continue
        studies += own
        outcomes += back
    if problems:
        raise FollowupError("; ".join(problems))
    return studies, outcomes


def _read_folder(folder: Path, site: str) -> tuple[list[Judged], list[Outcome]]:
    if (folder / RESULTS).is_file():
        day = _day_of(folder)
        return [_judged(row, site, day) for row in _content(folder / RESULTS)["results"]], []
    if (folder / FINISHED).is_dir():
        found = []
        for path in sorted((folder / FINISHED).glob(f"*/{RESULT}")):
            content = _content(path)
            found.append(_judged(content["result"], site, _day(content["received"])))
        for path in sorted((folder / FAILED).glob(f"*/{FAILURE}")):
            day = _day(read_json(path)["time"])
            found.append(Judged(path.parent.name, site, day, "not assessable", None, None, ""))
        return found, _recorded(folder / TABLE, site)
    raise FollowupError(f"no folder with results: expected {RESULTS} of predict, or {FINISHED}/ of a queue")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise FollowupError(f"{path.name} is not JSON") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMAS[path.name]:
        raise FollowupError(f"{path.name} has schema {str(schema)[:40]!r}; this version reads {SCHEMAS[path.name]}")
    return content


def _judged(row: Mapping[str, Any], site: str, day: date) -> Judged:
    kept = ("study", "decision", "score", "typicality", "study_uid")
    return Judged(**{name: row[name] for name in kept}, site=site, day=day, model=row["model_sha256"])


def _day_of(folder: Path) -> date:
    name = folder.resolve().name
    try:
        if found := DAY_IN_NAME.search(name):
            return date(*map(int, found.groups()))
        if found := WEEK_IN_NAME.search(name):
            return date.fromisocalendar(int(found[1]), int(found[2]), 1)
    except ValueError:
        raise FollowupError("its name has a date that does not exist") from None
    return datetime.fromtimestamp((folder / RESULTS).stat().st_mtime, UTC).date()


def _day(text: str) -> date:
    return date.fromisoformat(text[:10])


# ---------------------------------------------------------------- outcomes


def _recorded(path: Path, site: str) -> list[Outcome]:
    """Return what readers recorded on a queue's pages; a line that a crash tore is none."""
    found = []
    for text in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            answer = _meaning(line["outcome"])
            found.append(Outcome(str(line["study"]), answer, _day(line["time"]), site))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _meaning(word: str) -> bool | None:
    folded = " ".join(word.split()).casefold()
    if folded not in (*FOUND, *NOT_FOUND, *UNKNOWN):
        raise ValueError("no outcome")
    return None if folded in UNKNOWN else folded in FOUND


def read_outcomes(table: Path) -> tuple[list[Outcome], dict[tuple[str, str], date]]:
    """Return the outcomes of a table, and the days of studies by study and site where it gives them.

    Columns `study` and `outcome` (found, not found or unknown; empty for none), and, where there are, `date` (when the
    outcome was recorded), `study_date` (when the study was made) and `site`. Of several rows of a study the last one
    holds. Raises FollowupError with every problem.
    """
    frame = read_table_file(table)
    if missing := [name for name in ("study", "outcome") if name not in frame]:
        raise FollowupError(
            f"outcomes need the columns study and outcome; {' and '.join(missing)} is missing (known: {COLUMNS})"
        )
    for name in ("date", "study_date", "site"):
        if name not in frame:
            frame[name] = None
    found, explained = meanings(frame["outcome"], FOUND, NOT_FOUND, UNKNOWN)
    problems = []
    if n := int((~explained).sum()):
        problems.append(f"{counted(n, 'outcome')} neither found, not found nor unknown")
    if n := int(frame["study"].isna().sum()):
        problems.append(f"{counted(n, 'row')} without a study")
    days = {name: frame[name].map(_day_or_none, na_action="ignore") for name in ("date", "study_date")}
    problems += [
        f"{counted(n, f'{name}')} not written as 2026-11-29"
        for name, own in days.items()
        if (n := int((own.isna() & frame[name].notna()).sum()))
    ]
    if problems:
        raise FollowupError(f"the table of outcomes cannot be used: {'; '.join(problems)}")
    answers, said, made = (_or_none(own) for own in (found, days["date"], days["study_date"]))
    keys = list(zip(frame["study"], frame["site"].fillna(""), strict=True))
    outcomes = [
        Outcome(study, None if answer is None else bool(answer), day, site)
        for (study, site), answer, day, word in zip(keys, answers, said, _or_none(frame["outcome"]), strict=True)
        if word is not None
    ]
    return outcomes, {key: day for key, day in zip(keys, made, strict=True) if day is not None}


def _day_or_none(text: str) -> date | None:
    try:
        return _day(text)
    except ValueError:
        return None


def _or_none(column: pd.Series) -> list[Any]:
    return [value if there else None for value, there in zip(column, column.notna(), strict=True)]


# ---------------------------------------------------------------- together


def joined(
    studies: Iterable[Judged],
    outcomes: Sequence[Outcome],
    model: str,
    days: Mapping[tuple[str, str], date] | None = None,
    since: date | None = None,
) -> Followup:
    """Return the studies that `model` (its hash) judged, each once, with the outcomes that came back for them.

    Studies of the same site with one Study Instance UID, or one name and score, are one study, of which the latest
    holds. Those made before `since` are left out. Raises FollowupError when nothing is left, or when an outcome
    could belong to several studies.
    """
    everyone = [replace(one, day=_stated(one, days or {})) for one in studies]
    if not everyone:
        raise FollowupError("the folders hold no study; give folders that predict or the queue has filled")
    own = [one for one in everyone if one.model in (model, "")]
    if not any(one.model for one in own):
        raise FollowupError("no study was judged by this model: --model must be the one that made the results")
    remarks = []
    if others := len(everyone) - len(own):
        remarks.append(f"{counted(others, 'study', 'studies')} judged by another model left out")
    latest: dict[tuple[str, ...], Judged] = {}
    names: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for one in sorted(own, key=lambda one: (one.day, one.site, one.study)):
        which = (one.site, one.study_uid) if one.study_uid else (one.site, one.study, repr(one.score))
        latest[which] = one
        for site in {one.site, ""}:
            names.setdefault((one.study, site), set()).add(which)
    if again := len(own) - len(latest):
        remarks.append(f"{counted(again, 'result')} left out for a later one of the same study")
    kept = [(which, one) for which, one in latest.items() if since is None or one.day >= since]
    if not kept:
        raise FollowupError("no study was made since then")
    kept.sort(key=lambda pair: (pair[1].day, pair[1].site, pair[1].study, pair[0]))
    place = {which: at for at, (which, _) in enumerate(kept)}
    back, strangers, unclear = {}, 0, 0
    for outcome in outcomes:
        meant = names.get((outcome.study, outcome.site), set())
        strangers += not meant
        unclear += len(meant) > 1
        if len(meant) == 1 and (at := place.get(next(iter(meant)))) is not None:
            back[at] = outcome
    if unclear:
        raise FollowupError(
            f"{counted(unclear, 'outcome')} could belong to several studies of the same name: state their site, or let "
            "predict name studies by a table"
        )
    if strangers:
        remarks.append(f"{counted(strangers, 'outcome')} left out: of no study in these folders")
    return Followup([one for _, one in kept], back, remarks)


def _stated(one: Judged, days: Mapping[tuple[str, str], date]) -> date:
    return days.get((one.study, one.site)) or days.get((one.study, "")) or one.day
