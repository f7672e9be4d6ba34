"""Further labels through the stages: learned, scored, certified and judged beside the main one, which they leave be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from stages.conftest import Cohort, make_cohort
from stages.training_run import Killed, inputs, killer, make_images, publish, run_stage

from pipeline.models.baseline import auc
from pipeline.models.training import TrainingError
from pipeline.orchestration.mlflow_runs import headline
from pipeline.statistics.patients import patients_of
from pipeline.statistics.threshold import certify_threshold
from pipeline.store.artifacts import Artifact
from pipeline.store.files import read_json
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import FURTHER_SCORES, SCORES
from pipeline.store.tables.split import FURTHER_LABELS

SPLITS = ("tune", "calibration", "test")
FEW = {"arms": ["mae", "linear_probe", "hog"], "seeds": [1]}

# ---------------------------------------------------------------- learned and scored


def add_labels(folder: Path) -> None:
    """Add label `not`, the opposite of the main one, and `part`, the main one where it is known: not everywhere."""
    for split in ("train", *SPLITS):
        index = read_table(folder / "preprocess" / f"index_{split}.parquet", INDEX).dropna(subset="label")
        part = index["label"].where(np.arange(len(index)) % 5 > 0)
        tables = [
            index[["image_id"]].assign(label_id=name, label=values.astype("Int64"))
            for name, values in (("not", 1 - index["label"]), ("part", part))
        ]
        path = folder / "preprocess" / f"further_labels_{split}.parquet"
        write_table(path, pd.concat(tables, ignore_index=True), FURTHER_LABELS)
    publish(folder / "preprocess")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A training with the main label alone."""
    folder = make_images(tmp_path_factory.mktemp("alone"))
    run_stage(folder, "pretrain", max_steps=8)
    run_stage(folder, "finetune", **FEW)
    run_stage(folder, "score")
    return folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("together")
    for name in ("preprocess", "pretrain"):
        shutil.copytree(alone / name, folder / name)
    add_labels(folder)
    files, _ = run_stage(folder, "finetune", **FEW)
    run_stage(folder, "score")
    return folder, files


def further_scores(folder: Path, split: str = "test") -> pd.DataFrame:
    return read_table(folder / "score" / f"further_scores_{split}.parquet", FURTHER_SCORES)


def test_without_further_labels_there_are_no_files_about_them(alone, together):
    names = {path.name for path in (alone / "score").iterdir()}
    assert not any("further" in name for name in names)
    assert {path.name for path in (together[0] / "score").iterdir()} - names == {
        f"further_scores_{split}.parquet" for split in SPLITS
    }
    assert read_json(alone / "finetune" / "summary.json")["further_labels"] == []
    assert load_file(alone / "finetune" / "mae" / "seed1" / "model.safetensors")["head.weight"].shape[0] == 1


def test_a_network_has_an_output_per_label_and_a_regression_a_fit(alone, together):
    folder = together[0] / "finetune"
    record = read_json(folder / "mae" / "seed1" / "model.json")
    assert record["further_labels"] == ["not", "part"]
    assert load_file(folder / "mae" / "seed1" / "model.safetensors")["head.weight"].shape[0] == 3
    hog, before = (load_file(at / "hog" / "seed1" / "model.safetensors") for at in (folder, alone / "finetune"))
    assert all((hog[name] == before[name]).all() for name in before)
    assert set(hog) == {f"{label}{name}" for label in ("", "not.", "part.") for name in before}
    assert np.allclose(hog["not.weight"], -hog["weight"], atol=1e-3)


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_that_has_a_label_is_scored_for_it(together, split):
    scores = further_scores(together[0], split)
    main = read_table(together[0] / "score" / f"scores_{split}.parquet", SCORES)
    labels = read_table(together[0] / "preprocess" / f"further_labels_{split}.parquet", FURTHER_LABELS).dropna()
    assert set(main["image_id"]) > set(scores.loc[scores["label_id"] == "part", "image_id"])
    for (label_id, arm, seed), rows in scores.groupby(["label_id", "arm", "seed"]):
        known = labels[labels["label_id"] == label_id].set_index("image_id")["label"]
        assert rows["image_id"].tolist() == sorted(known.index)
        assert rows["label"].tolist() == known[rows["image_id"]].tolist()
        assert (arm, seed) in set(zip(main["arm"], main["seed"], strict=True))


