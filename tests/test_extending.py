"""The stage of docs/extending/stage.md, added to a copy of the package as the page says, is a stage like any other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration.graph import NAMES
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def put(file: Path, before: str, text: str) -> None:
    """Put a text before the first place of another one in a file."""
    content = file.read_text("utf-8")
    assert before in content
    file.write_text(content.replace(before, text + before, 1), "utf-8")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """Return a folder with a copy of the package and what the page adds to it: file, entry and section."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    stage, entry, settings = BLOCK.findall((ROOT / "docs" / "extending" / "stage.md").read_text("utf-8"))[:3]
    (folder / "pipeline" / "stages" / "audit.py").write_text(stage, "utf-8")
    put(folder / "pipeline/orchestration/graph.py", '    Stage(\n        "preprocess",', f"    {entry.strip()},\n")
    section, _, whole = settings.partition("class Config(Settings):")
    config = folder / "pipeline" / "settings" / "config.py"
    put(config, "class Config(Settings):", section)
    put(config, "    report: ReportSettings\n", f"    {whole.strip().splitlines()[-1].strip()}\n")
    return folder


def typed(package: Path, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)


def test_it_has_its_place_in_the_plan_and_runs_by_its_own_command(package, finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    planned = typed(package, "plan", project.config, "audit.fewest=400")
    assert planned.returncode == 0, planned.stderr
    assert [line.split()[0] for line in planned.stdout.splitlines()][: len(NAMES) + 1] == [
        *NAMES[:2], "audit", *NAMES[2:],
    ]  # fmt: skip
    assert re.search(r"^audit +[0-9a-f]{16}  run: no earlier artifact$", planned.stdout, re.MULTILINE)
    done = typed(package, "audit", project.config, "audit.fewest=400")
    assert done.returncode == 0, done.stderr
    assert "audit: warning: fewer than 400 patients of a kind in calibration, test, train, tune" in done.stderr
    (made,) = Store(project.store).all("audit")
    assert read_json(made.file("summary.json"))["calibration"]["positive"] == 35
    assert made.record["settings"] == {"fewest": 400}
