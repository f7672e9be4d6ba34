"""The report of a finished run: what stands on page one, what may not, and that text stays text."""

from __future__ import annotations

import base64
import csv
import re
from dataclasses import replace
from functools import cached_property
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader
from reporting import example_run
from reporting.changed import an_external_set, with_external_sets, with_metrics, with_point

from pipeline.imaging.volumes.orthogonal_planes import three_planes
from pipeline.inference.outline import shown
from pipeline.reporting import model_card
from pipeline.reporting.content import all_numbers, build
from pipeline.reporting.document import Paragraph, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.pdf import read_keys
from pipeline.reporting.sections.elsewhere import external
from pipeline.reporting.sections.examples import examples
from pipeline.reporting.sections.groups import subgroups
from pipeline.reporting.sections.model import model
from pipeline.reporting.sections.operating import operating_point
from pipeline.reporting.sections.provenance import provenance
from pipeline.reporting.sections.results import calibration
from pipeline.reporting.sections.summary import promise, summary
from pipeline.settings.decision import CalibrateSettings, ReportSettings
from pipeline.stages.report import _evidence, report
from pipeline.store.artifacts import Inputs
from pipeline.store.files import read_json
from pipeline.store.results.metrics import Excluded, ExternalSet
from pipeline.store.results.operating_point import LowestGroups
from pipeline.store.runlog import RunLog

BANNER = "No operating point: this model must not be used to refer anyone"
HOSTILE = '#import "x" $x$ *b* <script>alert(1)</script> {{ 7*7 }} [31m =1+1 \\ @a <tag> //c'


class Made:
    """A report made from a run, and the run."""

    def __init__(self, root: Path, inputs: Inputs, settings: ReportSettings) -> None:
        self.root, self.inputs = root, inputs
        report(settings, inputs, root, RunLog("report", quiet=True))
        self.metrics = read_json(inputs.file("evaluate", "metrics.json"))
        self.threshold = read_json(inputs.file("calibrate", "threshold.json"))
        self.json = read_json(root / "report.json")
        self.html = (root / "report.html").read_text("utf-8")

    @cached_property
    def pages(self) -> list[str]:
        """The text of each page of the PDF."""
        return [flat(page.extract_text()) for page in PdfReader(self.root / "report.pdf").pages]

    @cached_property
    def appendix(self) -> list[str]:
        """The text of each page of the appendix."""
        return [flat(page.extract_text()) for page in PdfReader(self.root / "appendix.pdf").pages]

    @cached_property
    def text(self) -> str:
        """The text of the report and of its appendix."""
        return " ".join([*self.pages, *self.appendix])

    @property
    def sections(self) -> list[dict[str, Any]]:
        """Every section, those of the appendix last."""
        return [*self.json["sections"], *self.json["appendix"]]

    def blocks(self, name: str) -> list[dict[str, Any]]:
        """The blocks of a section and of its continuation in the appendix."""
        return [block for section in self.sections if section["name"] == name for block in section["blocks"]]

    def section_text(self, name: str) -> str:
        """The text of a section in the PDFs, each from its heading to the next."""
        parts = (("sections", " ".join(self.pages)), ("appendix", " ".join(self.appendix)))
        return " ".join(between(self.json[part], name, text) for part, text in parts)


def between(sections: list[dict[str, Any]], name: str, text: str) -> str:
    """The text of a section, from its heading to the next; nothing when it is not one of these."""
    headings = [f"{s['number']} {s['title']}" for s in sections]
    at = next((at for at, s in enumerate(sections) if s["name"] == name), None)
    if at is None:
        return ""
    start = text.index(headings[at])
    return text[start : text.index(headings[at + 1], start) if at + 1 < len(headings) else None]


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ").replace("\u200b", ""))


def make(root: Path, inputs: Inputs, title: str = "Chest screening") -> Made:
    root.mkdir()
    return Made(root, inputs, ReportSettings(title=title, contact="the screening team"))


