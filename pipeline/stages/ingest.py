"""Read every source file once: accept it into `images.parquet` or quarantine it with a reason.

Files are examined one by one; what belongs to volumes is then assembled, series by series; last comes what concerns
images together, such as duplicates. The results of the first two steps stay in the artifact, so that a later ingest
of the same archive reads only what is new.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.imaging.archive.choice import Choice
from pipeline.imaging.archive.contact_sheet import contact_sheet, thumbnail, worst
from pipeline.imaging.archive.examination import Assembled, Examined, Member, Rules, examine, examine_series
from pipeline.imaging.archive.quality import UNEXPECTED, Limits, reassessed
from pipeline.imaging.archive.sources import Source, find_sources
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.channels import channels_of
from pipeline.imaging.copies.duplicates import (
    ACROSS_PATIENTS,
    NEARLY_ACROSS_PATIENTS,
    find_near_duplicates,
    read_fingerprints,
    resolve_duplicates,
    with_flag,
)
from pipeline.imaging.copies.template_correlation import INVERTED_BELOW, likeness
from pipeline.imaging.image import MB, Policy
from pipeline.imaging.padding import padding_of_maker
from pipeline.imaging.pseudonyms import Lookup, fingerprint, path_pseudonym
from pipeline.imaging.quarantine import FLAGS, REASONS, Refusal
from pipeline.labels.exam import UNCLEAR, completeness, named_exams, sentence, settle
from pipeline.labels.identity import (
    FACTS,
    NUMBERS,
    Findings,
    Named,
    decide,
    named_by_row,
    named_patients,
    objection,
    remarks,
    row_pseudonym,
    with_patients,
)
from pipeline.labels.path_rules import PathRule, apart, check_paths
from pipeline.labels.values import read_labels
from pipeline.store.files import sha256_json, write_json
from pipeline.store.tables.ingest import (
    ASSEMBLED,
    EXAMINED,
    FILES,
    IMAGE_COLUMNS,
    IMAGES,
    NEAR_DUPLICATES,
    QUALITY,
    QUARANTINE,
)
from pipeline.store.tables.io import iterate, merge_pages, return_memory, write_arrow, write_rows, write_table
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.images import IngestSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

JOURNAL = "journal"
SERIES_PER_BATCH = 4
# A series has hundreds of slices.
SERIES_TIMEOUT_FACTOR = 10
# What may turn out otherwise the next time is not taken over from an earlier ingest.
PASSING_REASONS = {"unreadable", "timeout", "decoder_crash", "too_large"}
NO_FILES = {"received": 0, "accepted": 0, "volumes": 0, "patients": 0, "quarantined": {}, "flags": {}, "duplicates": {}}
COMPARED = ["image_id", "patient_id", "pixel_hash"]
SUMMED_UP = [column.name for column in IMAGE_COLUMNS] + ["shifted_day", "lowest", "highest", "clipped_share"]


class NothingAccepted(ValueError):
    """Of all files, none was accepted; `summary` has their counts."""

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


def ingest(settings: IngestSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `images`, `files`, `quarantine`, `quality` and `near_duplicates`, all Parquet, `contact_sheet.png`, and
    `summary.json`; every file received is in `files` or in `quarantine`.

    Batches are journalled in `work`, so that a killed run goes on where it was. Raises NothingAccepted when no image
    was, SourcesError and LabelsError when sources or label table cannot be used as a whole.
    """
    columns = inputs.card.columns
    choice, follow = Choice(inputs.include, inputs.exclude), settings.links == "inside"
    sources = apart(find_sources(inputs.studies, inputs.labels, columns.path is not None, choice, follow))
    if not sources:
        raise NothingAccepted("there is no file under data.studies", NO_FILES)
    named = _named(inputs, sources, log)
    limits = Limits.from_settings(settings.model_dump(), inputs.card.expected.model_dump())
    channels = channels_of(inputs.card.model_dump())
    rules = Rules(Policy.from_settings(settings.model_dump(), channels), limits, inputs.secret, columns.join)
    journal = work / JOURNAL
    journal.mkdir(exist_ok=True)
    archive = _Archive(sources, inputs)
    pages = _examine_all(settings, archive, rules, inputs, journal, log)
    return_memory()
    pages, identity = _identify(pages, archive, named, inputs, journal)
    return_memory()
    merge_pages(pages, work / "examined.parquet", EXAMINED, journal)
    return_memory()
    pages = _assemble_all(settings, archive, rules, inputs, work, log)
    merge_pages(pages, work / "assembled.parquet", ASSEMBLED, journal)
    kept, files, quarantine, duplicates = _settle(work, settings.min_slices)
    return_memory()
    images = _rows(kept, work)
    del kept
    return_memory()
    images, files, quarantine = _exams(images, files, quarantine, work, inputs, limits)
    used = files["source_id"].nunique()  # the frames of one file can be several volumes
    if used + len(quarantine) != len(sources):
        raise RuntimeError(f"{len(sources)} files received, but {used} + {len(quarantine)} have a verdict")
    images, near, odd = _compare(settings, images, work)
    return_memory()
    summary = _summary(images, files, quarantine, {**duplicates, **odd}, inputs.secret)
    summary["identity"] = asdict(identity) | {"objection": objection(identity, columns.patient_from)}
    for remark in [objection(identity, columns.patient_from), *remarks(identity)]:
        if remark:
            log.warn(remark)
    if inputs.card.exam:
        summary["exam"] = completeness(images, inputs.card.exam.model_dump())
    _say(summary, log)
    if images.empty:
        raise NothingAccepted(f"none of {counted(len(sources), 'file')} was accepted; {_reasons(summary)}", summary)
    write_table(work / "images.parquet", images[[column.name for column in IMAGES.columns]], IMAGES)
    write_table(work / "quality.parquet", images[[column.name for column in QUALITY.columns]], QUALITY)
    write_table(work / "files.parquet", files, FILES)
    write_table(work / "quarantine.parquet", quarantine, QUARANTINE)
    write_table(work / "near_duplicates.parquet", near, NEAR_DUPLICATES)
    _draw_worst(images, files, archive, rules, _pool(settings, inputs, SERIES_TIMEOUT_FACTOR), work)
    write_json(work / "summary.json", summary)
    shutil.rmtree(journal)


