"""Page one says what is known: how often patients were read, what a verdict means, and all of it in a minute."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporting import example_run
from reporting.changed import with_metrics, with_point

from pipeline.reporting.content import build
from pipeline.reporting.document import Box, Section, Slider, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.sections.background import intended_use
from pipeline.reporting.sections.deployment import deployment, packaged
from pipeline.reporting.sections.model import model
from pipeline.reporting.sections.operating import operating_point
from pipeline.reporting.sections.provenance import provenance
from pipeline.reporting.sections.results import calibration
from pipeline.reporting.sections.summary import summary
from pipeline.settings.config import CalibrateSettings, ReportSettings
from pipeline.stages.report import _evidence
from pipeline.store.artifacts import Inputs, Store
from pipeline.store.files import sha256_bytes, write_json
from pipeline.store.results.interval import Interval
from pipeline.store.results.metrics import Readings
from pipeline.store.results.operating_point import FirstImage

# Adults read English aloud at 183 words a minute (Brysbaert, Journal of Memory and Language 109 (2019) 104047).
WORDS_A_MINUTE = 183
FIRST = Readings(1, 1, ("mae",))
FOUR = Readings(4, 3, ("hog", "linear_probe", "mae"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A usable run, whose threshold to use is certified on calibration and test patients."""
    setting = CalibrateSettings(recall_targets=[0.95, 0.9], deploy="pooled", subgroup_attributes=["site"])
    return example_run.make_run(tmp_path_factory.mktemp("pooled"), patients=1100, calibration=setting)


@pytest.fixture(scope="module")
def pooled(inputs: Inputs) -> Evidence:
    return _evidence(ReportSettings(title="x"), inputs)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    inputs = example_run.make_run(tmp_path_factory.mktemp("stopped"), patients=500, skill=0.0)
    return _evidence(ReportSettings(title="x"), inputs)


def read(e: Evidence, readings: Readings | None, models: int = 1, **point: Any) -> Evidence:
    """Return the run as if its test patients had been read so often and had said something else."""
    e = with_metrics(with_point(e, **point), readings=readings)
    return replace(e, threshold=replace(e.threshold, models_compared=models))


def texts(section: Section | None) -> list[str]:
    """Return what somebody would read aloud: no pictures."""
    assert section is not None
    found: list[str] = []
    for b in (*section.blocks, *section.appendix):
        if isinstance(b, Box):
            found += [b.title, *b.lines]
        elif isinstance(b, Table):
            found += [b.caption, *b.columns, *(cell for row in b.rows for cell in row)]
        elif isinstance(b, Slider):
            found += [b.label, *b.sentences, b.caption]
        else:
            found += [getattr(b, "text", ""), *getattr(b, "items", ())]
    return found


def said(section: Section | None) -> str:
    return " ".join(texts(section))


def spoken(section: Section) -> int:
    """Return how many words are read aloud: limits in brackets are looked at, not read."""
    return sum(bool(re.search(r"\w", word)) for word in re.sub(r"\([\d.,–%]+\)", "", said(section)).split())


UNTRUE_WHEN_READ_BEFORE = (
    *("used for nothing else", "read once", "fixed before", "before calibration, in"),
    *("is confirmed", "was confirmed", "recorded before"),
)


def test_four_readings_are_said_and_take_every_claim_of_a_first_one_away(pooled: Evidence):
    e = read(pooled, FOUR, models=3, verification="confirmed")
    page = said(summary(e))
    assert "The test patients agree with the promise" in page
    assert "were read 4 times under 3 settings" in page
    assert "confirmed" not in page
    document = build(e)
    everything = str([[s.blocks, s.appendix] for s in document.sections if s.name != "crosswalk"])
    assert [words for words in UNTRUE_WHEN_READ_BEFORE if words in everything] == []
    assert "(arms: hog, linear_probe, mae)" in said(operating_point(e))


def test_a_first_reading_is_said_where_the_ledger_shows_it(pooled: Evidence):
    e = read(pooled, FIRST, verification="confirmed")
    page = summary(e)
    (box,) = [b for b in page.blocks if isinstance(b, Box) and "promise was" in b.title]
    assert (box.level, box.title) == ("good", "The promise was confirmed on other patients")
    assert "They were read once." in said(page)
    assert "It was fixed before the test patients were read" in said(operating_point(e))
    assert "before calibration, in the configuration" in said(model(e))