def evidence_of(made: Made) -> Evidence:
    return _evidence(ReportSettings(title="x"), made.inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def good(folder: Path) -> Made:
    return make(folder / "good", example_run.make_run(folder / "good_store"))


@pytest.fixture(scope="module")
def chance(folder: Path) -> Made:
    return make(folder / "chance", example_run.make_run(folder / "chance_store", skill=0.0))


@pytest.fixture(scope="module")
def small(folder: Path) -> Made:
    return make(folder / "small", example_run.make_run(folder / "small_store", patients=150))


# ---------------------------------------------------------------- page one


def test_page_one_says_what_would_happen_to_a_thousand_people(good: Made):
    row = next(r for r in good.metrics["consequences"] if r["prevalence"] == good.metrics["headline_prevalence"])
    page = good.pages[0]
    said = re.search(
        r"about (\d+) \((\d+)–(\d+)\) of 1,000 people are referred Assumed: 5 % have the condition, 50 people; "
        r"at most (\d+) would be missed, (fewer than 1|\d+) expected",
        page,
    )
    assert said, page
    referred, missed = row["referred"], row["missed"]
    assert int(said[1]) == round(referred["value"])
    assert int(said[2]) <= referred["low"]
    assert int(said[3]) >= referred["high"]
    assert int(said[4]) == np.ceil(missed["high"])
    assert said[5] == ("fewer than 1" if missed["value"] < 0.5 else str(round(missed["value"])))


def test_the_share_found_on_page_one_is_that_of_the_metrics(good: Made):
    i = good.metrics["operating_point"]["recall"]
    shown = f"{100 * i['value']:.1f} ({100 * i['low']:.1f}–{100 * i['high']:.1f}) % of {i['n']} test patients with"
    assert shown in good.pages[0]


def test_page_one_stands_alone(good: Made):
    page = good.pages[0]
    assert "Research use only — not for diagnosis" in page
    assert "“No refer” does not rule out the condition" in page
    assert "Promised, 95 % sure: at least 95 % of those with the condition are found" in page
    assert "Not for: adults; lateral views" in page
    assert "2 known traps: section 2." in page
    assert "imaged in different wards" in good.pages[1]
    assert "2 Intended use" not in page, "section 2 starts on page two"
    assert "2 Intended use" in good.pages[1]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("confirmed", "The test patients agree with the promise"),
        ("not_confirmed", "The promise was neither confirmed nor contradicted"),
        ("contradicted", "The promise was contradicted: do not rely on it"),
        (None, "The promise could not be checked"),
    ],
)
def test_whether_the_promise_held_is_said_in_words(verdict, words, good: Made):
    e = with_point(evidence_of(good), verification=verdict)
    assert e.metrics.operating_point is not None
    box = promise(e, e.metrics.operating_point)
    assert box.title == words
    assert (box.level == "stop") == (verdict == "contradicted")


def test_the_word_diagnosis_stands_only_in_its_denial(good: Made):
    text = good.text.lower()
    assert text.count("diagnos") == text.count("not for diagnosis") > 0


# ---------------------------------------------------------------- no usable operating point


def test_a_model_without_skill_gets_a_banner_and_no_threshold(chance: Made):
    findings = read_json(chance.inputs.file("evaluate", "findings.json"))
    failed = [f for f in findings if f["level"] == "fail"]
    assert {"no_discrimination"} <= {f["code"] for f in failed}
    page, section = chance.pages[0], chance.section_text("operating_point")
    for place in (page, section):
        assert BANNER in place
        assert flat(failed[0]["message"]) in place
        assert "would be referred" not in place
        assert "refer when" not in place.lower()
        assert not_shown(place, chance.threshold["threshold"], chance.threshold["probability"])
    assert all(flat(f["message"]) in section for f in failed)
    assert f"{len(failed) - 2} more reasons: “Operating point”" in page
    assert chance.json["usable"] is False


def not_shown(text: str, *numbers: float) -> bool:
    shown = {f"{abs(x):.{digits}f}" for x in numbers for digits in (2, 3, 4)}
    return not shown & set(re.findall(r"\d+\.\d+", text))


def test_a_program_cannot_pick_up_a_withheld_threshold(chance: Made):
    numbers = chance.json["numbers"]
    assert numbers["metrics"]["operating_point"] is None
    assert numbers["metrics"]["consequences"] == []
    assert numbers["metrics"]["other_operating_points"] == numbers["threshold"]["other_operating_points"] == []
    assert numbers["threshold"]["threshold"] is numbers["threshold"]["threshold_hex"] is None
    assert "sweep" not in numbers
    assert not [name for name in numbers["comparison"][0] if name.startswith(("threshold", "recall", "specificity"))]
    assert "matched sensitivity" not in chance.text
    assert "withheld" in chance.section_text("decision_curve")
    curves = pd.read_csv(chance.root / "data" / "curves.csv")
    # A point of a ROC curve would be enough: refer so large a share of the highest scores.
    assert set(curves["curve"]) == {"reliability_before", "reliability_after"}
    assert not (chance.root / "tables" / "decision_curve.csv").exists()
    assert not (chance.root / "data" / "sweep.csv").exists()
    assert float(chance.threshold["threshold"]).hex() not in (chance.root / "report.json").read_text("utf-8")


