"""evaluate: its numbers recomputed another way, and what it refuses."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from stages.conftest import make_cohort

from pipeline.evaluation.performance import verdict_in_words
from pipeline.statistics.calibration import shift_prior
from pipeline.statistics.metrics import Counts, at_prevalence, confusion
from pipeline.statistics.planner import chance_of_confirmation
from pipeline.statistics.threshold import max_misses, verify_threshold
from pipeline.store.files import sha256_file, write_json
from pipeline.store.tables.calibrate import PATIENT_SCORES, SWEEP
from pipeline.store.tables.evaluate import CALIBRATION_CURVE, COMPARISON, CURVES, SUBGROUPS
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.split import SPLIT

TABLES = {
    "subgroups.parquet": SUBGROUPS,
    "comparison.parquet": COMPARISON,
    "curves.parquet": CURVES,
    "calibration_curve.parquet": CALIBRATION_CURVE,
    "patient_scores.parquet": PATIENT_SCORES,
}
SIZES = {"calibration": 240, "test": 300}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A cohort that was evaluated, for all tests."""
    return make_cohort(tmp_path_factory.mktemp("once") / "cohort", patients=SIZES).run("calibrate").run("evaluate")


@pytest.fixture
def evaluated(once, tmp_path):
    """A copy of it, to be changed at will."""
    folder = Path(shutil.copytree(once.folder, tmp_path / "cohort"))
    return replace(once, folder=folder, tracked=copy.deepcopy(once.tracked))


def findings(made, on=None):
    return {(f["code"], f["level"]) for f in made.json("evaluate", "findings.json") if on in (None, f["on"])}


def test_it_leaves_its_files_with_the_columns_defined(evaluated):
    names = sorted(p.name for p in (evaluated.folder / "evaluate").iterdir())
    content = ("metrics.json", "findings.json", "deployment.json", "between_sites.json", "artifact.json")
    assert names == sorted([*TABLES, *content])
    for name, table in TABLES.items():
        assert len(read_table(evaluated.path("evaluate", name), table))


def test_the_reported_numbers_are_those_of_the_patients(evaluated):
    metrics = evaluated.json("evaluate", "metrics.json")
    scores = evaluated.table("score", "scores_test.parquet")
    rows = scores[scores["arm"] == "mae"].groupby("patient_id").agg({"logit": "mean", "label": "max"})
    y, s = rows["label"], rows["logit"]
    threshold = evaluated.json("calibrate", "threshold.json")["threshold"]
    assert (metrics["patients"], metrics["positives"], metrics["images"]) == (300, 150, 300)
    assert metrics["discrimination"]["auc"]["value"] == pytest.approx(roc_auc_score(y, s))
    assert metrics["discrimination"]["average_precision"]["value"] == pytest.approx(average_precision_score(y, s))
    referred = s >= threshold
    point = metrics["operating_point"]
    assert point["counts"] == {
        "tp": int((referred & (y == 1)).sum()),
        "fp": int((referred & (y == 0)).sum()),
        "tn": int((~referred & (y == 0)).sum()),
        "fn": int((~referred & (y == 1)).sum()),
    }
    assert point["recall"]["value"] == pytest.approx(referred[y == 1].mean())
    assert metrics["calibration"]["before"]["brier"]["value"] == pytest.approx(brier_score_loss(y, expit(s)))
    patients = evaluated.table("evaluate", "patient_scores.parquet").query("arm == 'mae'").set_index("patient_id")
    after = brier_score_loss(y, patients.loc[y.index, "probability"])
    assert metrics["calibration"]["after"]["brier"]["value"] == pytest.approx(after)
    assert (patients.loc[y.index, "referred"].astype(bool) == referred).all()


