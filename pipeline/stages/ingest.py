"""Read every source file once: accept it into `images.parquet` or quarantine it with a reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.imaging.duplicates import resolve_duplicates
from pipeline.imaging.image import Policy
from pipeline.imaging.labels import patients_by_path
from pipeline.imaging.pseudonyms import Lookup, fingerprint, path_pseudonym
from pipeline.imaging.records import Examined, examine
from pipeline.imaging.sources import Source, find_sources
from pipeline.imaging.verdicts import REASONS, Refusal
from pipeline.imaging.workers import Pool, each_batch
from pipeline.store.files import read_json, sha256_json, write_json
from pipeline.store.tables import IMAGES, QUARANTINE, write_table

if TYPE_CHECKING:
    from pipeline.config import IngestSettings, Machine
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

JOURNAL = "journal"
MB = 1_000_000


def ingest(settings: IngestSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `images.parquet`, `quarantine.parquet` and `summary.json`; every file received is in one of the tables.

    Batches are journalled in `work`, so that a killed run goes on where it was. Raises ValueError when no image was
    accepted, SourcesError and LabelsError when sources or label table cannot be used as a whole.
    """
    columns = inputs.card.columns
    patients = patients_by_path(inputs.labels, columns.path, columns.patient_id) if inputs.labels else {}
    sources = find_sources(inputs.studies, inputs.labels, unique_paths=columns.path is not None)
    journal = work / JOURNAL
    journal.mkdir(exist_ok=True)
    _read_all(settings, inputs, sources, patients, journal, log)
    accepted, quarantined = _collect(journal, sources, settings.batch_size)
    images, quarantine, duplicates = _finish(accepted, quarantined)
    if len(images) + len(quarantine) != len(sources):
        raise RuntimeError(f"{len(sources)} files received, but {len(images)} + {len(quarantine)} have a verdict")
    summary = _summary(images, quarantine, duplicates, inputs.secret)
    _say(summary, log)
    if images.empty:
        raise ValueError(f"none of {len(sources)} files was accepted; {_reasons(summary)}")
    write_table(work / "images.parquet", images, IMAGES)
    write_table(work / "quarantine.parquet", quarantine, QUARANTINE)
    write_json(work / "summary.json", summary)
    shutil.rmtree(journal)


def _read_all(
    settings: IngestSettings,
    inputs: Inputs,
    sources: Sequence[Source],
    patients: dict[str, str],
    journal: Path,
    log: RunLog,
) -> None:
    """Read all batches that no earlier run has finished."""
    todo = {
        number: [(source, patients.get(source.path)) for source in batch]
        for number, batch in _batches(sources, settings.batch_size)
        if not _is_finished(journal, number, batch)
    }
    lookup = Lookup(inputs.lookup) if inputs.lookup else None
    task = partial(_examine, _policy(settings), inputs.secret)
    done = len(sources) - sum(map(len, todo.values()))
    if done:
        log.info(f"{done} of {len(sources)} files were read before the interruption")

    def results() -> Iterator[Any]:
        for number, examined in each_batch(task, todo, _pool(settings, inputs.machine), journal):
            pairs = zip(todo[number], examined, strict=True)
            verdicts = [_verdict(source, result, inputs.secret) for (source, _), result in pairs]
            if lookup is not None:
                lookup.add(entry for verdict in verdicts for entry in verdict.lookup)
            content = [asdict(verdict) | {"lookup": None} for verdict in verdicts]
            write_json(_page(journal, number), {"sources": _digest([s for s, _ in todo[number]]), "files": content})
            yield from verdicts

    for _ in log.track(results(), "files", total=len(sources), start=done):
        pass


def _examine(policy: Policy, secret: bytes, item: tuple[Source, str | None]) -> Examined:
    return examine(item[0], item[1], policy, secret)


def _verdict(source: Source, result: Examined | Refusal, secret: bytes) -> Examined:
    """Return the result of a worker; a refusal that comes from its death lacks the file's pseudonym."""
    if isinstance(result, Examined):
        return result
    source_id = path_pseudonym(secret, source.path)
    return Examined(source_id, "", None, result, (("path", source_id, source.path),))


