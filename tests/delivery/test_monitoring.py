"""A model in use: every light has a reason and a remedy, recall is stated only where it is known."""

import json
from datetime import date, timedelta

import pytest
from delivery.followed import FIRST, Week, make_model, write_weeks
from pypdf import PdfReader
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.monitor import watch
from pipeline.delivery.followup import FollowupError, Judged, Outcome, joined, read_outcomes, read_places
from pipeline.delivery.monitoring import NAMES, lights
from pipeline.delivery.outcomes import Outcomes
from pipeline.delivery.queue import Queue
from pipeline.delivery.streams import MonitorError, Watched
from pipeline.inference.model_folder import verified


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "model")


def levels(found):
    return {(light.kind, light.site): light.level for light in found.lights}


def test_weeks_like_the_calibration_are_green_and_recall_has_limits(model, tmp_path):
    folder, sha256 = model
    places, table = write_weeks(tmp_path, [Week(k) for k in range(20)], sha256, 1.0)
    found = watch(folder, places, tmp_path / "out", outcomes=table)
    assert set(levels(found).values()) == {"green"}
    recall = json.loads((tmp_path / "out" / "monitor.json").read_text())["recall"]
    assert (recall["stated"], recall["audited_positives"], recall["missed"]) == (True, 60, 0)
    assert recall["low"] < recall["value"] == 1.0
    text = "".join(page.extract_text() for page in PdfReader(tmp_path / "out" / "monitor.pdf").pages)
    assert "All lights are green" in text
    assert not found.alarm


def test_outcomes_of_referred_studies_alone_state_no_recall_and_say_how_many_to_audit(model, tmp_path):
    folder, sha256 = model
    places, table = write_weeks(tmp_path, [Week(k, missed=2) for k in range(20)], sha256, 0.0)
    found = watch(folder, places, tmp_path / "out", outcomes=table)
    light = found.lights[0]
    assert (light.kind, light.level) == ("recall", "amber")
    assert "referred people only" in light.sentence
    assert "Draw 598 studies at random" in light.todo
    assert found.content["recall"]["stated"] is False
    text = "".join(page.extract_text() for page in PdfReader(tmp_path / "out" / "monitor.pdf").pages)
    assert "Recall is not stated" in text
    assert "100.0 %" not in text.split("Outcomes and recall")[1]


def test_misses_are_found_with_a_tenth_audited_although_ten_times_as_many_found_came_back(model, tmp_path):
    folder, sha256 = model
    weeks = [Week(k, studies=200, positives=40, missed=12) for k in range(30)]
    places, table = write_weeks(tmp_path, weeks, sha256, 0.1)
    found = watch(folder, places, tmp_path / "out", outcomes=table)
    recall = found.content["recall"]
    assert recall["value"] == pytest.approx(0.7, abs=0.08)
    assert levels(found)["recall", None] == "red"
    assert "read as if there were no model" in found.lights[0].todo


def test_another_scanner_is_named_with_its_site_and_week_and_red_exits_with_3(model, tmp_path):
    folder, sha256 = model
    weeks = [Week(k, site, shift=1.0 if site == "B" and k >= 15 else 0.0) for k in range(30) for site in "AB"]
    places, table = write_weeks(tmp_path, weeks, sha256, 0.3)
    out = tmp_path / "out"
    words = [*places, "--model", str(folder), "--outcomes", str(table), "--out", str(out)]
    done = CliRunner().invoke(app, ["monitor", *words])
    assert done.exit_code == 3, done.output
    content = json.loads((out / "monitor.json").read_text())
    red = {(light["kind"], light["site"]) for light in content["lights"] if light["level"] == "red"}
    assert {("typicality", "B"), ("scores", "B"), ("referral", "B")} <= red
    assert not {site for _, site in red} & {"A"}
    began = next(one for one in content["streams"] if (one["kind"], one["site"]) == ("typicality", "B"))["began_about"]
    assert began == "2026-W17"
    assert "Look for what changed in equipment" in done.output
    assert [row["site"] for row in content["sites"]] == ["A", "B"]
    assert "/" not in (out / "monitor.json").read_text().replace("results/1", "").replace("monitor/1", "")
    # After it was mended, one watches anew.
    later = CliRunner().invoke(app, ["monitor", *words, "--since", str(FIRST + timedelta(weeks=31))])
    assert (later.exit_code, later.output) == (1, later.output)
    assert "no study was made since then" in later.output


def test_studies_that_cannot_be_judged_raise_the_light_of_quality(model, tmp_path):
    folder, sha256 = model
    places, _ = write_weeks(tmp_path, [Week(k, failed=10) for k in range(8)], sha256, 0.0)
    found = watch(folder, places, tmp_path / "out")
    assert levels(found)["quality", None] == "red"
    assert found.content["counts"]["decisions"]["not assessable"] == 80