def test_every_number_has_its_limits_its_level_and_its_method(evaluated):
    def intervals(content):
        if isinstance(content, dict):
            if "value" in content:
                yield content
            else:
                for item in content.values():
                    yield from intervals(item)
        elif isinstance(content, list):
            for item in content:
                yield from intervals(item)

    found = list(intervals(evaluated.json("evaluate", "metrics.json")))
    assert len(found) > 50
    for interval in found:
        assert set(interval) == {"value", "low", "high", "level", "method", "n"}
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert interval["level"] == 0.95
        assert interval["n"] > 0


def test_consequences_are_given_at_every_prevalence_and_at_the_headline(evaluated):
    metrics = evaluated.json("evaluate", "metrics.json")
    assert [row["prevalence"] for row in metrics["consequences"]] == [0.005, 0.02, 0.05, 0.1, 0.2]
    row = next(r for r in metrics["consequences"] if r["prevalence"] == metrics["headline_prevalence"])
    assert row["per"] == 1000
    assert row["found"]["value"] + row["missed"]["value"] == pytest.approx(50)
    assert row["referred"]["value"] == pytest.approx(row["found"]["value"] + row["false_alarms"]["value"])
    assert row == at_prevalence(Counts(**metrics["operating_point"]["counts"]), 0.05, seed=17).to_dict()
    other = evaluated.run("evaluate", headline_prevalence=0.03).json("evaluate", "metrics.json")
    assert 0.03 in [r["prevalence"] for r in other["consequences"]]


def test_every_arm_is_compared_on_the_same_patients(evaluated):
    table = read_table(evaluated.path("evaluate", "comparison.parquet"), COMPARISON).set_index("arm")
    scores = evaluated.table("score", "scores_test.parquet")
    assert set(table.index) == {"mae", "scratch", "linear_probe", "hog"}
    assert (table["patients"] == 300).all()
    for arm, rows in scores.groupby("arm"):
        by_seed = [roc_auc_score(r["label"], r["logit"]) for _, r in rows.groupby("seed")]
        assert table.loc[arm, "auc_seed_min"] == pytest.approx(min(by_seed))
        assert table.loc[arm, "auc_seed_max"] == pytest.approx(max(by_seed))
    assert table.loc["scratch", "difference"] == pytest.approx(table.loc["mae", "auc"] - table.loc["scratch", "auc"])
    assert table.loc["scratch", "difference_low"] > 0
    sentence = evaluated.json("evaluate", "metrics.json")["comparison_sentence"]
    assert sentence.startswith("Pretraining helped: on the same 300 test patients")
    assert f"{table.loc['scratch', 'difference']:.3f} higher" in sentence


def test_arms_decide_at_the_sensitivity_of_the_certificate(evaluated):
    table = read_table(evaluated.path("evaluate", "comparison.parquet"), COMPARISON).set_index("arm")
    threshold, metrics = evaluated.json("calibrate", "threshold.json"), evaluated.json("evaluate", "metrics.json")
    assert table.loc["mae", "threshold"] == threshold["threshold"]
    assert table.loc["mae", "recall"] == metrics["operating_point"]["recall"]["value"]
    scores = evaluated.table("score", "scores_calibration.parquet").query("label == 1")
    for arm, rows in scores.groupby("arm"):
        own = rows.groupby("patient_id")["logit"].mean()
        assert (own < table.loc[arm, "threshold"] - 1e-9).sum() == threshold["misses_allowed"]
    others = table.drop("mae")
    assert (others["specificity_difference_low"] <= others["specificity_difference"]).all()
    assert (others["specificity_difference"] <= others["specificity_difference_high"]).all()


def test_subgroups_add_up_and_use_the_frozen_threshold(evaluated):
    table = read_table(evaluated.path("evaluate", "subgroups.parquet"), SUBGROUPS)
    counts = evaluated.json("evaluate", "metrics.json")["operating_point"]["counts"]
    sums = table.groupby("attribute")[["patients", "positives", "referred"]].sum()
    assert set(sums.index) == {"sex", "age band", "view", "manufacturer", "site"}
    assert (sums == [300, 150, counts["tp"] + counts["fp"]]).all(axis=None)
    small = table[table["positives"] < 10]
    assert small["recall"].isna().all()
    assert small["note"].str.contains("counts only").all()


