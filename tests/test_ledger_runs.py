"""Running again with another arm is allowed, counted, and said; running again with nothing changed is neither."""

import pytest
from pypdf import PdfReader

from pipeline.commands.trace import verify
from pipeline.orchestration.run import run
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.ledger import Ledger


def made(project, stage, **setting):
    """Return the newest artifact of a stage, or the one with a setting."""
    found = Store(project.store).all(stage)
    return next(one for one in found if setting.items() <= one.record["settings"].items())


def page_one(project, *overrides):
    """Return the text of page one of the report of these settings, as it lies in the PDF."""
    report = run(*project.load(*overrides), say=lambda line: None).artifacts["report"]
    return " ".join(PdfReader(report.file("report.pdf")).pages[0].extract_text().split())


def again(project, *overrides):
    run(*project.load(*overrides), until="evaluate", say=lambda line: None)


def test_the_sequence_of_a_second_look(finished, tmp_path):
    project = finished.copy(tmp_path / "again")
    ledger = Ledger(project.store)
    assert [line["stage"] for line in ledger.lines()] == ["calibrate", "evaluate"]
    alone = read_json(made(project, "calibrate").file("threshold.json"))
    assert alone["models_compared"] == 1
    assert read_json(made(project, "evaluate").file("metrics.json"))["readings"]["times"] == 1

    again(project, "calibrate.arm=linear_probe")
    other = made(project, "calibrate", arm="linear_probe")
    threshold = read_json(other.file("threshold.json"))
    assert threshold["models_compared"] == 2
    assert 1 - threshold["confidence_used"] == pytest.approx((1 - threshold["confidence"]) / 2)
    assert any("2 models have been calibrated on these patients" in text for text in other.record["warnings"])
    readings = read_json(made(project, "evaluate").file("metrics.json"))["readings"]
    assert readings == {"times": 2, "settings": 2, "arms": ["hog", "linear_probe"]}

    first, second = page_one(project), page_one(project, "calibrate.arm=linear_probe")
    assert "They were read once." in first, "the report of the first look is as it was"
    assert "They, or some, were read 2 times under 2 settings: results may have been chosen." in second
    assert not [words for words in ("confirmed on other patients", "read once") if words in second]

    # Reuse is no reading, and what was read stays read when artifacts go.
    head = ledger.head
    again(project)
    again(project, "calibrate.arm=linear_probe")
    assert ledger.head == head
    for stage in ("calibrate", "evaluate"):
        for artifact in Store(project.store).all(stage):
            Store(project.store).discard(stage, artifact.key)
    again(project, "calibrate.arm=linear_probe")
    assert ledger.head == head
    assert read_json(made(project, "calibrate").file("threshold.json"))["models_compared"] == 2

    report = next(project.store.glob("report/*/report.pdf"))
    assert not any("ledger" in problem for problem in verify(report, Store(project.store), lambda line: None))
    path = project.store / "ledger" / "readings.jsonl"
    path.write_text(path.read_text().replace("linear_probe", "mae"))
    assert any("was changed" in problem for problem in verify(report, Store(project.store), lambda line: None))