def _policy(settings: IngestSettings) -> Policy:
    return Policy(
        max_file_bytes=int(settings.max_file_mb * MB),
        max_pixel_bytes=int(settings.max_pixels_mb * MB),
        modalities=tuple(settings.modalities),
        accept_burned_in=settings.burned_in_annotation == "accept",
        accept_secondary_capture=settings.secondary_capture == "accept",
        min_side=settings.min_side,
        max_aspect=settings.max_aspect,
        max_clipped=settings.max_clipped,
    )


def _pool(settings: IngestSettings, machine: Machine) -> Pool:
    return Pool(machine.workers, settings.timeout_s, machine.backend, machine.scheduler)


# ---------------------------------------------------------------- the journal


def _batches(sources: Sequence[Source], size: int) -> Iterator[tuple[int, Sequence[Source]]]:
    for number, start in enumerate(range(0, len(sources), size)):
        yield number, sources[start : start + size]


def _page(journal: Path, number: int) -> Path:
    return journal / f"{number:06d}.json"


def _digest(batch: Sequence[Source]) -> str:
    return sha256_json([source.path.encode("utf-8", "surrogateescape").hex() for source in batch])


def _is_finished(journal: Path, number: int, batch: Sequence[Source]) -> bool:
    page = _page(journal, number)
    return page.exists() and read_json(page)["sources"] == _digest(batch)


def _collect(journal: Path, sources: Sequence[Source], size: int) -> tuple[list[dict], list[dict]]:
    """Return the rows accepted and those quarantined, from the journal."""
    accepted, quarantined = [], []
    for number, _ in _batches(sources, size):
        for file in read_json(_page(journal, number))["files"]:
            if file["row"] is not None:
                accepted.append(file["row"])
            else:
                quarantined.append({"source_id": file["source_id"], "sha256": file["sha256"], **file["refusal"]})
    return accepted, quarantined


# ---------------------------------------------------------------- what concerns files together


def _finish(accepted: list[dict], quarantined: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Resolve duplicates and turn shifted days into days since the patient's first study."""
    names = [column.name for column in QUARANTINE.columns]
    quarantine = pd.DataFrame(quarantined, columns=names, dtype=object)
    if not accepted:
        return pd.DataFrame(columns=[column.name for column in IMAGES.columns]), quarantine, {}
    resolved = resolve_duplicates(pd.DataFrame(accepted))
    images = resolved.kept
    days = images["shifted_day"].astype("Int64")
    images["study_day"] = days - days.groupby(images["patient_id"]).transform("min")
    images["age_years"] = images["age_years"].astype("Float64")
    quarantine = pd.concat([quarantine, resolved.refused], ignore_index=True)
    return images[[column.name for column in IMAGES.columns]], quarantine, resolved.counts


def _summary(
    images: pd.DataFrame, quarantine: pd.DataFrame, duplicates: dict[str, int], secret: bytes
) -> dict[str, Any]:
    reasons = {str(reason): int(count) for reason, count in quarantine["reason"].value_counts().sort_index().items()}
    flags = images["quality_flags"].str.split(",").explode()
    flags = flags[flags != ""].value_counts().sort_index()
    return {
        "received": len(images) + len(quarantine),
        "accepted": len(images),
        "quarantined": reasons,
        "reasons": {reason: REASONS[reason] for reason in reasons},
        "patients": int(images["patient_id"].nunique()),
        "studies": int(images["study_id"].nunique()),
        "flags": {str(flag): int(count) for flag, count in flags.items()},
        "duplicates": duplicates,
        "key_fingerprint": fingerprint(secret),
    }


def _reasons(summary: dict[str, Any]) -> str:
    return ", ".join(
        f"{count} {reason} ({summary['reasons'][reason]})" for reason, count in summary["quarantined"].items()
    )


def _say(summary: dict[str, Any], log: RunLog) -> None:
    log.info(
        f"{summary['received']} files: {summary['accepted']} images of {summary['patients']} patients accepted, "
        f"{sum(summary['quarantined'].values())} quarantined"
    )
    if summary["quarantined"]:
        log.info(f"quarantined: {_reasons(summary)}")
    shared = summary["duplicates"].get("images_shared_between_patients", 0)
    if shared:
        log.warn(
            f"{shared} images have the same pixels as an image of another patient; "
            "these patients stay in one split, but one of them may be wrong"
        )
