"""A packaged model and what predict writes with it are what monitor needs: nothing else, and no row of a patient."""

import json

from pipeline.commands.monitor import watch
from pipeline.delivery.monitoring import NAMES
from pipeline.delivery.results import write_results
from pipeline.inference.model_folder import verified
from pipeline.statistics.score_bins import LEAST_GAPS


def test_the_model_folder_holds_few_bins_of_scores_each_of_several_patients(hog):
    frozen = verified(hog.model)[0]["watch"]
    edges, gaps = frozen["scores_without"]["edges"], frozen["scores_without"]["gaps"]
    assert len(gaps) == len(edges) + 1
    assert min(gaps) >= LEAST_GAPS
    assert all(edge == round(edge, 3) for edge in edges)
    assert frozen["expected"]["specificity"]["low"] < frozen["expected"]["specificity"]["value"]


def test_results_of_predict_are_watched_with_the_model_that_made_them(hog, tmp_path):
    out = tmp_path / "2026-W10"
    written = write_results(hog.load().predict([hog.studies], workers=1), out)
    found = watch(hog.model, [f"north={out}"], tmp_path / "out")
    assert found.content["counts"]["studies"] == len(written.rows)
    assert [week["week"] for week in found.content["weeks"]] == ["2026-W10"]
    assert [light.kind for light in found.lights] == [*NAMES]
    assert found.lights[0].level == "amber"  # nobody said what became of anybody
    text = (tmp_path / "out" / "monitor.json").read_text()
    assert not any(json.dumps(row["study"]) in text for row in written.rows)
