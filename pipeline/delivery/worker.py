"""Waiting studies through a model: several in one pass, each finished with its files or given up with its reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.delivery import pages
from pipeline.delivery.queue import Entry, Queue
from pipeline.delivery.results import of_model
from pipeline.delivery.uploads import Refusal, check
from pipeline.imaging.archive.sources import Source
from pipeline.imaging.archive.workers import WorkersError
from pipeline.imaging.quarantine import REASONS as REFUSALS
from pipeline.inference.batch import Group
from pipeline.inference.model import Model, Predictions, StudiesError
from pipeline.inference.outline import pictured
from pipeline.inference.result import Result
from pipeline.inference.rule import REASONS
from pipeline.reporting.page_pictures import as_seen, outline
from pipeline.store.files import json_text, sha256_file, sha256_json

SCHEMA = "study/1"
RESULT, PAGE, IMAGE, OUTLINE = "result.json", "page.pdf", "image.svg", "outline.svg"
STUDIES_PER_PASS, FINISHED_AT_A_TIME = 64, 4
MB = 1024**2
EMPTY = "the study holds no file"
BROKEN = "judging it ended with an error that is of no file of it in particular ({})"
SEVERAL = "it holds {} studies by its headers; send each study by itself"

# What else is written of a study: its files by name. `at` is the time that they state.
Writer = Callable[[Entry, Result, Predictions, str], Mapping[str, bytes]]


def page_files(_entry: Entry, result: Result, predictions: Predictions, at: str) -> dict[str, bytes]:
    """Return the page of a study as PDF, and its pictures for the browser where it has an image."""
    found = {PAGE: pages.page(result, predictions, at)}
    if result.picture is not None:
        image, outlined = pictured(result.picture)
        found[IMAGE] = as_seen(image).encode()
        if outlined is not None:
            found[OUTLINE] = outline(outlined).encode()
    return found


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How studies are judged: `recall_target` and `prevalence` as for `Model.predict`, the rest of this machine.

    `most_files` and `most_mb` bound what one study may hold, archives counted by what is in them. `writers` are called
    by name for every study; what one of them cannot write, `result.json` names.
    """

    recall_target: float | None = None
    prevalence: float | None = None
    workers: int = 2
    studies_per_pass: int = STUDIES_PER_PASS
    most_files: int = 5000
    most_mb: int = 4096
    keep_files: bool = False
    writers: Mapping[str, Writer] = field(default_factory=lambda: {"page": page_files})


def judge(queue: Queue, model: Model, how: Judging, stopping: Callable[[], bool] = lambda: False) -> int:
    """Take waiting studies, judge them in one pass, move each to `finished` or `failed`; return how many were taken.

    When `stopping`, those that have no result yet wait again. A study that breaks the pass is judged once more alone,
    and then given up. Raises OSError and WorkersError, as without room on the disk, with every study waiting again.
    """
    taken = queue.take(how.studies_per_pass)
    fit = [entry for entry in taken if _fits(queue, entry, how)]
    left = {entry.id: entry for entry in fit}
    try:
        _pass(queue, model, how, fit, left, stopping)
        for entry in [*left.values()]:
            if stopping():
                break
            broke = _pass(queue, model, how, [entry], left, stopping)
            if broke is not None:
                _fail(queue, left, entry, BROKEN.format(type(broke).__name__))
    finally:
        for entry in left.values():
            queue.give_back(entry)
    return len(taken)


def _fits(queue: Queue, entry: Entry, how: Judging) -> bool:
    try:
        check(entry.files, how.most_files, how.most_mb * MB)
    except Refusal as refusal:
        queue.fail(entry, str(refusal))
        return False
    return True


