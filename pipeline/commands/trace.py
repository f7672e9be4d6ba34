"""From a report back to the bytes it rests on: every artifact, its code and settings, every source file's hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pypdf.errors import PdfReadError

from pipeline.orchestration.chosen_studies import chosen_digest
from pipeline.orchestration.graph import UNLABELLED
from pipeline.reporting.pdf import read_keys, read_metadata
from pipeline.store.artifacts import Artifact, Store, StoreError
from pipeline.store.files import read_json, sha256_file
from pipeline.store.ledger import Ledger, LedgerError
from pipeline.store.lineage import SourceHashes
from pipeline.store.tables.ingest import FILES, QUARANTINE
from pipeline.store.tables.io import read_table
from pipeline.store.tables.masks import MASKS
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.where import Data, Studies, Unlabelled


class TraceError(RuntimeError):
    """The report does not lead back to artifacts of this store."""


def is_report(path: Path) -> bool:
    """Return whether a path is that of a report: a PDF, a report.json, or a folder."""
    return path.is_dir() or path.suffix.lower() in (".pdf", ".json")


def read_report(path: Path) -> tuple[dict[str, str], str]:
    """Return the keys of the artifacts behind a finished report, by step, and what its data are called.

    `path` is its PDF, its report.json, or the folder of either. Raises TraceError when it is none of them.
    """
    named = [path / name for name in ("report.json", "report.pdf")] if path.is_dir() else [path]
    file = next((one for one in named if one.is_file()), None)
    if file is None:
        lacks = "holds neither report.json nor report.pdf" if path.is_dir() else "is not there"
        raise TraceError(f"{path.name} {lacks}; name a finished report")
    try:
        if file.suffix.lower() == ".pdf":
            keys, dataset = read_metadata(file)
        else:
            content = read_json(file)
            keys, dataset = dict(content["keys"]), str(content["subtitle"])
    except (PdfReadError, ValueError, KeyError, TypeError):
        raise TraceError(f"{path.name} cannot be read as a report that maescreen made") from None
    if not keys:
        raise TraceError(f"{path.name} carries no artifact keys; it is no report of one run")
    return keys, dataset


def artifacts_behind(name: str, keys: dict[str, str], stores: Sequence[Store]) -> dict[str, Artifact]:
    """Return the artifacts with these keys by step, from the first store that has them all.

    Raises TraceError that says which are missing in the store that has most of them.
    """
    found = [{step: _find(store, step, key) for step, key in keys.items()} for store in stores]
    absent = [[f"{step} {keys[step]}" for step, artifact in one.items() if artifact is None] for one in found]
    fewest = min(range(len(stores)), key=lambda at: len(absent[at]))
    if absent[fewest]:
        raise TraceError(
            f"{name}: not in the store {stores[fewest].root}: {', '.join(absent[fewest])}; name the right one "
            "with --store"
        )
    return {step: artifact for step, artifact in found[fewest].items() if artifact is not None}


def trace(report: Path, store: Store) -> dict[str, Any]:
    """Return the artifacts behind a report, latest first, and the hash of every source file.

    Raises TraceError when the PDF carries no keys or an artifact is not in the store.
    """
    keys = _keys(report)
    if not keys:
        raise TraceError(f"{report.name} carries no artifact keys; it is no report of one run")
    artifacts = artifacts_behind(report.name, keys, [store])
    ledger = Ledger(store.root)
    return {
        "report": {"sha256": sha256_file(report), "keys": keys},
        "ledger": {"readings": len(ledger.lines()), "sha256": ledger.head},
        "artifacts": [_describe(step, artifact) for step, artifact in reversed(list(artifacts.items()))],
        "sources": [row for artifact in artifacts.values() if artifact.stage == "ingest" for row in _sources(artifact)],
    }


def verify(report: Path, store: Store, progress: Callable[[str], None]) -> list[str]:
    """Compare every file of every artifact, and the report itself, with the recorded hashes; return the differences."""
    problems, keys = [], _keys(report)
    for step, key in keys.items():
        artifact = _find(store, step, key)
        if artifact is None:
            problems.append(f"{step} {key} is not in the store")
            continue
        try:
            names = artifact.record["files"]
        except StoreError as error:
            problems.append(str(error))
            continue
        for name in names:
            try:
                artifact.file(name)
            except StoreError as error:
                problems.append(str(error))
        progress(f"{step} {key}: {counted(len(names), 'file')} checked")
    try:
        progress(f"ledger: {counted(len(Ledger(store.root).lines()), 'reading')} checked")
    except LedgerError as error:
        problems.append(str(error))
    reports = [one.record for one in store.all("report") if {*keys.items()} <= {*one.record["inputs"].items()}]
    if not reports:
        problems.append(f"{report.name}: no report of these artifacts is in the store, to be compared with")
    elif sha256_file(report) not in [one["files"].get("report.pdf") for one in reports]:
        problems.append(f"{report.name} differs from every report in the store: it was changed after it was made")
    return problems


def verify_sources(report: Path, store: Store, data: Data) -> list[str]:
    """Read every source file again, those of other datasets too; return how they differ from what was ingested."""
    problems = []
    keys = _keys(report)
    places: dict[str, Studies | Unlabelled] = {"ingest": data}
    places |= {f"ingest@{one.name}": one for one in data.external}
    if data.without_labels:
        places[f"ingest@{UNLABELLED}"] = data.without_labels
    for step, place in places.items():
        ingest = _find(store, step, keys[step]) if step in keys else None
        if ingest is None:
            problems.append(f"there is no artifact {step} behind this report in the store")
        elif chosen_digest(place, SourceHashes(), _followed_links(ingest)) != ingest.record["sources"]["studies"]:
            problems.append(
                f"{step}: a source file was added, removed, renamed or changed since it was ingested, data.include and "
                "data.exclude are others, or one cannot be read"
            )
    return problems


def _keys(report: Path) -> dict[str, str]:
    try:
        return read_keys(report)
    except PdfReadError:
        raise TraceError(f"{report.name} cannot be read as a PDF") from None


def _followed_links(ingest: Artifact) -> bool:
    return ingest.record["settings"].get("links") == "inside"


def _find(store: Store, step: str, key: str) -> Artifact | None:
    return store.find(step.partition("@")[0], key)


def _describe(step: str, artifact: Artifact) -> dict[str, Any]:
    record = artifact.record
    names = (
        "stage",
        "key",
        "created",
        "git_commit",
        "device",
        "settings",
        "inputs",
        "sources",
        "files",
        "versions",
    )
    return {"step": step, **{name: record[name] for name in names}}


def _sources(ingest: Artifact) -> list[dict[str, Any]]:
    images = read_table(ingest.file("files.parquet"), FILES).assign(verdict="accepted")
    quarantine = read_table(ingest.file("quarantine.parquet"), QUARANTINE).rename(columns={"reason": "verdict"})
    columns = ["source_id", "sha256", "verdict"]
    tables = [images, quarantine]
    if "masks.parquet" in ingest.record["files"]:
        masks = read_table(ingest.file("masks.parquet"), MASKS)
        tables.append(masks[masks["reason"] == ""].drop_duplicates("source_id").assign(verdict="mask"))
    rows = [row for table in tables for row in table[columns].itertuples(index=False)]
    return [dict(zip(columns, row, strict=True)) for row in rows]
