"""What a stage says while it works; how long the rest takes is said once it means something."""

import re
import time

import pytest

from pipeline.store import runlog
from pipeline.store.runlog import Pace, RunLog


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def said(clock: list[float], capsys: pytest.CaptureFixture, seconds: list[float], log: RunLog | None = None) -> str:
    """Return what is printed while items take these seconds each."""

    def items():
        for number, each in enumerate(seconds):
            clock[0] += each
            yield number

    assert list((log or RunLog("stage")).track(items(), "files", total=len(seconds))) == list(range(len(seconds)))
    return capsys.readouterr().err


def test_an_even_pace_is_told_rightly(clock, capsys):
    lines = said(clock, capsys, [1.0] * 60).splitlines()
    assert lines[0] == "stage: files 10 of 60, about 50 s left"
    for line in lines:
        done, left = map(int, re.findall(r"(\d+) (?:of|s left)", line))
        assert done + left == 60


def test_a_start_that_takes_long_says_nothing_of_the_rest(clock, capsys):
    assert said(clock, capsys, [60.0, *[0.1] * 99]).splitlines() == ["stage: files 1 of 100"]


def test_one_large_file_at_the_end_is_never_about_0_seconds(clock, capsys):
    """Many that take no time, then a few that take a minute each: nobody can know how long these take."""
    text = said(clock, capsys, [0.01] * 997 + [60.0] * 3)
    assert re.search(r"about [0-4] s left", text) is None
    assert "files 998 of 1000\n" in text


def test_batches_that_arrive_whole_give_no_estimate_before_the_second(clock, capsys):
    batch = [20.0, *[0.0] * 49]
    lines = said(clock, capsys, batch * 4).splitlines()
    assert lines == [
        "stage: files 1 of 200",
        "stage: files 51 of 200, about 60 s left",
        "stage: files 101 of 200, about 40 s left",
        "stage: files 151 of 200, about 20 s left",
    ]


def test_what_was_done_before_an_interruption_is_no_pace(clock):
    pace = Pace(total=1000, start=900)
    for done in range(901, 951):
        clock[0] += 1.0
        pace.reached(done)
    assert pace.left() == ", about 50 s left"


def test_minutes_are_minutes():
    assert runlog._duration(89) == "89 s"
    assert runlog._duration(150) == "2 min"


def test_progress_alone_or_nothing_at_all(clock, capsys):
    log = RunLog("stage", progress_only=True)
    log.info("kept to itself")
    log.warn("recorded")
    text = said(clock, capsys, [20.0] * 3, log)
    assert "kept" not in text
    assert "files 2 of 3" in text
    assert log.warnings == ["recorded"]
    assert said(clock, capsys, [20.0] * 3, RunLog("stage", quiet=True)) == ""
