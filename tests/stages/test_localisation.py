"""Masks from evaluate to the report: numbers recomputed, what stands where, and that nothing changes without masks."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader
from reporting import example_run

from pipeline.settings.decision import EvaluateSettings, ReportSettings
from pipeline.stages.report import report
from pipeline.store.files import read_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.io import read_table
from pipeline.store.tables.segmentation import FROC, SEGMENTATION_COMPARISON, SEGMENTATION_PATIENTS

PATIENTS, STRUCTURES = 600, ("consolidation", "effusion")


def reported(root, inputs, **settings):
    root.mkdir()
    report(ReportSettings(title="Chest screening", **settings), inputs, root, RunLog("report", quiet=True))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("localisation")


@pytest.fixture(scope="module")
def run(folder):
    return example_run.make_run(folder / "store", patients=PATIENTS, structures=STRUCTURES)


@pytest.fixture(scope="module")
def made(folder, run):
    return reported(folder / "report", run)


def arrays(run, arm="mae"):
    index = pd.read_parquet(run.artifacts["preprocess"].file("index_test.parquet"))
    reference = np.load(run.artifacts["preprocess"].file("masks-test-000.npy"))
    predicted = np.load(run.artifacts["score"].file(f"predicted_masks/{arm}-test-000.npy"))
    return index, reference, predicted


def test_evaluate_leaves_the_numbers_of_the_arrays(run):
    artifact = run.artifacts["evaluate"]
    summary = read_json(artifact.file("segmentation.json"))
    index, reference, predicted = arrays(run)
    assert (summary["arm"], set(summary["arms"])) == ("mae", {"mae", "scratch"})
    assert summary["images"] == len(index)
    for number, name in enumerate(STRUCTURES, 1):
        there, drawn = reference == number, predicted == number
        common, total = ((a.sum(axis=(1, 2))) for a in (there & drawn, there.astype(int) + drawn))
        dice = pd.Series(np.where(total > 0, 2 * common / np.maximum(total, 1), np.nan), index["patient_id"])
        means = dice.groupby(level=0).mean().dropna()
        own = summary["arms"]["mae"][name]
        assert own["dice"]["value"] == pytest.approx(means.mean())
        assert own["dice"]["n"] == len(means)
        assert own["dice"]["low"] < own["dice"]["value"] < own["dice"]["high"]
        assert sum(own["cases"].values()) == len(index)
        assert own["cases"]["both_empty"] == (total == 0).sum()
        assert own["cases"]["missed"] == ((there.sum(axis=(1, 2)) > 0) & (common == 0)).sum()
    patients = read_table(artifact.file("segmentation_patients.parquet"), SEGMENTATION_PATIENTS)
    assert len(patients) == 2 * 2 * index["patient_id"].nunique()
    assert len(read_table(artifact.file("froc.parquet"), FROC))
    comparison = read_table(artifact.file("segmentation_comparison.parquet"), SEGMENTATION_COMPARISON)
    assert set(comparison["arm"]) == {"scratch"}
    assert (comparison.query("measure == 'dice'")["low"] > 0).all()


def test_the_tolerance_is_no_part_of_earlier_settings():
    assert "surface_tolerance_mm" not in EvaluateSettings().model_dump()
    assert EvaluateSettings(surface_tolerance_mm=5.0).model_dump()["surface_tolerance_mm"] == 5


def test_the_report_has_a_section_on_where_the_finding_lies(made, run):
    content = read_json(made / "report.json")
    (section,) = [one for one in content["sections"] if one["name"] == "localisation"]
    bullets, table, figures = section["blocks"]
    curve, examples = figures["figures"]
    summary = read_json(run.artifacts["evaluate"].file("segmentation.json"))
    own = summary["arms"]["mae"]["consolidation"]
    at = next(point["sensitivity"] for point in own["froc"] if point["rate"] == 1.0)
    found = round(at["value"] * own["lesions"])
    said = f"consolidation: of {own['lesions']} lesions in {own['patients_with_lesions']} patients, {found} were found"
    assert bullets["items"][0].startswith(said)
    assert [row[0] for row in table["rows"]] == ["consolidation", "effusion"]
    assert table["rows"][0][2].startswith(f"{own['dice']['value']:.3f} (")
    assert curve["name"] == "froc"
    assert "lowest Dice" in examples["caption"]
    (appendix,) = [one for one in content["appendix"] if one["name"] == "localisation"]
    text = str(appendix)
    for words in ("In neither", "Compared with", "an empty reference mask", "CAMELYON16"):
        assert words in text
    assert content["numbers"]["localisation"]["arms"]["mae"]["consolidation"]["lesions"] == own["lesions"]
    with (made / "data" / "froc.csv").open() as stream:
        assert {row["structure"] for row in csv.DictReader(stream)} == {"consolidation", "effusion"}
    assert "Where the finding lies:** consolidation: of" in (made / "model_card.md").read_text()
    assert len(PdfReader(made / "report.pdf").pages) <= 9
    with (made / "cases.csv").open() as stream:
        assert "localisation_examples" in {row["figure"] for row in csv.DictReader(stream)}


def test_without_examples_no_picture_of_a_patient_is_shown(folder, run):
    plain = reported(folder / "plain", run, examples=0)
    assert not list((plain / "figures").glob("localisation*"))
    assert (plain / "figures" / "froc.svg").is_file()


def test_volumes_are_shown_by_three_planes(folder):
    volume = np.zeros((16, 16, 16), np.uint8)
    run = example_run.make_run(folder / "volumes", patients=200, image=volume, structures=["lesion"])
    summary = read_json(run.artifacts["evaluate"].file("segmentation.json"))
    assert summary["size_unit"] == "ml"
    content = read_json(reported(folder / "planes", run) / "report.json")
    assert [one for one in content["sections"] if one["name"] == "localisation"]