def _pool(settings: IngestSettings, inputs: Inputs, timeout_factor: int = 1) -> Pool:
    machine = inputs.machine
    memory = int(settings.max_memory_mb * MB)
    return Pool(machine.workers, timeout_factor * settings.timeout_s, machine.backend, machine.scheduler, memory)


class _Archive:
    """The sources by pseudonym, with what identifies their state: the hash on disk."""

    def __init__(self, sources: Sequence[Source], inputs: Inputs) -> None:
        self.sources = sources
        self._inputs = inputs
        self._archives: dict[str, str] = {}
        self.ids = pa.array([path_pseudonym(inputs.secret, source.place) for source in sources], pa.string())

    def row_ids(self, rule: PathRule) -> dict[str, str]:
        """Return, by pseudonym, what a label table that joins by paths knows the sources by."""
        secret = self._inputs.secret
        names = zip(self.ids.to_pylist(), self.sources, strict=True)
        return {name: row_pseudonym(secret, "path", rule.of_file(source.path)) for name, source in names}

    def stored_sha256(self, source: Source) -> str:
        """Return the SHA-256 of the file on disk, of the archive for a member; nothing when it cannot be read."""
        if source.refusal is not None and (source.member is None or source.refusal.reason == "left_out"):
            return ""
        if source.file not in self._archives:
            try:
                found = self._inputs.hashes.as_planned(Path(source.file))
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


# ---------------------------------------------------------------- file by file