def test_a_queue_is_read_with_its_days_its_failures_and_what_readers_recorded(model, tmp_path):
    folder, sha256 = model
    root = tmp_path / "queue"
    queue, kept = Queue(root), Outcomes(root)
    rows = []
    for at, decision in enumerate(["refer", "no refer", "refer", ""]):
        queue.submit(queue.receive("http"))
        (entry,) = queue.take(1)
        if not decision:
            queue.fail(entry, "it died three times")
            continue
        rows.append({"study": entry.id, "study_uid": "" if at else "1.2", "decision": decision, "score": float(at)})
        rows[-1] |= {"typicality": 0.5, "model_sha256": sha256}
        received = f"2026-02-0{at + 2}T10:00:00.000+00:00"
        result = {"schema": "study/1", "received": received, "result": rows[-1]}
        queue.finish(entry, {"result.json": json.dumps(result).encode()})
    for outcome, row in (("unknown", rows[0]), ("condition found", rows[0]), ("not found", rows[1])):
        kept.record(outcome, row)
    with kept.path.open("a") as stream:
        stream.write('{"study": "e1", "outc')
    studies, outcomes = read_places([f"clinic={root}"])
    followup = joined(studies, outcomes, sha256)
    own = [(s.study, s.day.day, s.decision) for s in followup.studies]
    assert own[:3] == [(row["study"], at + 2, row["decision"]) for at, row in enumerate(rows)]
    assert own[3][2] == "not assessable"
    assert {at: outcome.found for at, outcome in followup.outcomes.items()} == {0: True, 1: False}
    watched = Watched.of(folder, *verified(folder))
    assert [light.kind for light in lights(studies, outcomes, watched)] == [*NAMES]


def judged(study: str, day: int, score: float = 0.0, uid: str = "", site: str = "", model: str = "m") -> Judged:
    return Judged(study, site, date(2026, 3, day), "no refer", score, 0.5, model, uid)


def test_a_study_that_was_judged_again_counts_once_and_other_models_not_at_all():
    studies = [judged("a", 1, 0.1, "1.2"), judged("a", 5, 0.3, "1.2"), judged("b", 2), judged("c", 3, model="n")]
    followup = joined(studies, [Outcome("a", True), Outcome("zz", True)], "m")
    assert [(s.study, s.day.day) for s in followup.studies] == [("b", 2), ("a", 5)]
    assert list(followup.outcomes) == [1]
    assert len(followup.remarks) == 3
    with pytest.raises(FollowupError, match="no study was judged by this model"):
        joined(studies, [], "other")


def test_an_outcome_that_could_belong_to_two_studies_is_refused():
    studies = [judged("a", 1, 0.1), judged("a", 2, 0.2), judged("a", 3, 0.3, site="x")]
    with pytest.raises(FollowupError, match="1 outcome could belong to several studies"):
        joined(studies, [Outcome("a", True)], "m")
    assert list(joined(studies, [Outcome("a", True, site="x")], "m").outcomes) == [2]


def test_a_table_of_outcomes_is_refused_with_all_that_is_wrong_and_quotes_none_of_it(tmp_path):
    table = tmp_path / "outcomes.csv"
    table.write_text("study,outcome,date\na,maybe Smith,2026-01-01\n,found,01.02.2026\n")
    with pytest.raises(FollowupError) as refused:
        read_outcomes(table)
    for part in ("1 outcome neither", "1 row without a study", "1 date not written as"):
        assert part in str(refused.value)
    assert "Smith" not in str(refused.value)
    table.write_text("name,mark\na,b\n")
    with pytest.raises(FollowupError, match="study and outcome is missing"):
        read_outcomes(table)


def test_the_day_of_a_study_is_the_tables_else_the_folders(model, tmp_path):
    folder, sha256 = model
    places, _ = write_weeks(tmp_path, [Week(0, studies=2)], sha256, 0.0)
    table = tmp_path / "dates.csv"
    table.write_text("study,outcome,study_date\n/0/1,,2026-05-04\n")
    found = watch(folder, places, tmp_path / "out", outcomes=table)
    assert [row["week"] for row in found.content["weeks"]] == ["2026-W02", "2026-W19"]
    (tmp_path / "here-2026-W07").mkdir()
    (tmp_path / "here-2026-01-05" / "results.json").rename(tmp_path / "here-2026-W07" / "results.json")
    assert {s.day for s in read_places([str(tmp_path / "here-2026-W07")])[0]} == {date(2026, 2, 9)}


def test_every_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text('{"schema": "results/9", "results": []}')
    with pytest.raises(FollowupError) as refused:
        read_places([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "a: no folder with results" in str(refused.value)
    assert "b: results.json has schema 'results/9'" in str(refused.value)


def test_a_model_that_gives_no_decision_is_not_watched_and_an_old_one_only_in_part(tmp_path):
    folder, sha256 = make_model(tmp_path / "stopped", usable=False)
    with pytest.raises(MonitorError, match=r"Test: stopped\."):
        Watched.of(folder, *verified(folder))
    folder, sha256 = make_model(tmp_path / "old", watch=False)
    places, _ = write_weeks(tmp_path / "weeks", [Week(0)], sha256, 0.0)
    found = watch(folder, places, tmp_path / "out")
    assert levels(found)["scores", None] == levels(found)["referral", None] == "amber"
    assert levels(found)["typicality", None] == "green"


def test_another_prevalence_moves_the_referrals_to_expect(model):
    folder, _ = model
    checked = verified(folder)
    assert Watched.of(folder, *checked).band == (0.16, 0.24)
    assert Watched.of(folder, *checked, 0.5).band == (0.54, 0.58)