def test_a_good_cohort_has_no_findings_and_the_certificate_is_verified(evaluated):
    assert findings(evaluated) == set()
    point = evaluated.json("evaluate", "metrics.json")["operating_point"]
    assert point["verification"] in ("confirmed", "not_confirmed")
    assert (point["recall_lower_one_sided"] >= 0.95) == (point["verification"] == "confirmed")


def test_without_a_certificate_the_rest_is_still_measured(cohort):
    made = cohort(patients={"calibration": 82, "test": 200}).run("calibrate").run("evaluate")
    metrics = made.json("evaluate", "metrics.json")
    assert metrics["operating_point"] is None
    assert metrics["consequences"] == []
    assert metrics["discrimination"]["auc"]["value"] > 0.9
    assert findings(made) == {("not_certified", "fail")}
    subgroups = made.table("evaluate", "subgroups.parquet")
    assert subgroups["referred"].isna().all()
    assert subgroups["auc"].notna().any()
    assert "test_recall" not in made.tracked["evaluate"]
    assert made.table("evaluate", "comparison.parquet")[["threshold", "recall", "recall_p"]].isna().all(axis=None)


def test_a_model_without_signal_fails_the_gate_on_both_sets(cohort):
    made = cohort(patients=SIZES, arms={"mae": 0.0, "scratch": 0.0, "hog": 0.0}).run("calibrate").run("evaluate")
    assert ("no_discrimination", "fail") in findings(made, "calibration")
    assert ("no_discrimination", "fail") in findings(made, "test")
    assert "not shown" in made.json("evaluate", "metrics.json")["comparison_sentence"]


def test_harder_test_patients_contradict_the_certificate(cohort):
    made = cohort(patients=SIZES)
    scores = made.table("score", "scores_test.parquet")
    scores.loc[scores["label"] == 1, "logit"] -= 1.5
    made.write_scores("test", scores)
    made.run("calibrate").run("evaluate")
    assert made.json("evaluate", "metrics.json")["operating_point"]["verification"] == "contradicted"
    assert ("recall_contradicted", "fail") in findings(made, "test")
    assert not any(name.startswith(("test_recall", "test_specificity")) for name in made.tracked["evaluate"])


def test_other_scores_on_the_test_patients_are_a_shift(cohort):
    made = cohort(patients=SIZES)
    scores = made.table("score", "scores_test.parquet")
    scores["logit"] += 1.5
    made.write_scores("test", scores)
    made.run("calibrate").run("evaluate")
    assert ("shift", "warn") in findings(made, "test")
    assert made.json("evaluate", "metrics.json")["shift"]["groups"][0]["score_ks"]["p"] < 0.001


def test_every_further_target_is_verified_with_its_own_threshold(evaluated):
    alone = evaluated.json("evaluate", "metrics.json")
    made = evaluated.run("calibrate", recall_targets=[0.95, 0.8, 0.99]).run("evaluate")
    metrics = made.json("evaluate", "metrics.json")
    lower, higher = metrics.pop("other_operating_points")
    assert alone.pop("other_operating_points") == []
    assert metrics == alone
    assert higher == {"recall_target": 0.99, "operating_point": None}
    point = lower["operating_point"]
    patients = made.table("evaluate", "patient_scores.parquet").query("arm == 'mae'")
    counts = confusion(patients["label"], patients["score"], point["threshold"])
    assert point["counts"] == counts.to_dict()
    assert point["verification"] == verify_threshold(
        patients["label"], patients["score"], point["threshold"], 0.8, 0.95
    )
    assert point["specificity"]["value"] > metrics["operating_point"]["specificity"]["value"]
    assert made.tracked["evaluate"]["test_recall_at_0.8"] == point["recall"]["value"]
    assert "test_recall_at_0.99" not in made.tracked["evaluate"]
    assert findings(made) == {("other_not_certified", "info")}