def test_too_few_patients_are_refused_in_the_certificates_words(small: Made):
    assert small.threshold["certified"] is False
    for place in (small.pages[0], small.section_text("operating_point")):
        assert BANNER in place
        assert flat(small.threshold["message"]) in place
    assert f"Patients with the condition needed at least {small.threshold['positives_needed']}" in small.text


def test_too_few_patients_to_calibrate_end_in_a_report_that_says_so(folder: Path):
    few = make(folder / "few", example_run.make_run(folder / "few_store", patients=40))
    assert read_json(few.inputs.file("calibrate", "calibrator.json"))["method"] == "prevalence"
    for place in (few.pages[0], few.section_text("operating_point")):
        assert BANNER in place
        assert "calibration needs at least 10 patients with and 10 without the condition; there are" in place
    assert "none could be fitted, so that everyone gets the same probability" in few.section_text("calibration")
    assert few.json["usable"] is False


# ---------------------------------------------------------------- several targets


def test_every_target_has_its_row_and_page_one_knows_the_first_alone(good: Made):
    (table,) = [b for b in good.blocks("operating_point") if b.get("name") == "targets"]
    first, lower, higher = table["rows"]
    point = good.metrics["operating_point"]
    (other, _) = good.metrics["other_operating_points"]
    assert first[0] == "95 % ◄"
    unread = {"confirmed": "agrees", "not_confirmed": "neither confirmed nor contradicted"}
    assert first[-1] == unread[point["verification"]], "without a ledger nobody knows who was read before"
    assert lower[0] == "90 %"
    assert lower[4].startswith(f"{100 * other['operating_point']['recall']['value']:.1f} (")
    assert higher == ["99 %", *["—"] * 6, "not certified: 299 patients needed"]
    assert "Each promise holds by itself, with 95 % confidence" in good.section_text("operating_point")
    assert not re.search(r"\b9[09] %", good.pages[0])
    assert "further target" not in good.pages[0]


def test_one_target_needs_no_table_of_targets(good: Made):
    e = evidence_of(good)
    e = replace(e, threshold=replace(e.threshold, other_operating_points=()))
    e = with_metrics(e, other_operating_points=())
    assert "targets" not in [b.name for b in operating_point(e).blocks if isinstance(b, Table)]


# ---------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("setting", "method", "words"),
    [
        ("logistic", "logistic", "logistic regression on the score (Platt);"),
        ("venn_abers", "venn_abers", "inductive Venn–Abers, both probabilities merged into one;"),
        ("auto", "beta", "beta calibration, chosen by cross-validation on these patients"),
    ],
)
def test_the_calibration_section_names_the_calibrator_and_its_patients(setting, method, words, good: Made):
    e = evidence_of(good)
    records = {"calibrate": e.records["calibrate"] | {"settings": {"calibrator": setting}}}
    e = replace(e, calibrator=dict(e.calibrator) | {"method": method}, records=dict(e.records) | records)
    first = calibration(e).blocks[0]
    assert isinstance(first, Paragraph)
    assert words in first.text
    assert f"{good.threshold['positives'] + good.threshold['negatives']} calibration patients" in first.text


def test_every_displayed_probability_says_at_what_prevalence(good: Made):
    assumed = f"at the calibration patients' prevalence of {100 * good.threshold['probability_prevalence']:.1f} %"
    for name in ("operating_point", "calibration", "examples"):
        assert assumed in good.section_text(name)
    local = evidence_of(good)
    local = replace(local, threshold=replace(local.threshold, local_prevalence=0.05, probability_prevalence=0.05))
    for section in (calibration, operating_point, examples):
        assert "at the stated local prevalence of 5 %" in str(section(local))
    assert good.json["numbers"]["threshold"]["probability_prevalence"] == good.threshold["probability_prevalence"]


# ---------------------------------------------------------------- the trainings


def test_the_model_section_says_that_seeds_are_an_ensemble_and_which_epochs_were_kept(good: Made):
    assert "an arm's seeds are an ensemble" in good.section_text("model")
    assert "The score of the ensemble is what was calibrated" in good.section_text("model")
    e = evidence_of(good)
    arm = e.finetune["arms"]["mae"]
    early = {seed: record | {"best_epoch": 9 + int(seed)} for seed, record in arm["seeds"].items()}
    finetune = dict(e.finetune) | {"arms": e.finetune["arms"] | {"mae": arm | {"seeds": early}}}
    records = {
        "score": e.records["score"] | {"settings": {"flips": True}},
        "finetune": e.records["finetune"] | {"sources": {"imported_weights": "f" * 64}},
    }
    e = replace(e, finetune=finetune, records=dict(e.records) | records)
    assert "50 at most; kept: 10, 11" in str(model(e))
    assert "mean of their logits of it and of its mirror image" in str(model(e))
    assert ["Public weights that arm imported started from", "f" * 64] in [
        row for block in provenance(e).appendix if isinstance(block, Table) for row in block.rows
    ]


