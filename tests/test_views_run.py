"""From mammograms of two views and two sides to a report: who lacks one, and what each alone shows."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from imaging.files import make_dicom
from PIL import Image
from project import SETTINGS, Project
from stages.sources_run import make_card

from pipeline.orchestration.run import run
from pipeline.statistics.intervals import proportion_ci
from pipeline.store.artifacts import Store
from pipeline.store.files import read_json
from pipeline.store.tables.ingest import IMAGES, QUARANTINE
from pipeline.store.tables.io import read_table

PATIENTS = 80
PLACES = [(view, side) for view in ("CC", "MLO") for side in ("L", "R")]
EXAM = {"views": ["CC", "MLO"], "sides": ["L", "R"]}
LACKS = {3, 10}  # have no right MLO


def breast(generator: np.random.Generator, ill: bool) -> np.ndarray:
    """Return uint8 (40, 36): noise, of the ill with a bright spot somewhere."""
    values = generator.uniform(40, 110, (40, 36))
    row, column = generator.integers(4, 20, 2)
    values[row : row + 12, column : column + 12] += 110 * ill
    return values.round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def dicom(pixels: np.ndarray, number: int, patient: str, **elements) -> bytes:
    uid = {"SOPInstanceUID": f"2.25.{number}", "StudyInstanceUID": f"2.25.9{number}", "PatientID": patient}
    return make_dicom(pixels, Modality="MG", **uid, **elements)


@pytest.fixture(scope="module")
def finished_views(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("views"))
    generator = np.random.default_rng(5)
    rows, studies = ["path,patient,label,view,side"], project.folder / "studies"
    studies.mkdir()
    for patient in range(PATIENTS):
        sick_side = "L" if patient % 4 == 0 else "R"
        for view, side in PLACES:
            if patient in LACKS and (view, side) == ("MLO", "R"):
                continue
            ill = patient % 2 == 0 and side == sick_side  # seen in both views of one side
            name = f"{patient:03d}_{view}_{side}.png"
            (studies / name).write_bytes(png(breast(generator, ill)))
            rows.append(f"{name},{patient},{'ill' if ill else 'well'},{view.lower()},{side}")
    (studies / "contradicts.dcm").write_bytes(
        dicom(breast(generator, True), 1, "0", ImageLaterality="L", ViewPosition="CC")
    )
    rows.append("contradicts.dcm,0,ill,CC,R")
    (studies / "raw.dcm").write_bytes(dicom(breast(generator, True), 2, "1", PresentationIntentType="FOR PROCESSING"))
    rows.append("raw.dcm,1,ill,CC,L")
    project.labels.write_text("\n".join(rows) + "\n")
    key = project.folder / "views.key"
    key.write_text("7f" * 32 + "\n")
    key.chmod(0o600)
    card = make_card(path="path", patient_id="patient", view="view", laterality="side").model_dump() | {"exam": EXAM}
    (project.folder / "card.yaml").write_text(yaml.safe_dump(card))
    settings = {
        **SETTINGS,
        "machine": {**SETTINGS["machine"], "workers": 1},
        "data": {**SETTINGS["data"], "studies": ["../studies"], "key_file": "../views.key"},
        "preprocess": {"image_size": [32, 32], "crop": "field_of_view"},
        "finetune": {**SETTINGS["finetune"], "seeds": [1], "arms": ["hog"]},
        "calibrate": {"recall_targets": [0.7], "confidence": 0.9, "arm": "hog"},
        "evaluate": {"min_subgroup_positives": 2},
        "report": {"title": "Views", "examples": 1},
    }
    project.config.parent.mkdir()
    project.config.write_text("# views\n" + yaml.safe_dump(settings))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        run(*project.load(), say=lambda line: None)
    return project, said.getvalue()


def artifact(project: Project, stage: str):
    (found,) = Store(project.store).all(stage)
    return found.path


def test_the_table_says_view_and_side_and_a_contradiction_is_refused_by_name(finished_views):
    project, _ = finished_views
    images = read_table(artifact(project, "ingest") / "images.parquet", IMAGES)
    assert len(images) == 4 * PATIENTS - len(LACKS)
    assert images.groupby(["view", "laterality"]).size().to_dict() == {
        ("CC", "L"): PATIENTS, ("CC", "R"): PATIENTS, ("MLO", "L"): PATIENTS, ("MLO", "R"): PATIENTS - len(LACKS),
    }  # fmt: skip
    quarantine = read_table(artifact(project, "ingest") / "quarantine.parquet", QUARANTINE)
    assert dict(zip(quarantine["reason"], quarantine["detail"], strict=True)) == {
        "exam_contradicts": "laterality", "for_processing": "",
    }  # fmt: skip


def test_who_lacks_a_view_is_counted_shown_and_not_left_out(finished_views):
    project, said = finished_views
    exam = read_json(artifact(project, "ingest") / "summary.json")["exam"]
    assert (exam["patients"], exam["complete"], exam["elsewhere"]) == (PATIENTS, PATIENTS - 2, 0)
    assert exam["lacking"] == {"CC L": 0, "CC R": 0, "MLO L": 0, "MLO R": 2}
    assert "examinations: 78 of 80 patients have all of CC L, CC R, MLO L, MLO R; missing: MLO R in 2" in said
    assert "1 for_processing (raw values for processing, not for presentation; ingest.intent accepts them)" in said
    parts = read_json(artifact(project, "split") / "summary.json")["exam"]
    assert sum(part["patients"] for part in parts.values()) == PATIENTS
    assert sum(part["lacking"]["MLO R"] for part in parts.values()) == 2


def test_each_view_and_side_is_judged_by_its_images_alone_and_the_patient_stays_the_unit(finished_views):
    project, _ = finished_views
    table = pd.read_parquet(artifact(project, "evaluate") / "exam.parquet").set_index(["by", "group"])
    assert table.index.tolist() == [
        ("patient", "all images"), ("side", "L"), ("side", "R"), ("view", "CC"), ("view", "MLO"),
    ]  # fmt: skip
    scores = pd.read_parquet(artifact(project, "score") / "scores_test.parquet")
    images = read_table(artifact(project, "ingest") / "images.parquet", IMAGES).set_index("image_id")
    threshold = float.fromhex(read_json(artifact(project, "calibrate") / "threshold.json")["threshold_hex"])
    left = scores[scores["image_id"].map(images["laterality"]) == "L"].groupby("patient_id")
    label, score = left["label"].max(), left["logit"].max()
    expected = proportion_ci(int(((score >= threshold) & (label == 1)).sum()), int(label.sum()), 0.95)
    row = table.loc[("side", "L")]
    assert (row["patients"], row["positives"]) == (len(label), label.sum())
    assert np.allclose(
        row[["recall", "recall_low", "recall_high"]].astype(float), [expected.value, expected.low, expected.high]
    )
    everyone = table.loc[("patient", "all images")]
    metrics = read_json(artifact(project, "evaluate") / "metrics.json")
    assert everyone["auc"] == pytest.approx(metrics["discrimination"]["auc"]["value"])
    sides = table.loc["side"]
    assert sides["positives"].sum() == everyone["positives"]  # ill on one side only
    assert (table.loc["view"]["positives"] == everyone["positives"]).all()  # seen in both views


def test_the_report_shows_them_and_counts_images_without_a_field_of_view(finished_views):
    project, _ = finished_views
    content = (artifact(project, "report") / "report.json").read_text("utf-8")
    report = json.loads(content)
    assert "Patients are the unit in every row" in content
    assert "Examinations: patients who have an image of each of CC L, CC R, MLO L, MLO R" in content
    lost = read_json(artifact(project, "preprocess") / "summary.json")["field_of_view"]["not_found"]
    assert lost > 0
    assert report["numbers"]["ingest"]["flags"]["no_field_of_view"] == lost
    assert "no field of view" in content