def test_a_further_target_that_does_not_hold_is_noted(cohort):
    made = cohort(patients=SIZES)
    scores = made.table("score", "scores_test.parquet")
    scores.loc[scores["label"] == 1, "logit"] -= 1.5
    made.write_scores("test", scores)
    made.run("calibrate", recall_targets=[0.95, 0.9]).run("evaluate")
    assert {("recall_contradicted", "fail"), ("other_recall_contradicted", "info")} <= findings(made, "test")


def test_a_local_prevalence_changes_displayed_probabilities_alone(evaluated):
    before, patients = evaluated.json("evaluate", "metrics.json"), evaluated.table("evaluate", "patient_scores.parquet")
    after = evaluated.run("calibrate", local_prevalence=0.05).run("evaluate").json("evaluate", "metrics.json")
    shown = evaluated.table("evaluate", "patient_scores.parquet")
    assert after["operating_point"].pop("probability_prevalence") == 0.05
    assert before["operating_point"].pop("probability_prevalence") == 0.5
    shifted = shift_prior(before["operating_point"].pop("probability"), 0.5, 0.05)
    assert after["operating_point"].pop("probability") == pytest.approx(shifted)
    assert after == before
    expected = shift_prior(patients["probability"].dropna(), 0.5, 0.05)
    assert shown["probability"].dropna().to_numpy() == pytest.approx(expected)
    assert shown["referred"].equals(patients["referred"])
    assert findings(evaluated) == set()


def test_a_stored_table_that_does_not_fit_the_scores_fails(evaluated):
    path = evaluated.path("calibrate", "sweep.parquet")
    sweep = read_table(path, SWEEP)
    sweep.loc[5, "specificity"] += 0.01
    write_table(path, sweep, SWEEP)
    evaluated.publish("calibrate")
    evaluated.run("evaluate")
    assert findings(evaluated) == {("table_inconsistent", "fail")}


def test_costs_stated_in_the_settings_reach_the_table_and_are_recomputed(evaluated):
    costs = {"cost_per_person": 3.5, "cost_per_referral": 40.0}
    evaluated.run("calibrate", **costs).run("evaluate")
    assert evaluated.json("calibrate", "threshold.json")["costs"] == costs
    row = evaluated.table("calibrate", "sweep.parquet").query("operating_point").iloc[0]
    assert row["total_cost"] == pytest.approx(240 * 3.5 + 40 * (row["true_positive"] + row["false_positive"]))
    assert findings(evaluated) == set()


def test_calibration_scores_other_than_those_certified_fail(evaluated):
    scores = evaluated.table("score", "scores_calibration.parquet")
    scores.loc[scores.index[scores["arm"] == "mae"][0], "logit"] += 1e-9
    evaluated.write_scores("calibration", scores)
    evaluated.run("evaluate")
    assert ("table_inconsistent", "fail") in findings(evaluated)


def test_findings_of_calibration_come_first_and_are_kept(cohort):
    made = cohort(patients={"calibration": 82, "test": 200}, arms={"mae": 0.0, "hog": 1.0}).run("calibrate")
    earlier = made.json("calibrate", "findings.json")
    made.run("evaluate")
    assert made.json("evaluate", "findings.json")[: len(earlier)] == earlier


def test_a_patient_in_calibration_and_test_stops_the_stage(evaluated):
    path = evaluated.path("split", "split.parquet")
    split = read_table(path, SPLIT)
    shared = split.loc[split["split"] == "test", "patient_id"].iloc[0]
    split.loc[split.index[split["split"] == "calibration"][0], "patient_id"] = shared
    write_table(path, split, SPLIT)
    evaluated.publish("split")
    with pytest.raises(ValueError, match="1 patients are both in calibration and in test") as refused:
        evaluated.run("evaluate")
    assert shared not in str(refused.value)