def test_methods_and_card_count_the_images_without_labels_that_were_taken_and_left_out(good: Made):
    assert "data.unlabelled" not in good.text + (good.root / "model_card.md").read_text()
    e = evidence_of(good)
    counts = {"images": 1200, "patients": 800, "left_out": {"same patient": 7, "nearly the same image": 2}}
    counts |= {"received": 1215, "accepted": 1209, "quarantined": {"no_patient": 6}, "left_out_patients": 5}
    made = replace(e.pretraining, summary=e.pretraining.summary | {"unlabelled": counts})
    e = replace(e, pretraining=made)
    said = str(model(e))
    assert "1,200 images of 800 patients, from 1,215 files" in said
    assert "quality checks: 6 (no patient 6). Images left out: 9 (nearly the same image 2, same patient 7)" in said
    assert "1,200 images of 800 patients without labels (data.unlabelled); 9 others were left out" in model_card.text(e)


# ---------------------------------------------------------------- the whole


def test_all_sections_are_there_in_order(good: Made):
    assert [s["title"] for s in good.json["sections"]] == [
        "Summary", "Intended use and limits", "Reference standard", "Studies", "Operating point", "Consequences",
        "The threshold to use", "Discrimination", "Calibration", "Decision curve", "Subgroups",
        "Shift and automatic checks", "External test sets", "Comparison of arms", "Examples of errors", "Statements",
        "Reporting guidelines",
    ]  # fmt: skip
    assert {"Model and training", "Versions and provenance"} <= {s["title"] for s in good.json["appendix"]}
    place = 0
    for section in good.sections:
        place = good.text.index(f"{section['number']} {section['title']}", place)


def test_a_report_has_nine_pages_and_everything_else_lies_beside_it(good: Made, chance: Made, small: Made):
    assert [len(made.pages) <= 9 for made in (good, chance, small)] == [True] * 3
    assert "A1 Studies" in good.appendix[0]
    assert re.search(r"Table A1\b", good.appendix[0])
    assert "More in the appendix, A1" in good.section_text("studies")
    assert read_keys(good.root / "appendix.pdf") == read_keys(good.root / "report.pdf")


def listed(made: Made, name: str) -> dict[str, str]:
    (table,) = [table for table in made.json["more"] if table["name"] == name]
    return {row[0]: row[-1] for row in table["rows"]}


def test_items_of_guidelines_name_their_section_or_what_is_missing_in_the_data(good: Made, chance: Made):
    stard = listed(good, "items_stard_ai")
    assert stard["30"] == "5 Operating point"
    assert re.fullmatch(r"A\d+ Model and training \(appendix\)", stard["15a"])
    assert stard["38"] == "missing: the card does not state study.funding"
    assert listed(chance, "items_stard_ai")["30"] == "missing: there is no usable operating point"
    assert stard["29"] == "missing: there is no external test set with patients of its own"
    with (good.root / "data" / "items_stard_ai.csv").open() as stream:
        assert {row["Item"]: row["Answered in"] for row in csv.DictReader(stream)} == stard
    (table,) = [b for b in good.blocks("crosswalk") if b["kind"] == "table"]
    missing = sum(text.startswith("missing: ") for text in stard.values())
    assert table["rows"][0][2:4] == [str(len(stard)), str(missing)]
    assert "study.funding" not in good.text, "a reader of pages meets no code"


def test_what_the_card_states_is_printed_and_no_longer_missing(good: Made, folder: Path):
    stated = example_run.card(study={"funding": "a foundation that had no part in the study"})
    made = make(folder / "stated", example_run.make_run(folder / "stated_store", cards=stated))
    assert "Who paid, and their part in the study a foundation that had" in made.section_text("statements")
    assert "who paid, and their part in the study" in good.section_text("statements").partition("says nothing of")[2]
    items = ("items_stard_ai", "items_claim_2024_update", "items_tripod_ai")
    missing = [str([listed(one, name) for name in items]).count("study.funding") for one in (good, made)]
    assert missing == [3, 0]