@pytest.mark.parametrize(("readings", "models"), [(None, 1), (FIRST, 2), (replace(FIRST, times=2), 1)])
def test_nothing_is_called_confirmed_or_beforehand_that_is_not_known_to_be(readings, models, pooled: Evidence):
    e = read(pooled, readings, models, verification="confirmed")
    text = said(summary(e)) + said(operating_point(e)) + said(model(e)) + said(deployment(e))
    assert [words for words in UNTRUE_WHEN_READ_BEFORE if words in text and words != "read once"] == []
    assert ("read once" in text) == (readings == FIRST)


VERDICTS = [
    ({"verification": "not_confirmed", "can_confirm": True, "chance_of_confirmation": 0.483}, "in 48 of 100 cases"),
    ({"verification": "not_confirmed", "can_confirm": False}, "At least 59 with the condition are needed"),
    ({"verification": "contradicted"}, "one of the 5 in 100 certificates that fail without any reason, or these"),
]


@pytest.mark.parametrize(("point", "words"), VERDICTS, ids=["unclear", "too few", "contradicted"])
def test_a_verdict_says_what_it_means(point, words, pooled: Evidence):
    assert words in said(summary(read(pooled, FIRST, **point)))


def test_page_one_is_read_aloud_in_a_minute(pooled: Evidence, stopped: Evidence):
    runs = {
        "confirmed": read(pooled, FIRST, verification="confirmed"),
        "unclear": read(pooled, FIRST, **VERDICTS[0][0]),
        "too few": read(pooled, FIRST, **VERDICTS[1][0]),
        "read four times": read(pooled, FOUR, 3, verification="confirmed"),
        "stopped": stopped,
    }
    seconds = {name: 60 * spoken(summary(e)) / WORDS_A_MINUTE for name, e in runs.items()}
    assert {name: s for name, s in seconds.items() if s > 60} == {}


def test_the_prevalence_of_page_one_is_called_an_assumption_and_that_of_the_test_patients_stands_beside(pooled):
    page = said(summary(pooled))
    assert "Assumed: 5 % have the condition, 50 people" in page
    seen = pooled.metrics.prevalence
    assert f"Of test patients {100 * seen.value:.0f} % had it: people screened may differ" in page
    alike = with_metrics(pooled, prevalence=replace(seen, value=0.06))
    assert "people screened may differ" not in said(summary(alike))


def test_a_page_of_a_stopped_run_shows_nothing_of_a_threshold(stopped: Evidence):
    page = said(summary(stopped))
    assert "must not be used" in page
    assert "Promised" not in page
    assert deployment(stopped) is None
    numbers = build(stopped).numbers
    assert numbers["deployment"] is None
    assert numbers["certified_groups"] is None


# ---------------------------------------------------------------- the threshold to use