def test_scores_of_the_training_patients_are_not_test_scores(evaluated):
    scores = evaluated.table("score", "scores_test.parquet")
    scores["patient_id"] = scores["patient_id"].str.replace("p-test-00000", "p-calibration-00000")
    evaluated.write_scores("test", scores)
    with pytest.raises(ValueError, match="1 patients are both in the calibration scores and in the test scores"):
        evaluated.run("evaluate")


def test_a_test_image_without_a_score_stops_the_stage(evaluated):
    scores = evaluated.table("score", "scores_test.parquet")
    evaluated.write_scores("test", scores[scores["image_id"] != "i-test-00007"])
    with pytest.raises(ValueError, match="1 images of test are not scored"):
        evaluated.run("evaluate")


def test_arms_scored_on_fewer_patients_are_not_compared(evaluated):
    scores = evaluated.table("score", "scores_test.parquet")
    evaluated.write_scores("test", scores[(scores["arm"] != "hog") | (scores["image_id"] != "i-test-00007")])
    with pytest.raises(ValueError, match="arms mae and hog were not scored on the same patients"):
        evaluated.run("evaluate")


def test_test_scores_without_a_certified_seed_stop_the_stage(evaluated):
    scores = evaluated.table("score", "scores_test.parquet")
    evaluated.write_scores("test", scores[scores["seed"] < 3])
    with pytest.raises(ValueError, match="lack seeds of arm mae"):
        evaluated.run("evaluate")


def test_an_arm_with_one_seed_is_compared_as_it_is(cohort):
    made = cohort(patients=SIZES)
    for split in SIZES:
        scores = made.table("score", f"scores_{split}.parquet")
        made.write_scores(split, scores[(scores["arm"] != "hog") | (scores["seed"] == 1)])
    made.run("calibrate").run("evaluate")
    assert made.table("evaluate", "comparison.parquet").set_index("arm").loc["hog", "seeds"] == 1


def test_several_images_of_a_patient_count_once(cohort):
    made = cohort(patients=SIZES, images_per_patient=3).run("calibrate", aggregation="mean").run("evaluate")
    metrics = made.json("evaluate", "metrics.json")
    assert (metrics["patients"], metrics["images"], metrics["aggregation"]) == (300, 900, "mean")
    assert metrics["discrimination"]["auc"]["n"] == 300


def test_the_same_inputs_in_any_order_give_the_same_bytes(evaluated):
    names = [*TABLES, "metrics.json", "findings.json"]
    first = {name: sha256_file(evaluated.path("evaluate", name)) for name in names}
    for split in SIZES:
        evaluated.write_scores(
            split, evaluated.table("score", f"scores_{split}.parquet").sample(frac=1, random_state=2)
        )
    evaluated.run("evaluate")
    assert {name: sha256_file(evaluated.path("evaluate", name)) for name in names} == first


def test_the_settings_change_what_they_say(evaluated):
    before = evaluated.json("evaluate", "metrics.json")
    changed = evaluated.run("evaluate", level=0.9, calibration_bins=5, min_subgroup_positives=40, seed=4)
    metrics = changed.json("evaluate", "metrics.json")
    auc, wider = metrics["discrimination"]["auc"], before["discrimination"]["auc"]
    assert wider["low"] < auc["low"] < auc["value"] < auc["high"] < wider["high"]
    assert metrics["discrimination"]["average_precision"]["low"] != before["discrimination"]["average_precision"]["low"]
    curves = changed.table("evaluate", "curves.parquet")
    assert (curves["curve"] == "reliability_after").sum() == 5
    assert changed.table("evaluate", "subgroups.parquet").query("positives < 40")["recall"].isna().all()


