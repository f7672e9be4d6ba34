"""Images without labels, from their folder to pretraining: of nobody whom the run is judged on."""

import zipfile

import pandas as pd
import pytest
from project import DEMO, PATIENTS, Project, add_darker_copy, add_external

from pipeline.imaging.pseudonyms import path_pseudonym
from pipeline.orchestration.estimate import estimates
from pipeline.orchestration.graph import NAMES
from pipeline.orchestration.plan import plan
from pipeline.orchestration.run import Result, run
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json

OVERLAPPING, NEW = 20, 20
JUDGED = ("tune", "calibration", "test")
# What a plan without data.unlabelled reads, in the order of the stages: nothing of it is there for others to change.
READS = {
    "ingest": set(),
    "split": {"ingest"},
    "preprocess": {"ingest", "split"},
    "pretrain": {"preprocess"},
    "finetune": {"pretrain", "preprocess"},
    "score": {"finetune", "preprocess"},
    "calibrate": {"score", "finetune", "ingest", "split"},
    "evaluate": {"score", "finetune", "calibrate", "ingest", "split", "preprocess"},
    "package": {"ingest", "split", "preprocess", "finetune", "score", "calibrate", "evaluate"},
    "report": {"ingest", "split", "preprocess", "pretrain", "finetune", "score", "calibrate", "evaluate", "package"},
}


def keys(project: Project, *overrides: str) -> dict[str, str]:
    return {step.name: step.key for step in plan(*project.load(*overrides))}


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    return finished.copy(tmp_path_factory.mktemp("unlabelled") / "project")


@pytest.fixture(scope="module")
def own(project) -> pd.DataFrame:
    """The run's own images, with their splits and, as `name`, their files in the demo."""
    images, files, split = (
        pd.read_parquet(Store(project.store).all(stage)[0].file(f"{table}.parquet"))
        for stage, table in (("ingest", "images"), ("ingest", "files"), ("split", "split"))
    )
    with zipfile.ZipFile(project.folder / "studies.zip") as studies:
        secret = project.load()[2]
        names = {path_pseudonym(secret, name): name for name in studies.namelist()}
    files["name"] = files["source_id"].map(names)
    return images.merge(files[["image_id", "name"]]).merge(split[["image_id", "split"]])


@pytest.fixture(scope="module")
def override(project, own) -> str:
    """Patients of the run, new ones, and one with two pictures, of which one is, darker, a test patient's; a text."""
    add_external(project, "further", slice(PATIENTS - OVERLAPPING, PATIENTS + NEW))
    folder = project.folder / "further"
    with zipfile.ZipFile(DEMO / "studies.zip") as demo, zipfile.ZipFile(folder / "studies.zip") as further:
        *_, unseen = (name for name in demo.namelist() if name.endswith(".dcm"))
        first = next(name for name in own.loc[own["split"] == "test", "name"] if name not in further.namelist())
    add_darker_copy(folder, first)
    add_darker_copy(folder, unseen, "other.dcm", factor=1.0)
    with zipfile.ZipFile(folder / "studies.zip", "a") as further:
        further.writestr("notes.txt", "no image")
    return f"data.unlabelled=[{folder / 'studies.zip'}]"


@pytest.fixture(scope="module")
def result(project, override) -> Result:
    words = (override, "machine.workers=1", "pretrain.max_steps=2")
    return run(*project.load(*words), until="pretrain", say=lambda line: None)


@pytest.fixture(scope="module")
def summary(result) -> dict:
    return read_json(result.artifacts["split@unlabelled"].file("summary.json"))


def test_without_it_no_step_and_no_key_is_another(project):
    steps = {step.name: step for step in plan(*project.load())}
    assert {name: set(step.inputs) for name, step in steps.items()} == READS
    assert not [s for s in steps.values() if "unlabelled" in str([s.settings, s.sources, s.stage.reads])]
    assert keys(project, "data.unlabelled=[]", "data.unlabelled_patients=null") == keys(project)


def test_it_is_part_of_the_plan_and_of_the_keys_from_pretraining_on(project, override):
    alone, beside = keys(project), keys(project, override)
    assert list(beside) == [
        "ingest", "ingest@unlabelled", "split", "split@unlabelled", "preprocess", "preprocess@unlabelled", "pretrain",
        "finetune", "score", "calibrate", "evaluate", "package", "report",
    ]  # fmt: skip
    assert [name for name in NAMES if alone[name] != beside[name]] == [*NAMES[NAMES.index("pretrain") :]]
    # Nothing is pretrained: there is nobody to read of it.
    without = keys(project, override, "finetune.arms=[hog]")
    assert without == keys(project, "finetune.arms=[hog]")


def test_the_estimate_counts_its_images_in_pretraining(project, override):
    def found(*words):
        loaded = project.load("pretrain.epochs=9", *words)
        return estimates(loaded[0], plan(*loaded))

    alone, beside = found(), found(override)
    assert {"ingest@unlabelled", "preprocess@unlabelled"} <= set(beside)
    assert beside["pretrain"].seconds > alone["pretrain"].seconds


def test_whoever_is_or_shows_a_patient_the_run_is_judged_on_is_left_out_and_counted(result, summary, own):
    theirs = pd.read_parquet(result.artifacts["ingest@unlabelled"].file("images.parquet"))
    judged = own[own["split"].isin(JUDGED)]
    same = theirs["image_id"].isin(judged["image_id"]).sum()
    repeated = theirs["image_id"].isin(own.loc[~own["split"].isin(JUDGED), "image_id"]).sum()
    assert same > 0 < repeated
    assert summary["left_out"] == {
        "same image": same,
        "nearly the same image": 1,
        "of a patient with such an image": 1,
        "among the run's own images": repeated,
    }
    chosen = pd.read_parquet(result.artifacts["split@unlabelled"].file("split.parquet"))
    assert len(chosen) == summary["images"] == len(theirs) - same - 2 - repeated
    assert not set(chosen["patient_id"]) & set(judged["patient_id"])
    assert set(chosen["split"]) == {"pretrain"}
    assert chosen["label"].isna().all()
    left_out = pd.read_parquet(result.artifacts["split@unlabelled"].file("left_out.parquet"))
    assert {*left_out["image_id"]} | {*chosen["image_id"]} == {*theirs["image_id"]}


def test_its_files_are_checked_like_others(summary):
    assert summary["quarantined"] == {"unknown_format": 1}
    assert summary["received"] == summary["accepted"] + 1


def test_pretraining_learns_from_it_and_says_so(result, summary, finished):
    (before,) = Store(finished.store).all("pretrain")
    earlier, now = (read_json(one.file("summary.json")) for one in (before, result.artifacts["pretrain"]))
    assert "unlabelled" not in earlier
    assert now["unlabelled"] == {name: value for name, value in summary.items() if name != "splits"}
    more = now["training_images"] + now["held_out_images"] - earlier["training_images"] - earlier["held_out_images"]
    assert more == summary["images"] > 0
    assert any("left out of pretraining" in said for said in result.artifacts["split@unlabelled"].record["warnings"])


def test_another_file_reads_and_trains_anew_what_rests_on_it_and_nothing_else(project, override, result):
    before = keys(project, override)
    with zipfile.ZipFile(project.folder / "further" / "studies.zip", "a") as further:
        further.writestr("more.txt", "no image")
    changed = keys(project, override)
    assert result.artifacts
    assert {name for name in before if changed[name] != before[name]} == {
        *("ingest@unlabelled", "split@unlabelled", "preprocess@unlabelled"),
        *NAMES[NAMES.index("pretrain") :],
    }
