"""Beside the pages: the slider of the HTML report, the appendix, the model card; letters for sites in all of them."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from reporting import example_run

from pipeline.reporting import html, model_card
from pipeline.reporting.content import build, raw_tables
from pipeline.reporting.document import Document, Section, Slider, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.sections.operating import operating_point
from pipeline.reporting.sections.summary import summary
from pipeline.reporting.sections.thresholds import slider
from pipeline.settings.decision import CalibrateSettings, ReportSettings
from pipeline.stages.report import _evidence, sites_of
from pipeline.store.artifacts import Inputs
from pipeline.store.files import read_json
from pipeline.store.results.finding import Finding


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    setting = CalibrateSettings(recall_targets=[0.9], deploy="pooled", subgroup_attributes=["site"])
    return example_run.make_run(tmp_path_factory.mktemp("passing"), patients=700, calibration=setting)


@pytest.fixture(scope="module")
def passing(inputs: Inputs) -> Evidence:
    return _evidence(ReportSettings(title="x"), inputs)


@pytest.fixture(scope="module")
def stopped_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return example_run.make_run(tmp_path_factory.mktemp("stopped"), patients=500, skill=0.0)


@pytest.fixture(scope="module")
def stopped(stopped_inputs: Inputs) -> Evidence:
    return _evidence(ReportSettings(title="x"), stopped_inputs)


@pytest.fixture(scope="module")
def document(passing: Evidence) -> Document:
    return build(passing)


@pytest.fixture(scope="module")
def page(document: Document) -> str:
    return html.render(document)


# ---------------------------------------------------------------- the slider


def test_a_position_says_what_the_threshold_does_and_what_the_band_promises(passing: Evidence):
    made = slider(passing)
    ill = 1000 * passing.metrics.headline_prevalence
    rows = passing.sweep[passing.sweep["band_recall"].notna() | passing.sweep["operating_point"]]
    rows = rows.sort_values("threshold", kind="stable")
    assert len(made.sentences) == len(rows)
    referred = []
    for sentence, row in zip(made.sentences, rows.to_dict("records"), strict=True):
        found = row["recall"] * ill
        people = found + (1 - row["specificity"]) * (1000 - ill)
        said = re.search(r"Of 1,000 people, ([\d,]+) referred, ([\d.]+) found, ([\d.]+) missed\. (.*)", sentence)
        assert said, sentence
        assert int(said[1].replace(",", "")) == round(people)
        assert float(said[2]) == pytest.approx(found, abs=0.051)
        assert float(said[3]) == pytest.approx(ill - found, abs=0.051)
        if not np.isnan(row["band_recall"]):
            promise = re.search(
                r"at least ([\d.]+) % found: of 50 with the condition, at most ([\d.]+) missed", said[4]
            )
            assert promise, sentence
            assert float(promise[2]) >= ill * (1 - row["band_recall"]), "rounded away from the promise"
            assert float(promise[1]) == pytest.approx(100 * row["band_recall"], abs=0.051)
        referred.append(people)
    assert referred == sorted(referred, reverse=True), "from many referred to few, as its label says"
    assert made.sentences[made.chosen].startswith("The operating point.")
    assert sum("operating point" in sentence for sentence in made.sentences) == 1


def test_after_a_failed_gate_there_is_no_slider_and_no_script(stopped: Evidence, passing: Evidence):
    with pytest.raises(ValueError, match="no usable operating point"):
        slider(stopped)
    closed = [Finding("x", "fail", "test", "the gate is closed")]
    # The one door is asked, not what the artifacts hold: this run has everything that a slider is made of.
    for e in (stopped, replace(passing, findings=closed)):
        document = build(e)
        assert not [b for b in document.blocks if isinstance(b, Slider)]
        shown = html.render(document)
        assert "<script" not in shown
        assert "<input" not in shown
        assert "script-src" not in shown
        assert "band promises" not in shown + json.dumps(document.to_dict())


def test_without_the_script_a_table_remains_and_no_other_script_may_run(page: str, document: Document):
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert page.count("<script") == 1
    allowed = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
        in page.replace("&#39;", "'")
    )
    assert re.search(r'<input [^>]*type="range"[^>]* disabled>', page), "the script enables it"
    assert 'href="#table-sweep"' in page
    assert page.count('id="table-sweep"') == 1
    (table,) = [table for table in document.tables if table.name == "sweep"]
    assert "Band: at least, %" in table.columns


# ---------------------------------------------------------------- the appendix


def test_what_the_pages_leave_out_stands_in_the_appendix_once(document: Document):
    content = document.to_dict()
    names = [b["name"] for part in ("sections", "appendix") for s in content[part] for b in s["blocks"] if "name" in b]
    assert len(names) == len(set(names))
    read = {b["name"] for s in content["sections"] for b in s["blocks"] if b["kind"] == "table"}
    looked_up = {b["name"] for s in content["appendix"] for b in s["blocks"] if b["kind"] == "table"}
    assert {"certificate", "consequences", "coverage", "guidelines"} <= read
    assert {"make_up", "sweep", "making", "stages", "hashes", "subgroups", "decisions"} <= looked_up
    numbers = [b["number"] for s in content["appendix"] for b in s["blocks"] if b["kind"] == "table"]
    assert numbers == [f"A{at}" for at in range(1, len(numbers) + 1)]
    where = {s["name"]: s["number"] for s in content["appendix"]}
    assert {s["name"]: s["more"] for s in content["sections"] if s["more"]} == {
        name: number for name, number in where.items() if name in {s["name"] for s in content["sections"]}
    }


def test_every_link_of_the_html_leads_to_one_place(page: str):
    places = re.findall(r'id="([^"]+)"', page)
    assert len(places) == len(set(places))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(places)


def test_numbers_of_people_agree_between_pages(passing: Evidence, document: Document):
    (table,) = [t for t in document.tables if t.name == "consequences"]
    (row,) = [row for row in table.rows if row[0] == "5 %"]
    assert f"about {row[5]} of 1,000 people are referred" in str(summary(passing))


# ---------------------------------------------------------------- sites


def test_no_pseudonym_of_a_site_leaves(inputs: Inputs, passing: Evidence, document: Document, page: str):
    names = list(sites_of(inputs).letters)
    assert len(names) == 3
    tables = "".join(table.to_csv() for table in raw_tables(passing).values())
    pictures = b"".join(figure.picture for figure in document.figures).decode("latin1")
    leaving = (json.dumps(document.to_dict()), page, tables, pictures, model_card.text(passing))
    assert [(name, at) for at, text in enumerate(leaving) for name in names if name in text] == []
    text = json.dumps(document.to_dict())
    for words in ("Site A", "site: B", "Site C, images"):
        assert words in text
    assert passing.deployment.made is not None
    assert [one.group for one in passing.deployment.made.subgroups] == ["A", "B", "C"]


def test_pseudonyms_of_patients_are_on_no_page(passing: Evidence, document: Document):
    people = {x.patient for x in (*passing.misses, *passing.false_alarms)}
    assert people
    text = json.dumps(document.to_dict())
    assert [person for person in people if person[:12] in text] == []


# ---------------------------------------------------------------- the model card


def test_the_card_is_one_page_and_says_of_results_what_page_one_says(passing: Evidence):
    text = model_card.text(passing)
    lines = text.splitlines()
    assert len(lines) <= 60
    assert sum(max(1, -(-len(line) // 100)) for line in lines) <= 75, "printed, it is one page"
    plain = text.replace("\\", "")
    for box in (b for b in summary(passing).blocks if hasattr(b, "lines")):
        assert box.title in plain
        assert all(line in plain for line in box.lines)
    for words in ("Not for:", "adults; lateral views", "Reference standard", "does not rule out", "Test patients:"):
        assert words in plain


def test_the_card_of_a_stopped_run_says_so_and_shows_no_threshold(stopped: Evidence, stopped_inputs: Inputs):
    text = model_card.text(stopped)
    assert "No operating point" in text
    assert "Promised" not in text
    certified = read_json(stopped_inputs.file("calibrate", "threshold.json"))["threshold"]
    assert f"{certified:.4f}" not in text
    assert stopped.threshold.certified
    assert stopped.threshold.threshold is None


def test_markup_in_the_card_is_text(passing: Evidence):
    hostile = "<b>x</b> [a](http://b) `c` *d* # e | f"
    label = {**passing.card["label"], "name": hostile}
    e = replace(passing, title=hostile, card={**passing.card, "label": label, "known_traps": [hostile, "line\n# two"]})
    text = model_card.text(e)
    assert not re.search(r"(?<!\\)[<>\[\]`|]", text)
    assert "\n# two" not in text


def test_sections_without_pages_are_in_the_appendix_alone(passing: Evidence):
    section = operating_point(passing)
    assert [b.name for b in section.appendix if isinstance(b, Table)][-1] == "sweep"
    alone = Document("t", "", "2025-02-03", "", "", {}, True, [Section("a", "A", [], [section.appendix[0]])])
    content = alone.to_dict()
    assert content["sections"] == []
    assert content["appendix"][0]["number"] == "A1"
