"""Two further labels from DICOM to report: one with a column of its own, one a class of the main label's column."""

import io

import pandas as pd
import pytest
from project import Project
from pypdf import PdfReader
from small_projects import add_further_labels

from pipeline.orchestration.mlflow_runs import headline
from pipeline.orchestration.plan import plan
from pipeline.orchestration.run import Result, run
from pipeline.store.files import read_json

QUICK = (
    "pretrain.max_steps=6",
    "finetune.epochs=2",
    "finetune.seeds=[1]",
    "finetune.arms=[hog]",
    "machine.workers=1",
    "calibrate.deploy=pooled",
)


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    made = finished.copy(tmp_path_factory.mktemp("further") / "project")
    add_further_labels(made)
    return made


@pytest.fixture(scope="module")
def result(project) -> Result:
    return run(*project.load(*QUICK), say=lambda line: None)


def test_the_plan_names_what_changed(project, result):
    steps = {step.name: step for step in plan(*project.load(*QUICK))}
    assert {step.action for step in steps.values()} == {"reuse"}
    assert "further_labels" in steps["split"].sources
    card = project.folder / "card.yaml"
    before = card.read_text()
    card.write_text(before.replace("nobody", "somebody"))
    try:
        changed = {step.name: step.reason for step in plan(*project.load(*QUICK))}
    finally:
        card.write_text(before)
    assert changed["ingest"] == ""
    assert changed["split"] == "source changed (further_labels)"


def test_every_label_is_in_metrics_report_and_tracker(result):
    metrics = read_json(result.artifacts["evaluate"].file("metrics.json"))
    content = read_json(result.artifacts["report"].file("report.json"))
    assert set(metrics["further_labels"]) == {"sign", "healthy"}
    assert 0 < metrics["further_labels"]["sign"]["patients"] <= metrics["patients"]
    assert content["numbers"]["metrics"]["macro"]["auc"] == metrics["macro"]["auc"]
    thresholds = content["numbers"]["further_thresholds"]
    assert {one["confidence_used"] for one in thresholds.values()} == {
        content["numbers"]["threshold"]["confidence_used"]
    }
    numbers = headline(result.artifacts)
    assert numbers["further_healthy_auc"] == metrics["further_labels"]["healthy"]["discrimination"]["auc"]["value"]


def test_the_packaged_model_has_the_threshold_to_use_of_each_label(result):
    rules = read_json(result.artifacts["package"].file("model/model.json"))["further_rules"]
    assert set(rules) == {"sign", "healthy"}
    for label_id, rule in rules.items():
        made = read_json(result.artifacts["evaluate"].file(f"further/{label_id}/deployment.json"))
        assert made["rule"] == "pooled"
        assert rule["usable"] == made["usable"]
        points = rule["operating_points"][:1]
        assert [one["threshold_hex"] for one in points] == ([made["threshold_hex"]] if made["usable"] else [])
        assert {one["source"] for one in points} <= {"calibration and test patients together"}
        assert all(isinstance(reason, str) for reason in rule["not_usable_because"])


def test_the_report_shows_a_row_per_label_and_their_mean(result):
    report = result.artifacts["report"]
    rows = pd.read_csv(io.StringIO(report.file("tables/further_labels.csv").read_text("utf-8-sig")))
    assert len(rows) == 4
    assert rows["Label"].tolist()[2:] == ["no finding", "Mean of all 3 (macro)"]
    pages = [" ".join(page.extract_text().split()) for page in PdfReader(report.file("report.pdf")).pages]
    after = " ".join(pages[1:])
    assert "is shared out over 3 labels" in after[after.index("Further labels") :]
    html = report.file("report.html").read_text()
    assert "&lt;script&gt;alert(1)" in html
    assert "<script>alert(1)" not in html
    assert any('#import "x" *b*' in page for page in pages)
