"""report: the finished numbers as PDF, HTML, JSON and CSV. Computes none; looks up where attention lay in examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.imaging.quarantine import FLAGS
from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.inference.decision import decide
from pipeline.inference.ensemble import RECORD, WEIGHTS, Ensemble
from pipeline.inference.outline import attention, kind_of, shown
from pipeline.models.attention import half_of
from pipeline.models.finished import Network
from pipeline.models.images import Images
from pipeline.models.training import prepare
from pipeline.reporting import html, model_card, pdf
from pipeline.reporting.content import build, raw_tables
from pipeline.reporting.document import Document, printable
from pipeline.reporting.evidence import Drawn, Evidence, Example, Localisation, Pretraining
from pipeline.reporting.overflow import fitting
from pipeline.reporting.sites import Sites
from pipeline.reporting.spreadsheet import csv_text
from pipeline.statistics.patients import deciding_images
from pipeline.store.files import atomic, read_json, sha256_file, write_json
from pipeline.store.results.deployment import Deployment
from pipeline.store.results.finding import findings_from
from pipeline.store.results.metrics import Metrics
from pipeline.store.results.threshold import Threshold
from pipeline.store.tables import catalogue as tables
from pipeline.store.tables.masks import BACKGROUND, NOT_ANNOTATED, mask_name
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.decision import ReportSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog


def report(settings: ReportSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Render what earlier stages found into report.pdf, appendix.pdf, report.html, report.json, model_card.md and CSV.

    The date is that on which the evaluation was made, so that the same evaluation gives the same bytes. Sites are
    letters in all of them; sites.csv says which is which, cases.csv whose the examples are: these two stay.
    """
    evidence = _evidence(settings, inputs)
    document = build(evidence)
    for figure in document.figures:
        _write(work / figure.file, figure.picture)
    document, pages = fitting(document, lambda one: pdf.render(one.to_dict(), work, settings.fonts))
    content = document.to_dict()
    write_json(work / "report.json", content)
    _write_tables(document, raw_tables(evidence), work)
    _write(work / "report.html", html.render(document).encode())
    _write(work / "report.pdf", pages)
    _write(work / "appendix.pdf", pdf.render(pdf.appendix_of(content), work, settings.fonts))
    _write(work / "model_card.md", model_card.text(evidence).encode())
    _write_keys(evidence, sites_of(inputs), work)
    if lacking := pdf.lacking(content, settings.fonts):
        log.warn(lacking)
    if evidence.problems:
        log.warn(f"no usable operating point: {'; '.join(evidence.problems)}")
    parts = {"section": document.sections, "figure": document.figures, "table": document.tables}
    log.info(", ".join(counted(len(found), name) for name, found in parts.items()))


def _evidence(settings: ReportSettings, inputs: Inputs) -> Evidence:
    def content(stage: str, name: str):
        return read_json(inputs.file(stage, name))

    def optional(stage: str, name: str):
        found = inputs.files(stage, name)
        return read_json(found[0]) if found else None

    def deployment(name: str) -> Deployment | None:
        found = sites.lettered(optional("evaluate", name))
        return found and Deployment.from_json(found)

    def table(stage: str, name: str, definition: tables.Table) -> pd.DataFrame:
        return tables.read_table(inputs.file(stage, name), definition)

    def optional_table(stage: str, name: str, definition: tables.Table) -> pd.DataFrame | None:
        found = inputs.files(stage, name)
        return tables.read_table(found[0], definition) if found else None

    images = table("ingest", "images.parquet", tables.IMAGES)
    sites = sites_of(inputs)
    images = images.assign(site=images["site"].map(sites.of))
    metrics = Metrics.from_json(sites.lettered(content("evaluate", Metrics.FILE)))
    findings = findings_from(sites.lettered(content("evaluate", "findings.json")))
    certified = Threshold.from_json(content("calibrate", Threshold.FILE))
    decision = decide(findings, certified, metrics)
    scores = table("evaluate", "patient_scores.parquet", tables.PATIENT_SCORES)
    reported = scores[scores["arm"] == metrics.arm]
    wrong = _most_confident_errors(reported, settings.examples)
    deciding = deciding_images(table("score", "scores_test.parquet", tables.SCORES), metrics.arm)
    index = table("preprocess", "index_test.parquet", tables.INDEX)
    networks = _networks(inputs, metrics)
    examples = _examples(wrong, index, deciding, images, inputs, networks)
    packaged = "package" in inputs.artifacts
    return Evidence(
        title=settings.title,
        contact=settings.contact,
        date=inputs.record("evaluate")["created"][:10],
        card=inputs.card.model_dump(),
        statements={name: str(field.description) for name, field in type(inputs.card.study).model_fields.items()},
        ingest=sites.lettered(_remarked(content("ingest", "summary.json"), content("preprocess", "summary.json"))),
        images=images,
        split=sites.lettered(content("split", "summary.json")),
        assignment=table("split", "split.parquet", tables.SPLIT),
        pretraining=_pretraining(inputs),
        outline=kind_of(networks),
        finetune=content("finetune", "summary.json"),
        calibrator=content("calibrate", "calibrator.json"),
        threshold=decision.threshold(certified),
        sweep=table("calibrate", "sweep.parquet", tables.SWEEP),
        metrics=metrics,
        subgroups=sites.lettered_groups(table("evaluate", "subgroups.parquet", tables.SUBGROUPS)),
        comparison=table("evaluate", "comparison.parquet", tables.COMPARISON),
        curves=table("evaluate", "curves.parquet", tables.CURVES),
        calibration_curves=optional_table("evaluate", "calibration_curve.parquet", tables.CALIBRATION_CURVE),
        scores=scores,
        findings=findings,
        misses=[x for x, label in zip(examples, wrong["label"], strict=True) if label == 1],
        false_alarms=[x for x, label in zip(examples, wrong["label"], strict=True) if label == 0],
        records={step: sites.lettered(inputs.record(step)) for step in inputs.artifacts},
        external={name: card.model_dump() for name, card in inputs.external.items()},
        further_thresholds={
            label_id: decision.of_further_label(its.problems).threshold(
                Threshold.from_json(content("calibrate", f"further/{label_id}/{Threshold.FILE}"))
            )
            for label_id, its in metrics.further_labels.items()
        },
        deployment=deployment(Deployment.FILE),
        further_deployments={
            label_id: deployment(f"further/{label_id}/{Deployment.FILE}") for label_id in metrics.further_labels
        },
        certified_groups=sites.lettered(optional("calibrate", "subgroups.json")),
        between_sites=optional("evaluate", "between_sites.json") or (),
        packaged=content("package", "model/model.json") if packaged else None,
        model_sha256=sha256_file(inputs.file("package", "model/SHA256SUMS")) if packaged else "",
        exam=optional_table("evaluate", "exam.parquet", tables.EXAM),
        label_fractions=optional_table("evaluate", "label_fractions.parquet", tables.LABEL_FRACTIONS),
        localisation=_localisation(inputs, index, settings.examples),
    )


