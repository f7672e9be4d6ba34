"""Notebooks and the Python of the pages run against a packaged model, and say what predict says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def executed(name: str, monkeypatch, **variables: Path) -> dict[str, object]:
    """Run the code cells of a notebook in one namespace and return it."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(value))
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads((EXAMPLES / name).read_text("utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    return names


@pytest.mark.parametrize("which", ["hog", "mae"])
def test_one_study_becomes_an_array_logits_and_the_decision_of_predict(which, request, tmp_path, monkeypatch, capsys):
    packaged = request.getfixturevalue(which)
    file = min(packaged.unpacked(tmp_path).rglob("*.dcm"))
    (wanted,) = packaged.load().predict([file], workers=1)
    found = executed("one_study.ipynb", monkeypatch, MODEL=packaged.model, STUDIES=file)
    assert found["array"].shape == (1, 1, 32, 32)
    assert found["array"].dtype == np.uint8
    assert found["logits"].shape == (1, 1)
    assert found["decision"] == wanted.judgement
    assert wanted.judgement.decision in capsys.readouterr().out


def test_many_studies_get_a_row_each(hog, tmp_path, monkeypatch):
    out = tmp_path / "results"
    found = executed("predict.ipynb", monkeypatch, MODEL=hog.model, STUDIES=hog.studies, OUT=out)
    rows = json.loads((out / "results.json").read_text())["results"]
    assert len(rows) > 20
    assert sum(found["written"].counts().values()) == len(rows)
    wanted = {one.study: one.judgement.score for one in hog.load().predict([hog.studies], workers=1)}
    assert {row["study"]: row["score"] for row in rows} == wanted


@pytest.mark.parametrize("page", ["README.md", "docs/guides/predicting.md"])
def test_the_python_of_a_page_runs_where_the_files_that_it_names_are(page, hog, tmp_path, monkeypatch, capsys):
    shutil.copytree(hog.model, tmp_path / "model")
    shutil.copyfile(hog.studies, tmp_path / "studies.zip")
    shutil.copyfile(min(hog.unpacked(tmp_path / "unpacked").rglob("*.dcm")), tmp_path / "study.dcm")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "__main__"}
    for number, text in enumerate(blocks):
        exec(compile(text, f"{page}, block {number}", "exec"), names)
    assert len(re.findall(r" (?:refer|not assessable) ", capsys.readouterr().out)) > 20
