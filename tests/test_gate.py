"""A model that has learned nothing never leaves with an operating point."""

import random
from pathlib import Path

import pypdf
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json


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
    page_one = pypdf.PdfReader(report.path / "report.pdf").pages[0].extract_text()
    assert "not be used" in page_one.lower() or "do not use" in page_one.lower()
    threshold = read_json(Store(project.store).all("calibrate")[0].path / "threshold.json")["threshold"]
    if threshold is not None:
        assert f"{threshold:.2f}" not in page_one
