"""The wheel that `pip install` gets: complete, and at work from any folder."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_installed_wheel_works_outside_of_the_checkout(tmp_path):
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    wheels, target, elsewhere = tmp_path / "wheels", tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", *offline, "--target", target, wheel], check=True)
    packed = {str(path.relative_to(target)) for path in (target / "pipeline").rglob("*") if path.suffix != ".pyc"}
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "pipeline"], capture_output=True, text=True).stdout.split()
    assert {name for name in packed if (target / name).is_file()} >= set(tracked)

    def call(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        done = subprocess.run(
            [target / "bin" / "maescreen", *words], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    assert "Usage: maescreen" in call("--help")
    assert call("--version").strip() == next(wheels.iterdir()).name.split("-")[1]
    assert "transfer syntaxes" in call("doctor")
    assert list(elsewhere.iterdir()) == []


def test_what_the_test_of_the_wheel_needs_is_installed_with_the_other_tools():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = project["build-system"]["requires"]
    assert needed == [one for one in project["project"]["optional-dependencies"]["dev"] if "hatchling" in one]