def _examine_all(
    settings: IngestSettings, archive: _Archive, rules: Rules, inputs: Inputs, journal: Path, log: RunLog
) -> list[Path]:
    """Examine all files that neither an earlier ingest nor this one before its interruption has examined.

    Returns the pages of the journal that hold all files.
    """
    kept, pages = _take_over(archive, rules, inputs, journal)
    named = zip(archive.ids.to_pylist(), archive.sources, strict=True)
    left = [(name, source) for name, source in named if name not in kept]
    if kept:
        log.info(f"{counted(len(kept), 'file is', 'files are')} unchanged since the last ingest")
    batches = [left[at : at + settings.batch_size] for at in range(0, len(left), settings.batch_size)]
    page_of = [_page(journal, "files", [name for name, _ in batch]) for batch in batches]
    todo = {n: [source for _, source in batch] for n, batch in enumerate(batches) if not page_of[n].exists()}
    done = len(left) - sum(map(len, todo.values()))
    if done:
        log.info(
            f"{done} of {counted(len(left), 'file')} {'was' if done == 1 else 'were'} read before the interruption"
        )
    lookup = Lookup(inputs.lookup) if inputs.lookup else None
    items = {number: [(source,) for source in batch] for number, batch in todo.items()}

    def results() -> Iterator[Examined]:
        for number, found in each_batch(partial(_examine, rules), items, _pool(settings, inputs), journal):
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


def _examine(rules: Rules, item: tuple[Source, ...]) -> Examined:
    return examine(item[0], rules)


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


def _take_over(archive: _Archive, rules: Rules, inputs: Inputs, journal: Path) -> tuple[set[str], list[Path]]:
    """Copy the rows of unchanged files from the previous ingest into the journal; return their pseudonyms and pages.

    Their flags follow the card, which may expect something else by now.
    """
    if inputs.previous is None:
        return set(), []
    hashes = [archive.stored_sha256(source) for source in archive.sources]
    now = pd.Series(hashes, index=pd.Index(archive.ids.to_pandas()))
    kept: set[str] = set()
    pages = []
    names = [column.name for column in EXAMINED.columns]
    for piece in iterate(inputs.previous.file("examined.parquet"), names):
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


# ---------------------------------------------------------------- whose it is


def _named(inputs: Inputs, sources: Sequence[Source], log: RunLog) -> Named:
    """Return the patients that the label table names, after a look at whether its paths are those of the sources.

    Raises LabelsError when they are not, naming the setting that mends it, or when the table contradicts itself.
    """
    columns = inputs.card.columns
    if inputs.labels is None or not inputs.labels.exists():
        return Named()  # whoever has labels is asked for them by `split`
    join, column, rule = columns.join, getattr(inputs.card.columns, columns.join), PathRule(**columns.path_rule)
    if join == "path":
        paths = read_labels(inputs.labels, [column])[column].dropna()
        if problem := check_paths(paths, [source.path for source in sources], rule, column):
            log.warn(problem)
    by_row = named_by_row(inputs.labels, join, column, columns.patient_id, rule)
    named = named_patients(by_row, join, inputs.secret)
    if inputs.lookup:
        Lookup(inputs.lookup).add(("patient", name, text) for name, text in sorted(named.originals.items()))
    return named


def _identify(
    pages: Sequence[Path], archive: _Archive, named: Named, inputs: Inputs, journal: Path
) -> tuple[list[Path], Findings]:
    """Decide whose each file is; return pages that say so, and what was odd about it."""
    columns, secret = inputs.card.columns, inputs.secret
    row_ids = archive.row_ids(PathRule(**columns.path_rule)) if columns.join == "path" else {}
    names = [*FACTS, *NUMBERS, "reason"]
    found = [pq.read_table(page, columns=names).to_pandas() for page in pages]
    facts = pd.concat([pd.DataFrame(columns=names), *found], ignore_index=True)
    facts = facts[facts["reason"].isin(["", "no_patient"])].reset_index(drop=True)
    facts["row_id"] = facts["source_id"].map(row_ids) if row_ids else facts["row_id"]
    patients, findings = decide(facts.fillna({"study_id": "", "sex": ""}), named, columns.patient_from, secret)
    patient = patients.to_dict()
    decided = []
    for number, page in enumerate(pages):
        rows = with_patients(pq.read_table(page), patient, secret)
        if row_ids:
            known = [row_ids[name] for name in rows["source_id"].to_pylist()]
            rows = rows.set_column(
                rows.schema.get_field_index("row_id"), EXAMINED.schema.field("row_id"), pa.array(known, pa.string())
            )
        decided.append(journal / f"decided-{number}.parquet")
        write_arrow(decided[-1], rows)
    return decided, findings


