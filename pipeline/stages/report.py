"""report: the finished numbers as PDF, HTML, JSON and CSV. Computes none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.imaging.planes import three_planes
from pipeline.reporting import html, pdf
from pipeline.reporting.content import build, raw_tables
from pipeline.reporting.document import Document, printable
from pipeline.reporting.evidence import Evidence, Example
from pipeline.reporting.spreadsheet import csv_text
from pipeline.store import tables
from pipeline.store.files import atomic, read_json, write_json

if TYPE_CHECKING:
    from pipeline.config import ReportSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog


def report(settings: ReportSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Render what earlier stages found into report.pdf, report.html, report.json, figures, tables and data as CSV.

    The date is that on which the evaluation was made, so that the same evaluation gives the same bytes.
    """
    evidence = _evidence(settings, inputs)
    document = build(evidence)
    for figure in document.figures:
        _write(work / figure.file, figure.picture)
    content = document.to_dict()
    write_json(work / "report.json", content)
    _write_tables(document, raw_tables(evidence), work)
    _write(work / "report.html", html.render(document).encode())
    _write(work / "report.pdf", pdf.render(content, work))
    if evidence.problems:
        log.warn(f"no usable operating point: {'; '.join(evidence.problems)}")
    log.info(f"{len(document.sections)} sections, {len(document.figures)} figures, {len(document.tables)} tables")


def _evidence(settings: ReportSettings, inputs: Inputs) -> Evidence:
    def content(stage: str, name: str):
        return read_json(inputs.file(stage, name))

    def table(stage: str, name: str, definition: tables.Table) -> pd.DataFrame:
        return tables.read_table(inputs.file(stage, name), definition)

    images = table("ingest", "images.parquet", tables.IMAGES)
    metrics = content("evaluate", "metrics.json")
    scores = table("evaluate", "patient_scores.parquet", tables.PATIENT_SCORES)
    reported = scores[scores["arm"] == metrics["arm"]]
    missed = reported[(reported["label"] == 1) & ~reported["referred"].fillna(True)].sort_values("score", kind="stable")
    alarms = reported[(reported["label"] == 0) & reported["referred"].fillna(False)]
    alarms = alarms.sort_values("score", ascending=False, kind="stable")
    index = table("preprocess", "index_test.parquet", tables.INDEX)
    fractions = inputs.files("evaluate", "label_fractions.parquet")
    return Evidence(
        title=settings.title,
        contact=settings.contact,
        date=inputs.record("evaluate")["created"][:10],
        card=inputs.card.model_dump(),
        ingest=content("ingest", "summary.json"),
        images=images,
        split=content("split", "summary.json"),
        assignment=table("split", "split.parquet", tables.SPLIT),
        encoder=content("pretrain", "model.json"),
        pretrain=content("pretrain", "summary.json"),
        history=content("pretrain", "history.json"),
        reconstructions=inputs.file("pretrain", "reconstructions.png").read_bytes(),
        finetune=content("finetune", "summary.json"),
        calibrator=content("calibrate", "calibrator.json"),
        threshold=content("calibrate", "threshold.json"),
        sweep=table("calibrate", "sweep.parquet", tables.SWEEP),
        metrics=metrics,
        subgroups=table("evaluate", "subgroups.parquet", tables.SUBGROUPS),
        comparison=table("evaluate", "comparison.parquet", tables.COMPARISON),
        curves=table("evaluate", "curves.parquet", tables.CURVES),
        scores=scores,
        findings=content("evaluate", "findings.json"),
        misses=_examples(missed.head(settings.examples), index, images, inputs),
        false_alarms=_examples(alarms.head(settings.examples), index, images, inputs),
        records={step: inputs.record(step) for step in inputs.artifacts},
        external={name: card.model_dump() for name, card in inputs.external.items()},
        label_fractions=tables.read_table(fractions[0], tables.LABEL_FRACTIONS) if fractions else None,
    )


def _examples(chosen: pd.DataFrame, index: pd.DataFrame, images: pd.DataFrame, inputs: Inputs) -> list[Example]:
    """Return the first image of each chosen patient, and what the tables say of it."""
    examples = []
    known = images.set_index("image_id")
    for row in chosen.to_dict("records"):
        own = index[index["patient_id"] == row["patient_id"]].sort_values("image_id")
        first = own.to_dict("records")[0]
        shard = np.load(inputs.file("preprocess", first["shard"]), mmap_mode="r", allow_pickle=False)
        image = np.asarray(shard[first["row"], 0])  # (H, W), or (D, H, W) for a volume
        facts = known.loc[first["image_id"]].to_dict()
        examples.append(
            Example(
                patient=row["patient_id"][:12],
                image=image if image.ndim == 2 else three_planes(image),
                images=len(own),
                score=row["score"],
                probability=row["probability"],
                site=facts["site"],
                view=facts["view"],
            )
        )
    return examples


def _write_tables(document: Document, raw: dict[str, pd.DataFrame], work: Path) -> None:
    """Write each table as shown to tables/, and the full ones with unrounded numbers to data/."""
    for table in document.tables:
        rows = printable([table.columns, *table.rows])
        _write(work / "tables" / f"{table.name}.csv", csv_text(rows[0], rows[1:]).encode())
    for name, frame in raw.items():
        rows = frame.astype(object).where(frame.notna(), "").itertuples(index=False)
        _write(work / "data" / f"{name}.csv", csv_text(list(frame.columns), rows).encode())


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)
