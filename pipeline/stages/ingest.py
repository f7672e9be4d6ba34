"""Read every source file once: accept it into `images.parquet` or quarantine it with a reason.

Files are examined one by one; what belongs to volumes is then assembled, series by series; last comes what concerns
images together, such as duplicates. The results of the first two steps stay in the artifact, so that a later ingest
of the same archive reads only what is new.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.imaging.archive.choice import Choice
from pipeline.imaging.archive.contact_sheet import contact_sheet, worst
from pipeline.imaging.archive.examination import Rules
from pipeline.imaging.archive.journal import Archive, Reading, assemble_all, examine_all
from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.archive.sources import Source, find_sources
from pipeline.imaging.archive.tasks import small_picture
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.channels import channels_of
from pipeline.imaging.copies.settling import compare, frame, rows_of, settle
from pipeline.imaging.image import MB, Policy
from pipeline.imaging.masks.structures import Structures
from pipeline.imaging.pseudonyms import Lookup, fingerprint, path_pseudonym
from pipeline.imaging.quarantine import FLAGS, REASONS, Refusal
from pipeline.labels.channel_files import with_channels
from pipeline.labels.exam import completeness, sentence, with_exams
from pipeline.labels.identity import (
    FACTS,
    NUMBERS,
    Findings,
    Named,
    alike_patients,
    decide,
    named_by_row,
    named_patients,
    objection,
    remarks,
    row_pseudonyms,
    with_patients,
)
from pipeline.labels.mask_files import find_masks
from pipeline.labels.mask_verdicts import check_masks, settle_masks, summary_of_masks
from pipeline.labels.path_rules import PathRule, apart, check_paths, refuse_shared_rows
from pipeline.labels.values import read_labels
from pipeline.store.files import write_json
from pipeline.store.tables.ingest import (
    ASSEMBLED,
    EXAMINED,
    FILES,
    IMAGES,
    NEAR_DUPLICATES,
    QUALITY,
    QUARANTINE,
)
from pipeline.store.tables.io import merge_pages, return_memory, write_arrow, write_table
from pipeline.store.tables.masks import MASKS
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.images import IngestSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

NO_FILES = {"received": 0, "accepted": 0, "volumes": 0, "patients": 0, "quarantined": {}, "flags": {}, "duplicates": {}}


class NothingAccepted(ValueError):
    """Of all files, none was accepted; `summary` has their counts."""

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


def ingest(settings: IngestSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `images`, `files`, `quarantine`, `quality` and `near_duplicates`, all Parquet, `contact_sheet.png`, and
    `summary.json`; every file received is in `files` or in `quarantine`. Where the card has masks, these are no images:
    they are in `masks`, checked against their images, or in `quarantine`; `structures.json` says what they show.

    Batches are journalled in `work`, so that a killed run goes on where it was. Raises NothingAccepted when no image
    was, SourcesError and LabelsError when sources or label table cannot be used as a whole.
    """
    columns, lookup = inputs.card.columns, Lookup(inputs.lookup) if inputs.lookup else None
    choice, follow = Choice(inputs.include, inputs.exclude), settings.links == "inside"
    sources = apart(find_sources(inputs.studies, inputs.labels, columns.path is not None, choice, follow))
    if not sources:
        raise NothingAccepted("there is no file under data.studies", NO_FILES)
    received, masks = len(sources), None
    if (mask := inputs.card.label.mask) is not None:
        masks = find_masks(mask, columns, inputs.labels, sources, inputs.secret)
        sources = masks.images(sources)
    sources = with_channels(sources, inputs.card, inputs.labels)
    named = _named(inputs, sources, lookup, log)
    limits = Limits.from_settings(settings.model_dump(), inputs.card.expected.model_dump())
    channels = channels_of(inputs.card.model_dump())
    rules = Rules(Policy.from_settings(settings.model_dump(), channels), limits, inputs.secret, columns.join)
    journal = work / "journal"
    journal.mkdir(exist_ok=True)
    archive = Archive(sources, inputs.secret, inputs.hashes)
    reading = Reading(archive, rules, _pool(settings, inputs), inputs.previous, journal, log)
    pages = examine_all(reading, settings.batch_size, lookup)
    return_memory()
    pages, identity = _identify(pages, archive, named, inputs, journal)
    return_memory()
    merge_pages(pages, work / "examined.parquet", EXAMINED, journal)
    return_memory()
    merge_pages(assemble_all(reading, work / "examined.parquet"), work / "assembled.parquet", ASSEMBLED, journal)
    kept, files, quarantine, duplicates = settle(work, settings.min_slices)
    return_memory()
    images = rows_of(kept, work)
    del kept
    return_memory()
    if inputs.labels is not None and (columns.view or columns.laterality):
        row_ids = frame(work / "examined.parquet", ["source_id", "row_id"]).set_index("source_id")["row_id"]
        tables = (images, files, quarantine)
        images, files, quarantine = with_exams(tables, row_ids, inputs.labels, columns, limits, inputs.secret)
    used = files["source_id"].nunique()  # the frames of one file can be several volumes
    of_images = refused = pd.DataFrame()
    if mask is not None and masks is not None:
        structures = Structures.from_card(mask.model_dump())
        write_json(work / "structures.json", structures.to_json())
        verdicts = check_masks(reading, structures, masks, images, files, columns)
        if lookup is not None:
            lookup.add(
                ("path", path_pseudonym(inputs.secret, one.place), one.place.replace("\0", "/"))
                for one in masks.sources
            )
        write_table(work / "masks.parquet", verdicts, MASKS)
        of_images, refused = settle_masks(verdicts, masks, inputs.secret)
        used += of_images["source_id"].nunique()
        quarantine = pd.concat([quarantine, refused], ignore_index=True)
    if used + len(quarantine) != received:
        raise RuntimeError(f"{received} files received, but {used} + {len(quarantine)} have a verdict")
    images, near, odd = compare(images, work, journal, settings.near_duplicates)
    return_memory()
    summary = _summary(images, files, quarantine, {**duplicates, **odd}, inputs.secret)
    if masks is not None:
        summary |= summary_of_masks(summary, masks, of_images, refused)
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
    _draw_worst(images, files, reading, work)
    write_json(work / "summary.json", summary)
    shutil.rmtree(journal)


