"""A command that is printed can be typed: nothing is missing, and a shell takes every word for one."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.typed import command, filled, program

ODD = ["my run.yaml", 'say "a".yaml', "it's.yaml", "a?b%20c#d&e;$f.yaml", "ü 胸.yaml", "*.yaml", "a\nb.yaml"]


@pytest.mark.parametrize("name", ODD)
def test_a_shell_reads_the_words_that_were_meant(name):
    words = ["run", name, "finetune.arms=[mae, hog]", "report.title=it's", "--store", f"in {name}"]
    line = command("run", Path(name), words[2:4], store=Path(words[5]))
    assert shlex.split(line) == ["maescreen", *words]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    said = subprocess.run(
        ["sh", "-c", line.replace("maescreen", f"{sys.executable} -c {shlex.quote(script)}", 1)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(said) == words


def test_options_come_as_often_as_they_have_values_and_not_at_all_without():
    options = {"store": None, "keep": ["ingest", "finetune"], "rebuild": None, "json": True, "until": "split"}
    line = command("run", Path("a.yaml"), None, **options)
    assert line == "maescreen run a.yaml --keep ingest --keep finetune --json --until split"
    assert command("plan", Path("a.yaml"), [], json=False) == "maescreen plan a.yaml"


def test_a_file_that_looks_like_an_option_is_none():
    assert command("run", Path("-x/run.yaml")) == "maescreen run ./-x/run.yaml"


def test_proposed_commands_get_the_words_of_this_one():
    proposed = "not made yet; run: maescreen run CONFIG --until split"
    assert filled(proposed, Path("a b.yaml"), ["split.seed=2"], Path("s")) == (
        "not made yet; run: maescreen run 'a b.yaml' split.seed=2 --store s --until split"
    )
    assert filled("CONFIG is missing", Path("a.yaml"), None, None) == "CONFIG is missing"


def test_under_torchrun_its_own_words_come_first(tmp_path):
    """A parent of that name stands for torchrun, which takes seconds to start."""
    torchrun = tmp_path / "torchrun"
    child = "from pipeline.commands.typed import command, program; print(command('run', program=program()))"
    torchrun.write_text(
        "import os, subprocess, sys\n"
        f"words = [sys.executable, '-c', {child!r}, *sys.argv[5:]]\n"
        "subprocess.run(words, env={**os.environ, 'TORCHELASTIC_RUN_ID': 'none'}, check=True)\n"
    )
    typed = ["--nproc-per-node", "2", "-m", "pipeline.cli", "run", "a b.yaml"]
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, torchrun, *typed], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "torchrun --nproc-per-node 2 -m pipeline.cli run"
    assert program() == ["maescreen"]


def test_where_torchrun_cannot_be_seen_its_number_of_processes_is_kept(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(sys, "argv", ["cli.py", "a word that no parent of this test was given"])
    assert command("run", program=program()) == "torchrun --nproc-per-node 4 -m pipeline.cli run"