def test_a_group_that_is_unknown_of_everybody_is_no_group(good: Made):
    e = evidence_of(good)
    (table,) = [b for b in subgroups(e).appendix if isinstance(b, Table)]
    attributes = sorted(set(e.subgroups["attribute"]))
    assert {str(row[0]).split(":")[0] for row in table.rows} == set(attributes)
    first = e.subgroups["attribute"] == attributes[0]
    one_less = pd.concat([e.subgroups[~first], e.subgroups[first].head(1).assign(group="unknown")])
    section = subgroups(replace(e, subgroups=one_less))
    (table,) = [b for b in section.appendix if isinstance(b, Table)]
    assert attributes[0] not in {str(row[0]).split(":")[0] for row in table.rows}
    assert f"Not known of any test patient: {attributes[0]}." in str(section)
    nothing = subgroups(replace(e, subgroups=e.subgroups.assign(group="unknown")))
    assert [type(block) for block in nothing.blocks] == [Paragraph, Paragraph]
    assert "how groups fare is not known" in str(nothing)


def test_the_lowest_of_equal_groups_or_of_one_is_not_named(good: Made):
    e = evidence_of(good)
    low = good.metrics["operating_point"]["lowest_groups"]["recall"]
    assert f"Sensitivity: the lowest of {low['groups']} groups is {low['attribute']} {low['group']}" in str(
        subgroups(e)
    )
    e = with_point(e, lowest_groups=LowestGroups(level=0.95, recall=None, specificity=None))
    assert "the lowest of" not in str(subgroups(e))
    alone = e.subgroups[e.subgroups["group"] != "unknown"].drop_duplicates("attribute")
    nothing = subgroups(replace(e, subgroups=alone))
    assert "so that nothing can be compared" in str(nothing)
    assert not [b for b in (*nothing.blocks, *nothing.appendix) if isinstance(b, Table)]


def with_external(made: Made, **changes: Any) -> Evidence:
    """The run as if its test patients were also an external set whose label is defined otherwise."""
    e = evidence_of(made)
    its = an_external_set(e.metrics, "external set b", patients=2, images=3)
    group = replace(e.metrics.shift.groups[0], group=its.group, **changes)
    other = {**e.card, "label": {**e.card["label"], "definition": "an opacity"}}
    return replace(with_external_sets(e, {"b": its}, [group]), external={"b": other})


def test_an_external_set_stands_beside_the_test_patients_in_words_and_numbers(good: Made):
    e = with_external(good, covered=False, differences=("50 of 90 patients come from other sites",))
    text = str(external(e))
    assert "External set b: the promise" in text
    assert "these patients differ" in text
    assert "50 of 90 patients come from other sites." in text
    (table,) = [b for b in external(e).blocks if getattr(b, "name", "") == "external"]
    assert list(table.columns) == ["Measure", "Test patients", "External set b"]
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["Patients left out, since they occur in this run"] == ["—", "2 (3 images: same image)"]
    recall = good.metrics["operating_point"]["recall"]
    assert cells["Sensitivity, %"][1].startswith(f"{100 * recall['value']:.1f} (")
    (definitions,) = [b for b in external(e).blocks if getattr(b, "name", "") == "definitions"]
    assert [row[2] for row in definitions.rows] == ["both readers see a consolidation", "an opacity"]
    assert "Elsewhere: external set b" in str(summary(e))
    assert "External test sets" in str([table.rows for table in build(e).more if table.name.startswith("items")])


def test_an_external_set_shows_no_threshold_when_none_may_be_used(chance: Made):
    e = with_external(chance)
    text = str(external(e))
    assert "withheld" in text
    assert "Sensitivity" not in text.replace("Sensitivity is of the patients", "")
    assert all_numbers(e)["metrics"]["external"]["b"]["operating_point"] is None


def test_an_external_set_of_nobody_new_says_so(good: Made):
    e = evidence_of(good)
    nobody = ExternalSet("external set b", Excluded(7, {"same image": 9}), None)
    text = str(external(with_external_sets(e, {"b": nobody}, [])))
    assert "All 7 of its labelled patients occur in this run already" in text


def test_without_an_external_set_the_report_says_what_is_not_known(good: Made):
    assert "how the model does on patients from elsewhere is not known" in good.section_text("external")


def test_words_in_tables_of_the_html_stay_whole_and_hashes_do_not(good: Made):
    style = re.sub(r"/\*.*?\*/", "", good.html.partition("<style>")[2].partition("</style>")[0], flags=re.S)
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    breaking = {name.strip() for name, rule in rules if re.search(r"overflow-wrap: anywhere|word-break", rule)}
    assert breaking == {".long"}, "a table shrinks a column below its words where they may break anywhere"
    cells = re.findall(r"<t[dh]([^>]*)>(.*?)</t[dh]>", good.html.partition("</style>")[2])
    assert len(cells) > 300
    for attributes, content in cells:
        longest = max(map(len, re.sub(r"<[^>]*>", "", content).split()), default=0)
        assert ('class="long"' in attributes) == (longest > 40), content
    assert any('class="long"' in attributes for attributes, _ in cells)