@pytest.mark.parametrize("label_id", ["not", "part"])
@pytest.mark.parametrize("arm", ["mae", "linear_probe", "hog"])
def test_each_label_is_learned(together, label_id, arm):
    scores = further_scores(together[0])
    own = scores[(scores["label_id"] == label_id) & (scores["arm"] == arm) & (scores["seed"] == 1)]
    assert auc(own["label"].to_numpy(), own["logit"].to_numpy()) > 0.9


def test_an_interrupted_training_ends_in_the_same_bytes(together, tmp_path):
    for name in ("preprocess", "pretrain"):
        shutil.copytree(together[0] / name, tmp_path / name)
    with pytest.raises(Killed):
        run_stage(tmp_path, "finetune", sink=killer(3), **FEW)
    assert run_stage(tmp_path, "finetune", **FEW)[0] == together[1]


def test_training_sees_no_further_labels_of_the_patients_it_is_judged_on(together):
    given = inputs(together[0], "finetune")
    assert given.files("preprocess", "further_labels_*") == [
        together[0] / "preprocess" / f"further_labels_{split}.parquet" for split in ("train", "tune")
    ]


def test_fewer_labelled_patients_need_both_classes_of_every_label(together, tmp_path):
    for name in ("preprocess", "pretrain"):
        shutil.copytree(together[0] / name, tmp_path / name)
    path = tmp_path / "preprocess" / "further_labels_train.parquet"
    labels = read_table(path, FURTHER_LABELS)
    rare = labels["label_id"] == "part"
    labels.loc[rare, "label"] = (np.arange(rare.sum()) == 0).astype(int)
    write_table(path, labels, FURTHER_LABELS)
    publish(tmp_path / "preprocess")
    with pytest.raises(TrainingError, match="one class of further label part alone"):
        run_stage(tmp_path, "finetune", labelled_patients=[4])


# ---------------------------------------------------------------- certified and judged


