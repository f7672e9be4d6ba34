"""A run whose arms need no encoder: nothing is pretrained, and every stage and page does without."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from project import Project

from pipeline.orchestration.plan import ChoiceError, plan
from pipeline.orchestration.run import Result, run
from pipeline.store.files import read_json

ARMS = "finetune.arms=[hog]"


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory) -> tuple[Project, Result]:
    project = finished.copy(tmp_path_factory.mktemp("alone") / "project")
    return project, run(*project.load(ARMS), say=lambda line: None)


def test_no_pretraining_is_planned_and_earlier_steps_are_kept(finished):
    steps = {step.name: step for step in plan(*finished.load(ARMS))}
    assert "pretrain" not in steps
    assert set(steps["finetune"].inputs) == {"preprocess"}
    assert "pretrain" not in steps["report"].inputs
    assert [name for name, step in steps.items() if step.action == "reuse"] == ["ingest", "split", "preprocess"]


def test_settings_of_pretraining_are_in_no_key(finished):
    def keys(*overrides: str) -> list[str]:
        return [step.key for step in plan(*finished.load(ARMS, *overrides))]

    assert keys() == keys("pretrain.mask_ratio=0.6", "pretrain.encoder.patch_size=[7, 7]")


def test_a_step_that_no_arm_needs_is_refused_in_words(finished):
    with pytest.raises(ChoiceError, match=r"no step pretrain \(pretrain: no arm of finetune.arms needs it\); this run"):
        run(*finished.load(ARMS), only="pretrain", say=lambda line: None)


def test_it_ends_in_a_report_and_a_model_that_say_so(alone):
    _, result = alone
    assert result.report is not None
    report, package = result.artifacts["report"], result.artifacts["package"]
    making = dict(table(report.path, "making"))
    assert making["Pretraining"].startswith("none took place: no arm starts from an encoder")
    assert "Encoder" not in making
    stages = [row[0] for row in table(report.path, "stages")]
    assert "finetune" in stages
    assert "pretrain" not in stages
    assert read_json(package.path / "model" / "model.json")["network"]["arm"] == "hog"
    assert not any(path.name.startswith("pretraining_loss") for path in (report.path / "figures").iterdir())


def table(report: Path, name: str) -> list[list[str]]:
    """Return the rows of one table of a report."""
    with (report / "tables" / f"{name}.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))[1:]


def test_the_same_images_give_the_same_model_with_and_without_pretraining(alone, finished):
    def sha256(project: Project, *overrides: str) -> str:
        (step,) = [s for s in plan(*project.load(*overrides)) if s.name == "finetune"]
        path = project.store / "finetune" / step.key / "hog" / "seed1" / "model.json"
        return read_json(path)["sha256"]

    assert sha256(alone[0], ARMS) == sha256(finished)
