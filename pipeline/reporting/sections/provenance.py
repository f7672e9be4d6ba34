"""What the report rests on: artifacts, code, packages, hashes, and everything that a stage warned of."""

from __future__ import annotations

from pipeline.reporting.document import Block, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.store.files import sha256_json


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
    columns = ["Stage", "Artifact key", "Code digest", "Commit", "Device", "Made on", "Kept although code changed"]
    files = e.records["calibrate"]["files"]
    hashes = [
        ["Threshold (threshold.json)", files["threshold.json"]],
        ["Calibrator (calibrator.json)", files["calibrator.json"]],
        ["Calibration scores", e.threshold["data_sha256"]],
        ["Encoder", e.encoder["sha256"]],
    ]
    hashes += [
        [f"Weights, {arm}, seed {seed}", s["model_sha256"]]
        for arm, a in e.finetune["arms"].items()
        for seed, s in a["seeds"].items()
    ]
    if weights := e.records["finetune"]["sources"].get("imported_weights"):
        hashes.append(["Public weights that arm imported started from", weights])
    warnings = [[stage, warning] for stage, r in e.records.items() for warning in r["warnings"]]
    blocks: list[Block] = [
        Table("stages", "Artifacts behind this report", columns, stages),
        Paragraph(
            "The keys are also in the metadata of the PDF: “maescreen trace report.pdf” follows them to the hash of "
            "every source file."
        ),
        Table("hashes", "SHA-256 of model, calibrator and threshold", ["File", "SHA-256"], hashes, True),
        Table("packages", "Packages", ["Package", "Version"], _packages(e)),
    ]
    if warnings:
        blocks.append(Table("warnings", "Warnings of the stages", ["Stage", "Warning"], warnings))
    else:
        blocks.append(Paragraph("No stage gave a warning."))
    return Section("provenance", "Versions and provenance", blocks)


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