def add_scores(cohort: Cohort) -> Cohort:
    """Add label `not`, the opposite of the main one and known for nine in ten, and `chance`, which nothing predicts."""
    generator, labels = np.random.default_rng(1), []
    for split in ("calibration", "test"):
        main = read_table(cohort.path("score", f"scores_{split}.parquet"), SCORES)
        people = sorted(set(main["patient_id"]))
        known = main[main["patient_id"].isin(people[len(people) // 10 :])]
        lots = dict(zip(people, generator.permutation(np.arange(len(people)) % 2), strict=True))
        tables = [
            known.assign(label_id="not", label=1 - known["label"], logit=-known["logit"]),
            main.assign(label_id="chance", label=main["patient_id"].map(lots)),
        ]
        table = pd.concat(tables, ignore_index=True)
        write_table(cohort.path("score", f"further_scores_{split}.parquet"), table, FURTHER_SCORES)
        labels.append(table.drop_duplicates(["image_id", "label_id"])[["image_id", "label_id", "label"]])
    every = pd.concat(labels, ignore_index=True).astype({"label": "Int64"})
    write_table(cohort.path("split", "further_labels.parquet"), every, FURTHER_LABELS)
    cohort.publish("score")
    cohort.publish("split")
    return cohort


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Cohort:
    cohort = make_cohort(tmp_path_factory.mktemp("judged") / "cohort", patients={"calibration": 300, "test": 300})
    return add_scores(cohort).run("calibrate", local_prevalence=0.1).run("evaluate")


@pytest.mark.parametrize("label_id", ["", "not", "chance"])
def test_every_label_is_certified_with_its_share_of_the_confidence(judged, label_id):
    name, table = ("further_scores", FURTHER_SCORES) if label_id else ("scores", SCORES)
    scores = read_table(judged.path("score", f"{name}_calibration.parquet"), table)
    patients = patients_of(scores[scores["label_id"] == label_id] if label_id else scores, "mae", "max")
    expected = certify_threshold(patients.y, patients.s, 0.95, 1 - 0.05 / 3)
    found = judged.json("calibrate", f"further/{label_id}/threshold.json" if label_id else "threshold.json")
    assert float.fromhex(found["threshold_hex"]) == expected.threshold
    assert (found["confidence"], found["labels_certified"], found["models_compared"]) == (0.95, 3, 1)
    assert found["confidence_used"] == pytest.approx(1 - 0.05 / 3)
    assert found["misses_allowed"] == expected.misses_allowed
    assert "shared out over 3 labels certified" in found["message"]
    assert found["local_prevalence"] == (None if label_id else 0.1), "the local prevalence is of the main condition"


def test_a_refusal_says_what_the_confidence_is_shared_out_over(tmp_path):
    made = add_scores(make_cohort(tmp_path, patients={"calibration": 140, "test": 100}))
    found = made.run("calibrate", models_compared=2).json("calibrate", "further/not/threshold.json")
    assert not found["certified"]
    assert "95 % confidence (99.17 % for each of the 2 models compared and the 3 labels certified)" in found["message"]
    assert "needs at least 94 positive patients" in found["message"]
    metrics = made.run("evaluate").json("evaluate", "metrics.json")
    assert metrics["further_labels"]["not"]["operating_point"] is None
    assert metrics["macro"]["recall"] is None


def test_the_test_patients_are_judged_label_by_label(judged):
    metrics = judged.json("evaluate", "metrics.json")
    its = metrics["further_labels"]["not"]
    assert its["patients"] == 270
    assert its["positives"] == 270 - patients_with(judged, "not", 0)
    assert its["discrimination"]["auc"]["value"] == pytest.approx(metrics["discrimination"]["auc"]["value"], abs=0.02)
    assert its["problems"] == []
    assert {"recall", "specificity", "ppv", "npv", "verification"} <= set(its["operating_point"])
    assert its["operating_point"]["threshold"] == judged.json("calibrate", "further/not/threshold.json")["threshold"]
    assert {"slope", "ece", "brier"} <= set(its["calibration"]["after"])


def patients_with(cohort: Cohort, label_id: str, label: int) -> int:
    scores = read_table(cohort.path("score", "further_scores_test.parquet"), FURTHER_SCORES)
    return scores[(scores["label_id"] == label_id) & (scores["label"] == label)]["patient_id"].nunique()


def test_the_mean_counts_every_label_the_same(judged):
    metrics = judged.json("evaluate", "metrics.json")
    every = [metrics, *metrics["further_labels"].values()]
    macro = metrics["macro"]
    assert macro["labels"] == 3
    assert macro["auc"]["value"] == pytest.approx(np.mean([one["discrimination"]["auc"]["value"] for one in every]))
    for rate in ("recall", "specificity"):
        assert macro[rate]["value"] == pytest.approx(np.mean([one["operating_point"][rate]["value"] for one in every]))
        assert macro[rate]["low"] < macro[rate]["value"] < macro[rate]["high"]
    artifacts = {stage: Artifact(stage, "0" * 16, judged.folder / stage) for stage in ("calibrate", "evaluate")}
    numbers = headline(artifacts)
    assert numbers["macro_auc"] == macro["auc"]["value"]
    assert numbers["further_not_recall"] == every[2]["operating_point"]["recall"]["value"]


def test_findings_about_a_further_label_name_it_and_leave_the_gate_open(judged):
    found = judged.json("evaluate", "findings.json")
    assert not [one for one in found if one["level"] == "fail"]
    about = {one["on"] for one in found if one["code"] == "no_discrimination"}
    assert about == {"calibration patients, further label chance", "test patients, further label chance"}
    problems = judged.json("evaluate", "metrics.json")["further_labels"]["chance"]["problems"]
    assert {"no_discrimination"} <= {one["code"] for one in problems}
    assert "chance" not in str(judged.json("calibrate", "findings.json"))


def test_scores_of_a_further_label_other_than_those_certified_are_found_out(judged, tmp_path):
    changed = Cohort(Path(shutil.copytree(judged.folder, tmp_path / "cohort")))
    path = changed.path("score", "further_scores_calibration.parquet")
    scores = read_table(path, FURTHER_SCORES)
    scores.loc[(scores["label_id"] == "not") & (scores["arm"] == "mae"), "logit"] += 1e-3
    write_table(path, scores, FURTHER_SCORES)
    changed.publish("score")
    problems = changed.run("evaluate").json("evaluate", "metrics.json")["further_labels"]["not"]["problems"]
    assert "table_inconsistent" in {one["code"] for one in problems}
    rows = scores[scores["image_id"] != scores["image_id"].iloc[-1]]
    write_table(path, rows, FURTHER_SCORES)
    changed.publish("score")
    with pytest.raises(ValueError, match="1 images of calibration are not scored"):
        changed.run("evaluate")


@pytest.fixture(scope="module")
def pooled(judged, tmp_path_factory) -> Cohort:
    folder = shutil.copytree(judged.folder, tmp_path_factory.mktemp("pooled") / "cohort")
    return Cohort(Path(folder)).run("calibrate", deploy="pooled").run("evaluate")


@pytest.mark.parametrize("label_id", ["", "not"])
def test_each_label_is_certified_anew_on_calibration_and_test_patients(pooled, label_id):
    name, table = ("further_scores", FURTHER_SCORES) if label_id else ("scores", SCORES)
    scores = pd.concat([read_table(pooled.path("score", f"{name}_{s}.parquet"), table) for s in SPLITS[1:]])
    both = patients_of(scores[scores["label_id"] == label_id] if label_id else scores, "mae", "max")
    folder = f"further/{label_id}/" if label_id else ""
    found = pooled.json("evaluate", f"{folder}deployment.json")
    expected = certify_threshold(both.y, both.s, 0.95, 1 - 0.05 / 3)
    assert (found["rule"], found["usable"]) == ("pooled", True)
    assert float.fromhex(found["threshold_hex"]) == expected.threshold
    assert (found["positives"], found["misses_allowed"]) == (expected.positives, expected.misses_allowed)
    # The confidence is that shared out over three labels, so that the promises of all thresholds to use hold at once.
    assert (found["labels_certified"], found["confidence"]) == (3, 0.95)
    negatives = both.s[both.y == 0]
    assert found["specificity"]["value"] == pytest.approx((negatives < expected.threshold).mean())
    # The verdict of the test patients stays about the first threshold.
    metrics = pooled.json("evaluate", "metrics.json")
    point = (metrics["further_labels"][label_id] if label_id else metrics)["operating_point"]
    assert point["threshold"] == pooled.json("calibrate", f"{folder}threshold.json")["threshold"]
    assert point["threshold"] != expected.threshold


def test_a_further_label_with_problems_gets_no_threshold_to_use(pooled):
    found = pooled.json("evaluate", "further/chance/deployment.json")
    assert not found["usable"]
    assert "threshold" not in found
    assert any("not shown to separate patients" in reason for reason in found["reasons"])


def test_without_pooling_the_threshold_to_use_is_the_one_that_was_tested(judged):
    found = judged.json("evaluate", "further/not/deployment.json")
    assert found["threshold_hex"] == judged.json("calibrate", "further/not/threshold.json")["threshold_hex"]