def test_the_tracker_gets_the_headline_with_its_limits(evaluated):
    metrics, tracked = evaluated.json("evaluate", "metrics.json"), evaluated.tracked["evaluate"]
    for name, interval in (
        ("test_auc", metrics["discrimination"]["auc"]),
        ("test_recall", metrics["operating_point"]["recall"]),
        ("test_specificity", metrics["operating_point"]["specificity"]),
        ("test_referral_rate", metrics["operating_point"]["referral_rate"]),
    ):
        assert [tracked[f"{name}{limit}"] for limit in ("", "_low", "_high")] == [
            interval[key] for key in ("value", "low", "high")
        ]
    assert {"auc_mae", "auc_scratch", "auc_linear_probe", "auc_hog"} <= tracked.keys()
    assert not any("@" in name or np.isnan(value) for name, value in tracked.items())


def test_perfect_separation_is_reported_with_a_lower_limit(cohort):
    made = cohort(patients=SIZES, arms={"mae": 40.0, "scratch": 2.0}).run("calibrate").run("evaluate")
    auc = made.json("evaluate", "metrics.json")["discrimination"]["auc"]
    assert (auc["value"], auc["high"], auc["method"]) == (1.0, 1.0, "newcombe_score")
    assert 0.98 < auc["low"] < 1
    assert not {code for code, level in findings(made) if level == "fail"}


@pytest.mark.parametrize("label", [0, 1])
def test_test_patients_of_one_class_show_nothing_and_fail(cohort, label):
    made = cohort(patients=SIZES)
    made.write_scores("test", made.table("score", "scores_test.parquet").assign(label=label))
    made.run("calibrate").run("evaluate")
    metrics = made.json("evaluate", "metrics.json")
    assert metrics["discrimination"]["auc"]["value"] is None
    assert metrics["operating_point"]["recall" if label == 0 else "specificity"]["value"] is None
    assert metrics["operating_point"]["youden"]["value"] is None
    assert metrics["consequences"][0]["ppv"]["value"] is None
    assert ("no_discrimination", "fail") in findings(made, "test")


def test_four_test_patients_are_too_few_to_pass(cohort):
    made = cohort(patients={"calibration": 240, "test": 4}).run("calibrate").run("evaluate")
    assert ("no_discrimination", "fail") in findings(made, "test")


def test_an_artifact_of_another_schema_is_refused(evaluated):
    write_json(evaluated.path("calibrate", "calibrator.json"), {"schema": "pickle"})
    evaluated.publish("calibrate")
    with pytest.raises(ValueError, match="schema"):
        evaluated.run("evaluate")


def test_curves_of_5000_patients_have_at_most_500_points(cohort):
    made = cohort(patients={"calibration": 1000, "test": 5000}).run("calibrate")
    made.run("evaluate")
    assert pd.read_parquet(made.path("evaluate", "curves.parquet")).groupby(["curve", "arm"]).size().max() <= 500


# ---------------------------------------------------------------- what is said beside the operating point


def test_the_operating_point_says_what_its_verdict_means_and_what_it_takes_to_watch(evaluated):
    point, threshold = (
        evaluated.json("evaluate", "metrics.json")["operating_point"],
        evaluated.json("calibrate", "threshold.json"),
    )
    chance = chance_of_confirmation(threshold["positives"], threshold["misses_allowed"], 150)
    assert (point["chance_of_confirmation"], point["positives_to_confirm"], point["can_confirm"]) == (chance, 59, True)
    assert point["verification_in_words"]
    watching = point["watching"]
    assert watching["audited_positives_to_notice"] == {"0.9": 153, "0.85": 42, "0.8": 22}
    assert watching["audits_to_bound_missed"]["0.005"] == 598
    assert [one["group"] for one in point["held_against_certificate"]] == ["test", "site s1", "site s2"]
    tail = point["held_against_certificate"][0]["tail"]
    assert (tail["positives"], tail["misses"]) == (150, point["counts"]["fn"])
    assert tail["noticed"]["0.9"] > 0.5
    (row,) = [r for r in evaluated.json("evaluate", "metrics.json")["consequences"] if r["prevalence"] == 0.05]
    assert watching["referral_band"]["low"] <= row["referred"]["low"] / 1000
    assert watching["referral_band"]["high"] >= row["referred"]["high"] / 1000
    assert point["first_image"] is None


