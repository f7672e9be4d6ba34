"""The moves of aliases: a line each, chained, and every change of an old line is seen."""

import json
from dataclasses import replace

import pytest

from pipeline.store.alias_history import Move, append, read

MOVE = Move("2026-01-01T00:00:00+00:00", "chest", "champion", "", "", "1", "a" * 64, "anna", "first", False, ())


@pytest.fixture
def store(tmp_path):
    append(tmp_path, MOVE)
    append(
        tmp_path, replace(MOVE, from_version="1", from_sha256="a" * 64, to_version="2", why="zweites Modell: größer")
    )
    append(tmp_path, replace(MOVE, name="other", to_sha256="b" * 64, forced=True, not_usable_because=("gate",)))
    return tmp_path


def lines(store):
    return (store / "models" / "history.jsonl").read_text("utf-8").splitlines()


def write(store, texts):
    (store / "models" / "history.jsonl").write_text("".join(f"{text}\n" for text in texts), "utf-8")


def test_moves_come_back_in_order(store):
    history = read(store)
    assert not history.problems
    assert history.moves[0] == MOVE
    assert [move.to_version for move in history.of("chest")] == ["1", "2"]
    assert [move.name for move in history.forced("b" * 64)] == ["other"]
    assert not history.forced("a" * 64)
    assert read(store / "nowhere").moves == ()


@pytest.mark.parametrize("field", ["why", "account", "when", "to_sha256", "forced"])
def test_a_changed_line_is_seen(store, field):
    texts = lines(store)
    content = json.loads(texts[1])
    texts[1] = json.dumps(content | {field: True if field == "forced" else "changed"})
    write(store, texts)
    assert read(store).problems == ("line 2 of history.jsonl was changed after it was written",)


def test_a_removed_an_added_and_a_moved_line_are_seen(store):
    texts = lines(store)
    for changed in ([texts[0], texts[2]], [texts[0], texts[0], *texts[1:]], [texts[1], texts[0], texts[2]], texts[1:]):
        write(store, changed)
        assert any("was removed, added or moved" in problem for problem in read(store).problems)


def test_a_half_written_line_costs_itself_and_is_told(store):
    path = store / "models" / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    append(store, replace(MOVE, to_version="3"))
    history = read(store)
    assert [move.to_version for move in history.moves] == ["1", "2", "3"]
    assert history.problems == ("line 3 of history.jsonl is no entry",)