def test_both_certificates_stand_side_by_side_with_what_they_refer(pooled: Evidence):
    d, t = pooled.to_use, pooled.threshold
    assert d is not None
    assert t.at is not None
    (table,) = [b for b in getattr(deployment(pooled), "blocks", ()) if getattr(b, "name", "") == "deployment"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Patients with the condition"] == [str(t.positives), str(d.positives)]
    assert rows["Misses allowed"] == [str(t.at.misses_allowed), str(d.misses_allowed)]
    (referred,) = [cells for name, cells in rows.items() if name.startswith("Referred of 1,000 at 5 % prevalence")]
    both = (pooled.deployment.made.referral_of_calibration_alone, d.referral)
    assert [cell.split(" ")[0] for cell in referred] == [str(round(1000 * i.value)) for i in both]
    assert f"refers about {round(1000 * d.referral.value)} (" in said(summary(pooled))
    assert "site:" in said(deployment(pooled))


def test_the_packaged_model_is_named_by_its_hash_and_by_the_threshold_that_it_has(pooled: Evidence):
    d = pooled.to_use
    assert d is not None
    assert "No model was packaged" in packaged(pooled)

    def with_model(threshold_hex: str | None) -> Evidence:
        points = [] if threshold_hex is None else [{"threshold_hex": threshold_hex}]
        return replace(pooled, packaged={"rule": {"operating_points": points}}, model_sha256="a1" * 32)

    assert "a1" * 32 in packaged(with_model(d.threshold_hex))
    assert "It has the threshold to use." in packaged(with_model(d.threshold_hex))
    assert pooled.at is not None
    own = pooled.at.threshold_hex
    assert "that the calibration patients certified" in packaged(with_model(own))
    assert "none of this report" in packaged(with_model((0.5).hex()))
    assert "no threshold" in packaged(with_model(None))
    assert "a1" * 32 in said(provenance(with_model(own)))
    assert build(with_model(own)).numbers["model_sha256"] == "a1" * 32


# ---------------------------------------------------------------- other facts


def of_threshold(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, threshold=replace(e.threshold, **changes))


def of_point(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: read(e, FIRST, **changes)


def of_change(low: float, high: float) -> Callable[[Evidence], Evidence]:
    def change(e: Evidence) -> Evidence:
        own = e.metrics.calibration
        moved = replace(own.log_loss_change, value=(low + high) / 2, low=low, high=high)
        return with_metrics(e, calibration=replace(own, log_loss_change=moved))

    return change


RATE = Interval(0.9, 0.8, 0.95, 0.95, "wilson", 40)
FACTS: list[tuple[str, Any, Callable[[Evidence], Evidence], str]] = [
    ("linked", operating_point, of_threshold(linked_patients=7), "share a picture with one who counts 7"),
    ("joint", operating_point, of_threshold(joint_confidence=0.9287), "certified hold at once with 92.9 %"),
    ("first image", operating_point, of_point(first_image=FirstImage(RATE, RATE)),
     "With the first image of each patient only sensitivity 90.0 %"),
    ("worse", calibration, of_change(0.001, 0.02), "Calibration made the probabilities of these patients worse"),
    ("better", calibration, of_change(-0.02, -0.001), "calibration made probabilities better"),
    ("neither", calibration, of_change(-0.0002, 0.02), "(95 % interval −0.0002 to 0.0200)"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "words"), [row[1:] for row in FACTS], ids=[row[0] for row in FACTS])
def test_each_fact_has_its_sentence(section, change, words, pooled: Evidence):
    assert words in said(section(change(pooled)))
    unchanged = pooled if words != "calibration made probabilities better" else of_change(0.001, 0.02)(pooled)
    assert words not in said(section(unchanged))


def test_the_share_of_calibration_patients_found_is_a_constant_of_the_rule(pooled: Evidence):
    assert pooled.at is not None
    n, missed = pooled.threshold.positives, pooled.at.misses_seen
    assert f"referred {n - missed} of {n}, by construction" in said(operating_point(pooled))


def test_the_sweep_shows_the_band_and_no_certificate_by_row(pooled: Evidence):
    (table,) = [b for b in operating_point(pooled).appendix if getattr(b, "name", "") == "sweep"]
    assert not [column for column in table.columns if "Certified" in column]
    band = list(table.columns).index("Band: at least, %")
    shown = {f"{100 * x:.1f}" for x in pooled.sweep["band_recall"].dropna()} | {"—"}
    assert {row[band] for row in table.rows} <= shown
    assert len({row[band] for row in table.rows}) > 2


def test_the_stop_rule_is_the_sequential_one(pooled: Evidence):
    assert pooled.point is not None
    watching = pooled.point.watching
    text = said(intended_use(pooled))
    assert "reaches 20 to 1" in text
    for fallen, n in watching.audited_positives_to_notice.items():
        assert f"to {100 * float(fallen):g} % after {n}" in text
    assert "leaves the intervals of this report" not in text


def test_a_stop_rule_with_nothing_to_notice_ends_no_sentence_in_the_air(pooled: Evidence):
    assert pooled.point is not None
    watching = pooled.point.watching
    nothing = replace(watching, audited_positives_to_notice={}, referral_band=None)
    text = said(intended_use(read(pooled, FIRST, watching=nothing)))
    assert "are noticed" not in text
    notice = {"0.9": 1, "0.8": None}
    some = replace(watching, audited_positives_to_notice=notice, people_to_notice={"0.9": None})
    text = said(intended_use(read(pooled, FIRST, watching=some)))
    assert "to 90 % after 1 such patient, to 80 % after thousands." in text
    assert "to 90 % after thousands of people." in text


def test_the_hash_is_that_of_the_packaged_models_sums(inputs: Inputs, tmp_path: Path):
    store = Store(tmp_path)
    work = store.begin("package", "9" * 16)
    (work / "model").mkdir()
    (work / "model" / "SHA256SUMS").write_bytes(b"00  model.json\n")
    write_json(work / "model" / "model.json", {"rule": {"operating_points": []}})
    package = store.publish("package", "9" * 16, inputs.record("evaluate") | {"stage": "package", "key": "9" * 16})
    e = _evidence(ReportSettings(title="x"), replace(inputs, artifacts={**inputs.artifacts, "package": package}))
    assert e.model_sha256 == sha256_bytes(b"00  model.json\n")
    assert e.packaged == {"rule": {"operating_points": []}}