def test_too_few_to_confirm_is_not_called_unconfirmed():
    few = verdict_in_words("not_confirmed", 40, 59, 0.0, 0.95)
    assert few == ("These patients are too few to confirm the promise: 40 have the condition, at least 59 are needed.")
    assert "48 of 100" in verdict_in_words("not_confirmed", 116, 59, 0.483, 0.95)
    contradicted = verdict_in_words("contradicted", 116, 59, 0.483, 0.95)
    assert "one of the 5 in 100" in contradicted
    assert "differ from the calibration patients" in contradicted


def test_the_first_image_alone_finds_no_more(cohort):
    made = cohort(patients=SIZES, images_per_patient=3).run("calibrate").run("evaluate")
    point = made.json("evaluate", "metrics.json")["operating_point"]
    scores = made.table("score", "scores_test.parquet").query("arm == 'mae'")
    by_image = scores.groupby(["patient_id", "image_id"])[["logit", "label"]].mean().reset_index()
    first = by_image.sort_values("image_id").groupby("patient_id").first()
    referred = first["logit"] >= point["threshold"]
    assert point["first_image"]["recall"]["value"] == pytest.approx(referred[first["label"] == 1].mean())
    assert point["first_image"]["specificity"]["value"] == pytest.approx((~referred[first["label"] == 0]).mean())
    assert point["first_image"]["recall"]["value"] < point["recall"]["value"]


