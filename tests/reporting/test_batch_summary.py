"""The summary of a batch: counts add up, the most suspicious come first, nothing withheld is said."""

import io
import random
import re
from dataclasses import replace

import pytest
from pypdf import PdfReader

from pipeline.reporting.batch_summary import HIGHEST_SCORES, Batch, SummaryRow, render_summary

ROWS = [
    *(SummaryRow(study=f"r{n:03}", decision="refer", score=2 + n / 100, probability=0.5) for n in range(50)),
    *(SummaryRow(study=f"n{n:03}", decision="no refer", score=-2 - n / 100, probability=0.01) for n in range(1200)),
    *(SummaryRow(study=f"a{n:03}", decision="not assessable", reason="It holds no pixels.") for n in range(14)),
]
BATCH = Batch(
    model_title="Chest screening",
    version="0.3.0",
    model_hash="9f2c" * 16,
    predicted_at="2026-03-04T05:06:07+00:00",
    usable=True,
    files_read=1250,
    refused={"no pixels": 14, "not an image": 3},
    threshold="Referred when the score is at least −0.62.",
    certificate="With 95 % confidence at least 97 % of them are found.",
    not_for=["adults"],
)


def text_of(rows, batch) -> str:
    reader = PdfReader(io.BytesIO(render_summary(rows, batch)))
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in reader.pages).replace("\u200b", ""))


def test_counts_and_promise_and_identity():
    text = text_of(ROWS, BATCH)
    for said in (
        "50 ▲ REFER",
        "14 ◆ NOT ASSESSABLE",
        "1,200 ○ NO REFER",
        "1,264 studies; 64 of 1,264 (5.1 %) to be looked at",
        "1,267 files: 1,250 read, 17 refused.",
        "no pixels 14",
        "not an image 3",
        BATCH.threshold,
        BATCH.certificate,
        "adults",
        BATCH.model_hash,
        "Research use only; no medical device",
    ):
        assert said in text
    assert "⚠" not in text


def test_the_highest_scores_come_first_and_no_more_than_fit():
    text = text_of(ROWS, BATCH)
    shown = re.findall(r"\b[rn]\d{3}\b", text)
    assert shown == [f"r{n:03}" for n in range(49, 49 - HIGHEST_SCORES, -1)]
    assert re.findall(r"\ba\d{3}\b", text) == [f"a{n:03}" for n in range(10)]
    assert "The highest scores: 30 of 1,250; all are in results.json" in text
    assert "Not scored: 10 of 14" in text


def test_the_order_of_the_rows_makes_no_difference_to_the_bytes():
    rows = [*ROWS, *(SummaryRow(study=f"same{n}", decision="refer", score=9.0) for n in range(60))]
    shuffled = random.Random(1).sample(rows, len(rows))
    assert render_summary(iter(shuffled), BATCH) == render_summary(rows, BATCH)


def test_a_shift_is_said_at_the_top():
    text = text_of(ROWS, replace(BATCH, shift="The scores of this batch have shifted."))
    assert text.index("⚠ The scores of this batch have shifted.") < text.index("▲ REFER")


def test_studies_unlike_those_of_the_model_are_counted():
    rows = [*ROWS, SummaryRow(study="odd", decision="refer", score=9.0, probability=0.9, typical=False)]
    text = text_of(rows, BATCH)
    assert "1 of 1,265 (0.1 %) are unlike those that the model was made on" in text
    assert "odd ▲ REFER 9.00 0.900 no" in text


def test_an_unusable_model_gives_scores_and_no_decision():
    text = text_of(ROWS, replace(BATCH, usable=False, why_not="The certificate is contradicted."))
    assert "✕ NO DECISION" in text
    assert "The certificate is contradicted." in text
    assert "1,264 studies: 1,250 scored, 14 not" in text
    assert "r049 2.49" in text
    for withheld in ("▲", "○", "◆", "−0.62", "97 %", "0.500", "looked at", "certificate does not"):
        assert withheld not in text


def test_no_study_at_all_is_a_summary_too():
    text = text_of([], replace(BATCH, files_read=0, refused={}))
    assert "0 studies; 0 of 0 to be looked at" in text
    assert "0 files: 0 read, 0 refused." in text


def test_long_and_hostile_text_fits_in_the_page():
    hostile = '#import "x" $x$ *b* <tag> ' + "W" * 4000
    rows = [SummaryRow(study=hostile, decision="refer", score=1.0), SummaryRow(study=hostile, decision="not assessable",
                                                                               reason=hostile)]  # fmt: skip
    refused = {f"{hostile} {n}": n + 1 for n in range(40)}
    changed = replace(BATCH, shift=hostile, certificate=hostile, not_for=[hostile] * 50, refused=refused)
    text = text_of(rows, changed)
    assert "28 other reasons, in quarantine.csv" in text
    assert "820 refused" in text
    assert '#import "x" $x$ *b* <tag>' in text


def test_an_unknown_decision_is_refused():
    with pytest.raises(ValueError, match="is no decision"):
        render_summary([SummaryRow(study="x", decision="perhaps")], BATCH)