def test_html_and_pdf_show_the_same_document(good: Made):
    page, pdf = TextOf(good.html), unbroken(good)
    for section in good.sections:
        for block in (b for b in section["blocks"] if b["kind"] != "slider"):
            for text in (
                block.get("text"),
                block.get("title"),
                block.get("caption"),
                *block.get("lines", ()),
                *block.get("items", ()),
            ):
                if text:
                    assert flat(text) in page.text
                    assert squeezed(text) in pdf
            for cell in (c for row in block.get("rows", ()) for c in row):
                assert flat(cell) in page.text
                assert squeezed(cell) in pdf


def unbroken(made: Made) -> str:
    """The text of the PDF without spaces and without what stands above and below every page."""
    titles = (made.json["title"], f"{made.json['title']} — appendix")
    whole = ""
    for title, texts in zip(titles, (made.pages, made.appendix), strict=True):
        pages = [squeezed(page) for page in texts]
        for words in (squeezed(f"{title}Research use only — not for diagnosis"), squeezed(made.json["footer"])):
            pages = [page.replace(words, "", 1) for page in pages]
        whole += re.sub(rf"Page\d+/{len(pages)}", "", "".join(pages))
    return whole


def squeezed(text: str) -> str:
    """Without spaces, since a PDF breaks lines inside table cells."""
    return re.sub(r"[\s\u200b]", "", text)