def linked_cohort(cohort, split):
    """Return a cohort in which the second half of a split's patients are the first half again."""
    made = cohort(patients=SIZES)
    scores = made.table("score", f"scores_{split}.parquet")
    half = sorted(set(scores["patient_id"]))[: SIZES[split] // 2]
    kept = scores[scores["patient_id"].isin(half)]
    again = {patient: f"{patient}-again" for patient in half}
    twins = kept.assign(patient_id=kept["patient_id"].map(again), image_id=kept["image_id"] + "-again")
    table, images = made.table("split", "split.parquet"), made.table("ingest", "images.parquet")
    for stage, name, frame, kind in (
        ("split", "split.parquet", table, SPLIT), ("ingest", "images.parquet", images, IMAGES)
    ):  # fmt: skip
        rest = frame[~frame["patient_id"].isin(set(scores["patient_id"]) - set(half))]
        own = frame[frame["patient_id"].isin(half)]
        more = own.assign(patient_id=own["patient_id"].map(again), image_id=own["image_id"] + "-again")
        write_table(made.path(stage, name), pd.concat([rest, more], ignore_index=True), kind)
        made.publish(stage)
    made.write_scores(split, pd.concat([kept, twins], ignore_index=True))
    return made


def test_one_person_under_two_pseudonyms_counts_once(cohort):
    made = linked_cohort(cohort, "calibration").run("calibrate")
    threshold = made.json("calibrate", "threshold.json")
    assert threshold["positives"] + threshold["negatives"] == 120
    assert threshold["linked_patients"] == 120
    assert len(made.table("calibrate", "patient_scores.parquet")) == 240
    assert "linked_patients" in {f["code"] for f in made.json("calibrate", "findings.json")}


def test_linked_test_patients_count_once_in_every_interval(cohort):
    made = linked_cohort(cohort, "test").run("calibrate").run("evaluate")
    metrics = made.json("evaluate", "metrics.json")
    assert (metrics["patients"], metrics["linked"]) == (150, 150)
    assert metrics["discrimination"]["auc"]["n"] == 150
    assert read_table(made.path("evaluate", "comparison.parquet"), COMPARISON)["patients"].tolist() == [150] * 4
    assert len(read_table(made.path("evaluate", "patient_scores.parquet"), PATIENT_SCORES)) == 4 * 300


def test_a_calibrator_that_made_things_worse_is_found(cohort):
    made = cohort(patients=SIZES)
    scores = made.table("score", "scores_calibration.parquet")
    made.write_scores("calibration", scores.assign(logit=0.2 * scores["logit"]))
    made.run("calibrate").run("evaluate")
    calibration = made.json("evaluate", "metrics.json")["calibration"]
    before, after = (calibration[when]["log_loss"]["value"] for when in ("before", "after"))
    assert calibration["log_loss_change"]["value"] == pytest.approx(after - before)
    assert calibration["log_loss_change"]["low"] > 0
    assert ("calibration_worse", "warn") in findings(made, "test")


# ---------------------------------------------------------------- the threshold to use


def test_without_pooling_the_threshold_to_use_is_the_one_that_was_tested(evaluated):
    deployed, threshold = evaluated.json("evaluate", "deployment.json"), evaluated.json("calibrate", "threshold.json")
    assert (deployed["rule"], deployed["usable"]) == ("calibration", True)
    assert deployed["threshold_hex"] == threshold["threshold_hex"]
    assert deployed["referral"] == deployed["referral_of_calibration_alone"]
    assert deployed["negatives"] == 270


def test_pooled_is_certified_on_both_and_leaves_the_verdict_alone(cohort):
    made = cohort(patients=SIZES).run("calibrate").run("evaluate")
    tested = made.json("evaluate", "metrics.json")["operating_point"]
    made.run("calibrate", deploy="pooled").run("evaluate")
    deployed, threshold = made.json("evaluate", "deployment.json"), made.json("calibrate", "threshold.json")
    assert (threshold["deploy"], deployed["rule"]) == ("pooled", "pooled")
    assert (deployed["positives"], deployed["misses_allowed"]) == (270, max_misses(270))
    tables = [made.table(stage, "patient_scores.parquet").query("arm == 'mae'") for stage in ("calibrate", "evaluate")]
    both = pd.concat(tables)
    positives = np.sort(both[both["label"] == 1]["score"])
    assert deployed["threshold"] == positives[max_misses(270)]
    negatives = both[both["label"] == 0]["score"]
    assert deployed["specificity"]["value"] == pytest.approx((negatives < deployed["threshold"]).mean())
    assert made.json("evaluate", "metrics.json")["operating_point"] == tested
    expected = (270 - max_misses(270)) / 271
    referral = 0.05 * expected + 0.95 * (1 - deployed["specificity"]["value"])
    assert deployed["referral"]["value"] == pytest.approx(referral)


def test_a_closed_gate_leaves_no_threshold_to_use(cohort):
    made = cohort(patients=SIZES, arms={"mae": 0.0, "hog": 1.0}).run("calibrate", deploy="pooled").run("evaluate")
    deployed = made.json("evaluate", "deployment.json")
    assert deployed["usable"] is False
    assert deployed["reasons"]
    assert "threshold" not in deployed
    assert deployed["calibration_threshold_hex"] is None
    assert "screening_benefit_operating_point" not in set(made.table("evaluate", "curves.parquet")["curve"])


def test_certificates_by_subgroup_lower_the_threshold_only_when_asked(cohort):
    made = cohort(patients={"calibration": 400, "test": 300})
    plain = made.run("calibrate", subgroup_attributes=["site"]).run("evaluate").json("evaluate", "deployment.json")
    groups = made.json("calibrate", "subgroups.json")
    assert [row["group"] for row in groups["groups"]] == ["s1", "s2"]
    assert all(row["certified"] for row in groups["groups"])
    made.run("calibrate", subgroup_attributes=["site"], subgroup_threshold="minimum").run("evaluate")
    lowered = made.json("evaluate", "deployment.json")
    assert lowered["threshold"] == min(plain["threshold"], groups["minimum"])
    assert lowered["referral"]["value"] >= plain["referral"]["value"]
    assert made.json("calibrate", "threshold.json")["threshold_hex"] == plain["calibration_threshold_hex"]
