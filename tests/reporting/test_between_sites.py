"""What the report says of variation between sites is true of few sites, of many, and of none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from reporting import example_run

from pipeline.reporting.content import build
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.sections.between_sites import between_sites
from pipeline.settings.decision import ReportSettings
from pipeline.stages.report import _evidence
from pipeline.store.results.finding import Finding


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    inputs = example_run.make_run(tmp_path_factory.mktemp("sites"), patients=900)
    return _evidence(ReportSettings(title="x"), inputs)


def said(e: Evidence, **changes: Any) -> str:
    """Return the paragraph, with the one group of the run changed."""
    (group,) = e.between_sites
    return between_sites(replace(e, between_sites=[{**group, **changes}]))[0].text


def many(**changes: Any) -> dict[str, Any]:
    return {"measure": "recall", "sites": 12, "left_out": 3, "lowest": 0.9, "highest": 1.0, "chance": 0.02,
            "level": 0.95, "spread": [0.7, 0.2, 1.5], "another": [0.85, 0.99], **changes}  # fmt: skip


def test_three_sites_say_what_was_seen_and_nothing_of_another(run: Evidence):
    text = said(run)
    recall = run.between_sites[0]["recall"]
    assert f"Sensitivity {100 * recall['lowest']:.1f} % to {100 * recall['highest']:.1f} % at 3 sites" in text
    assert "So few sites do not tell how much sites differ, nor what another would show: it takes 5." in text
    assert "expected" not in text


def test_many_sites_give_a_prediction_and_whether_training_knew_them(run: Evidence):
    text = said(run, sites=15, in_training=15, recall=many(), auc=many(measure="auc", chance=None))
    assert "Sensitivity 90.0 % to 100.0 % at 12 sites (p 0.020 if sites differ in nothing), expected at another" in text
    assert "85.0 % to 99.0 %" in text
    assert "AUC 0.900 to 1.000 at 12 sites, expected at another 0.850 to 0.990" in text
    assert "Training had patients of 15 of 15 sites: one that it never saw may differ by more." in text
    assert "too few to expect anything of another" in text  # specificity, of three sites
    assert "Training had" not in said(run, sites=15, in_training=0, recall=many())


def test_without_sites_that_is_said(run: Evidence):
    words, tables = between_sites(replace(run, between_sites=()))
    assert "how results vary between sites is not known" in words.text
    assert tables == []
    assert "fewer than two of 3 sites have 10 patients" in said(run, recall=None, specificity=None, auc=None)


def test_without_a_usable_point_only_the_auc_is_there(run: Evidence):
    stop = Finding("refers_everyone", "fail", "test", "stopped")
    stopped = replace(run, findings=[*run.findings, stop])
    assert "Sensitivity" not in between_sites(stopped)[0].text
    assert "AUC" in between_sites(stopped)[0].text
    (group,) = build(stopped).numbers["between_sites"]
    assert group["recall"] is group["specificity"] is None
    assert "between_sites" in json.dumps(build(run).to_dict())