class TextOf(HTMLParser):
    """The visible text, tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(page)
        self.text = flat(" ".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def test_the_two_by_two_table_and_the_sweep_are_those_of_the_artifacts(good: Made):
    counts = good.metrics["operating_point"]["counts"]
    with (good.root / "tables" / "two_by_two.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert [row[1:3] for row in rows[1:3]] == [
        [str(counts["tp"]), str(counts["fp"])],
        [str(counts["fn"]), str(counts["tn"])],
    ]
    with (good.root / "data" / "sweep.csv").open() as stream:
        sweep = list(csv.DictReader(stream))
    chosen = [row for row in sweep if row["operating_point"] == "True"]
    assert [float(row["threshold"]) for row in chosen] == [good.threshold["threshold"]]
    assert len(good.json["numbers"]["sweep"]) == len(sweep)


def test_the_decision_curves_table_is_that_of_the_artifact(good: Made):
    (table,) = [b for b in good.blocks("decision_curve") if b["kind"] == "table"]
    point, at = good.metrics["operating_point"], good.metrics["headline_prevalence"]
    ten = next(row for row in table["rows"] if row[0] == "10 %")
    assert ten[1] == "9"
    assert ten[3] == f"{1000 * (at - (1 - at) / 9):.1f}".replace("-", "−")
    spared = 1 - point["specificity"]["value"]
    own = f"{1000 * (at * point['recall']['value'] - (1 - at) * spared / 9):.1f}".replace("-", "−")
    assert ten[4].startswith(f"{own} (")
    assert "5 % have the condition (assumed" in table["caption"]


def test_decisions_of_arms_are_those_of_the_artifact(good: Made):
    (table,) = [b for b in good.blocks("comparison") if b.get("name") == "decisions"]
    reported, *others = table["rows"]
    assert reported[0].endswith("— reported")
    assert reported[1] == f"{100 * good.metrics['operating_point']['recall']['value']:.1f} %"
    assert [reported[at] for at in (2, 4)] == ["—"] * 2
    assert len(others) == 3
    assert not [column for column in table["columns"] if " p" in column.lower()]
    assert "drawn anew together" in table["caption"]


def test_every_figure_has_a_picture_and_a_description(good: Made):
    figures = [f for s in good.sections for b in s["blocks"] if b["kind"] == "figures" for f in b["figures"]]
    results = {"roc", "precision_recall", "scores", "calibration_curve", "reliability", "decision_curve"}
    others = {"thousand_people", "flow", "pretraining_loss", "reconstructions", "subgroups", "arms", "misses",
              "misses_more", "false_alarms", "false_alarms_more"}  # fmt: skip
    assert results | others == {f["name"] for f in figures}
    pictures = [attributes for tag, attributes in TextOf(good.html).tags if tag == "img"]
    assert len(pictures) == len(figures)
    for figure, picture in zip(figures, pictures, strict=True):
        assert len(figure["alt"]) > 20
        assert picture["alt"] == figure["alt"]
        encoded = (picture["src"] or "").partition("base64,")[2]
        assert base64.b64decode(encoded) == (good.root / figure["file"]).read_bytes()


def test_the_pdf_is_accessible_archivable_and_leads_back_to_its_artifacts(good: Made):
    reader = PdfReader(good.root / "report.pdf")
    metadata = reader.xmp_metadata
    assert reader.metadata is not None
    assert metadata is not None
    xmp = metadata.stream.get_data().decode()
    assert ">2</pdfaid:part>" in xmp
    assert ">A</pdfaid:conformance>" in xmp
    assert ">1</pdfuaid:part>" in xmp
    assert reader.metadata.title == "Chest screening"
    assert reader.metadata.author == "maescreen"
    assert str(reader.metadata.creation_date)[:10] == "2025-02-03"
    assert read_keys(good.root / "report.pdf") == {s: a.key for s, a in good.inputs.artifacts.items()}


def test_the_same_run_gives_the_same_bytes(good: Made, folder: Path):
    again = make(folder / "again", good.inputs)
    names = sorted(p.relative_to(good.root) for p in good.root.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again.root) for p in again.root.rglob("*") if p.is_file())
    assert [n for n in names if (good.root / n).read_bytes() != (again.root / n).read_bytes()] == []


def test_provenance_names_what_was_kept_and_every_warning(good: Made):
    text = good.section_text("provenance")
    assert "code changed (models.mae)" in text
    assert "JPEG 2000 needs the codec pack" in text
    assert "2.4.5 (ingest); 2.4.6" in listed(good, "packages")["numpy"]
    assert listed(good, "settings")["pretrain.mask_ratio"] == "0.75"
    assert squeezed(good.inputs.record("calibrate")["files"]["threshold.json"]) in squeezed(text)


# ---------------------------------------------------------------- text from outside stays text


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Made:
    plain = example_run.card()
    text = f"{HOSTILE}\n\x1b[31m\u202e"
    changed = example_run.card(
        title=text,
        source="=HYPERLINK(1)",
        licence="漢字 ẞ ñ",
        known_traps=[text, "x" * 300],
        label=plain.label.model_dump() | {"name": text, "definition": "$ #eval(1) $"},
        intended_use=plain.intended_use.model_dump() | {"population": text, "not_for": ["=1+1", "- item", "= heading"]},
    )
    inputs = example_run.make_run(
        folder / "hostile_store", cards=changed, text={"site": "<b>$x$", "meaning": text, "warning": text}
    )
    return make(folder / "hostile", inputs, title=text)


def test_markup_is_printed_literally_in_the_pdf(hostile: Made):
    shown = squeezed(hostile.text)
    assert squeezed(HOSTILE) in shown
    assert squeezed("$ #eval(1) $") in shown
    assert "��ẞñ" in shown, "what the font lacks is marked, not replaced by something else"
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert squeezed("x" * 300) in shown


def test_markup_is_escaped_in_the_html(hostile: Made):
    page = TextOf(hostile.html)
    assert {"tag", "b"}.isdisjoint(tag for tag, _ in page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 1, "the slider's, none of the data's"
    assert flat(HOSTILE) in page.text
    assert "漢字 ẞ ñ" in page.text
    assert "49" not in re.findall(r"\{\{.*?\}\}|(?<=script> )\d+", page.text), "a template expression was evaluated"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", hostile.html)


def test_the_html_needs_nothing_from_elsewhere(good: Made, hostile: Made):
    for made in (good, hostile):
        sources = [v for _, a in TextOf(made.html).tags for k, v in a.items() if k in ("src", "href") and v]
        assert sources
        assert all(source.startswith(("data:image/", "#")) for source in sources)


def test_no_cell_of_any_csv_file_is_a_formula(hostile: Made):
    files = sorted(hostile.root.rglob("*.csv"))
    assert len(files) > 20
    cells = [cell for file in files for row in csv.reader(file.open(newline="")) for cell in row]
    assert "'=HYPERLINK(1)" in cells
    number = re.compile(r"[+-]?[\d.]+([eE][+-]?\d+)?")
    assert [c for c in cells if c.lstrip()[:1] in tuple("=+-@") and not number.fullmatch(c)] == []


def test_titles_too_long_for_a_line_leave_page_one_whole(folder: Path, good: Made, request: pytest.FixtureRequest):
    long = example_run.card(
        known_traps=["a very long trap " * 60] * 5,
        intended_use=example_run.card().intended_use.model_dump()
        | {"population": "people " * 100, "not_for": ["x" * 90] * 9},
    )
    made = make(folder / "long", example_run.make_run(folder / "long_store", cards=long), title="word " * 60)
    assert "does not rule out the condition" in made.pages[0]
    assert "2 Intended use" in made.pages[1]


# ---------------------------------------------------------------- several kinds of study


def deciding_image(inputs, patient: str) -> str:
    """Return the image whose mean logit over the seeds is the highest of the patient's, found the long way."""
    scores = pd.read_parquet(inputs.file("score", "scores_test.parquet"))
    own = scores[(scores["arm"] == "mae") & scores["patient_id"].str.startswith(patient)]
    logits = {image: rows["logit"].mean() for image, rows in own.groupby("image_id")}
    return max(sorted(logits), key=lambda image: logits[image])


