"""From a report back to the bytes it rests on: every artifact, its code and settings, every source file's hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.reporting.pdf import read_keys
from pipeline.store.artifacts import Artifact, Store, StoreError
from pipeline.store.files import sha256_file
from pipeline.store.lineage import SourceHashes, studies_digest
from pipeline.store.tables import FILES, QUARANTINE, read_table


class TraceError(RuntimeError):
    """The report does not lead back to artifacts of this store."""


def trace(report: Path, store: Store) -> dict[str, Any]:
    """Return the artifacts behind a report, latest first, and the hash of every source file.

    Raises TraceError when the PDF carries no keys or an artifact is not in the store.
    """
    keys = read_keys(report)
    if not keys:
        raise TraceError(f"{report.name} carries no artifact keys; it is no report of one run")
    found = {stage: store.find(stage, key) for stage, key in keys.items()}
    absent = [f"{stage} {keys[stage]}" for stage, artifact in found.items() if artifact is None]
    if absent:
        raise TraceError(f"not in the store {store.root}: {', '.join(absent)}; name the right one with --store")
    artifacts = {stage: artifact for stage, artifact in found.items() if artifact is not None}
    return {
        "report": {"sha256": sha256_file(report), "keys": keys},
        "artifacts": [_describe(artifact) for artifact in reversed(list(artifacts.values()))],
        "sources": _sources(artifacts["ingest"]),
    }


def verify(report: Path, store: Store, progress: Callable[[str], None]) -> list[str]:
    """Compare every file of every artifact, and the report itself, with the recorded hashes; return the differences."""
    problems = []
    for stage, key in read_keys(report).items():
        artifact = store.find(stage, key)
        if artifact is None:
            problems.append(f"{stage} {key} is not in the store")
            continue
        for name in artifact.record["files"]:
            try:
                artifact.file(name)
            except StoreError as error:
                problems.append(str(error))
        progress(f"{stage} {key}: {len(artifact.record['files'])} files checked")
    made = [artifact.record["files"].get("report.pdf") for artifact in store.all("report")]
    if sha256_file(report) not in made:
        problems.append(f"{report.name} differs from every report in the store: it was changed after it was made")
    return problems


def verify_sources(report: Path, store: Store, roots: Sequence[Path], labels: Path, secret: bytes) -> list[str]:
    """Read every source file again and compare with what was ingested; return the differences."""
    ingest = store.find("ingest", read_keys(report)["ingest"])
    if ingest is None:
        return ["the ingest artifact is not in the store"]
    same = studies_digest(roots, SourceHashes(), labels) == ingest.record["sources"]["studies"]
    return (
        []
        if same
        else ["the source files are not those that were ingested: one was added, removed, renamed or changed"]
    )


def _describe(artifact: Artifact) -> dict[str, Any]:
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
    return {name: record[name] for name in names}


def _sources(ingest: Artifact) -> list[dict[str, Any]]:
    images = read_table(ingest.file("files.parquet"), FILES).assign(verdict="accepted")
    quarantine = read_table(ingest.file("quarantine.parquet"), QUARANTINE).rename(columns={"reason": "verdict"})
    columns = ["source_id", "sha256", "verdict"]
    rows = [*images[columns].itertuples(index=False), *quarantine[columns].itertuples(index=False)]
    return [dict(zip(columns, row, strict=True)) for row in rows]