def _localisation(inputs: Inputs, index: pd.DataFrame, examples: int) -> Localisation | None:
    """Return what evaluate left of masks, with examples of the arm that the report shows; None without masks."""
    if not (found := inputs.files("evaluate", "segmentation.json")):
        return None
    summary = read_json(found[0])
    froc, comparison, patients = (
        tables.read_table(inputs.file("evaluate", f"{name}.parquet"), table)
        for name, table in (
            ("froc", tables.FROC),
            ("segmentation_comparison", tables.SEGMENTATION_COMPARISON),
            ("segmentation_patients", tables.SEGMENTATION_PATIENTS),
        )
    )
    arm = summary["arm"] or next(iter(summary["arms"]))
    own = patients[(patients["arm"] == arm) & (patients["found"] + patients["missed"] > 0)]
    dice = own.groupby("patient_id")["dice"].mean().sort_values(kind="stable")
    places = {0: "the lowest Dice of all patients with a structure", len(dice) // 2: "the middle one"}
    shown = list(places.items())[: min(examples, len(dice))]
    drawn = [_drawn(inputs, index, arm, str(dice.index[at]), float(dice.iloc[at]), place) for at, place in shown]
    return Localisation(summary, froc, comparison, drawn)


def _drawn(inputs: Inputs, index: pd.DataFrame, arm: str, patient: str, dice: float, place: str) -> Drawn:
    """Return that image of a patient in which the reference has most of a structure, with both masks."""

    def row(stage: str, name: str, at: int) -> np.ndarray:
        return np.load(inputs.file(stage, name), mmap_mode="r", allow_pickle=False)[at]

    own = index[index["patient_id"] == patient].sort_values("image_id")
    places = list(zip(own["shard"], own["row"], strict=True))
    references = [_structures(row("preprocess", mask_name(shard), at)) for shard, at in places]
    most = max(range(len(places)), key=lambda at: references[at].sum())
    (shard, at), reference = places[most], references[most]
    predicted = _structures(row("score", f"predicted_masks/{arm}-{shard}", at))
    array = row("preprocess", shard, at)
    picture = np.moveaxis(array, 0, -1) if len(array) > 1 else array[0]
    if reference.ndim == 3:
        centre = [int(np.median(axis)) for axis in np.nonzero(reference)]
        picture, reference, predicted = (three_planes(one, centre) for one in (picture, reference, predicted))
    return Drawn(patient, picture, reference, predicted, dice, place)


def _structures(mask: np.ndarray) -> np.ndarray:
    return (mask != BACKGROUND) & (mask != NOT_ANNOTATED)


def _remarked(ingest: dict[str, Any], prepared: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of ingest with what was said and found odd about images when arrays were made."""
    if taken := prepared.get("masks", {}).get("taken_for_empty"):
        ingest = ingest | {"masks": ingest["masks"] | {"taken_for_empty": taken}}
    lost, flag = prepared.get("field_of_view", {}).get("not_found", 0), "no_field_of_view"
    if not lost:
        return ingest
    more = {"flags": {flag: lost}, "flag_meanings": {flag: FLAGS[flag]}}
    return ingest | {name: ingest[name] | values for name, values in more.items()}


def sites_of(inputs: Inputs) -> Sites:
    """Return the letters of the sites of a run."""
    return Sites(tables.read_table(inputs.file("ingest", "images.parquet"), tables.IMAGES)["site"])


def _pretraining(inputs: Inputs) -> Pretraining | None:
    if "pretrain" not in inputs.artifacts:
        return None
    encoder, summary, history = (
        read_json(inputs.file("pretrain", f"{name}.json")) for name in ("model", "summary", "history")
    )
    return Pretraining(encoder, summary, history, inputs.file("pretrain", "reconstructions.png").read_bytes())


def _most_confident_errors(scores: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the patients missed with the lowest scores, then those referred in vain with the highest."""
    missed = scores[(scores["label"] == 1) & ~scores["referred"].fillna(True)].sort_values("score", kind="stable")
    alarms = scores[(scores["label"] == 0) & scores["referred"].fillna(False)]
    alarms = alarms.sort_values("score", ascending=False, kind="stable")
    return pd.concat([missed.head(most), alarms.head(most)], ignore_index=True)


def _examples(
    chosen: pd.DataFrame,
    index: pd.DataFrame,
    deciding: pd.Series,
    images: pd.DataFrame,
    inputs: Inputs,
    networks: Sequence[Network],
) -> list[Example]:
    """Return each chosen patient's deciding image, where the model's attention lay, and what the tables say of it."""
    if chosen.empty:
        return []
    own = index[index["patient_id"].isin(chosen["patient_id"])].sort_values("image_id")
    counts = own.groupby("patient_id").size()
    deciders = own.set_index("image_id").loc[deciding[chosen["patient_id"]]].reset_index()
    shards = {
        name: np.load(inputs.file("preprocess", name), mmap_mode="r", allow_pickle=False)
        for name in deciders["shard"].unique()
    }
    pictures = Images(deciders, shards)
    device = prepare(inputs.machine.device, inputs.machine.threads)
    attentions = [attention(networks, pictures.pixels([at], device)) for at in range(len(pictures))]
    known = images.set_index("image_id")
    examples = []
    for at, row in enumerate(chosen.to_dict("records")):
        facts = known.loc[deciders.loc[at, "image_id"]].to_dict()
        shares = attentions[at]
        image, outlined = shown(pictures.raw([at])[0].numpy(), shares)
        examples.append(
            Example(
                patient=row["patient_id"],
                image=image,
                outlined=outlined,
                outlined_share=None if shares is None else float(half_of(shares).mean()),
                images=int(counts[row["patient_id"]]),
                score=row["score"],
                probability=row["probability"],
                site=facts["site"],
                view=facts["view"],
            )
        )
    return examples


def _networks(inputs: Inputs, metrics: Metrics) -> list[Network]:
    """Return the networks behind the reported arm, of all its seeds; none when it has no network."""
    device = prepare(inputs.machine.device, inputs.machine.threads)

    def files(seed: int) -> tuple[Path, Path]:
        place = f"{metrics.arm}/seed{seed}"
        return inputs.file("finetune", f"{place}/{RECORD}"), inputs.file("finetune", f"{place}/{WEIGHTS}")

    return Ensemble.load({seed: files(seed) for seed in metrics.seeds}, device).networks


def _write_tables(document: Document, raw: dict[str, pd.DataFrame], work: Path) -> None:
    """Write each table as shown to tables/; those that no page shows, and the unrounded ones, to data/."""
    for folder, tables_of in (("tables", document.tables), ("data", document.more)):
        for table in tables_of:
            rows = printable([table.columns, *table.rows])
            _write(work / folder / f"{table.name}.csv", csv_text(rows[0], rows[1:]).encode())
    for name, frame in raw.items():
        rows = frame.astype(object).where(frame.notna(), "").itertuples(index=False)
        _write(work / "data" / f"{name}.csv", csv_text(list(frame.columns), rows).encode())


def _write_keys(e: Evidence, sites: Sites, work: Path) -> None:
    """Write which site is which letter and whose the examples are. Neither is delivered with the report."""
    of_site = e.images["site"].value_counts()
    rows = [[letter, name, int(of_site[letter])] for name, letter in sites.letters.items()]
    _write(work / "sites.csv", csv_text(["site", "pseudonym", "images"], rows).encode())
    shown: dict[str, Sequence[Example | Drawn]] = {"misses": e.misses, "false_alarms": e.false_alarms}
    if e.localisation is not None:
        shown["localisation_examples"] = e.localisation.examples
    cases = [[name, f"case {at}", x.patient] for name, found in shown.items() for at, x in enumerate(found, 1)]
    _write(work / "cases.csv", csv_text(["figure", "case", "patient_id"], cases).encode())


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)
