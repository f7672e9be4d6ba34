"""The pages in a real browser: at the width of a telephone and of a large screen, by keyboard, for a screen reader."""

from __future__ import annotations

import json

import pytest
from browser import CHROMIUM, browser
from service import TOKEN, judged, running

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.mark.slow
def test_a_reader_logs_in_finds_a_study_and_records_its_outcome_by_keyboard(tmp_path):
    with running(tmp_path / "queue") as up, browser() as tab:
        long = (
            "a name of a study that is as long as one may be and holds_a_word_that_nobody_would_break_anywhere_at_all"
        )
        ids = [judged(up, long), judged(up, "hand", score=-0.5, decision="no refer", typical=None)]
        up.queue.submit(up.queue.receive("http", "waits"))
        home = f"http://127.0.0.1:{up.client.port}/"
        tab.open(home)
        assert tab.value("location.pathname") == "/login"
        assert tab.value("document.activeElement.id") == "token"
        tab.type("not the token")
        tab.send()
        assert ("alert", "") in tab.tree()
        tab.type(TOKEN)
        tab.send()
        assert tab.value("location.pathname") == "/"
        assert tab.value("document.title") == "Reading list · maescreen"
        for width in (360, 1920):
            tab.width(width)
            for page in (home, f"{home}reading-list/{ids[0]}", f"{home}login"):
                tab.open(page)
                assert tab.value("document.documentElement.scrollWidth") <= width, (page, width)
            # What a screen reader is told does not depend on the width.
            tab.open(home)
            tree = tab.tree()
            assert {("columnheader", "Decision"), ("rowheader", "hand"), ("table", "2 studies"), ("main", "")} <= {
                *tree
            }
            assert {("combobox", "Decision"), ("searchbox", "Name or id holds"), ("button", "Show")} <= {*tree}
            assert sum(role == "row" for role, _ in tree) == 3
        tab.open(home)
        reached = []
        for _ in range(12):
            tab.press("Tab")
            reached.append(tab.value("document.activeElement.textContent.trim() || document.activeElement.id"))
        assert reached[:2] == ["To the content", "maescreen"]
        assert {"Log out", "Show", long, "hand"} <= {*reached}
        assert reached.index(long) < reached.index("hand")
        tab.open(f"{home}reading-list/{ids[0]}")
        assert tab.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert ("img", "The image as the network saw it.") in [
            (role.replace("image", "img"), name) for role, name in tab.tree()
        ]
        tab.value("document.getElementById('o1').focus()")
        tab.press(" ")
        tab.send()
        assert "Recorded: condition found" in tab.value("document.querySelector('[role=status]').textContent")
        (line,) = (up.queue.root / "outcomes.jsonl").read_text().splitlines()
        assert json.loads(line)["outcome"] == "condition found"
        # The style sheet is applied, and the policy has stopped nothing.
        assert tab.value("getComputedStyle(document.querySelector('header')).display") == "flex"
        assert [text for text in tab.said if "Security Policy" in text] == []