# ---------------------------------------------------------------- series by series


def _assemble_all(
    settings: IngestSettings, archive: _Archive, rules: Rules, inputs: Inputs, work: Path, log: RunLog
) -> list[Path]:
    """Turn parts into volumes, but for those that were assembled before; return the pages that hold all of them."""
    journal = work / JOURNAL
    names = ["source_id", "sha256", "part_of", "patient_id"]
    found = [piece.filter(pc.field("part_of") != "") for piece in iterate(work / "examined.parquet", names)]
    parts = pa.concat_tables(found).to_pandas().sort_values(["part_of", "source_id"])
    series = dict(iter(parts.groupby("part_of", sort=True)))
    members = {name: _members_digest(group) for name, group in series.items()}
    known, pages = _take_over_series(members, rules, inputs, journal)
    left = [name for name in series if name not in known]
    if not left:
        return pages
    sources = archive.chosen(set(parts["source_id"]))
    batches = [left[at : at + SERIES_PER_BATCH] for at in range(0, len(left), SERIES_PER_BATCH)]
    page_of = [_page(journal, "series", [members[name] for name in batch]) for batch in batches]
    todo = {number: batch for number, batch in enumerate(batches) if not page_of[number].exists()}
    items = {number: [_series_item(series[name], sources) for name in batch] for number, batch in todo.items()}
    done = len(left) - sum(map(len, todo.values()))

    def results() -> Iterator[str]:
        pool = _pool(settings, inputs, SERIES_TIMEOUT_FACTOR)
        for number, results in each_batch(partial(_examine_series, rules), items, pool, journal):
            rows = []
            for name, result in zip(todo[number], results, strict=True):
                rows += _assembled_rows(name, members[name], series[name], result)
            write_rows(page_of[number], rows, ASSEMBLED)
            yield from todo[number]

    for _ in log.track(results(), "series", total=len(left), start=done):
        pass
    return pages + page_of


def _members_digest(group: pd.DataFrame) -> str:
    return sha256_json(group[["source_id", "sha256", "patient_id"]].to_numpy().tolist())


def _take_over_series(
    members: Mapping[str, str], rules: Rules, inputs: Inputs, journal: Path
) -> tuple[set[str], list[Path]]:
    """Copy the volumes of series of which no file has changed into the journal; return these series and the pages.

    A series of which one row has to be made again is assembled again as a whole.
    """
    if inputs.previous is None:
        return set(), []
    names, file = [column.name for column in ASSEMBLED.columns], inputs.previous.file("assembled.parquet")

    def unchanged() -> Iterator[list[tuple[str, dict[str, Any] | None]]]:
        for piece in iterate(file, names):
            rows = (row for row in piece.to_pylist() if members.get(row["part_of"]) == row["members"])
            yield [(row["part_of"], _reassessed(row, rules)) for row in rows]

    again = {series for piece in unchanged() for series, row in piece if row is None}
    kept: set[str] = set()
    pages = []
    for number, piece in enumerate(unchanged()):
        rows = [row for series, row in piece if row is not None and series not in again]
        # The number keeps apart two pieces that hold rows of one large series.
        pages.append(_page(journal, "kept-series", [str(number), *(row["members"] for row in rows)]))
        write_rows(pages[-1], rows, ASSEMBLED)
        kept.update(row["part_of"] for row in rows)
    return kept, pages


def _series_item(group: pd.DataFrame, found: Mapping[str, Source]) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    pairs = zip(group["source_id"], group["sha256"], strict=True)
    members = tuple(Member(name, found[name], sha256) for name, sha256 in pairs)
    return members, tuple(sorted({patient for patient in group["patient_id"] if patient}))


