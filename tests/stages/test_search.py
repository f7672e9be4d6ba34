"""The search for a recipe: on train and tune alone, within its budget, resumable, and told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stages.training_run import SETTINGS, Killed, killer, make_images, run_stage

from pipeline.evaluation import recipe_search
from pipeline.models.recipes import RECIPES
from pipeline.orchestration.graph import READERS, STAGES
from pipeline.orchestration.work import wall_seconds
from pipeline.settings.training import FinetuneSettings, SearchSettings
from pipeline.store.artifacts import Inputs
from pipeline.store.files import read_json

SHORT = {"arms": ["scratch", "mae", "hog"], "seeds": [1, 2], "epochs": 1, "warmup_epochs": 0.5,
         "search": SearchSettings(budget_minutes=30)}  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = make_images(tmp_path_factory.mktemp("pretrained"))
    run_stage(folder, "pretrain", max_steps=4)
    return folder


def copied(pretrained: Path, folder: Path) -> Path:
    for name in ("preprocess", "pretrain"):
        shutil.copytree(pretrained / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def searched(pretrained, tmp_path_factory) -> tuple[Path, dict[str, str], list[str]]:
    """A finished stage with a search, its files, and the names of all files that it opened."""
    folder, opened = copied(pretrained, tmp_path_factory.mktemp("searched")), []
    with pytest.MonkeyPatch.context() as patched:
        file, files = Inputs.file, Inputs.files
        patched.setattr(Inputs, "file", lambda self, stage, name: opened.append(name) or file(self, stage, name))
        patched.setattr(
            Inputs,
            "files",
            lambda self, stage, pattern: [opened.append(path.name) or path for path in files(self, stage, pattern)],
        )
        made, _ = run_stage(folder, "finetune", **SHORT)
    return folder / "finetune", made, opened


def test_every_recipe_is_recorded_and_one_is_handed_on(searched):
    folder, files, _ = searched
    summary = read_json(folder / "summary.json")
    found = summary["search"]
    assert [one["recipe"] for one in found["tried"]] == [recipe.name for recipe in RECIPES]
    assert found["not_tried"] == []
    assert (found["arm"], found["seed"]) == ("scratch", 1)
    best = max(found["tried"], key=lambda one: one["tune_auc"])
    within = [one for one in found["tried"] if one["tune_auc"] >= best["tune_auc"] - best["standard_error"]]
    assert found["chosen"] == within[0]["recipe"]
    trials = [f"search/{recipe.name}/{name}" for recipe in RECIPES for name in ("history.json", "trial.json")]
    assert sorted(name for name in files if name.startswith("search/")) == sorted(trials), "weights are removed"
    for arm in ("scratch", "mae"):
        assert f"the simplest of {len(RECIPES)} tried" in summary["arms"][arm]["selection"]
    assert "tried" not in summary["arms"]["hog"]["selection"]


def test_all_networks_are_trained_by_the_recipe_that_was_handed_on(searched, pretrained, tmp_path):
    folder, files, _ = searched
    chosen = read_json(folder / "summary.json")["search"]["chosen"]
    recipe = next(one for one in RECIPES if one.name == chosen)
    own = recipe.applied(SETTINGS["finetune"].model_copy(update=SHORT))
    alone, _ = run_stage(copied(pretrained, tmp_path), "finetune", **dict(own))
    weights = [name for name in alone if name.endswith(".safetensors")]
    assert len(weights) == 5
    assert {name: files[name] for name in weights} == {name: alone[name] for name in weights}


def test_no_calibration_or_test_image_can_be_opened(searched):
    _, _, opened = searched
    assert any(name.startswith("tune-") for name in opened)
    assert not [name for name in opened if "calibration" in name or "test" in name]
    reads = next(stage for stage in STAGES if stage.name == "finetune").reads
    assert not [name for names in reads.values() for name in names if "calibration" in name or "test" in name]
    # The ledger counts who reads these patients; this stage is none of them, however many recipes it tries.
    assert "finetune" not in READERS


def test_a_killed_search_goes_on_where_it_was_and_ends_the_same(searched, pretrained, tmp_path):
    folder = copied(pretrained, tmp_path)
    with pytest.raises(Killed):
        run_stage(folder, "finetune", sink=killer(6), **SHORT)
    done = sorted(path.parent.name for path in folder.glob("finetune/search/*/trial.json"))
    assert 0 < len(done) < len(RECIPES)
    before = {name: (folder / "finetune/search" / name / "trial.json").read_bytes() for name in done}
    made, _ = run_stage(folder, "finetune", **SHORT)
    assert {name: (folder / "finetune/search" / name / "trial.json").read_bytes() for name in done} == before
    weights = [name for name in made if name.endswith(".safetensors")]
    assert {name: made[name] for name in weights} == {name: searched[1][name] for name in weights}


def test_the_budget_ends_the_search_before_a_recipe_that_would_not_fit(pretrained, tmp_path, monkeypatch):
    now = iter(range(0, 10_000, 60))  # each look at the clock is a minute later: a trial of an epoch takes one
    monkeypatch.setattr(recipe_search, "monotonic", lambda: float(next(now)))
    changes = {**SHORT, "arms": ["scratch"], "seeds": [1], "search": SearchSettings(budget_minutes=4.5)}
    run_stage(copied(pretrained, tmp_path), "finetune", **changes)
    found = read_json(tmp_path / "finetune" / "summary.json")["search"]
    assert [one["recipe"] for one in found["tried"]] == ["as_configured", "gentler", "stronger", "attention"]
    assert found["not_tried"] == ["longer", "longer_stronger", "longer_stronger_gentler"]
    assert [one["seconds"] for one in found["tried"]] == [60.0] * 4


def test_without_a_search_nothing_says_so_and_no_key_knows_of_it():
    assert "search" not in FinetuneSettings().model_dump()
    asked = FinetuneSettings(search={"budget_minutes": 30.0})
    assert asked.model_dump()["search"] == {"budget_minutes": 30.0}
    with pytest.raises(ValueError, match="search tries recipes of networks, and arms names none"):
        FinetuneSettings(arms=["hog"], search={"budget_minutes": 30.0})
    with pytest.raises(ValueError, match="greater than 0"):
        FinetuneSettings(search={"budget_minutes": 0.0})


def test_an_estimate_allows_for_the_budget_and_the_longest_recipe():
    from test_estimate import SOME

    from pipeline.orchestration.work import Job, seconds
    from pipeline.settings.training import PretrainSettings

    plain = Job(SOME, [64, 64], PretrainSettings(encoder={"patch_size": [8, 8]}), FinetuneSettings(arms=["mae"]))
    asked = Job(SOME, [64, 64], plain.pretrain, FinetuneSettings(arms=["mae"], search={"budget_minutes": 30.0}))
    assert (wall_seconds("finetune", plain), wall_seconds("finetune", asked)) == (0, 1800)
    assert wall_seconds("pretrain", asked) == 0
    assert 2.5 < seconds("finetune", asked) / seconds("finetune", plain) < 3.1