def test_examples_show_the_stored_pixels_with_an_outline_beside(good: Made, folder: Path):
    inputs = example_run.make_run(folder / "flat", image=np.zeros((24, 24), np.uint8))
    evidence = _evidence(ReportSettings(title="x", examples=2), inputs)
    assert len(evidence.misses) == len(evidence.false_alarms) == 2
    index = pd.read_parquet(inputs.file("preprocess", "index_test.parquet"))
    for example in [*evidence.misses, *evidence.false_alarms]:
        own = index[index["patient_id"].str.startswith(example.patient)].set_index("image_id")["row"]
        assert example.image.shape == (24, 24)
        assert (example.image == own[deciding_image(inputs, example.patient)] % 200).all()
        assert example.images == len(own)
        assert example.outlined is not None
        patches = example.outlined.reshape(3, 8, 3, 8)
        assert (patches == patches[:, :1, :, :1]).all(), "an outline follows patches"
        assert 0 < example.outlined.sum() < 24 * 24
    assert [x.score for x in evidence.misses] == sorted(x.score for x in evidence.misses)
    assert [x.score for x in evidence.false_alarms] == sorted((x.score for x in evidence.false_alarms), reverse=True)
    text = good.section_text("examples")
    for words in ("Left: untouched. Right: the same image", "marks no lesion", "Abnar and Zuidema 2020"):
        assert words in text


def test_a_volume_is_shown_by_three_planes_through_the_patch_with_most_attention(folder: Path):
    volume = np.arange(16 * 24 * 16).reshape(16, 24, 16) % 53
    inputs = example_run.make_run(folder / "volumes", image=volume.astype(np.uint8))
    made = make(folder / "volumes_report", inputs)
    evidence = evidence_of(made)
    index = pd.read_parquet(inputs.file("preprocess", "index_test.parquet"))
    for example in [*evidence.misses, *evidence.false_alarms]:
        own = index.set_index("image_id").loc[deciding_image(inputs, example.patient)]
        stored = np.load(inputs.file("preprocess", own["shard"]))[own["row"], 0]
        middles = product((4, 12), (4, 12, 20), (4, 12))
        (centre,) = [at for at in middles if np.array_equal(example.image, three_planes(stored, at))]
        assert example.outlined is not None
        assert example.outlined.shape == example.image.shape
        own_patch = np.zeros(stored.shape, bool)
        own_patch[tuple(slice(at - 4, at + 4) for at in centre)] = True
        assert (example.outlined | ~three_planes(own_patch, centre)).all(), "the patch with most attention is outlined"
        assert example.outlined_share is not None
        assert example.outlined_share * 12 in range(1, 12), "a share of the volume, not of its picture"
    text = made.section_text("examples")
    assert "by its coronal, sagittal and axial plane through the middle of the patch with most attention" in text
    assert "% of the volume" in text


def test_an_outline_is_cut_from_the_volume_like_the_picture():
    volume = np.arange(4 * 6 * 4).reshape(4, 6, 4)
    shares = np.full((2, 3, 2), 0.02)
    shares[1, 0, 1] = 0.78
    picture, outlined = shown(volume[None], shares)
    patch = volume[2:4, 0:2, 2:4]
    assert outlined is not None
    assert set(picture[outlined]) <= set(patch.ravel())
    assert np.count_nonzero(outlined) == 3 * 4
    assert np.array_equal(picture, three_planes(volume, (3, 1, 3)))


def test_a_model_without_attention_has_no_outline_and_volumes_planes_through_their_middle(folder: Path):
    inputs = example_run.make_run(folder / "hog", calibration=CalibrateSettings(arm="hog"))
    made = make(folder / "hog_report", inputs)
    assert all(x.outlined is None for x in evidence_of(made).misses)
    text = made.section_text("examples")
    assert "the reported model has no attention" in text
    assert "plane" not in text, "these images have but one"
    assert "Right: the same image" not in made.text
    volume = np.arange(6 * 8 * 4).reshape(6, 8, 4)
    picture, outlined = shown(volume[None], None)
    assert np.array_equal(picture, three_planes(volume))
    assert outlined is None
    records = {"preprocess": {"settings": {"image_size": [6, 8, 4]}}}
    evidence = evidence_of(made)
    evidence = replace(evidence, records=dict(evidence.records) | records)
    assert "by its coronal, sagittal and axial plane through the middle." in str(examples(evidence))