def _examine_series(rules: Rules, item: tuple[tuple[Member, ...], tuple[str, ...]]) -> list[Assembled] | Refusal:
    members, patients = item
    if len(patients) > 1:
        return Refusal("uid_conflict", "one series of several patients")
    return examine_series(members, patients[0] if patients else "", rules)


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


# ---------------------------------------------------------------- what concerns files together


def _settle(work: Path, min_slices: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return the images kept, with their first source, files, quarantine and counts of duplicates."""
    whole = _frame(work / "examined.parquet", ["source_id", "sha256", "reason", "detail", "part_of", *COMPARED])
    volumes = _frame(work / "assembled.parquet", ["sources", "reason", "detail", "study_id", "slices", *COMPARED])
    largest = volumes[volumes["reason"] == ""].groupby("study_id")["slices"].max()
    few = (volumes["reason"] == "") & (volumes["slices"] < min_slices)
    few &= volumes["study_id"].map(largest) >= min_slices
    volumes.loc[few, "reason"] = "few_slices"
    hashes = whole.set_index("source_id")["sha256"]
    refused = [whole.loc[whole["reason"] != "", ["source_id", "sha256", "reason", "detail"]]]
    lost = volumes.loc[volumes["reason"] != "", ["sources", "reason", "detail"]].explode("sources")
    refused.append(_with_hash(lost.rename(columns={"sources": "source_id"}), hashes))
    accepted = whole.loc[(whole["reason"] == "") & (whole["part_of"] == ""), ["source_id", *COMPARED]]
    accepted = accepted.rename(columns={"source_id": "first_source"})
    built = volumes.loc[volumes["reason"] == "", ["sources", *COMPARED]]
    built = built.assign(first_source=built["sources"].map(min))
    resolved = resolve_duplicates(pd.concat([accepted, built.drop(columns="sources")], ignore_index=True))
    parts = built.set_index("image_id")["sources"]
    again = _with_sources(resolved.refused, parts)[["source_id", "reason", "detail"]]
    refused.append(_with_hash(again, hashes))
    files = _with_sources(resolved.kept, parts)[["image_id", "source_id"]]
    files["part"] = files.groupby("image_id").cumcount()
    files["sha256"] = hashes.reindex(files["source_id"]).to_numpy()
    quarantine = pd.concat(refused, ignore_index=True).drop_duplicates("source_id")
    # Of a file with several volumes, one can be refused, as a copy of another, while the file is used.
    quarantine = quarantine[~quarantine["source_id"].isin(files["source_id"])]
    kept = resolved.kept[["image_id", "first_source", "shared"]]
    return kept, files, quarantine, resolved.counts


def _with_sources(rows: pd.DataFrame, parts: pd.Series) -> pd.DataFrame:
    """Return a row for each file of each image: the parts of a volume, or the one file of a picture."""
    pictures = rows[~rows["image_id"].isin(parts.index)].rename(columns={"first_source": "source_id"})
    volumes = rows[rows["image_id"].isin(parts.index)]
    volumes = volumes.assign(source_id=volumes["image_id"].map(parts[~parts.index.duplicated()])).explode("source_id")
    return pd.concat([pictures, volumes], ignore_index=True)


def _rows(kept: pd.DataFrame, work: Path) -> pd.DataFrame:
    """Return all that is known of the images kept, ordered by image_id, with days since the patient's first study."""
    chosen = pd.Index(kept["image_id"] + kept["first_source"])
    pieces = []
    for name, source in (("examined.parquet", "source_id"), ("assembled.parquet", "sources")):
        for piece in iterate(work / name, [source, *SUMMED_UP], where="reason"):
            of = piece[source].to_pandas()
            pairs = piece["image_id"].to_pandas() + (of if source == "source_id" else of.map(min))
            pieces.append(piece.filter(pa.array(chosen.get_indexer(pairs) >= 0)).select(SUMMED_UP))
    table = pa.concat_tables(pieces) if pieces else EXAMINED.schema.empty_table().select(SUMMED_UP)
    del pieces, chosen
    table = table.sort_by("image_id")
    return_memory()
    images = table.to_pandas(split_blocks=True, self_destruct=True)
    del table
    shared = images["image_id"].isin(kept.loc[kept["shared"], "image_id"])
    images = with_flag(images, shared, ACROSS_PATIENTS)
    days = images["shifted_day"].astype("Int64")
    images["study_day"] = days - days.groupby(images["patient_id"]).transform("min")
    images["age_years"] = images["age_years"].astype("Float64")
    return images


def _exams(
    images: pd.DataFrame, files: pd.DataFrame, quarantine: pd.DataFrame, work: Path, inputs: Inputs, limits: Limits
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Fill in views and sides from the label table; images of which header and table differ go into quarantine."""
    card, rule = inputs.card.columns, PathRule(**inputs.card.columns.path_rule)
    if inputs.labels is None or not (card.view or card.laterality):
        return images, files, quarantine
    said = named_exams(inputs.labels, card.model_dump(), card.join, rule)
    known = _frame(work / "examined.parquet", ["source_id", "row_id"]).set_index("source_id")["row_id"]
    row_ids = files["source_id"].map(known).set_axis(files["image_id"])
    images, differing = settle(images, row_ids, said, card.join, card.exam_from, inputs.secret)
    facts = zip(*(images[name] for name in ("quality_flags", "modality", "view", "body_part")), strict=True)
    images["quality_flags"] = [
        ",".join(reassessed(filter(None, flags.split(",")), modality, view, body_part, limits))
        for flags, modality, view, body_part in facts
    ]
    refused = files[files["image_id"].isin(differing.index)]
    files = files[~files["image_id"].isin(differing.index)]
    # The frames of one file can be several volumes, of which one is still used.
    lost = refused[~refused["source_id"].isin(files["source_id"])].drop_duplicates("source_id")
    lost = lost.assign(reason=UNCLEAR, detail=lost["image_id"].map(differing))
    quarantine = pd.concat([quarantine, lost[quarantine.columns]], ignore_index=True)
    return images[~images["image_id"].isin(differing.index)].reset_index(drop=True), files, quarantine


def _frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    pieces = list(iterate(path, columns))
    if not pieces:
        return pd.DataFrame(columns=list(columns))
    return pa.concat_tables(pieces).to_pandas()


def _with_hash(rows: pd.DataFrame, hashes: pd.Series) -> pd.DataFrame:
    """Return the columns of tables.QUARANTINE."""
    found = hashes.reindex(rows["source_id"]).to_numpy()
    return rows.assign(sha256=found)[["source_id", "sha256", "reason", "detail"]]


def _compare(
    settings: IngestSettings, images: pd.DataFrame, work: Path
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return the images with flags for what other images show of them, the near-duplicates, counts."""
    files = [work / name for name in ("examined.parquet", "assembled.parquet")]
    hashes, small = read_fingerprints(files, images["image_id"], work / JOURNAL / "small.bin")
    images = images.assign(likeness=likeness(images, small))
    images = with_flag(images, images["likeness"].to_numpy() < INVERTED_BELOW, "inversion_suspected")
    images = with_flag(images, padding_of_maker(images), "padding_of_maker")
    if settings.near_duplicates:
        near = find_near_duplicates(images, hashes, small)
    else:
        near = pd.DataFrame(columns=[column.name for column in NEAR_DUPLICATES.columns])
    across = near[near["across_patients"].astype(bool)]
    images = with_flag(
        images, images["image_id"].isin([*across["image_id"], *across["other_image_id"]]), NEARLY_ACROSS_PATIENTS
    )
    return images, near, {"near_duplicates": len(near), "near_duplicates_across_patients": len(across)}


# ---------------------------------------------------------------- what is said of it


def _draw_worst(
    images: pd.DataFrame, files: pd.DataFrame, archive: _Archive, rules: Rules, pool: Pool, work: Path
) -> None:
    chosen = worst(images)
    parts = files[files["image_id"].isin(chosen["image_id"])].sort_values(["image_id", "part"])
    found = archive.chosen(set(parts["source_id"]))
    sources = {str(name): [found[one] for one in group["source_id"]] for name, group in parts.groupby("image_id")}
    facts = chosen[["image_id", "axes", "pixel_hash"]].itertuples(index=False, name=None)
    items = {number: [(sources[name], axes, pixels)] for number, (name, axes, pixels) in enumerate(facts)}
    names, pictures = chosen["image_id"].tolist(), {}
    for number, (picture,) in each_batch(partial(_thumbnail, rules.policy), items, pool, work / JOURNAL):
        if not isinstance(picture, Refusal):
            pictures[names[number]] = picture
    contact_sheet(work / "contact_sheet.png", chosen, pictures)


def _thumbnail(policy: Policy, item: tuple[Sequence[Source], int, str]) -> np.ndarray:
    return thumbnail(*item, policy)


def _summary(
    images: pd.DataFrame, files: pd.DataFrame, quarantine: pd.DataFrame, duplicates: dict[str, int], secret: bytes
) -> dict[str, Any]:
    reasons = {str(reason): int(count) for reason, count in quarantine["reason"].value_counts().sort_index().items()}
    flags = images["quality_flags"].str.split(",").explode()
    flags = flags[flags != ""].value_counts().sort_index()
    used = int(files["source_id"].nunique())
    return {
        "received": used + len(quarantine),
        "files_accepted": used,
        "accepted": len(images),
        "volumes": int((images["axes"] == 3).sum()),
        "quarantined": reasons,
        "reasons": {reason: REASONS[reason] for reason in reasons},
        "patients": int(images["patient_id"].nunique()),
        "studies": int(images["study_id"].nunique()),
        "flags": {str(flag): int(count) for flag, count in flags.items()},
        "flag_meanings": {str(flag): FLAGS[str(flag)] for flag in flags.index},
        "duplicates": duplicates,
        "key_fingerprint": fingerprint(secret),
    }


def _reasons(summary: dict[str, Any]) -> str:
    return ", ".join(
        f"{count} {reason} ({summary['reasons'][reason]})" for reason, count in summary["quarantined"].items()
    )


def _say(summary: dict[str, Any], log: RunLog) -> None:
    files, images = summary["files_accepted"], summary["accepted"]
    parts = "" if files == images else f" in {counted(files, 'file')}"
    log.info(
        f"{counted(summary['received'], 'file')}: {counted(images, 'image')}{parts} of "
        f"{counted(summary['patients'], 'patient')} accepted, "
        f"{counted(sum(summary['quarantined'].values()), 'file')} quarantined"
    )
    if summary["quarantined"]:
        log.info(f"quarantined: {_reasons(summary)}")
    if summary["flags"]:
        meanings = summary["flag_meanings"]
        flags = ", ".join(f"{count} {flag} ({meanings[flag]})" for flag, count in summary["flags"].items())
        log.info(f"accepted with a remark: {flags}")
    if exam := summary.get("exam"):
        (log.info if exam["complete"] == exam["patients"] else log.warn)(f"examinations: {sentence(exam)}")
    shared = summary["duplicates"].get("images_shared_between_patients", 0)
    if shared:
        log.warn(
            f"{shared} images have the same pixels as an image of another patient; "
            "these patients stay in one split, but one of them may be wrong"
        )
    near = summary["duplicates"].get("near_duplicates_across_patients", 0)
    if near:
        log.warn(
            f"{counted(near, 'pair of images of different patients is', 'pairs of images of different patients are')} "
            "nearly the same picture; "
            "these patients stay in one split (near_duplicates.parquet)"
        )
    suspected = summary["flags"].get("inversion_suspected", 0)
    if suspected:
        log.warn(
            f"{counted(suspected, 'image looks like a negative', 'images look like negatives')}; see contact_sheet.png"
        )
