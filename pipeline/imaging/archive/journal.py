"""An archive on its way into tables: file by file, then series by series, each batch a page of a journal.

What an earlier ingest, or this one before it was killed, has read is not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.imaging.archive.examination import Assembled, Examined, Rules
from pipeline.imaging.archive.members import Member
from pipeline.imaging.archive.quality import UNEXPECTED, reassessed
from pipeline.imaging.archive.sources import Source
from pipeline.imaging.archive.tasks import examine_file, examine_members
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.pseudonyms import Lookup, path_pseudonym
from pipeline.imaging.quarantine import PASSING_REASONS, Refusal
from pipeline.store.files import sha256_json
from pipeline.store.tables.ingest import ASSEMBLED, EXAMINED
from pipeline.store.tables.io import iterate, write_rows
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.store.artifacts import Artifact, SourceHashes
    from pipeline.store.runlog import RunLog

SERIES_PER_BATCH = 4
# A series has hundreds of slices.
SERIES_TIMEOUT_FACTOR = 10


class Archive:
    """The sources by pseudonym, with what identifies their state: the hash on disk."""

    def __init__(self, sources: Sequence[Source], secret: bytes, hashes: SourceHashes) -> None:
        self.sources = sources
        self._hashes = hashes
        self._archives: dict[str, str] = {}
        self.ids = pa.array([path_pseudonym(secret, source.place) for source in sources], pa.string())

    def stored_sha256(self, source: Source) -> str:
        """Return the SHA-256 of the file on disk, of the archive for a member; nothing when it cannot be read."""
        if source.refusal is not None and (source.member is None or source.refusal.reason == "left_out"):
            return ""
        if source.file not in self._archives:
            try:
                found = self._hashes.as_planned(Path(source.file))
            except OSError:
                found = ""
            if source.member is None:
                return found
            self._archives[source.file] = found
        return self._archives[source.file]

    def chosen(self, ids: set[str]) -> dict[str, Source]:
        """Return the sources with these pseudonyms."""
        pairs = zip(self.ids, self.sources, strict=True)
        return {name: source for text, source in pairs if (name := text.as_py()) in ids}


@dataclass(frozen=True)
class Reading:
    """How an archive is read: its files, the rules, the workers, an earlier ingest, and the journal of this one."""

    archive: Archive
    rules: Rules
    pool: Pool
    previous: Artifact | None
    journal: Path
    log: RunLog

    @property
    def slow_pool(self) -> Pool:
        """The workers with the time that a series takes."""
        return replace(self.pool, timeout_s=SERIES_TIMEOUT_FACTOR * self.pool.timeout_s)


def examine_all(reading: Reading, batch_size: int, lookup: Lookup | None) -> list[Path]:
    """Examine all files that neither an earlier ingest nor this one before its interruption has examined.

    Returns the pages of the journal that hold all files.
    """
    archive, rules, journal, log = reading.archive, reading.rules, reading.journal, reading.log
    kept, pages = _take_over(reading)
    named = zip(archive.ids.to_pylist(), archive.sources, strict=True)
    left = [(name, source) for name, source in named if name not in kept]
    if kept:
        log.info(f"{counted(len(kept), 'file is', 'files are')} unchanged since the last ingest")
    batches = [left[at : at + batch_size] for at in range(0, len(left), batch_size)]
    page_of = [_page(journal, "files", [name for name, _ in batch]) for batch in batches]
    todo = {n: [source for _, source in batch] for n, batch in enumerate(batches) if not page_of[n].exists()}
    done = len(left) - sum(map(len, todo.values()))
    if done:
        log.info(
            f"{done} of {counted(len(left), 'file')} {'was' if done == 1 else 'were'} read before the interruption"
        )
    items = {number: [(source,) for source in batch] for number, batch in todo.items()}

    def results() -> Iterator[Examined]:
        for number, found in each_batch(partial(examine_file, rules), items, reading.pool, journal):
            verdicts, rows = [], []
            for source, result in zip(todo[number], found, strict=True):
                stored = archive.stored_sha256(source)
                verdicts.append(_verdict(source, result, stored, rules))
                rows.append(_examined_row(verdicts[-1]) | {"stored_sha256": stored})
            if lookup is not None:
                lookup.add(entry for verdict in verdicts for entry in verdict.lookup)
            write_rows(page_of[number], rows, EXAMINED)
            yield from verdicts

    for _ in log.track(results(), "files", total=len(left), start=done):
        pass
    return pages + page_of


def _page(journal: Path, kind: str, content: Sequence[str]) -> Path:
    """Return the page of a batch, named by what is in it: after an interruption, batches can be others."""
    return journal / f"{kind}-{sha256_json(list(content))[:16]}.parquet"


def _verdict(source: Source, result: Examined | Refusal, stored_sha256: str, rules: Rules) -> Examined:
    """Return the result of a worker; a refusal that comes from its death lacks the file's pseudonym.

    A file that is not what it was when the run was planned is refused: the artifact's key speaks of the earlier one.
    """
    if isinstance(result, Refusal):
        source_id = path_pseudonym(rules.secret, source.place)
        lookup = (("path", source_id, source.place.replace("\0", "/")),)
        return Examined(source_id, "", refusal=result, lookup=lookup)
    if source.member is None and result.sha256 and result.sha256 != stored_sha256:
        refusal = Refusal("unreadable", "changed while the pipeline ran")
        return Examined(result.source_id, result.sha256, refusal=refusal, lookup=result.lookup)
    return result


def _examined_row(verdict: Examined) -> dict[str, Any]:
    refusal = verdict.refusal
    return {
        "patient_id": verdict.patient_id,
        **(verdict.row or {}),
        "source_id": verdict.source_id,
        "header_patient": verdict.patient_id,
        "placeholder": verdict.placeholder,
        "row_id": verdict.row_id,
        "sha256": verdict.sha256,
        "reason": refusal.reason if refusal else "",
        "detail": refusal.detail if refusal else "",
        "part_of": verdict.part_of,
    }


def _take_over(reading: Reading) -> tuple[set[str], list[Path]]:
    """Copy the rows of unchanged files from the previous ingest into the journal; return their pseudonyms and pages.

    Their flags follow the card, which may expect something else by now.
    """
    if reading.previous is None:
        return set(), []
    archive, rules, journal = reading.archive, reading.rules, reading.journal
    hashes = [archive.stored_sha256(source) for source in archive.sources]
    now = pd.Series(hashes, index=pd.Index(archive.ids.to_pandas()))
    kept: set[str] = set()
    pages = []
    names = [column.name for column in EXAMINED.columns]
    for piece in iterate(reading.previous.file("examined.parquet"), names):
        before = piece.select(["source_id", "stored_sha256", "reason"]).to_pandas()
        unchanged = now.reindex(before["source_id"]).to_numpy() == before["stored_sha256"]
        unchanged &= before["stored_sha256"] != ""
        reassessed = [_reassessed(row, rules) for row in piece.filter(pa.array(unchanged.astype(bool))).to_pylist()]
        rows = [row for row in reassessed if row is not None]
        ids = [row["source_id"] for row in rows]
        pages.append(_page(journal, "kept-files", ids))
        write_rows(pages[-1], rows, EXAMINED)
        kept.update(ids)
    return kept, pages


def _reassessed(row: dict[str, Any], rules: Rules) -> dict[str, Any] | None:
    """Return the row of an earlier ingest with the flags of now; None when the image has to be read again."""
    if row["reason"] in PASSING_REASONS or row["reason"] in UNEXPECTED:
        return None
    if row["image_id"] is None:
        return row
    before = [flag for flag in row["quality_flags"].split(",") if flag]
    flags = reassessed(before, row["modality"], row["view"], row["body_part"], rules.limits)
    return None if {*flags} & {*rules.policy.refused_flags} else row | {"quality_flags": ",".join(flags)}


def assemble_all(reading: Reading, examined: Path) -> list[Path]:
    """Turn parts among the examined files into volumes, but for those that were assembled before; return the pages
    of the journal that hold all of them.
    """
    journal = reading.journal
    names = ["source_id", "sha256", "part_of", "patient_id"]
    found = [piece.filter(pc.field("part_of") != "") for piece in iterate(examined, names)]
    parts = pa.concat_tables(found).to_pandas().sort_values(["part_of", "source_id"])
    series = dict(iter(parts.groupby("part_of", sort=True)))
    members = {name: _members_digest(group) for name, group in series.items()}
    known, pages = _take_over_series(members, reading)
    left = [name for name in series if name not in known]
    if not left:
        return pages
    sources = reading.archive.chosen(set(parts["source_id"]))
    batches = [left[at : at + SERIES_PER_BATCH] for at in range(0, len(left), SERIES_PER_BATCH)]
    page_of = [_page(journal, "series", [members[name] for name in batch]) for batch in batches]
    todo = {number: batch for number, batch in enumerate(batches) if not page_of[number].exists()}
    items = {number: [_series_item(series[name], sources) for name in batch] for number, batch in todo.items()}
    done = len(left) - sum(map(len, todo.values()))

    def results() -> Iterator[str]:
        task, pool = partial(examine_members, reading.rules), reading.slow_pool
        for number, results in each_batch(task, items, pool, journal):
            rows = []
            for name, result in zip(todo[number], results, strict=True):
                rows += _assembled_rows(name, members[name], series[name], result)
            write_rows(page_of[number], rows, ASSEMBLED)
            yield from todo[number]

    for _ in reading.log.track(results(), "series", total=len(left), start=done):
        pass
    return pages + page_of


def _members_digest(group: pd.DataFrame) -> str:
    return sha256_json(group[["source_id", "sha256", "patient_id"]].to_numpy().tolist())


def _take_over_series(members: Mapping[str, str], reading: Reading) -> tuple[set[str], list[Path]]:
    """Copy the volumes of series of which no file has changed into the journal; return these series and the pages.

    A series of which one row has to be made again is assembled again as a whole.
    """
    if reading.previous is None:
        return set(), []
    names, file = [column.name for column in ASSEMBLED.columns], reading.previous.file("assembled.parquet")

    def unchanged() -> Iterator[list[tuple[str, dict[str, Any] | None]]]:
        for piece in iterate(file, names):
            rows = (row for row in piece.to_pylist() if members.get(row["part_of"]) == row["members"])
            yield [(row["part_of"], _reassessed(row, reading.rules)) for row in rows]

    again = {series for piece in unchanged() for series, row in piece if row is None}
    kept: set[str] = set()
    pages = []
    for number, piece in enumerate(unchanged()):
        rows = [row for series, row in piece if row is not None and series not in again]
        # The number keeps apart two pieces that hold rows of one large series.
        pages.append(_page(reading.journal, "kept-series", [str(number), *(row["members"] for row in rows)]))
        write_rows(pages[-1], rows, ASSEMBLED)
        kept.update(row["part_of"] for row in rows)
    return kept, pages


def _series_item(group: pd.DataFrame, found: Mapping[str, Source]) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    pairs = zip(group["source_id"], group["sha256"], strict=True)
    members = tuple(Member(name, found[name], sha256) for name, sha256 in pairs)
    return members, tuple(sorted({patient for patient in group["patient_id"] if patient}))


def _assembled_rows(
    name: str, members: str, group: pd.DataFrame, result: Sequence[Assembled] | Refusal
) -> list[dict[str, Any]]:
    if isinstance(result, Refusal):
        result = [Assembled((source_id,), refusal=result) for source_id in group["source_id"]]
    return [
        {
            **(one.row or {}),
            "part_of": name,
            "members": members,
            "sources": list(one.source_ids),
            "reason": one.refusal.reason if one.refusal else "",
            "detail": one.refusal.detail if one.refusal else "",
        }
        for one in result
    ]
