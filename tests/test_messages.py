"""What the command line says, word by word: exit code, stdout and stderr of what users commonly meet.

Each file of tests/messages/ is a list of commands as they are typed in the folder that `world` makes, and what came of
them: lines of stdout behind `> `, those of stderr behind `! `, the exit code behind `= `. To add a message, write
its `$ maescreen …` line; then, and whenever words change on purpose, this writes the answers, to be read in the diff:

    WRITE_MESSAGES=1 python -m pytest -q tests/test_messages.py
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from project import Project
from small_model import image, small_model
from typer.testing import CliRunner

from pipeline.cli import app

MESSAGES = Path(__file__).parent / "messages"
WIDTH = 120
TOKEN = "forty-characters-that-stand-for-a-secret"
# What differs between machines, days and versions of the code, and is no part of a message.
VARYING = (
    (r"[0-9a-f]{64}", "SHA256"),
    (r"\b[0-9a-f]{16}\b", "KEY"),
    (r"(?<=-)[0-9a-f]{8}(?=[./])", "DIGEST"),
    (r"(?m)^((\w+(@\w+)?) +)[<\d].* (the reference machine|earlier artifacts?)$", "\\2 ESTIMATE"),
    (r"(?m)^all  .*$", "all ESTIMATE"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00|Z| UTC)?", "DATE"),
    (r"(?m)^predict: files looked at.*\n", ""),
    (r" *\b\d+(\.\d+)? (s|min|h|MB|GB|kB)\b", " N \\2"),
    (r"(?<=\.py):\d+", ":LINE"),
    (r"(code |commit )([0-9a-f]{12}\b|not in git|unknown)", "\\1COMMIT"),
    (r"maescreen \d+\.\d+\.\d+\b", "maescreen VERSION"),
    (r"Python 3[.\d]+", "Python VERSION"),
    (r"\d{4}-W\d\d", "WEEK"),
    (r"(?<=by )\S+(?=: )", "USER"),
    # What a model gives can differ by the processor.
    (r"[+−]?\d\.\d{3,4}\b", "N.NNN"),
)


@dataclass
class Block:
    """A command as it is typed, the comment lines above it, and what it answered."""

    above: list[str] = field(default_factory=list)
    command: str = ""
    answer: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [*self.above, f"$ {self.command}", *self.answer]


def blocks(path: Path) -> list[Block]:
    """Return the commands of a file, each with the answer that stands below it."""
    found, above = [], []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("$ "):
            found.append(Block(above, line[2:]))
            above = []
        elif not line or line.startswith("#"):
            above.append(line)
        else:
            found[-1].answer.append(line)
    return found


@pytest.fixture(scope="module")
def world(finished: Project, tmp_path_factory) -> Path:
    """Return a folder with a finished run and with configs, cards, tables and models of which something is wrong."""
    project = finished.copy(tmp_path_factory.mktemp("messages") / "world")
    here, config = project.folder, project.config.read_text()
    for name, text in {
        "typo.yaml": config.replace("epochs: 8", "epocs: 8").replace("finetune:", "finetun:"),
        "values.yaml": config.replace("epochs: 8", "epochs: -1").replace("device: cpu", "device: tpu"),
        "twice.yaml": f"{config}project: again\n",
        "no-yaml.yaml": "project: [\n",
        "list.yaml": "- project\n",
        "no-card.yaml": config.replace("../card.yaml", "../lost.yaml"),
        "no-studies.yaml": config.replace("../studies.zip", "../lost.zip"),
        "wrong-card.yaml": config.replace("../card.yaml", "../wrong-card.yaml"),
    }.items():
        (here / "configs" / name).write_text(text)
    card = yaml.safe_load((here / "card.yaml").read_text())
    card["label"] |= {"positive": ["pneumonia"], "negative": ["pneumonia"]}
    del card["identifiers"]
    (here / "wrong-card.yaml").write_text(yaml.safe_dump(card))
    head, *rows = (here / "labels.csv").read_text().splitlines()
    tables = {
        "columns": ["file,answer", *rows],
        "values": [head, *(row.replace("normal", "healthy") for row in rows)],
        "paths": [head, *(f"other/{row}" for row in rows)],
        "one-sided": [head, *(row for row in rows if row.endswith("pneumonia"))],
        "few": [head, *rows[:6]],
        "semicolons": [head, *(f"{row},{row}" for row in rows)],
        "empty": [],
    }
    for name, lines in tables.items():
        (here / f"{name}.csv").write_text("".join(f"{line}\n" for line in lines))
    clinic = [head.replace("label", "диагноз"), *rows]
    (here / "cyrillic.csv").write_bytes("".join(f"{line}\n" for line in clinic).encode("cp1251"))
    western = [f"{line},infecção" for line in (head, *rows)]
    (here / "western.csv").write_bytes("".join(f"{line}\n" for line in western).encode("cp1252"))
    (here / "labels.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    (here / "notes.txt").write_text("no image\n")
    (here / "no.pdf").write_text("no PDF\n")
    _studies(here)
    _models(here)
    _tokens(here)
    return here


def _studies(here: Path) -> None:
    (here / "nothing").mkdir()
    (here / "new").mkdir()
    (here / "new" / "1.dcm").write_bytes(image(1))
    (here / "new" / "notes.txt").write_text("no image\n")
    (here / "mixed").mkdir()
    (here / "mixed" / "somebody's.txt").write_text("another file\n")
    (here / "table.csv").write_text("path,person\n1.dcm,a\n")
    for kind in ("sick", "loose/more"):
        (here / "classes" / kind).mkdir(parents=True)
        (here / "classes" / kind / "1.dcm").write_bytes(image(1))
    shutil.copytree(here / "classes", here / "beside")
    (here / "beside" / "1.dcm").write_bytes(image(2))


def _models(here: Path) -> None:
    small_model(here / "model")
    small_model(here / "unusable", usable=False)
    shutil.copytree(here / "model", here / "changed")
    content = here / "changed" / "model.json"
    content.write_text(content.read_text().replace("0.9", "0.8"))
    shutil.copytree(here / "model", here / "in part")
    (here / "in part" / "SHA256SUMS").unlink()


def _tokens(here: Path) -> None:
    for name, text, mode in (("token", TOKEN, 0o600), ("open", TOKEN, 0o644), ("short", "secret", 0o600)):
        (here / name).write_text(f"{text}\n")
        (here / name).chmod(mode)


def answer(command: str, here: Path) -> list[str]:
    """Return what a command says, in the form of the files; `here` and what varies are replaced."""
    typed, _, pattern = command.partition(" | grep ")
    program, *words = shlex.split(typed)
    assert program == "maescreen"
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = [("> ", result.stdout), ("! ", result.stderr)]
    lines = [f"{mark}{line}".rstrip() for mark, text in said for line in _steady(text, here).splitlines()]
    return [*(line for line in lines if pattern in line), f"= {result.exit_code}"]


def _steady(text: str, here: Path) -> str:
    text = text.replace(str(here), "/here")
    for pattern, name in VARYING:
        text = re.sub(pattern, name, text)
    return text


@pytest.mark.parametrize("path", sorted(MESSAGES.glob("*.txt")), ids=lambda path: path.stem)
def test_every_command_says_what_is_written_down(path, world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr("pipeline.orchestration.estimate.load", lambda: 0.0)  # whatever else runs beside the tests
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("NO_COLOR", "1")
    written = blocks(path)
    now = [Block(one.above, one.command, answer(one.command, world)) for one in written]
    lines = [[line for one in many for line in one.lines()] for many in (written, now)]
    if os.environ.get("WRITE_MESSAGES"):
        path.write_text("\n".join(lines[1]) + "\n", "utf-8")
    else:
        assert lines[1] == lines[0], "\n".join(difflib.unified_diff(*lines, "written", "said", lineterm=""))
