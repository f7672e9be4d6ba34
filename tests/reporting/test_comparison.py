"""Several runs in one PDF: what is said of the same patients, and what is not said of others."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pypdf import PdfReader
from reporting import example_run

from pipeline.commands.compare import Finished, against, as_run
from pipeline.reporting import pdf
from pipeline.reporting.comparison import Against, Run, build
from pipeline.settings.decision import CalibrateSettings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The artifacts of runs: a good one, one less good and one without skill on the same patients, one on others."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = {"good": {}, "weaker": {"skill": 0.4}, "chance": {"skill": 0.0}, "others": {"patients": 300}}
    small = {"patients": 400, "calibration": CalibrateSettings(recall_targets=[0.9])}
    made = {name: example_run.make_run(folder / name, **small | settings) for name, settings in wanted.items()}
    return {name: dict(inputs.artifacts) for name, inputs in made.items()}


def shown(found: dict[str, Any], name: str, **settings: Any) -> Run:
    return as_run(Finished(f"{name} $x$ <b>", example_run.card().title, settings, found[name]))


def rows(runs: list[Run], others: list[Against], table: str) -> list[list[str]]:
    (found,) = [t for t in build(runs, others).tables if t.name == table]
    return [list(row) for row in found.rows]


def said(runs: list[Run], others: list[Against]) -> str:
    return str(build(runs, others).sections[0].blocks[1:])


def test_runs_on_the_same_patients_are_compared_paired(found):
    x = against(found["good"], found["weaker"])
    assert x.same
    assert x.difference is not None
    assert x.difference["low"] > 0
    runs = [shown(found, "good"), shown(found, "weaker")]
    words = said(runs, [x])
    assert "Run A separates patients better than Run B" in words
    assert f"{x.difference['diff']:.3f}" in words
    assert "not the same" not in words
    turned = against(found["weaker"], found["good"])
    assert "Run B separates patients better than Run A" in said(runs[::-1], [turned])
    itself = against(found["good"], found["good"])
    assert "rank the patients alike" in said([runs[0]] * 2, [itself])


def test_runs_on_other_patients_are_not(found):
    x = against(found["good"], found["others"])
    assert not x.same
    assert x.difference is None
    runs = [shown(found, "good"), shown(found, "others")]
    words = said(runs, [x])
    assert "The test patients are not the same" in words
    assert f"share {x.shared} test patients" in words
    assert "paired DeLong" not in words


def test_of_a_run_whose_gate_failed_no_operating_point_is_shown(found):
    run = shown(found, "chance")
    (row,) = rows([run], [], "results")
    assert row[3:] == ["withheld"] * 5 + ["checks failed"]
    assert run.point is None
    (good,) = rows([shown(found, "good")], [], "results")
    point = run_point(found["good"])
    assert good[5].startswith(f"{100 * point['recall']['value']:.1f} (")
    assert good[4] == f"{point['threshold']:.3f}".replace("-", "−")


def run_point(artifacts: dict[str, Any]) -> dict[str, Any]:
    from pipeline.store.files import read_json

    return read_json(artifacts["evaluate"].file("metrics.json"))["operating_point"]


def test_settings_that_differ_stand_side_by_side_in_tables_that_fit(found):
    runs = [shown(found, "good", **{"pretrain.mask_ratio": ratio, "seed": 1}) for ratio in (0.5, 0.6, 0.7, 0.8, 0.9)]
    others = [against(found["good"], found["good"])] * 4
    assert rows(runs, others, "settings_1") == [["pretrain.mask_ratio", "0.5", "0.6", "0.7", "0.8"]]
    assert rows(runs, others, "settings_2") == [["pretrain.mask_ratio", "0.9"]]
    same = build([runs[0]] * 2, others[:1]).sections[1].blocks
    assert "differ in no setting" in str(same)


def test_the_pdf_is_accessible_holds_every_run_and_has_the_same_bytes_again(found, tmp_path):
    names = ["good", "weaker", "chance", "others"]
    runs = [shown(found, name, seed=at) for at, name in enumerate(names)]
    others = [against(found["good"], found[name]) for name in names[1:]]
    paths = [tmp_path / name for name in ("one.pdf", "two.pdf")]
    for path in paths:
        pdf.write(path, build(runs, others))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    reader = PdfReader(paths[0])
    assert reader.xmp_metadata is not None
    xmp = reader.xmp_metadata.stream.get_data().decode()
    assert ">A</pdfaid:conformance>" in xmp
    assert ">1</pdfuaid:part>" in xmp
    text = re.sub(r"\s+", " ", " ".join(page.extract_text() for page in reader.pages))
    for letter, name in zip("ABCD", names, strict=True):
        assert f"Run {letter} {name} $x$ <b>" in text
    assert "Research use only — not for diagnosis" in text
    assert text.lower().count("diagnos") == text.count("not for diagnosis")
