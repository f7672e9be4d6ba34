"""evaluate on external test sets: the frozen model and threshold, whoever the patients are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from stages.conftest import Cohort, make_cohort
from stages.sources_run import make_card

from pipeline.orchestration.graph import stages_of
from pipeline.settings.decision import EvaluateSettings
from pipeline.stages.evaluate import evaluate
from pipeline.store.artifacts import Artifact, Inputs
from pipeline.store.files import read_json, sha256_file, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import write_table
from pipeline.store.tables.score import SCORES
from pipeline.store.tables.split import SPLIT

ARMS = {"mae": 2.4, "scratch": 1.7}
TABLES = {"ingest": ("images", IMAGES), "split": ("split", SPLIT), "score": ("scores_test", SCORES)}
# Of the four sets, the last one has the patients of the run itself.
SETS = ("rare", "reversed", "healthy", "again")
(EVALUATE,) = [stage for stage in stages_of(SETS) if stage.name == "evaluate"]


def published(folder: Path, name: str, prevalence: float, change: Callable) -> dict[str, Artifact]:
    """Make the artifacts of an external set of 200 patients whose scores are `change`d."""
    other = make_cohort(folder / "made", patients={"test": 200}, prevalence=prevalence, arms=ARMS, seed=6)
    artifacts = {}
    for stage, (file, definition) in TABLES.items():
        rows = other.table(stage, f"{file}.parquet")
        rows = rows[rows["image_id"].str.startswith("i-test")]
        if name != "again":
            own = [column for column in ("image_id", "patient_id", "unit", "pixel_hash") if column in rows]
            rows = rows.assign(**{column: f"{name}-" + rows[column] for column in own})
        path = folder / stage / f"{file}.parquet"
        write_table(path, change(rows) if stage == "score" else rows, definition)
        write_json(folder / stage / "artifact.json", {"files": {path.name: sha256_file(path)}})
        artifacts[f"{stage}@{name}"] = Artifact(stage, "1" * 16, folder / stage)
    return artifacts


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("home") / "cohort"
    made = make_cohort(folder, patients={"calibration": 240, "test": 240}, arms=ARMS).run("calibrate")
    record = made.json("ingest", "artifact.json")
    write_json(made.path("ingest", "artifact.json"), record | {"settings": {"near_duplicates": False}})
    return made


@pytest.fixture(scope="module")
def found(home, tmp_path_factory) -> dict[str, Any]:
    """Metrics and findings of the cohort, evaluated with four external sets."""
    folder = tmp_path_factory.mktemp("external")
    artifacts = {name: Artifact(name, "0" * 16, home.folder / name) for name in EVALUATE.reads if "@" not in name}
    for name, prevalence in zip(SETS, (0.2, 0.5, 0.0, 0.5), strict=True):
        artifacts |= published(folder / name, name, prevalence, negated if name == "reversed" else lambda rows: rows)
    inputs = Inputs(make_card(path="path"), None, artifacts, EVALUATE.reads, external=dict.fromkeys(SETS))
    work = folder / "evaluate"
    work.mkdir()
    evaluate(EvaluateSettings(), inputs, work, RunLog("evaluate", quiet=True))
    scores = {name: pd.read_parquet(artifacts[f"score@{name}"].path / "scores_test.parquet") for name in SETS}
    left = {name: read_json(work / f"{name}.json") for name in ("metrics", "findings", "between_sites")}
    return left | {"scores": scores}


def negated(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.assign(logit=-scores["logit"])


def findings(found: dict, name: str) -> dict[str, dict]:
    return {f["code"]: f for f in found["findings"] if f["on"] == f"external set {name}"}


def group(found: dict, name: str) -> dict:
    (one,) = [g for g in found["metrics"]["shift"]["groups"] if g["group"] == f"external set {name}"]
    return one


def test_its_numbers_are_those_of_its_patients_at_the_frozen_threshold(home, found):
    its = found["metrics"]["external"]["rare"]
    rows = found["scores"]["rare"].query("arm == 'mae'").groupby("patient_id").agg({"logit": "mean", "label": "max"})
    referred = rows["logit"] >= home.json("calibrate", "threshold.json")["threshold"]
    point = its["operating_point"]
    assert (its["patients"], its["positives"], its["excluded"]) == (200, 40, {"patients": 0, "images": {}})
    assert its["discrimination"]["auc"]["value"] == pytest.approx(roc_auc_score(rows["label"], rows["logit"]))
    assert point["threshold"] == found["metrics"]["operating_point"]["threshold"]
    assert point["recall"]["value"] == pytest.approx(referred[rows["label"] == 1].mean())
    assert point["specificity"]["value"] == pytest.approx(1 - referred[rows["label"] == 0].mean())
    assert its["prevalence"]["value"] == pytest.approx(0.2)
    assert found["metrics"]["headline_prevalence"] in [row["prevalence"] for row in its["consequences"]]


def test_another_prevalence_moves_probabilities_and_not_the_promise(found):
    assert group(found, "rare")["covered"]
    assert set(findings(found, "rare")) == {"calibration_drift"}


def test_the_run_s_own_numbers_do_not_depend_on_it(home, found):
    home.run("evaluate")
    alone, beside = home.json("evaluate", "metrics.json"), dict(found["metrics"])
    assert alone.pop("external") == {}
    assert set(beside.pop("external")) == set(SETS)
    assert alone.pop("shift")["groups"] == beside.pop("shift")["groups"][:3]
    beside["operating_point"] = dict(beside["operating_point"])
    # The sites and sets that were asked are listed, those from elsewhere behind the run's own.
    held = [one["operating_point"].pop("held_against_certificate") for one in (alone, beside)]
    assert held[1][: len(held[0])] == held[0]
    assert beside == alone
    own = [f for f in found["findings"] if not f["on"].startswith("external")]
    assert home.json("evaluate", "findings.json") == own


def test_a_set_that_would_fail_the_gate_warns_and_does_not_close_it(found):
    of_set = findings(found, "reversed")
    assert {"reversed", "no_discrimination", "recall_contradicted", "shift"} <= set(of_set)
    assert {finding["level"] for finding in found["findings"]} <= {"warn", "info"}
    assert not group(found, "reversed")["covered"]


def test_a_set_of_one_label_has_no_auc_and_stops_nothing(found):
    assert found["metrics"]["external"]["healthy"]["discrimination"]["auc"]["value"] is None
    assert group(found, "healthy")["verification"] is None
    assert findings(found, "healthy")["no_discrimination"]["level"] == "warn"


def test_whoever_was_pretrained_on_without_a_label_is_left_out_of_an_external_set(home, tmp_path):
    (stage,) = [one for one in stages_of(["rare"], unlabelled=True) if one.name == "evaluate"]
    artifacts = {name: Artifact(name, "0" * 16, home.folder / name) for name in stage.reads if "@" not in name}
    artifacts |= published(tmp_path / "rare", "rare", 0.2, lambda rows: rows)
    images, split = (
        pd.read_parquet(artifacts[f"{name}@rare"].path / f"{table}.parquet")
        for name, table in (("ingest", "images"), ("split", "split"))
    )
    chosen = split.head(30).assign(split="pretrain", label=pd.array([pd.NA] * 30, "Int64"))
    for name, file, rows, table in (("ingest", "images", images, IMAGES), ("split", "split", chosen, SPLIT)):
        folder = tmp_path / "unlabelled" / name
        write_table(folder / f"{file}.parquet", rows, table)
        files = {f"{file}.parquet": sha256_file(folder / f"{file}.parquet")}
        write_json(folder / "artifact.json", {"files": files})
        artifacts[f"{name}@unlabelled"] = Artifact(name, "2" * 16, folder)
    (tmp_path / "evaluate").mkdir()
    inputs = Inputs(make_card(path="path"), None, artifacts, stage.reads, external={"rare": None})  # type: ignore
    evaluate(EvaluateSettings(), inputs, tmp_path / "evaluate", RunLog("evaluate", quiet=True))
    its = read_json(tmp_path / "evaluate" / "metrics.json")["external"]["rare"]
    # Of all that was ingested without labels, what keep_apart chose was learnt from, and that alone counts.
    assert (its["patients"], its["excluded"]) == (170, {"patients": 30, "images": {"same image": 30}})


def test_patients_of_the_run_are_left_out_and_counted_to_the_last(found):
    assert found["metrics"]["external"]["again"] == {
        "group": "external set again",
        "patients": 0,
        "excluded": {"patients": 200, "images": {"same image": 200}},
    }
    overlap = findings(found, "again")["external_overlap"]
    assert overlap["level"] == "warn"
    assert (
        "200 of 200 patients occur in this run already and were left out (200 images: same image)" in overlap["message"]
    )
    assert "external set again" not in [g["group"] for g in found["metrics"]["shift"]["groups"]]


def test_variation_between_sites_is_that_of_test_patients_and_of_external_sets_apart(home, found):
    own, elsewhere = found["between_sites"]
    assert (own["group"], own["sites"], own["in_training"]) == ("test", 2, 2)
    home.run("evaluate")
    assert home.json("evaluate", "between_sites.json") == [own]
    table = home.table("evaluate", "subgroups.parquet").query("attribute == 'site'")
    for measure in ("recall", "specificity", "auc"):
        assert own[measure]["lowest"] == pytest.approx(table[measure].min())
        assert own[measure]["highest"] == pytest.approx(table[measure].max())
        # Two sites do not tell what a third would show.
        assert own[measure]["another"] is None
    # The two sites of every set that has anybody new; what one reversed does to them shows.
    assert (elsewhere["group"], elsewhere["sites"]) == ("external sets", 2)
    assert elsewhere["recall"]["highest"] < own["recall"]["lowest"]
