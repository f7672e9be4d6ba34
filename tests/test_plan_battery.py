"""Any sequence of commands, kills and changes loses nothing that is complete, and ends in the bytes of a calm run."""

from __future__ import annotations

import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import NAMES, Toy

from pipeline.orchestration import run as running
from pipeline.orchestration.plan import RunError, plan
from pipeline.orchestration.run import run
from pipeline.store.artifacts import StoreError

HOUSE = Path(running.__file__).parents[1]
FILES = {str(HOUSE / name) for name in ("orchestration/run.py", "store/artifacts.py", "store/files.py")}
WRITERS = {"begin", "publish", "remove_folder", "ask_rebuild", "withdraw_rebuild"}
Where = Callable[[types.CodeType], bool]


def anywhere(code: types.CodeType) -> bool:
    return code.co_filename in FILES


def in_the_store(code: types.CodeType) -> bool:
    return code.co_filename in FILES and code.co_name in WRITERS


KILLED, REFUSED, DONE = 9, 3, 0
# Hundreds of stores are made and flushed; on a disk that would take minutes.
MEMORY = next((folder for folder in ("/dev/shm",) if os.access(folder, os.W_OK)), None)

steps = st.sampled_from(NAMES)
some = st.lists(steps, max_size=2, unique=True)
lines = st.one_of(st.none(), st.integers(1, 2200))
command = st.fixed_dictionaries(
    {"keep": some, "rebuild": some, "which": st.sampled_from(["until", "only"]), "step": steps, "killed_after": lines}
)
plain = st.fixed_dictionaries({"killed_after": lines})
changes = st.tuples(st.sampled_from(["setting", "study", "code"]), steps, st.sampled_from("12"))
sequences = st.lists(st.one_of(command, plain, changes), min_size=1, max_size=7)


@contextmanager
def death_after(count: int, where: Where) -> Iterator[None]:
    """End this process without a word, as `kill -9` does, at one of the lines that it executes there."""
    left = count

    def on_line(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                os._exit(KILLED)
        return on_line

    sys.settrace(lambda frame, event, argument: on_line if where(frame.f_code) else None)
    try:
        yield
    finally:
        sys.settrace(None)


def in_a_process(work: Callable[[], int], count: int, where: Where = anywhere) -> int:
    """Return the exit code of a fork of this process that does `work`, and dies at one of its lines."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with death_after(count, where):
                code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Bench:
    """A toy project with its present settings."""

    def __init__(self, folder: Path) -> None:
        self.toy = Toy(folder)
        self.chosen = {"ingest": "1", "pretrain": "1", "score": "1"}
        self.code = dict(self.chosen)
        self.study = "1"

    def load(self):
        setting = {"ingest": "batch_size", "pretrain": "seed", "score": "batch_size"}
        return self.toy.load(**{step: {setting[step]: int(value)} for step, value in self.chosen.items()})

    def change(self, what: str, step: str, value: str) -> None:
        if what == "setting":
            self.chosen[step] = value
        elif what == "code":
            self.code[step] = value
            self.toy.write_code(step, value)
        else:
            self.study = value
            self.toy.write_study(value)

    def run(self, keep=(), rebuild=(), which="until", step="score", killed_after=None, where=anywhere) -> int:
        def work() -> int:
            choices = {"keep": keep, "rebuild": rebuild, which: step}
            try:
                run(*self.load(), say=lambda line: None, **choices)
            except (RunError, StoreError):
                return REFUSED
            return DONE

        with self.toy.installed():
            return work() if killed_after is None else in_a_process(work, killed_after, where)

    def finish(self) -> dict[str, dict[str, str]]:
        """Run to the end, making anew what the plan asks about; return the files of each step."""
        for _ in range(3):
            with self.toy.installed():
                planned = plan(*self.load())
            if {step.action for step in planned} == {"reuse"}:
                break
            assert self.run(rebuild=[step.name for step in planned if step.action == "stop"]) == DONE
        assert {step.action for step in planned} == {"reuse"}
        contents = self.toy.contents()
        return {step.name: contents[step.stage.name, step.key] for step in planned}


calm: dict[str, dict[str, dict[str, str]]] = {}


def undisturbed(bench: Bench) -> dict[str, dict[str, str]]:
    """Return what these settings, code and study give in an empty store."""
    name = str((bench.chosen, bench.code, bench.study))
    if name not in calm:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            other = Bench(Path(folder))
            for step in NAMES:
                other.change("setting", step, bench.chosen[step])
                other.change("code", step, bench.code[step])
            other.change("study", "", bench.study)
            assert other.run() == DONE
            calm[name] = other.finish()
    return calm[name]


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(sequences)
def test_nothing_complete_is_lost_and_the_end_is_that_of_an_undisturbed_run(sequence):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        bench = Bench(Path(folder))
        complete: dict[tuple[str, str], dict[str, str]] = {}
        for what in sequence:
            if isinstance(what, tuple):
                bench.change(*what)
                continue
            assert bench.run(**what) in (DONE, REFUSED, KILLED)
            contents = bench.toy.contents()
            assert complete.items() <= contents.items()
            complete = contents
        assert bench.finish() == undisturbed(bench)


def test_a_rebuild_that_is_killed_at_any_line_of_the_store_leaves_one_complete_artifact_and_goes_on():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        bench = Bench(Path(folder))
        assert bench.run() == DONE
        whole = bench.toy.contents()
        for line in range(1, 1000):
            ended = bench.run(rebuild=["score"], which="only", killed_after=line, where=in_the_store)
            assert bench.toy.contents() == whole
            if ended == DONE:
                break
            assert ended == KILLED
        assert bench.finish() == undisturbed(bench)
        assert line > 20
        assert not [path for path in bench.toy.store.root.rglob("*") if path.suffix in (".old", ".partial")]