def _pool(settings: IngestSettings, inputs: Inputs) -> Pool:
    machine, memory = inputs.machine, int(settings.max_memory_mb * MB)
    return Pool(machine.workers, settings.timeout_s, machine.backend, machine.scheduler, memory)


# ---------------------------------------------------------------- whose it is


def _named(inputs: Inputs, sources: Sequence[Source], lookup: Lookup | None, log: RunLog) -> Named:
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
        refuse_shared_rows(paths, [source.path for source in sources if source.refusal is None], rule, column)
    by_row = named_by_row(inputs.labels, join, column, columns.patient_id, rule)
    if columns.patient_id != column and (remark := alike_patients({*by_row.values()})):
        log.warn(remark)
    named = named_patients(by_row, join, inputs.secret)
    if lookup is not None:
        lookup.add(("patient", name, text) for name, text in sorted(named.originals.items()))
    return named


def _identify(
    pages: Sequence[Path], archive: Archive, named: Named, inputs: Inputs, journal: Path
) -> tuple[list[Path], Findings]:
    """Decide whose each file is; return pages that say so, and what was odd about it."""
    columns, secret = inputs.card.columns, inputs.secret
    row_ids = row_pseudonyms(archive, columns, secret)
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


# ---------------------------------------------------------------- what is said of it


def _draw_worst(images: pd.DataFrame, files: pd.DataFrame, reading: Reading, work: Path) -> None:
    chosen = worst(images)
    parts = files[files["image_id"].isin(chosen["image_id"])].sort_values(["image_id", "part"])
    found = reading.archive.chosen(set(parts["source_id"]))
    sources = {str(name): [found[one] for one in group["source_id"]] for name, group in parts.groupby("image_id")}
    facts = chosen[["image_id", "axes", "pixel_hash"]].itertuples(index=False, name=None)
    items = {number: [(sources[name], axes, pixels)] for number, (name, axes, pixels) in enumerate(facts)}
    names, pictures = chosen["image_id"].tolist(), {}
    task = partial(small_picture, reading.rules.policy)
    for number, (picture,) in each_batch(task, items, reading.slow_pool, reading.journal):
        if not isinstance(picture, Refusal):
            pictures[names[number]] = picture
    contact_sheet(work / "contact_sheet.png", chosen, pictures)


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
    if masks := summary.get("masks"):
        images = counted(masks["images"], "image")
        log.info(f"{masks['accepted']} of {counted(masks['files'], 'mask')} accepted, for {images}")
        if lost := sum(masks["refused"].values()) + masks["named_but_missing"]:
            log.warn(
                f"{counted(lost, 'mask')} cannot be used: "
                + ", ".join(f"{count} {reason}" for reason, count in masks["refused"].items())
                + (f", {masks['named_but_missing']} named without a file" if masks["named_but_missing"] else "")
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
