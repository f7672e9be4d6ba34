"""calibrate: what it leaves, what it promises, what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.statistics.calibration import shift_prior
from pipeline.statistics.metrics import confusion
from pipeline.statistics.threshold import certifiable_recall
from pipeline.store.artifacts import StoreError
from pipeline.store.files import sha256_file
from pipeline.store.tables.calibrate import PATIENT_SCORES, SWEEP
from pipeline.store.tables.io import read_table
from pipeline.store.tables.score import SCORES

FILES = (
    "calibrator.json",
    "threshold.json",
    "sweep.parquet",
    "patient_scores.parquet",
    "findings.json",
    "subgroups.json",
)


def hashes(cohort):
    return {name: sha256_file(cohort.path("calibrate", name)) for name in FILES}


def test_it_leaves_six_files_and_a_certificate(cohort):
    made = cohort(patients={"calibration": 240}).run("calibrate")
    assert sorted(p.name for p in (made.folder / "calibrate").iterdir()) == sorted([*FILES, "artifact.json"])
    threshold = made.json("calibrate", "threshold.json")
    assert threshold["certified"] is True
    assert (threshold["arm"], threshold["seeds"], threshold["aggregation"]) == ("mae", [1, 2, 3], "max")
    assert (threshold["positives"], threshold["negatives"], threshold["misses_allowed"]) == (120, 120, 1)
    assert float.fromhex(threshold["threshold_hex"]) == threshold["threshold"]
    assert threshold["certified_recall"] == certifiable_recall(120, 1, 0.95) >= 0.95
    assert threshold["model_sha256"] == {str(k): f"mae-{k}".ljust(64, "0") for k in (1, 2, 3)}
    assert len(threshold["data_sha256"]) == 64
    assert made.json("calibrate", "findings.json") == []
    assert made.json("calibrate", "calibrator.json")["n_positive"] == 120


def test_patients_are_scored_by_the_mean_of_seeds_and_referred_at_the_threshold(cohort):
    made = cohort(patients={"calibration": 240}).run("calibrate")
    threshold = made.json("calibrate", "threshold.json")["threshold"]
    patients = read_table(made.path("calibrate", "patient_scores.parquet"), PATIENT_SCORES).set_index("patient_id")
    scores = read_table(made.path("score", "scores_calibration.parquet"), SCORES)
    expected = scores[scores["arm"] == "mae"].groupby("patient_id")["logit"].mean()
    assert patients["score"].to_numpy() == pytest.approx(expected.loc[patients.index].to_numpy())
    assert (patients["referred"] == (patients["score"] >= threshold)).all()
    assert patients["probability"].between(0, 1, inclusive="neither").all()
    assert patients.sort_values("score")["probability"].is_monotonic_increasing


def test_several_images_of_a_patient_count_once(cohort):
    made = cohort(patients={"calibration": 150}, images_per_patient=3).run("calibrate", aggregation="mean")
    assert made.json("calibrate", "threshold.json")["positives"] == 75
    patients = made.table("calibrate", "patient_scores.parquet").set_index("patient_id")["score"]
    scores = made.table("score", "scores_calibration.parquet")
    expected = scores[scores["arm"] == "mae"].groupby("patient_id")["logit"].mean()
    assert patients.to_numpy() == pytest.approx(expected.loc[patients.index].to_numpy())
    highest = made.run("calibrate", aggregation="max").table("calibrate", "patient_scores.parquet")
    assert (highest["score"].to_numpy() > patients.to_numpy()).all()


def test_the_sweep_is_short_consistent_and_marks_one_operating_point(cohort):
    made = cohort(patients={"calibration": 600}).run("calibrate")
    sweep = read_table(made.path("calibrate", "sweep.parquet"), SWEEP)
    patients = made.table("calibrate", "patient_scores.parquet")
    assert len(sweep) < 100
    (operating,) = sweep[sweep["operating_point"]].itertuples()
    threshold = made.json("calibrate", "threshold.json")
    assert operating.threshold == threshold["threshold"]
    assert operating.certified_recall == threshold["certified_recall"]
    assert operating.probability == threshold["probability"]
    assert operating.recall == threshold["recall"]["value"]
    for row in sweep.iloc[::20].itertuples():
        counts = confusion(patients["label"], patients["score"], row.threshold)
        assert (row.true_positive, row.false_positive) == (counts.tp, counts.fp)


def test_too_few_positives_finish_without_a_threshold_and_say_what_is_needed(cohort):
    made = cohort(patients={"calibration": 82}).run("calibrate")
    threshold = made.json("calibrate", "threshold.json")
    assert threshold["message"] == (
        "recall 0.95 with 95 % confidence needs at least 59 positive patients in the calibration split;"
        " there are 41 (at most 0.930 can be certified)."
    )
    assert threshold["advice"] == "to certify something, lower calibrate.recall_targets or add patients"
    assert threshold["certified"] is False
    empty = ("threshold", "threshold_hex", "probability", "recall", "specificity", "certified_recall", "misses_allowed")
    assert all(threshold[name] is None for name in empty)
    assert (threshold["positives_needed"], threshold["positives"], threshold["negatives"]) == (59, 41, 41)
    assert [(f["code"], f["level"]) for f in made.json("calibrate", "findings.json")] == [("not_certified", "fail")]
    assert made.table("calibrate", "patient_scores.parquet")["referred"].isna().all()
    assert not made.table("calibrate", "sweep.parquet")["operating_point"].any()
    lowered = made.run("calibrate", recall_targets=[0.9]).json("calibrate", "threshold.json")
    assert lowered["certified"] is True


def test_a_threshold_file_has_the_same_fields_certified_or_not(cohort):
    made = cohort(patients={"calibration": 82})
    refused = made.run("calibrate").json("calibrate", "threshold.json")
    certified = made.run("calibrate", recall_targets=[0.9]).json("calibrate", "threshold.json")
    assert refused.keys() == certified.keys()


def test_models_compared_cost_confidence_and_the_message_says_so(cohort):
    made = cohort(patients={"calibration": 130})
    assert made.run("calibrate").json("calibrate", "threshold.json")["certified"]
    shared = made.run("calibrate", models_compared=2).json("calibrate", "threshold.json")
    assert shared["confidence_used"] == pytest.approx(0.975)
    assert "95 % confidence (97.5 % for each of the 2 models compared) needs at least 72" in shared["message"]


def test_permuted_labels_close_the_gate(cohort):
    made = cohort(patients={"calibration": 240}, arms={"mae": 0.0, "hog": 1.0}).run("calibrate")
    failed = {f["code"] for f in made.json("calibrate", "findings.json") if f["level"] == "fail"}
    assert "no_discrimination" in failed
    assert made.run("calibrate", arm="hog").json("calibrate", "findings.json") == []


def test_scores_upside_down_are_reversed_and_calibrated_flat(cohort):
    made = cohort(patients={"calibration": 240}, arms={"mae": -2.0}).run("calibrate")
    failed = {f["code"] for f in made.json("calibrate", "findings.json") if f["level"] == "fail"}
    assert {"calibration_reversed", "reversed", "no_discrimination"} <= failed
    calibrator = made.json("calibrate", "calibrator.json")
    assert (calibrator["method"], calibrator["reason"]) == ("prevalence", "calibration_reversed")


def test_patients_with_images_of_both_labels_are_counted(cohort):
    made = cohort(patients={"calibration": 150}, images_per_patient=2)
    scores = made.table("score", "scores_calibration.parquet")
    negative = sorted(set(scores[scores["label"] == 0]["patient_id"]))[:3]
    firsts = scores[scores["patient_id"].isin(negative)].groupby("patient_id")["image_id"].min()
    scores.loc[scores["image_id"].isin(firsts), "label"] = 1
    made.write_scores("calibration", scores)
    made.run("calibrate")
    assert made.json("calibrate", "threshold.json")["positives"] == 78
    assert {"3 patients have images of both labels; each counts as positive"} <= {
        f["message"] for f in made.json("calibrate", "findings.json") if f["code"] == "conflicting_labels"
    }


def test_the_same_scores_in_any_order_give_the_same_bytes(cohort):
    made = cohort(patients={"calibration": 240}, images_per_patient=2).run("calibrate")
    first = hashes(made)
    shuffled = made.table("score", "scores_calibration.parquet").sample(frac=1, random_state=1)
    made.write_scores("calibration", shuffled)
    assert hashes(made.run("calibrate")) == first


def test_a_changed_score_changes_the_hash_of_the_data(cohort):
    made = cohort(patients={"calibration": 240})
    before = made.run("calibrate").json("calibrate", "threshold.json")["data_sha256"]
    scores = made.table("score", "scores_calibration.parquet")
    scores.loc[scores.index[scores["arm"] == "mae"][0], "logit"] += 1e-12
    made.write_scores("calibration", scores)
    assert made.run("calibrate").json("calibrate", "threshold.json")["data_sha256"] != before


def test_a_score_that_is_not_finite_stops_the_stage(cohort):
    made = cohort(patients={"calibration": 240})
    scores = made.table("score", "scores_calibration.parquet")
    scores.loc[scores.index[scores["arm"] == "mae"][:2], "logit"] = np.inf
    made.write_scores("calibration", scores)
    with pytest.raises(ValueError, match="2 logits are not finite"):
        made.run("calibrate")


def test_models_other_than_those_scored_stop_the_stage(cohort):
    made = cohort(patients={"calibration": 240})
    summary = made.json("finetune", "summary.json")
    del summary["arms"]["mae"]["seeds"]["3"]
    made.path("finetune", "summary.json").write_text(json.dumps(summary))
    made.publish("finetune")
    with pytest.raises(ValueError, match="trained with seeds 1, 2 but scored with 1, 2, 3"):
        made.run("calibrate")


@pytest.mark.parametrize(("patients", "prevalence"), [(12, 0.5), (300, 0.02), (300, 0.99), (40, 0.0), (90, 1.0)])
def test_too_few_patients_of_a_kind_finish_without_a_calibrator_and_fail_the_gate(cohort, patients, prevalence):
    made = cohort(patients={"calibration": patients}, prevalence=prevalence).run("calibrate")
    positives = round(patients * prevalence)
    found = {f["code"]: f for f in made.json("calibrate", "findings.json")}
    assert found["not_calibrated"]["level"] == "fail"
    assert found["not_calibrated"]["message"] == (
        "calibration needs at least 10 patients with and 10 without the condition; there are"
        f" {positives} and {patients - positives}; every patient gets the prevalence as probability"
    )
    assert ("not_certified" in found) == (positives < 59)
    smoothed = pytest.approx((positives + 1) / (patients + 2))
    assert made.json("calibrate", "calibrator.json")["prevalence"] == smoothed
    assert made.table("calibrate", "patient_scores.parquet")["probability"].unique().tolist() == [smoothed]


def test_no_positive_patient_at_all_is_refused_in_the_same_words(cohort):
    made = cohort(patients={"calibration": 40}, prevalence=0.0).run("calibrate")
    message = made.json("calibrate", "threshold.json")["message"]
    assert "needs at least 59 positive patients in the calibration split; there are 0 (at most 0.000 can" in message


@pytest.mark.parametrize("method", ["logistic", "beta", "isotonic", "temperature", "venn_abers"])
def test_the_calibrator_is_a_setting_that_moves_no_threshold(cohort, method):
    made = cohort(patients={"calibration": 240})
    plain = made.run("calibrate").json("calibrate", "threshold.json")
    other = made.run("calibrate", calibrator=method).json("calibrate", "threshold.json")
    assert made.json("calibrate", "calibrator.json")["method"] == method
    assert other["threshold"] == plain["threshold"]
    patients = made.table("calibrate", "patient_scores.parquet").sort_values("score")
    assert (patients["probability"].diff().dropna() >= -1e-15).all()
    assert patients["probability"].between(1 / 242, 241 / 242).all()


def test_further_targets_are_certified_beside_the_first_and_leave_it_alone(cohort):
    made = cohort(patients={"calibration": 240})
    alone = made.run("calibrate").json("calibrate", "threshold.json")
    several = made.run("calibrate", recall_targets=[0.95, 0.8, 0.99]).json("calibrate", "threshold.json")
    assert alone["other_operating_points"] == []
    beside = ("other_operating_points", "joint_confidence")
    assert {n: v for n, v in several.items() if n not in beside} == {n: v for n, v in alone.items() if n not in beside}
    # By themselves both are certified with at least 95 %; together a little less surely.
    assert alone["joint_confidence"] > 0.95 > several["joint_confidence"] > 0.94
    lower, higher = several["other_operating_points"]
    assert lower["certified"]
    assert lower["threshold"] > several["threshold"]
    assert lower["certified_recall"] >= 0.8
    # Each by itself: a run with this target alone certifies the same threshold.
    only = made.run("calibrate", recall_targets=[0.8])
    assert {n: only.json("calibrate", "threshold.json")[n] for n in lower} == lower
    assert (higher["certified"], higher["threshold"], higher["positives_needed"]) == (False, None, 299)
    assert lower.keys() == higher.keys()


def test_the_sweep_has_every_targets_threshold_and_marks_the_first(cohort):
    made = cohort(patients={"calibration": 600}).run("calibrate", recall_targets=[0.95, 0.6])
    threshold, sweep = made.json("calibrate", "threshold.json"), made.table("calibrate", "sweep.parquet")
    (other,) = threshold["other_operating_points"]
    assert {threshold["threshold"], other["threshold"]} <= set(sweep["threshold"])
    assert sweep.loc[sweep["operating_point"], "threshold"].tolist() == [threshold["threshold"]]


def test_what_is_wrong_with_a_further_target_is_noted_and_closes_no_gate(cohort):
    made = cohort(patients={"calibration": 800}, arms={"mae": 0.8})
    made.run("calibrate", recall_targets=[0.8, 0.985, 0.999])
    found = {(f["code"], f["level"]) for f in made.json("calibrate", "findings.json")}
    assert {("other_refers_everyone", "info"), ("other_not_certified", "info")} <= found
    assert "fail" not in {level for _, level in found}


def test_a_local_prevalence_shifts_what_is_shown_and_moves_no_threshold(cohort):
    made = cohort(patients={"calibration": 240})
    plain, before = made.run("calibrate").json("calibrate", "threshold.json"), made.table("calibrate", "sweep.parquet")
    assert (plain["local_prevalence"], plain["probability_prevalence"]) == (None, 0.5)
    local = made.run("calibrate", local_prevalence=0.05).json("calibrate", "threshold.json")
    after = made.table("calibrate", "sweep.parquet")
    assert (local["local_prevalence"], local["probability_prevalence"]) == (0.05, 0.05)
    changed = {name for name in plain if plain[name] != local[name]}
    assert changed == {"probability", "local_prevalence", "probability_prevalence"}
    assert local["probability"] == pytest.approx(shift_prior(plain["probability"], 0.5, 0.05))
    assert after["probability"].to_numpy() == pytest.approx(shift_prior(before["probability"], 0.5, 0.05))
    pd.testing.assert_frame_equal(after.drop(columns="probability"), before.drop(columns="probability"))
    patients = made.table("calibrate", "patient_scores.parquet")
    assert (patients["referred"] == (patients["score"] >= plain["threshold"])).all()
    assert made.json("calibrate", "findings.json") == []


def test_the_automatic_choice_is_logistic_below_500_patients_in_a_class(cohort):
    made = cohort(patients={"calibration": 240}).run("calibrate", calibrator="auto")
    assert made.json("calibrate", "calibrator.json")["method"] == "logistic"


def test_a_temperature_that_collapses_leaves_the_threshold_usable(cohort):
    made = cohort(patients={"calibration": 400}, prevalence=0.3)
    scores = made.table("score", "scores_calibration.parquet")
    made.write_scores("calibration", scores.assign(logit=scores["logit"] + 6))
    made.run("calibrate", calibrator="temperature")
    found = {(f["code"], f["level"]) for f in made.json("calibrate", "findings.json")}
    assert ("temperature_collapsed", "warn") in found
    assert "fail" not in {level for _, level in found}


def test_the_test_scores_cannot_be_opened(cohort):
    inputs = cohort(patients={"calibration": 240, "test": 40}).inputs("calibrate")
    assert inputs.file("score", "scores_calibration.parquet").is_file()
    for stage, name in (("score", "scores_test.parquet"), ("score", "scores_tune.parquet")):
        with pytest.raises(StoreError, match="not an input of this stage"):
            inputs.file(stage, name)


def test_numbers_of_the_threshold_wait_for_the_test_set(cohort):
    made = cohort(patients={"calibration": 240}).run("calibrate", recall_targets=[0.95, 0.8])
    assert made.json("calibrate", "threshold.json")["certified"]
    assert made.tracked["calibrate"] == {"positives": 120}


def test_tables_hold_no_values_beyond_their_definition(cohort):
    made = cohort(patients={"calibration": 82}).run("calibrate")
    for name, table in (("sweep.parquet", SWEEP), ("patient_scores.parquet", PATIENT_SCORES)):
        assert isinstance(read_table(made.path("calibrate", name), table), pd.DataFrame)
