"""A model that has learned nothing never leaves with an operating point."""

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pypdf
import pytest
from project import pipeline_runs
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.statistics.gate import assess_discrimination, assess_other_target
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.tracking import Tracker


@pytest.mark.slow
def test_permuted_labels_end_in_exit_code_3_a_banner_and_no_operating_point(finished, tmp_path):
    project = finished.copy(tmp_path / "permuted")
    head, *rows = project.labels.read_text().splitlines()
    label_of_patient = {str(Path(row.split(",")[0]).parent): row.split(",")[1] for row in rows}
    # By patient: shuffled images would leave the number of a patient's images to learn from.
    shuffled = random.Random(3).sample(list(label_of_patient.values()), len(label_of_patient))
    label_of_patient = dict(zip(label_of_patient, shuffled, strict=True))
    paths = [row.split(",")[0] for row in rows]
    permuted = [f"{path},{label_of_patient[str(Path(path).parent)]}" for path in paths]
    project.labels.write_text("\n".join([head, *permuted]) + "\n")

    result = CliRunner().invoke(app, ["run", str(project.config)])
    assert result.exit_code == 3, result.output
    assert "gate failed" in result.stderr

    report = Store(project.store).all("report")[0]
    findings = read_json(Store(project.store).all("evaluate")[0].path / "findings.json")
    assert any(f["level"] == "fail" and f["code"] in ("no_discrimination", "ppv_no_lift", "reversed") for f in findings)
    curves = {row.split(",")[0] for row in (report.path / "data" / "curves.csv").read_text("utf-8").splitlines()[1:]}
    assert curves == {"reliability_before", "reliability_after"}
    page_one = pypdf.PdfReader(report.path / "report.pdf").pages[0].extract_text()
    assert "not be used" in page_one.lower() or "do not use" in page_one.lower()

    compared = CliRunner().invoke(app, ["compare", str(project.config), "--pdf", str(tmp_path / "compared.pdf")])
    assert compared.exit_code == 0, compared.output
    as_json = CliRunner().invoke(app, ["run", str(project.config), "--json"])
    assert as_json.exit_code == 3
    assert not {"threshold", "certified_recall", "test_recall"} & set(json.loads(as_json.stdout)["headline"])
    told = [result.output, as_json.output, compared.output, as_text(tmp_path / "compared.pdf")]
    told += [as_text(path) for path in everything_delivered(project)]
    numbers = withheld(Store(project.store).all("calibrate")[0].path, Store(project.store).all("evaluate")[0].path)
    assert len(numbers) >= 5, "nothing to look for"
    assert {number for number in numbers for text in told if number in text} == set()


def test_no_finding_that_closes_the_gate_gives_the_threshold_away():
    y, s = np.array([0, 1] * 20), np.linspace(0, 1, 40)
    stored = pd.DataFrame({"threshold": [7.654321], "true_positive": [1], "false_positive": [1],
                           "true_negative": [1], "false_negative": [1]})  # fmt: skip
    found = assess_discrimination(y, s, s, 7.654321, sweep=stored)
    found += assess_other_target(y, s, 7.654321, 0.9)
    assert [one.code for one in found].count("threshold_outside_scores") == 2
    assert "other_threshold_outside_scores" in {one.code for one in found}
    assert not [one for one in found if "7.65" in one.message]


@pytest.mark.slow
def test_before_the_test_patients_were_read_no_threshold_leaves_the_store(finished, tmp_path):
    """They may still contradict it; a run that ends with calibrate closes no gate, and opens none."""
    project = finished.copy(tmp_path / "stopped")
    result = CliRunner().invoke(app, ["run", str(project.config), "--until", "calibrate", "--json"])
    assert result.exit_code == 0, result.output
    assert not {"threshold", "certified_recall", "misses_seen"} & set(json.loads(result.stdout)["headline"])
    (run,) = [
        one
        for one in pipeline_runs(Tracker("mini", project.store))
        if one.data.tags["maescreen.key"].startswith("calibrate/")
    ]
    assert not {"threshold", "certified_recall"} & set(run.data.metrics)
    assert "sweep.json" not in {
        file.path for file in Tracker("mini", project.store).client.list_artifacts(run.info.run_id)
    }


def withheld(calibrate: Path, evaluate: Path) -> set[str]:
    """Return what must be read nowhere, with enough digits to be nothing else."""
    threshold, metrics = read_json(calibrate / "threshold.json"), read_json(evaluate / "metrics.json")
    point = metrics["operating_point"] or {}
    values = [threshold["threshold"], threshold["probability"], threshold["certified_recall"]]
    values += [point[rate]["low"] for rate in ("recall", "specificity", "referral_rate") if rate in point]
    values += [row.as_py() for row in pq.read_table(calibrate / "sweep.parquet")["threshold"]][1:-1]
    return {f"{value:.6f}"[:-1] for value in values if value is not None and value not in (0, 1)}


def everything_delivered(project) -> list[Path]:
    """Return the files of the report, and all that MLflow holds: its database and its files."""
    (report,) = Store(project.store).all("report")[:1]
    delivered = [path for path in report.path.rglob("*") if path.is_file() and path.name != "artifact.json"]
    tracked = [path for path in (project.store / "mlflow-artifacts").rglob("*") if path.is_file()]
    of_this_run = {path.stat().st_mtime for path in delivered}
    return delivered + [path for path in tracked if path.stat().st_mtime >= min(of_this_run) - 600]


def as_text(path: Path) -> str:
    if path.suffix == ".pdf":
        return "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    return path.read_bytes().decode("utf-8", "replace")
