"""Further labels in the report: what may be shown of a threshold, and what may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reporting import example_run

from pipeline.reporting.content import build
from pipeline.reporting.document import Document
from pipeline.reporting.evidence import Evidence
from pipeline.settings.decision import CalibrateSettings, ReportSettings
from pipeline.stages.report import _evidence

LABEL = {"reference_standard": "one reader", "positive": ["1"], "negative": ["0"], "definition": "seen by one reader"}


def made(root: Path, deploy: Any = "calibration", **choices: Any) -> tuple[Evidence, Document]:
    labels = [{"id": name, "name": f"<b>{name}</b>", "column": name, **LABEL} for name in ("nodule", "effusion")]
    cards, target = example_run.card(further_labels=labels), CalibrateSettings(recall_targets=[0.85], deploy=deploy)
    inputs = example_run.make_run(root, patients=400, cards=cards, calibration=target, **choices)
    evidence = _evidence(ReportSettings(title="x"), inputs)
    return evidence, build(evidence)


def certified(root: Path) -> dict[str, str]:
    """Return the threshold that was certified of each further label, whatever became of it."""
    found = {path.parent.name: json.loads(path.read_text()) for path in root.rglob("further/*/threshold.json")}
    assert set(found) == {"nodule", "effusion"}
    return {label_id: threshold["threshold_hex"] for label_id, threshold in found.items()}


def section(document: Document, name: str) -> dict[str, Any]:
    content = document.to_dict()
    blocks = [b for part in ("sections", "appendix") for s in content[part] if s["name"] == name for b in s["blocks"]]
    return {"blocks": blocks}


@pytest.fixture(scope="module")
def unknown_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("unknown")


@pytest.fixture(scope="module")
def unknown(unknown_root) -> tuple[Evidence, Document]:
    """Further labels that the model does not know."""
    return made(unknown_root, deploy="pooled", further_skill=0.0)


def test_rows_stand_in_the_order_of_the_card_with_the_mean_last(unknown):
    tables = {block["name"]: block for block in section(unknown[1], "further_labels")["blocks"] if "rows" in block}
    names = [row[0] for row in tables["further_labels"]["rows"]]
    assert names == ["pneumonia (main)", "<b>nodule</b>", "<b>effusion</b>", "Mean of all 3 (macro)"]
    assert [row[0] for row in tables["further_certificates"]["rows"]] == names[:3]


def test_page_one_says_that_the_confidence_was_shared_out(unknown):
    assert "shared out over 3 labels" in json.dumps(section(unknown[1], "summary"))


def test_the_threshold_of_a_label_that_the_model_does_not_know_is_nowhere(unknown, unknown_root):
    evidence, document = unknown
    assert evidence.point is not None
    for label_id, threshold_hex in certified(unknown_root).items():
        assert evidence.further_thresholds[label_id].at is None
        assert f"No usable threshold for <b>{label_id}</b>" in json.dumps(section(document, "further_labels"))
        assert threshold_hex not in json.dumps(document.numbers)
        assert document.numbers["metrics"]["further_labels"][label_id]["operating_point"] is None
    macro = document.numbers["metrics"]["macro"]
    assert evidence.metrics.macro is not None
    assert macro["auc"]["value"] == evidence.metrics.macro.auc.value
    assert macro["recall"] is macro["specificity"] is None


def test_without_a_usable_main_operating_point_no_further_one_is_shown(tmp_path):
    evidence, document = made(tmp_path, skill=0.0)
    assert evidence.point is None
    assert all(evidence.metrics.further_labels[label_id].problems == () for label_id in evidence.further)
    assert all(t["threshold"] is None for t in document.numbers["further_thresholds"].values())
    assert all(found not in json.dumps(document.to_dict()) for found in certified(tmp_path).values())
    assert "shared out" not in json.dumps(section(document, "summary"))


def test_a_run_with_one_label_has_no_such_section(tmp_path):
    evidence = _evidence(ReportSettings(title="x"), example_run.make_run(tmp_path, patients=150))
    document = build(evidence)
    assert "further_labels" not in {one["name"] for one in document.to_dict()["sections"]}
    assert document.numbers["further_thresholds"] == {}


def test_thresholds_certified_on_test_patients_as_well_stand_beside_the_tested_ones(tmp_path):
    evidence, document = made(tmp_path, deploy="pooled")
    blocks = section(document, "further_labels")["blocks"]
    assert "certified anew on its calibration and test patients together" in json.dumps(blocks)
    tables = {block["name"]: block for block in blocks if "rows" in block}
    rows = {row[0]: row[1:] for row in tables["further_deployment"]["rows"]}
    assert list(rows) == ["pneumonia (main)", "<b>nodule</b>", "<b>effusion</b>"]
    for label_id in evidence.further:
        to_use, tested = evidence.further_deployments[label_id].to_use, evidence.further_thresholds[label_id]
        assert to_use is not None
        assert rows[f"<b>{label_id}</b>"][0] == str(to_use.positives)
        assert to_use.positives > tested.positives
        assert tested.at is not None
        assert to_use.threshold_hex != tested.at.threshold_hex
        assert document.numbers["further_deployments"][label_id]["threshold_hex"] == to_use.threshold_hex


def test_of_a_label_that_the_model_does_not_know_no_threshold_to_use_is_shown(unknown):
    document = unknown[1]
    tables = {block["name"]: block for block in section(document, "further_labels")["blocks"] if "rows" in block}
    assert [row[0] for row in tables["further_deployment"]["rows"]] == ["pneumonia (main)"]
    assert set(document.numbers["further_deployments"].values()) == {None}