def _pass(
    queue: Queue,
    model: Model,
    how: Judging,
    entries: Sequence[Entry],
    left: dict[str, Entry],
    stopping: Callable[[], bool],
) -> Exception | None:
    """Finish these entries and take them out of `left`; return what broke the pass, if anything."""
    if not entries:
        return None
    try:
        predictions = model.predict(
            [entry.files for entry in entries],
            recall_target=how.recall_target,
            prevalence=how.prevalence,
            workers=how.workers,
            pictures=True,
            masks=bool(model.ensemble.structures),
        )
        groups = _groups(queue, entries, predictions, left)
        by_name = {entry.id: entry for entry in entries}
        with _finishing(queue, how, left) as finish:
            for result in predictions.of(groups):
                entry = by_name[result.study]
                finish(entry, _files(entry, result, predictions, how))
                if stopping():
                    break
    except StudiesError:
        for entry in entries:
            _fail(queue, left, entry, EMPTY)
    except (OSError, WorkersError):
        raise  # of this machine, not of a study
    except Exception as error:
        return error
    return None


def _fail(queue: Queue, left: dict[str, Entry], entry: Entry, reason: str) -> None:
    queue.fail(entry, reason)
    del left[entry.id]


@contextmanager
def _finishing(
    queue: Queue, how: Judging, left: dict[str, Entry]
) -> Iterator[Callable[[Entry, Mapping[str, bytes]], None]]:
    """Yield what finishes a study while the next is judged, since disks are slow; what is done leaves `left`.

    Raises OSError when one could not be finished, after the others.
    """
    begun: dict[str, Future[Entry]] = {}

    def finish(entry: Entry, files: Mapping[str, bytes]) -> None:
        begun[entry.id] = disk.submit(queue.finish, entry, files, how.keep_files)

    with ThreadPoolExecutor(FINISHED_AT_A_TIME) as disk:
        try:
            yield finish
        finally:
            wait(begun.values())
            errors = [found for one in begun.values() if (found := one.exception()) is not None]
            for entry_id, one in begun.items():
                if one.exception() is None:
                    del left[entry_id]
    if errors:
        raise errors[0]


def _groups(queue: Queue, entries: Sequence[Entry], predictions: Predictions, left: dict[str, Entry]) -> list[Group]:
    """Return one study per entry, whatever is in it; an entry of several studies, or of no file, is failed."""
    sources: dict[int, list[Source]] = defaultdict(list)
    for source in predictions.sources:
        sources[source.root].append(source)
    # The same study can be in several entries: a second sender, or a late image. Each entry has its own result.
    headers: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for group in predictions.found.groups:
        if group.study_uid:
            for root in {source.root for source in group.sources}:
                headers[root].add((group.patient, group.study_uid))
    groups = []
    for root, entry in enumerate(entries):
        if not sources[root] or len(headers[root]) > 1:
            _fail(queue, left, entry, SEVERAL.format(len(headers[root])) if sources[root] else EMPTY)
            continue
        patient, study_uid = next(iter(headers[root]), ("", ""))
        identity = sha256_json(sorted(sha256_file(Path(file)) for file in {s.file for s in sources[root]}))
        groups.append(Group(entry.id, study_uid, patient, tuple(sources[root]), identity))
    return groups


def _files(entry: Entry, result: Result, predictions: Predictions, how: Judging) -> dict[str, bytes]:
    at, written, missing = pages.now(), {}, []
    for name, writer in how.writers.items():
        try:
            written |= writer(entry, result, predictions, at)
        except Exception:  # whatever a library finds wrong with a page, the decision stands
            missing.append(name)
    content = _content(entry, result, predictions, at) | {"not_written": missing}
    return {**written, RESULT: json_text(content).encode("utf-8", "replace")}


def _content(entry: Entry, result: Result, predictions: Predictions, at: str) -> dict[str, Any]:
    refused = sorted({refusal.reason for _, refusal in result.refused})
    return {
        "schema": SCHEMA,
        "id": entry.id,
        "name": entry.name,
        "source": entry.source,
        "received": entry.received,
        "judged": at,
        "model": of_model(predictions.model),
        "why": [*(REASONS[name] for name in result.judgement.reasons), *(REFUSALS[name] for name in refused)],
        "outline": result.picture.outline if result.picture else None,
        "result": result.to_row(),
        "quarantine": result.quarantine(),
    }
