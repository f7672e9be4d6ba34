"""What --keep, --rebuild, single stages, changed code and a second process do: real plan, run and store, toy stages."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from toy import NAMES, Toy
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.orchestration import torchrun
from pipeline.orchestration.plan import ChoiceError, RunError, plan
from pipeline.orchestration.run import run
from pipeline.store.artifacts import StoreError
from pipeline.store.run_records import remembered


@pytest.fixture
def toy(tmp_path: Path):
    """A toy project that was run once."""
    with Toy(tmp_path / "toy").installed() as project:
        made(project)
        yield project


def made(toy: Toy, *interrupted: str, **choices) -> list[str]:
    """Run, stop as Ctrl-C does in the stages `interrupted`, and return the stages that were at work."""
    worked: list[str] = []

    def watch(stage: str, work: Path) -> None:
        if stage not in worked:
            worked.append(stage)
        if stage in interrupted:
            raise KeyboardInterrupt

    toy.watch = watch
    choices = {"until": "score", **choices}
    sections = {name: choices.pop(name) for name in NAMES if name in choices}
    try:
        run(*toy.load(**sections), say=lambda line: None, **choices)
    except KeyboardInterrupt:
        assert interrupted
    return worked


def actions(toy: Toy, **sections) -> dict[str, str]:
    return {step.name: step.action for step in plan(*toy.load(**sections))}


def test_an_interrupted_rebuild_goes_on_by_the_same_command_and_by_a_plain_one(toy):
    whole = toy.contents()
    for again in ({"rebuild": ["ingest"]}, {}):
        assert made(toy, "pretrain", rebuild=["ingest"]) == ["ingest", "pretrain"]
        assert toy.contents() == whole
        assert actions(toy) == {"ingest": "reuse", "pretrain": "run", "score": "run"}
        assert made(toy, **again) == ["pretrain", "score"]
        assert toy.contents() == whole
        assert made(toy) == []


def test_a_finished_rebuild_that_is_asked_for_again_is_made_again(toy):
    for _ in range(2):
        assert made(toy, only="pretrain", rebuild=["pretrain"]) == ["pretrain"]
    # The scores rest on the weights that were replaced.
    assert made(toy) == ["score"]


def test_what_follows_a_rebuilt_stage_is_refused_until_that_is_done(toy):
    made(toy, "pretrain", rebuild=["pretrain"])
    with pytest.raises(
        RunError, match=r"^score needs pretrain, not made yet or to be made anew; run: .*--until pretrain"
    ):
        made(toy, only="score")


def test_keep_withdraws_a_rebuild_that_was_asked_for(toy):
    made(toy, "pretrain", rebuild=["pretrain"])
    (kept, score) = plan(*toy.load(), keep=["pretrain", "score"])[1:]
    assert (kept.action, kept.reason) == ("reuse", "kept although its rebuild was asked for")
    assert score.action == "reuse"
    assert made(toy, keep=["pretrain", "score"]) == []
    assert made(toy) == []


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"only": "score", "rebuild": ["pretrain"]}, r"score makes score alone.*run CONFIG --rebuild pretrain"),
        ({"only": "score", "rebuild": ["score", "ingest"]}, r"--rebuild ingest would make more"),
        ({"only": "pretrain", "keep": ["score"]}, r"--keep score: pretrain, with which this command ends, does not"),
        ({"until": "ingest", "rebuild": ["score"]}, r"--rebuild score: ingest, with which this command ends, does not"),
        ({"keep": ["score"], "rebuild": ["score"]}, r"--keep score and --rebuild score contradict each other"),
        ({"keep": ["score@site_b"]}, r"there is no step score@site_b; this run has ingest, pretrain, score"),
    ],
)
def test_choices_that_make_no_sense_are_refused_in_words_and_touch_nothing(toy, choices, words):
    whole = toy.contents()
    with pytest.raises(ChoiceError, match=words):
        made(toy, **choices)
    assert toy.contents() == whole
    assert made(toy) == []


def test_rebuilding_other_stages_by_a_single_stage_is_a_usage_error(toy):
    result = CliRunner().invoke(app, ["score", str(toy.folder / "run.yaml"), "--rebuild", "pretrain"])
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        "score makes score alone, --rebuild pretrain would make more; "
        f"run: maescreen run {toy.folder / 'run.yaml'} --rebuild pretrain"
    )
    assert actions(toy) == dict.fromkeys(NAMES, "reuse")


def test_a_stage_without_its_inputs_says_which_command_makes_them(toy):
    with pytest.raises(
        RunError, match=r"score needs pretrain, not made yet; run: maescreen run CONFIG --until pretrain"
    ):
        made(toy, only="score", pretrain={"seed": 2})
    toy.write_code("ingest", "2")
    with pytest.raises(RunError, match=r"--until pretrain\ningest: code changed .*--keep ingest"):
        made(toy, only="score")


def test_only_code_changed_is_seen_although_a_newer_artifact_differs_in_one_setting(toy):
    toy.write_code("pretrain", "2")
    made(toy, rebuild=["pretrain"], pretrain={"seed": 2})
    step = plan(*toy.load())[1]
    assert (step.action, step.reason.split(";")[0]) == ("stop", "code changed (stages.pretrain)")
    assert actions(toy, pretrain={"seed": 3})["pretrain"] == "run"
    # Kept, everything that rests on it is the earlier one, too.
    assert made(toy, keep=["pretrain"]) == []
    assert {step.action for step in plan(*toy.load(), keep=["pretrain"])} == {"reuse"}


def test_a_costly_step_asks_before_other_code_makes_it_again_and_a_cheap_one_does_not(toy):
    whole = toy.contents()
    toy.write_code("score", "2")
    assert actions(toy) == {"ingest": "reuse", "pretrain": "reuse", "score": "run"}
    toy.write_code("pretrain", "2")
    assert actions(toy) == {"ingest": "reuse", "pretrain": "stop", "score": "run"}
    with pytest.raises(RunError, match=r"^pretrain: code changed .*--keep pretrain .*--rebuild pretrain"):
        made(toy)
    assert toy.contents() == whole
    # What comes before it is made.
    assert made(toy, until="ingest") == []
    assert made(toy, only="ingest", rebuild=["ingest"]) == ["ingest"]


def test_work_that_earlier_code_began_goes_on_when_that_is_back(toy):
    toy.write_code("pretrain", "2")
    made(toy, "pretrain", pretrain={"seed": 2})
    toy.write_code("pretrain", "1")
    made(toy, pretrain={"seed": 2})
    toy.write_code("pretrain", "2")
    step = plan(*toy.load(pretrain={"seed": 2}))[1]
    assert (step.action, step.reason) == ("run", "goes on with unfinished work")
    assert made(toy, pretrain={"seed": 2}) == ["pretrain", "score"]


def test_the_plan_says_why(toy):
    made(toy, "pretrain", rebuild=["pretrain"])
    ingest, pretrain, score = plan(*toy.load())
    assert ingest.line() == f"ingest     {ingest.key}  reuse"
    assert pretrain.line() == f"pretrain   {pretrain.key}  run: made anew, as asked"
    assert score.reason == "made anew, as asked"
    toy.write_study("2", "two")
    reasons = [step.reason for step in plan(*toy.load(pretrain={"seed": 2, "batch_size": 3}))]
    assert reasons == [
        "source changed (studies)",
        "settings changed (batch_size 64 → 3, seed 17 → 2); input changed (ingest)",
        "input changed (ingest, pretrain)",
    ]


def test_a_step_may_be_kept_although_one_before_it_is_made_anew(toy):
    planned = plan(*toy.load(), keep=["score"], rebuild=["ingest"])
    assert [(step.action, step.reason) for step in planned] == [
        ("run", "made anew, as asked"),
        ("run", "made anew, as asked"),
        ("reuse", "kept although its rebuild was asked for"),
    ]
    assert made(toy, keep=["score"], rebuild=["ingest"]) == ["ingest", "pretrain"]
    assert made(toy) == []


def test_no_step_is_begun_after_the_deadline_and_what_is_there_needs_no_time(toy):
    late = {"machine": {"max_minutes": 1e-9}}
    whole = toy.contents()
    for chosen, rebuild in ((late | {"pretrain": {"seed": 2}}, ()), (late, ["pretrain"])):
        with pytest.raises(KeyboardInterrupt, match=r"stopped before pretrain: machine\.max_minutes have passed"):
            run(*toy.load(**chosen), until="score", rebuild=rebuild, say=lambda line: None)
        assert toy.contents() == whole
    assert made(toy) == ["pretrain", "score"]
    assert [*run(*toy.load(**late), until="score", say=lambda line: None).artifacts] == [*NAMES]


def test_a_finished_run_is_remembered_and_a_single_step_or_an_interrupted_run_is_not(toy):
    made(toy, only="pretrain", pretrain={"seed": 2})
    made(toy, "pretrain", pretrain={"seed": 3})
    (whole,) = remembered(toy.store, "toy")
    steps = plan(*toy.load())
    assert (whole.key, whole.name) == (f"score/{steps[-1].key}", f"toy {steps[-1].key[:8]}")
    assert set(whole.found(toy.store)) == {*NAMES}
    assert whole.parameters["pretrain.seed"] == 17


def test_keeping_what_differs_in_more_than_its_code_is_refused_in_words(toy):
    with pytest.raises(
        RunError, match=r"^--keep pretrain: not only its code changed \(settings changed \(seed 17 → 2\)\)"
    ):
        plan(*toy.load(pretrain={"seed": 2}), keep=["pretrain"])
    (only,) = toy.store.all("pretrain")
    toy.store.discard("pretrain", only.key)
    with pytest.raises(RunError, match=r"^--keep pretrain: not only its code changed \(no earlier artifact\)"):
        plan(*toy.load(), keep=["pretrain"])


def test_a_grown_archive_is_taken_in_piecemeal_unless_settings_changed_as_well_or_it_is_made_anew(toy):
    toy.previous.clear()
    toy.write_study("2", "two")
    made(toy, until="ingest")
    toy.write_study("3", "three")
    made(toy, until="ingest", ingest={"batch_size": 7})
    toy.write_study("4", "four")
    made(toy, until="ingest", rebuild=["ingest"])
    assert toy.previous == [True, False, False]


def test_a_damaged_record_is_named_and_made_anew(toy):
    whole = toy.contents()
    (path,) = toy.store.root.glob("pretrain/*/artifact.json")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RuntimeError, match=r"artifact.json is damaged; make it anew with --rebuild pretrain"):
        made(toy)
    assert made(toy, rebuild=["pretrain"]) == ["pretrain", "score"]
    assert toy.contents() == whole


def at_once(toy: Toy, *commands: dict) -> list[tuple[int, str]]:
    """Run each command in a process of its own, all at the same time; return exit codes and the stages made."""
    toy.watch = lambda stage, work: None
    children = []
    for number, choices in enumerate(commands):
        log = toy.folder / f"worked-{number}"
        child = os.fork()
        if child == 0:
            code = 1
            try:

                def watch(stage: str, work: Path, log: Path = log) -> None:
                    time.sleep(0.1)
                    with log.open("a") as stream:
                        stream.write(f"{stage} {work.name[:4]}\n")

                toy.watch = watch
                run(*toy.load(), until="score", say=lambda line: None, **choices)
                code = 0
            finally:
                os._exit(code)
        children.append((child, log))
    return [
        (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text() if log.exists() else "")
        for child, log in children
    ]


def test_two_runs_at_once_make_each_artifact_once(toy):
    toy.write_study("2")
    results = at_once(toy, {}, {})
    assert [code for code, _ in results] == [0, 0]
    lines = "".join(text for _, text in results).split("\n")[:-1]
    assert sorted(line.split()[0] for line in lines) == sorted([*NAMES, *NAMES])  # two files each
    assert actions(toy) == dict.fromkeys(NAMES, "reuse")
    assert not list(toy.store.root.glob("*/*.partial"))


def test_two_rebuilds_at_once_and_a_reader_lose_nothing(toy):
    whole = toy.contents()
    results = at_once(toy, {"rebuild": ["pretrain"]}, {"rebuild": ["pretrain"]}, {})
    assert [code for code, _ in results] == [0, 0, 0]
    assert toy.contents() == whole
    assert made(toy) == []


@pytest.fixture
def told(toy, monkeypatch) -> Callable[[str], None]:
    """Return how process 0 of two tells the other, which is this process as well, which stage it works on."""
    from pipeline.models import distributed

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words: list = []
    monkeypatch.setattr(distributed, "joined", lambda device: nullcontext())
    monkeypatch.setattr(distributed, "from_leader", lambda word: words.append(word) if word else words.pop(0))

    def tell(stage: str) -> None:
        torchrun.announce(next(step for step in plan(*toy.load()) if step.name == stage))
        words.append(None)

    return tell


def test_a_process_that_follows_works_on_what_process_0_says_from_the_store_alone(toy, told):
    worked: list[str] = []
    toy.watch = lambda stage, work: worked.append(stage)
    told("pretrain")
    config, *_ = toy.load()
    shutil.rmtree(toy.folder / "studies")
    (toy.folder / "labels.csv").unlink()
    work = toy.store.begin("pretrain", toy.store.all("pretrain")[0].key)
    torchrun.follow(config)
    assert worked == ["pretrain", "pretrain"]  # once per file
    assert sorted(path.name for path in work.iterdir()) == ["first", "second"]


@pytest.mark.parametrize("other", ["settings", "code", "store"])
def test_a_process_that_would_do_something_else_is_refused(toy, told, tmp_path, other):
    told("pretrain")
    config = toy.load(pretrain={"seed": 2} if other == "settings" else {})[0]
    words = "pretrain: this process has other settings than process 0"
    if other == "code":
        toy.write_code("pretrain", "2")
        words = "pretrain: this process has other code than process 0"
    if other == "store":
        config = config.model_copy(update={"store": tmp_path / "another"})
        words = "ingest is not in this machine's store; all machines must see the same"
    with pytest.raises(StoreError, match=words):
        torchrun.follow(config)


def test_every_artifact_says_by_what_it_was_made(toy):
    for path in toy.store.root.glob("*/*/artifact.json"):
        versions = json.loads(path.read_text())["versions"]
        assert {"maescreen", "python", "cuda", "torch"} <= set(versions)
