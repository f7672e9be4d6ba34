"""The label-fraction curve through the stages: trained, interrupted, scored, evaluated and shown."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from reporting.example_run import make_run
from sklearn.metrics import roc_auc_score
from stages.training_run import Killed, killer, make_images, run_stage

from pipeline.models.training import TrainingError
from pipeline.orchestration.mlflow_runs import headline
from pipeline.reporting.content import raw_tables
from pipeline.reporting.document import Figures, Paragraph, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.sections.groups import comparison
from pipeline.settings.decision import ReportSettings
from pipeline.stages.report import _evidence
from pipeline.store.artifacts import Inputs
from pipeline.store.files import read_json, sha256_file
from pipeline.store.tables.evaluate import LABEL_FRACTIONS
from pipeline.store.tables.io import read_table
from pipeline.store.tables.score import LABEL_FRACTION_SCORES

COUNTS = [8, 26]
SETTINGS = {"labelled_patients": COUNTS, "epochs": 2, "seeds": [1, 2], "arms": ["mae", "scratch", "hog"]}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """Names of the metrics that training reported."""
    return set()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tracked) -> tuple[Path, dict[str, str]]:
    folder = make_images(tmp_path_factory.mktemp("fractions"))
    run_stage(folder, "pretrain", max_steps=4)
    return folder, run_stage(folder, "finetune", sink=lambda values, step: tracked.update(values), **SETTINGS)[0]


@pytest.fixture(scope="module")
def scored(trained) -> pd.DataFrame:
    run_stage(trained[0], "score")
    return read_table(trained[0] / "score" / "label_fractions_test.parquet", LABEL_FRACTION_SCORES)


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    for name in ("preprocess", "pretrain"):
        shutil.copytree(trained[0] / name, tmp_path / name)
    return tmp_path


# ---------------------------------------------------------------- training and scoring


def test_models_of_fewer_patients_stand_beside_those_of_all(trained, copy):
    files, _ = run_stage(copy, "finetune", **SETTINGS | {"labelled_patients": []})
    models = {"mae/seed1", "mae/seed2", "scratch/seed1", "scratch/seed2", "hog/seed1"}
    folders = {str(Path(name).parent) for name in trained[1] if name.endswith("model.safetensors")}
    assert folders == models | {f"labelled{count}/{model}" for count in COUNTS for model in models}
    same = [name for name in files if name not in ("summary.json", "artifact.json")]
    assert {name: files[name] for name in same} == {name: trained[1][name] for name in same}


def test_the_record_counts_patients_and_names_every_model(trained):
    record = read_json(trained[0] / "finetune" / "summary.json")["labelled_patients"]
    assert [int(count) for count in record] == COUNTS
    for count, fewer in record.items():
        assert (fewer["patients"], fewer["positive_patients"]) == (int(count), int(count) / 2)
        for arm, own in fewer["arms"].items():
            for seed, result in own["seeds"].items():
                weights = trained[0] / "finetune" / f"labelled{count}" / arm / f"seed{seed}" / "model.safetensors"
                assert result["model_sha256"] == sha256_file(weights)
    assert record["8"]["epochs"] * record["8"]["repeats"] * record["8"]["images"] == pytest.approx(2 * 60, rel=0.2)


def test_metrics_of_fewer_patients_have_names_of_their_own(trained, tracked):
    assert {"mae.seed1.tune_auc", "labelled8.mae.seed1.tune_auc", "labelled26.scratch.seed2.train_loss"} <= tracked


def test_interrupted_training_leaves_the_same_bytes(copy, trained):
    """Deaths in trainings with fewer patients, a later one each time: those with all take eight epochs together."""
    for at in (9, 3):
        with pytest.raises(Killed):
            run_stage(copy, "finetune", sink=killer(at), **SETTINGS)
    assert run_stage(copy, "finetune", **SETTINGS)[0] == trained[1]


def test_numbers_that_cannot_be_had_stop_before_anything_is_trained(copy):
    with pytest.raises(TrainingError, match="40 is not fewer than all 40"):
        run_stage(copy, "finetune", labelled_patients=[40])
    assert not list((copy / "finetune").iterdir())


def test_every_model_scores_every_test_image_and_no_other_table_changes(trained, scored, tmp_path):
    assert set(scored["image_id"].str.split("-").str[0]) == {"test"}
    assert (scored.groupby(["labelled_patients", "arm", "seed"])["image_id"].nunique() == 21).all()
    assert scored.groupby("labelled_patients").size().to_dict() == dict.fromkeys(COUNTS, 5 * 21)
    names = sorted(path.name for path in (trained[0] / "score").glob("*.parquet"))
    splits = ("calibration", "test", "tune")
    assert names == ["label_fractions_test.parquet", *(f"scores_{split}.parquet" for split in splits)]


def test_without_the_setting_there_is_no_such_table(copy):
    run_stage(copy, "finetune", arms=["hog"])
    files, _ = run_stage(copy, "score")
    assert "label_fractions_test.parquet" not in files


# ---------------------------------------------------------------- evaluation and report


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Inputs, Evidence]:
    root = tmp_path_factory.mktemp("curve")
    inputs = make_run(root / "store", patients=600, labelled=[10, 40, 120])
    return inputs, _evidence(ReportSettings(title="Curve"), inputs)


def test_the_table_is_that_of_scikit_learn(shown):
    table = read_table(shown[0].file("evaluate", "label_fractions.parquet"), LABEL_FRACTIONS)
    score = shown[0].artifacts["score"]
    scores = pd.read_parquet(score.file("label_fractions_test.parquet"))
    full = pd.read_parquet(score.file("scores_test.parquet")).assign(labelled_patients=360)
    scores = pd.concat([scores, full])
    assert len(table) == 4 * 4
    for row in table.itertuples():
        own = scores[(scores["labelled_patients"] == row.labelled_patients) & (scores["arm"] == row.arm)]
        images = own.groupby(["patient_id", "image_id"])[["logit", "label"]].mean()
        people = images.groupby("patient_id").max()
        assert row.auc == pytest.approx(roc_auc_score(people["label"], people["logit"]))
        assert row.auc_low < row.auc < row.auc_high
        assert row.labelled_positives == round(0.4 * row.labelled_patients)
        of_seed = [own[own["seed"] == seed].groupby("patient_id")[["logit", "label"]].max() for seed in (1, 2)]
        aucs = [roc_auc_score(seed["label"], seed["logit"]) for seed in of_seed]
        assert (row.auc_seed_min, row.auc_seed_max) == (pytest.approx(min(aucs)), pytest.approx(max(aucs)))
    aucs = table.set_index(["labelled_patients", "arm"])["auc"]
    for row in table[table["arm"] != "mae"].itertuples():
        assert row.difference == pytest.approx(aucs[row.labelled_patients, "mae"] - row.auc)
    assert table[table["arm"] == "mae"]["difference"].isna().all()


def test_mlflow_gets_every_point_of_the_curve(shown):
    numbers = headline(shown[0].artifacts)
    table = read_table(shown[0].file("evaluate", "label_fractions.parquet"), LABEL_FRACTIONS)
    for row in table.itertuples():
        assert numbers[f"test_auc_{row.arm}_with_{row.labelled_patients}_labelled"] == row.auc
    scratch = table[(table["arm"] == "scratch") & (table["labelled_patients"] == 40)].iloc[0]
    assert numbers["test_auc_mae_minus_scratch_with_40_labelled_low"] == scratch["difference_low"]


def test_the_report_shows_sentence_curve_and_table(shown):
    section = comparison(shown[1])
    blocks = [*section.blocks, *section.appendix]
    said = [block.text for block in blocks if isinstance(block, Paragraph)]
    assert read_json(shown[0].file("evaluate", "metrics.json"))["label_fractions"]["sentence"] in said
    assert "The labels of the 120 tuning patients were not reduced" in said[-1]
    (table,) = [block for block in blocks if isinstance(block, Table) and block.name == "label_fractions"]
    assert len(table.rows) == 16
    assert table.rows[0][:3] == ["10 (2.8 %)", "4", "pretrained (masked autoencoder)"]
    figures = [figure for block in blocks if isinstance(block, Figures) for figure in block.figures]
    assert [figure.name for figure in figures] == ["arms", "label_fractions"]
    assert len(raw_tables(shown[1])["label_fractions"]) == 16


def test_without_fewer_patients_the_report_says_nothing_of_them(shown):
    evidence = replace(shown[1], label_fractions=None)
    assert "label_fractions" not in str(comparison(evidence))
    assert "label_fractions" not in raw_tables(evidence)
