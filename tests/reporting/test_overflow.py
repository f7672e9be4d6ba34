"""Nine pages for people whatever a run has many of; what leaves them is in the appendix, not gone."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfReader
from reporting import example_run
from reporting.changed import an_external_set, with_external_sets

from pipeline.reporting import pdf
from pipeline.reporting.content import build
from pipeline.reporting.document import Document, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.overflow import MOST_PAGES, fitting, moved
from pipeline.settings.decision import CalibrateSettings, ReportSettings
from pipeline.stages.report import _evidence
from pipeline.store.results.finding import Finding


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A run with four targets, six external sets that differ, thirty sites and thirty findings."""
    setting = CalibrateSettings(recall_targets=[0.95, 0.9, 0.85, 0.8])
    e = _evidence(
        ReportSettings(title="x"),
        example_run.make_run(tmp_path_factory.mktemp("crowded"), patients=1100, calibration=setting),
    )
    everybody, site, *_ = e.metrics.shift.groups
    names = [f"external set {n}" for n in range(6)]
    sets = {str(n): an_external_set(e.metrics, name, images=2) for n, name in enumerate(names)}
    differing = replace(everybody, covered=False, differences=("they differ in this and in that",))
    groups = [replace(site, group=f"site X{n}") for n in range(30)]
    e = with_external_sets(e, sets, groups + [replace(differing, group=name) for name in names])
    long = "something is remarkable about these patients, and it takes a line and a half of a table to say what it is"
    found = [Finding("shift", level, "test", f"{long}, number {n}") for n in range(15) for level in ("info", "warn")]
    return replace(e, findings=[*e.findings, *found])


def drawn(document: Document, folder: Path) -> bytes:
    for figure in document.figures:
        (folder / figure.file).parent.mkdir(exist_ok=True)
        (folder / figure.file).write_bytes(figure.picture)
    return pdf.render(document.to_dict(), folder)


def test_a_crowded_run_has_nine_pages_and_loses_nothing(crowded: Evidence, tmp_path: Path):
    document = build(crowded)
    fitted, made = fitting(document, lambda one: drawn(one, tmp_path))
    assert 1 < len(PdfReader(BytesIO(made)).pages) <= MOST_PAGES
    assert {table.name for table in fitted.tables} == {table.name for table in document.tables}
    assert {figure.name for figure in fitted.figures} == {figure.name for figure in document.figures}
    tables = {table.name: table for table in document.tables}
    assert len(tables["coverage"].rows) == len(crowded.metrics.shift.groups)
    assert len(tables["findings"].rows) == len(crowded.findings)
    # On the page: everybody and those that differ, the gravest findings, a row per external set.
    assert [row[0] for row in tables["coverage_first"].rows[:1]] == ["Test patients, all"]
    assert {f"External set {n}" for n in range(6)} <= {row[0] for row in tables["coverage_first"].rows}
    assert {row[0] for row in tables["findings_first"].rows} == {"caution"}
    assert len(tables["external"].rows) == 6
    assert all(row[-1].endswith("these patients differ") for row in tables["external"].rows)


def test_what_moves_stands_first_in_the_appendix_of_its_section():
    table, said = Table("t", "a table", ["a"], [["1"]]), Paragraph("said")
    sections = [Section("one", "One", [said, table], [said]), Section("two", "Two", [table])]
    document = Document("x", "", "2025-02-03", "", "", {}, True, sections)
    one, two = moved(document, Table, "t").sections
    assert (one.blocks, one.appendix) == ([said], [table, said])
    assert two == sections[1], "a section keeps something on its pages"
    assert moved(document, Figures, "t") == document
