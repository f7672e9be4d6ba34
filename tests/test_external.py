"""An external test set from DICOM to report: judged by what was frozen, and used for nothing else."""

import json
import zipfile

import pandas as pd
import pytest
from project import DEMO, PATIENTS, Project, add_darker_copy, add_external, pipeline_runs
from pypdf import PdfReader

from pipeline.commands import trace
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.mlflow_runs import headline
from pipeline.orchestration.plan import RunError, plan
from pipeline.orchestration.run import Result, run
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.tracking import Tracker

OVERLAPPING, NEW = 5, 40
DEFINITION = "two readers at site B saw an opacity"
TRAINED = ("ingest", "split", "preprocess", "pretrain", "finetune", "score", "calibrate")


def keys(project: Project, *overrides: str) -> dict[str, str]:
    return {step.name: step.key for step in plan(*project.load(*overrides))}


def card() -> str:
    content = (DEMO / "card.yaml").read_text()
    start, end = content.index("  definition: >-"), content.index("  reference_standard:")
    return content[:start] + f"  definition: {DEFINITION}\n" + content[end:]


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    return finished.copy(tmp_path_factory.mktemp("external") / "project")


@pytest.fixture(scope="module")
def override(project) -> str:
    """An external set with fewer positives, of which some patients are the run's own."""
    patients = slice(PATIENTS - OVERLAPPING, PATIENTS + NEW)
    described = add_external(project, "site_b", patients, card=card(), drop="pneumonia")
    with zipfile.ZipFile(DEMO / "studies.zip") as demo:
        first = next(name for name in demo.namelist() if name.endswith(".dcm"))
    add_darker_copy(project.folder / "site_b", first)
    with (project.folder / "site_b" / "labels.csv").open("a") as labels:
        labels.write("darker.dcm,normal\n")
    return f"data.external=[{described}]"


@pytest.fixture(scope="module")
def result(project, override) -> Result:
    return run(*project.load(override, "machine.workers=1"), say=lambda line: None)


@pytest.fixture(scope="module")
def metrics(result) -> dict:
    return read_json(result.artifacts["evaluate"].file("metrics.json"))


def test_it_is_part_of_the_plan_and_of_no_key_that_leads_to_the_threshold(project, override):
    alone, beside = keys(project), keys(project, override)
    assert list(beside) == [
        "ingest", "ingest@site_b", "split", "split@site_b", "preprocess", "preprocess@site_b", "pretrain", "finetune",
        "score", "score@site_b", "calibrate", "evaluate", "package", "report",
    ]  # fmt: skip
    assert [name for name in NAMES if alone[name] != beside[name]] == ["evaluate", "package", "report"]
    labels = project.folder / "site_b" / "labels.csv"
    before = labels.read_text()
    labels.write_text(before.replace(",normal", ",pneumonia", 1))
    try:
        corrected = keys(project, override)
    finally:
        labels.write_text(before)
    changed = ["split@site_b", "preprocess@site_b", "score@site_b", "evaluate", "package", "report"]
    assert [name for name in beside if beside[name] != corrected[name]] == changed


def test_a_stage_of_the_run_needs_nothing_of_it(project, override):
    with pytest.raises(RunError, match=r"^pretrain needs ingest, split, preprocess, not made yet"):
        run(*project.load(override, "ingest.min_side=33"), only="pretrain", say=lambda line: None)
    with pytest.raises(RunError, match=r"there is no step score@site_c; this run has ingest, ingest@site_b"):
        plan(*project.load(override), rebuild=["score@site_c"])


def test_what_is_trained_is_reused_and_the_run_s_own_numbers_stay(result, metrics, finished):
    before = {name: artifact for name in NAMES for artifact in Store(finished.store).all(name)}
    assert {name: result.artifacts[name].key for name in TRAINED} == {name: before[name].key for name in TRAINED}
    own = read_json(before["evaluate"].file("metrics.json"))
    points = [dict(one["operating_point"]) for one in (own, metrics)]
    # The sites and sets that were asked are listed, those from elsewhere behind the run's own.
    held = [point.pop("held_against_certificate") for point in points]
    assert held[1][: len(held[0])] == held[0]
    assert points[0] == points[1]
    # These test patients have now been read twice.
    assert (own["readings"]["times"], metrics["readings"]["times"]) == (1, 2)
    for name in set(own) - {"external", "shift", "readings", "operating_point"}:
        assert metrics[name] == own[name]
    assert [one.to_dict() for one in result.failures] == [
        f for f in read_json(before["evaluate"].file("findings.json")) if f["level"] == "fail"
    ]


def test_every_labelled_patient_is_for_the_test(result):
    split = pd.read_parquet(result.artifacts["split@site_b"].file("split.parquet"))
    assert set(split["split"]) == {"test"}
    names = set(result.artifacts["score@site_b"].record["files"])
    assert {name for name in names if name.endswith(".parquet")} == {"scores_test.parquet"}


def test_patients_of_the_run_are_left_out_with_whoever_shows_their_picture(result, metrics):
    its = metrics["external"]["site_b"]
    scores = pd.read_parquet(result.artifacts["score@site_b"].file("scores_test.parquet"))
    ours = pd.read_parquet(result.artifacts["ingest"].file("images.parquet"))["patient_id"]
    known = scores.loc[scores["patient_id"].isin(ours), "patient_id"].nunique()
    assert known > 0
    assert its["excluded"]["patients"] == known + 1
    assert its["excluded"]["images"]["nearly the same image"] == 1
    assert its["patients"] == scores["patient_id"].nunique() - known - 1
    (finding,) = [
        f for f in read_json(result.artifacts["evaluate"].file("findings.json")) if f["code"] == "external_overlap"
    ]
    assert (finding["on"], finding["level"]) == ("external set site_b", "warn")


def test_report_json_and_mlflow_say_the_same(project, result, metrics):
    its = metrics["external"]["site_b"]
    pages = " ".join(" ".join(page.extract_text() for page in PdfReader(result.report).pages).split())
    assert "External test sets" in pages
    assert f"{its['patients']} / {its['positives']}" in pages
    assert DEFINITION in pages
    auc = its["discrimination"]["auc"]["value"]
    numbers = headline(result.artifacts)
    assert numbers["external_site_b_auc"] == auc
    (latest, *_) = pipeline_runs(Tracker("mini", project.store))
    assert latest.data.metrics["external_site_b_auc"] == pytest.approx(auc)
    assert latest.data.tags["key.score.site_b"] == result.artifacts["score@site_b"].key
    content = json.loads(result.artifacts["report"].file("report.json").read_text())
    assert content["numbers"]["metrics"]["external"]["site_b"]["patients"] == its["patients"]


def test_the_report_leads_back_to_its_files_too(project, override, result):
    store, (config, *_) = Store(project.store), project.load(override)
    found = trace.trace(result.report, store)
    assert {"ingest@site_b", "score@site_b"} <= {artifact["step"] for artifact in found["artifacts"]}
    files = [read_json(result.artifacts[n].file("summary.json"))["received"] for n in ("ingest", "ingest@site_b")]
    assert len(found["sources"]) == sum(files)
    assert trace.verify_sources(result.report, store, config.data) == []


def test_the_same_command_again_runs_nothing(project, override, result):
    assert result.artifacts
    assert {step.action for step in plan(*project.load(override))} == {"reuse"}
