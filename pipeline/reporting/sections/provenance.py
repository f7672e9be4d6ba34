"""What the report rests on: statements, data, artifacts, settings, packages, hashes, and all that a stage warned of."""

from __future__ import annotations

from typing import Any

from pipeline.reporting.checklists import stated
from pipeline.reporting.document import Block, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count
from pipeline.store.files import sha256_json

DE_IDENTIFICATION = (
    "Identifiers of patients, studies and images are keyed hashes (HMAC-SHA256). Of a header only a short list of "
    "fields is kept: no names, no free text, no dates, no paths; 90 stands for 90 years and above. Whether text is "
    "burned into pixels is taken from the header alone; images whose header says so were {burned_in}."
)
BURNED_IN = {"quarantine": "set aside", "accept": "accepted"}
TRAINING = ("preprocess", "pretrain", "finetune")


def statements(e: Evidence) -> Section:
    """Return what the card says about the study beyond the data themselves, and where the data come from."""
    made = {name: words for name, words in e.statements.items() if stated(e.card["study"][name])}
    said = [[words, e.card["study"][name]] for name, words in made.items()]
    without = [words[0].lower() + words[1:] for name, words in e.statements.items() if name not in made]
    silent = f"The dataset card says nothing of: {'; '.join(without)}."
    ingest, split = e.records["ingest"], e.records["split"]
    # An artifact that was kept may be older than the setting.
    burned_in = BURNED_IN[ingest["settings"].get("burned_in_annotation", "quarantine")]
    digests = {**ingest["sources"], **split["sources"]}
    names = {"studies": "Studies (digest of all files)", "labels": "Label table", "columns": "Columns, from the card"}
    data = [
        ["Source", e.card["source"]],
        ["Licence", e.card["licence"]],
        *([words, digests[name]] for name, words in names.items() if name in digests),
        ["Patients in two parts", count(e.split["patients_shared_between_splits"])],
        [
            "Copies found and set aside",
            count(sum(e.ingest["duplicates"].get(n, 0) for n in ("same_image", "same_pixels"))),
        ],
        ["De-identification", DE_IDENTIFICATION.format(burned_in=burned_in)],
    ]
    return Section(
        "statements",
        "Statements",
        [
            *(
                [Table("statements", "What the dataset card states", ["About", "Statement"], said, True)]
                if said
                else []
            ),
            *([Paragraph(silent)] if without else []),
        ],
        [Table("data_provenance", "Where the data come from", ["What", "Value"], data, True)],
    )


def provenance(e: Evidence) -> Section:
    """Return versions and provenance; nothing in it depends on when or where this page was made."""
    stages = [
        [
            stage,
            r["key"],
            sha256_json(r["code"])[:16],
            str(r["git_commit"] or "unknown")[:12],
            r["device"],
            str(r["created"])[:10],
            r["kept"] or "—",
        ]
        for stage, r in e.records.items()
    ]
    columns = ["Stage", "Artifact key", "Code digest", "Commit", "Device", "Made on", "Kept although"]
    files = e.records["calibrate"]["files"]
    hashes = [
        *([["Packaged model, which predict uses (its SHA256SUMS)", e.model_sha256]] if e.model_sha256 else []),
        ["Threshold (threshold.json)", files["threshold.json"]],
        ["Calibrator (calibrator.json)", files["calibrator.json"]],
        ["Calibration scores", e.threshold.data_sha256],
        *([["Encoder", e.pretraining.encoder["sha256"]]] if e.pretraining else []),
    ]
    hashes += [
        [f"Weights, {arm}, seed {seed}", s["model_sha256"]]
        for arm, a in e.finetune["arms"].items()
        for seed, s in a["seeds"].items()
    ]
    if weights := e.records["finetune"]["sources"].get("imported_weights"):
        hashes.append(["Public weights that arm imported started from", weights])
    if e.pretraining and (weights := e.records["pretrain"].get("sources", {}).get("start_weights")):
        hashes.append(["Weights that pretraining started from", weights])
    warnings = [[stage, warning] for stage, r in e.records.items() for warning in r["warnings"]]
    blocks: list[Block] = [
        Table("stages", "Artifacts behind this report", columns, stages),
        Paragraph(
            "The keys are also in the metadata of the PDF: “maescreen trace report.pdf” follows them to the hash of "
            "every source file."
        ),
        Table("hashes", "SHA-256 of model, calibrator and threshold", ["File", "SHA-256"], hashes, True),
        Paragraph(
            "Packages with versions and every setting are in report.json, data/packages.csv and data/settings.csv."
        ),
    ]
    if warnings:
        blocks.append(Table("warnings", "Warnings of the stages", ["Stage", "Warning"], warnings))
    else:
        blocks.append(Paragraph("No stage gave a warning."))
    return Section("provenance", "Versions and provenance", [], blocks)


def more(e: Evidence) -> list[Table]:
    """Return what only programs read of it: packages and settings."""
    return [
        Table("packages", "Packages", ["Package", "Version"], _packages(e)),
        Table("settings", "Every setting of preprocessing and training", ["Setting", "Value"], _settings(e), True),
    ]


def _settings(e: Evidence) -> list[list[str]]:
    def flat(prefix: str, value: Any) -> list[list[str]]:
        if isinstance(value, dict):
            return [row for name, inner in value.items() for row in flat(f"{prefix}.{name}", inner)]
        if value is None:
            return [[prefix, "—"]]
        return [[prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]]

    return [row for stage in TRAINING if stage in e.records for row in flat(stage, e.records[stage]["settings"])]


def _packages(e: Evidence) -> list[list[str]]:
    """List each package with its version, or its versions with their stages where artifacts were made with several."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage, r in e.records.items():
        for package, version in r["versions"].items():
            found.setdefault(package, {}).setdefault(version, []).append(stage)
    return [
        [package, "; ".join(v if len(versions) == 1 else f"{v} ({', '.join(at)})" for v, at in versions.items())]
        for package, versions in sorted(found.items())
    ]
