"""Patients are divided once, by a rule that neither order, additions nor corrections disturb."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from stages.sources_run import SECRET, Archive, make_card

from pipeline.imaging.pseudonyms import path_pseudonym, patient_pseudonym, pseudonym
from pipeline.labels.values import LabelsError
from pipeline.settings.card import Card, FurtherLabel
from pipeline.settings.images import SplitSettings
from pipeline.stages.split import split
from pipeline.store.files import write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.ingest import ASSEMBLED, EXAMINED, FILES, IMAGES, NEAR_DUPLICATES, QUARANTINE
from pipeline.store.tables.io import read_table, write_rows, write_table
from pipeline.store.tables.split import SPLIT


def images(patients: dict[str, int], pixels: dict[str, str] | None = None) -> pd.DataFrame:
    """Return a row per image; image k of patient P has path `P/k` and its own pixels unless `pixels` names others."""
    rows = []
    for patient, count in patients.items():
        for k in range(count):
            path = f"{patient}/{k}"
            rows.append(
                {
                    "image_id": pseudonym(SECRET, "image", f"uid-{path}"),
                    "patient_id": patient_pseudonym(SECRET, patient),
                    "study_id": pseudonym(SECRET, "study", f"study-{path}"),
                    "series_id": pseudonym(SECRET, "series", f"series-{path}"),
                    "pixel_hash": (pixels or {}).get(path, path),
                }
            )
    frame = pd.DataFrame(rows)
    for column in IMAGES.columns:
        if column.name not in frame:
            empty = {"string": "", "int64": 1, "double": np.nan, "bool": False}.get(str(column.type))
            frame[column.name] = [empty] * len(frame)
    frame["study_day"] = pd.array([0] * len(frame), dtype="Int64")
    return frame[[c.name for c in IMAGES.columns]]


def files(patients: dict[str, int]) -> pd.DataFrame:
    paths = [f"{patient}/{k}" for patient, count in patients.items() for k in range(count)]
    rows = [(pseudonym(SECRET, "image", f"uid-{path}"), 0, path_pseudonym(SECRET, path), "0" * 64) for path in paths]
    return pd.DataFrame(rows, columns=[column.name for column in FILES.columns])


def examined(patients: dict[str, int], shown: pd.DataFrame, lost: Sequence[str]) -> list[dict[str, object]]:
    """Return what was found out about each file, with those in quarantine."""
    facts = shown.set_index("image_id")[["patient_id", "study_id", "series_id", "pixel_hash"]].to_dict("index")
    texts = dict.fromkeys(
        ("stored_sha256", "sha256", "reason", "detail", "part_of", "header_patient", "placeholder"), ""
    )
    rows = []
    for path in [f"{patient}/{k}" for patient, count in patients.items() for k in range(count)]:
        image_id, name = pseudonym(SECRET, "image", f"uid-{path}"), path_pseudonym(SECRET, path)
        rows.append({**texts, "source_id": name, "row_id": name, "image_id": image_id, **facts[image_id]})
    names = [path_pseudonym(SECRET, path) for path in lost]
    return rows + [{**texts, "source_id": name, "row_id": name, "reason": "damaged_pixels"} for name in names]


def pairs(*paths: tuple[str, str]) -> pd.DataFrame:
    """Return near-duplicates."""
    rows = [(*sorted(pseudonym(SECRET, "image", f"uid-{p}") for p in pair), "copy", 20, 0.99, True) for pair in paths]
    return pd.DataFrame(rows, columns=[column.name for column in NEAR_DUPLICATES.columns])


def make(folder, patients, labels, pixels=None, card=None, near=(), lost=()) -> Archive:
    """Write what ingest leaves; `lost` are paths in quarantine."""
    archive = Archive(folder, card=card or make_card(path="path"))
    (folder / "ingest").mkdir(parents=True, exist_ok=True)
    shown = images(patients, pixels)
    write_table(folder / "ingest" / "images.parquet", shown, IMAGES)
    write_rows(folder / "ingest" / "examined.parquet", examined(patients, shown, lost), EXAMINED)
    write_rows(folder / "ingest" / "assembled.parquet", [], ASSEMBLED)
    write_json(folder / "ingest" / "summary.json", {"identity": {"objection": ""}})
    write_table(folder / "ingest" / "files.parquet", files(patients), FILES)
    write_table(folder / "ingest" / "near_duplicates.parquet", pairs(*near), NEAR_DUPLICATES)
    refused = [(path_pseudonym(SECRET, path), "0" * 64, "damaged_pixels", "") for path in lost]
    table = pd.DataFrame(refused, columns=[column.name for column in QUARANTINE.columns])
    write_table(folder / "ingest" / "quarantine.parquet", table, QUARANTINE)
    write_json(folder / "ingest" / "artifact.json", {"files": archive.files("ingest")})
    archive.label(labels)
    return archive


def cohort(count: int, start: int = 0) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Return patients with one to three images each, and a label per image; every third patient is ill."""
    patients = {f"P{n}": n % 3 + 1 for n in range(start, start + count)}
    labels = [
        {"path": f"{patient}/{k}", "label": "well" if int(patient[1:]) % 3 else "ill"}
        for patient, images_ in patients.items()
        for k in range(images_)
    ]
    return patients, labels


def where(archive: Archive) -> dict[str, str]:
    table = archive.table("split", "split")
    return dict(zip(table["image_id"], table["split"], strict=True))


def test_shares_and_disjoint_patients(tmp_path):
    archive = make(tmp_path, *cohort(2000)).run("split")
    table, summary = archive.table("split", "split"), archive.summary("split")
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    shares = {name: count["patients"] / 2000 for name, count in summary["splits"].items()}
    expected = {"train": 0.5, "tune": 0.1, "calibration": 0.2, "test": 0.2, "pretrain": 0}
    for name, share in expected.items():
        spread = np.sqrt(share * (1 - share) / 2000)
        assert abs(shares[name] - share) <= 4 * spread
    assert sum(count["images"] for count in summary["splits"].values()) == len(table)
    assert sum(count["positive_patients"] for count in summary["splits"].values()) == 667


def test_adding_patients_moves_nobody(tmp_path):
    before = where(make(tmp_path / "before", *cohort(300)).run("split"))
    after = where(make(tmp_path / "after", *cohort(450)).run("split"))
    assert before.items() <= after.items()


def test_a_corrected_label_moves_nobody(tmp_path):
    patients, labels = cohort(300)
    before = where(make(tmp_path / "before", patients, labels).run("split"))
    corrected = [{**row, "label": "ill"} if row["path"].startswith("P4/") else row for row in labels]
    archive = make(tmp_path / "after", patients, corrected).run("split")
    assert where(archive) == before
    table = archive.table("split", "split")
    changed = table.loc[table["patient_id"] == patient_pseudonym(SECRET, "P4"), "label"]
    assert changed.eq(1).all()


def test_another_seed_is_another_split(tmp_path):
    archive = make(tmp_path, *cohort(300))
    first, second = where(archive.run("split")), where(archive.run("split", seed=18))
    same = np.mean([first[image] == second[image] for image in first])
    assert same < 0.55


def test_patients_who_share_pixels_stay_together_also_along_a_chain(tmp_path):
    patients, labels = cohort(300)
    chain = {"P10/0": "x", "P20/0": "x", "P20/1": "y", "P30/0": "y"}
    archive = make(tmp_path, patients, labels, chain).run("split")
    table = archive.table("split", "split").set_index("patient_id")
    members = table.loc[[patient_pseudonym(SECRET, name) for name in ("P10", "P20", "P30")]]
    assert members["split"].nunique() == 1
    assert set(members["unit"]) == {min(members.index)}
    assert archive.summary("split")["linked_patients"] == 3


def test_patients_without_a_label_are_for_pretraining_unless_they_share_pixels(tmp_path):
    patients, labels = cohort(300)
    few = [row for row in labels if int(row["path"].split("/")[0][1:]) < 200]
    log = RunLog("split", quiet=True)
    archive = make(tmp_path, patients, few, {"P250/0": "x", "P10/0": "x"}).run("split", log=log)
    table, summary = archive.table("split", "split"), archive.summary("split")
    pretrain = table[table["split"] == "pretrain"]
    assert pretrain["label"].isna().all()
    assert (pretrain["label_source"] == "").all()
    assert summary["splits"]["pretrain"]["patients"] == 99
    linked, labelled = (table[table["patient_id"] == patient_pseudonym(SECRET, name)] for name in ("P250", "P10"))
    assert len(linked) == patients["P250"]
    assert set(linked["split"]) == set(labelled["split"]) != {"pretrain"}
    assert linked["label"].isna().all()
    assert labelled["label"].notna().all()
    assert any("share an image" in warning for warning in log.warnings)


def test_a_patient_is_positive_when_any_image_is_and_each_image_keeps_its_own_label(tmp_path):
    patients, labels = cohort(300)
    labels[1] = {**labels[1], "label": "ill"}  # P1/0; P1/1 stays well
    archive = make(tmp_path, patients, labels).run("split")
    table = archive.table("split", "split")
    assert table.loc[table["patient_id"] == patient_pseudonym(SECRET, "P1"), "label"].tolist() == [1, 0]
    assert archive.summary("split")["conflicting_patients"] == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("path", "{patient}/{k}"),
        ("sop_instance_uid", "uid-{patient}/{k}"),
        ("series_instance_uid", "series-{patient}/{k}"),
        ("study_instance_uid", "study-{patient}/{k}"),
        ("patient_id", " {patient} "),
    ],
)
def test_five_ways_of_joining_give_the_same_labels(tmp_path, column, value):
    patients, labels = cohort(200)
    reference = make(tmp_path / "reference", patients, labels).run("split").table("split", "split")
    rows = []
    for row in labels:
        patient, k = row["path"].split("/")
        rows.append({"key": value.format(patient=patient, k=k), "label": row["label"]})
    archive = make(tmp_path / column, patients, rows, card=make_card(**{column: "key"})).run("split")
    table = archive.table("split", "split")
    assert table.drop(columns="label_source").equals(reference.drop(columns="label_source"))


def test_every_problem_of_the_table_at_once_and_no_cell_quoted(tmp_path):
    patients, labels = cohort(50)
    labels += [{"path": "P1/0", "label": "ill"}, {"path": "", "label": "ill"}, {"path": "Meier", "label": "Huber"}]
    with pytest.raises(LabelsError) as error:
        make(tmp_path, patients, labels).run("split")
    message = str(error.value)
    assert "1 of 102 rows has a value in column label that is neither positive (ill) nor negative (well)" in message
    assert "1 row has nothing in column path" in message
    assert "1 image has contradicting labels" in message
    assert "Meier" not in message
    assert "Huber" not in message


def test_repeated_equal_rows_and_rows_without_image_are_counted(tmp_path):
    patients, labels = cohort(200)
    archive = make(tmp_path, patients, [*labels, labels[0], {"path": "gone", "label": "ill"}])
    log = RunLog("split", quiet=True)
    archive.run("split", log=log)
    assert archive.summary("split")["labels_without_images"] == 1
    assert any("1 label has no accepted image" in warning for warning in log.warnings)


def test_a_split_without_a_class_is_refused_with_its_numbers(tmp_path):
    patients, labels = cohort(40)
    only = [{**row, "label": "ill" if row["path"].startswith("P0/") else "well"} for row in labels]
    with pytest.raises(ValueError, match=r"has 0 positive and \d+ negative patients?\b.*every split needs both"):
        make(tmp_path, patients, only).run("split")


def test_too_few_positives_for_the_usual_certificate_is_a_warning(tmp_path):
    log = RunLog("split", quiet=True)
    make(tmp_path, *cohort(300)).run("split", log=log)
    said = re.search(
        r"has (\d+) positive patients, so that a recall of at most (0\.\d{3}) can .*; 0\.95 needs at least 59",
        "\n".join(log.warnings),
    )
    assert said
    # The lower bound for n of n found is the one that n draws would all reach with a chance of 5 %.
    assert float(said[2]) ** int(said[1]) == pytest.approx(0.05, abs=0.002)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first = make(tmp_path / "a", *cohort(200)).run("split").files("split")
    patients, labels = cohort(200)
    second = make(tmp_path / "b", dict(reversed(patients.items())), labels[::-1]).run("split").files("split")
    assert first == second


# ---------------------------------------------------------------- near-duplicates and given splits


def test_patients_with_near_duplicates_stay_together_or_stop_the_stage(tmp_path):
    patients, labels = cohort(300)
    archive = make(tmp_path, patients, labels, near=[("P10/0", "P20/0"), ("P20/1", "P30/0")]).run("split")
    table = archive.table("split", "split").set_index("patient_id")
    members = [patient_pseudonym(SECRET, name) for name in ("P10", "P20", "P30")]
    assert table.loc[members, "split"].nunique() == 1
    assert set(table.loc[members, "unit"]) == {min(members)}
    with pytest.raises(ValueError, match="3 patients share an image with another patient"):
        archive.run("split", shared_images="stop")


def test_what_found_no_partner_is_listed_with_the_reason(tmp_path):
    patients, labels = cohort(200)
    labels = [row for row in labels if not row["path"].startswith("P5/")]
    labels += [{"path": "cut", "label": "ill"}, {"path": "gone", "label": "ill"}]
    archive = make(tmp_path, patients, labels, lost=["cut"]).run("split")
    unmatched = archive.table("split", "unmatched")
    alone = unmatched[unmatched["what"] == "label without image"].set_index("pseudonym")["reason"].to_dict()
    assert alone == {path_pseudonym(SECRET, "cut"): "damaged_pixels", path_pseudonym(SECRET, "gone"): ""}
    images_alone = unmatched.loc[unmatched["what"] == "image without label", "pseudonym"]
    assert set(images_alone) == {pseudonym(SECRET, "image", f"uid-P5/{k}") for k in range(patients["P5"])}


def given(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give every fifth patient to the dataset's own test set and the next to its validation set."""
    parts = ["test", "val", "train", "train", "train"]
    return [{**row, "part": parts[int(row["path"].split("/")[0][1:]) % 5]} for row in rows]


GIVEN = {"train": ["train", "tune"], "val": ["calibration"], "test": ["test"]}


def test_a_split_of_the_dataset_itself_is_kept(tmp_path):
    patients, labels = cohort(400)
    card = make_card(path="path", split="part", splits=GIVEN)
    archive = make(tmp_path, patients, given(labels), card=card).run("split")
    table = archive.table("split", "split")
    for value, names in GIVEN.items():
        assert set(table.loc[table["given"] == value, "split"]) == set(names)
    shares = table[table["given"] == "train"].groupby("split")["patient_id"].nunique()
    assert shares["tune"] / shares.sum() == pytest.approx(0.1 / 0.6, abs=0.06)


@pytest.mark.parametrize("by", ["patient", "pixels", "near"])
def test_patients_in_two_splits_of_the_dataset_stop_the_stage_or_go_to_train(tmp_path, by):
    patients, labels = cohort(400)
    card = make_card(path="path", split="part", splits=GIVEN)
    rows = given(labels)
    shared, near = None, ()
    if by == "patient":  # P10, of the test set, has a second image in train
        rows = [{**row, "part": "train"} if row["path"] == "P10/1" else row for row in rows]
    elif by == "pixels":
        shared = {"P10/0": "x", "P12/0": "x"}
    else:
        near = [("P10/0", "P12/0")]
    archive = make(tmp_path, patients, rows, shared, card, near)
    with pytest.raises(ValueError, match=r"1 group of patients.*is in more than one split"):
        archive.run("split")
    table = archive.run("split", crossing="train").table("split", "split")
    assert set(table.loc[table["patient_id"] == patient_pseudonym(SECRET, "P10"), "split"]) == {"train"}


def test_values_of_the_split_column_that_nobody_explained_are_an_error(tmp_path):
    patients, labels = cohort(100)
    card = make_card(path="path", split="part", splits={"train": ["train"]})
    rows = [{**row, "part": "" if n == 0 else row["part"]} for n, row in enumerate(given(labels))]
    with pytest.raises(LabelsError) as error:
        make(tmp_path, patients, rows, card=card).run("split")
    assert "2 values of column part are not explained" in str(error.value)
    assert "1 labelled row has nothing in column part" in str(error.value)


def divided_as_external(archive: Archive) -> pd.DataFrame:
    inputs = replace(archive.inputs("split"), test_only=True)
    split(SplitSettings(), inputs, archive.work("split"), RunLog("split", quiet=True))
    return read_table(archive.work("split") / "split.parquet", SPLIT)


def test_of_an_external_set_labelled_patients_are_test_patients_and_others_are_left_out(tmp_path):
    patients = {"A": 2, "B": 1, "C": 1, "D": 1}
    labels = [{"path": "A/0", "label": "well"}, {"path": "B/0", "label": "well"}]
    rows = divided_as_external(make(tmp_path, patients, labels, pixels={"C/0": "B/0"}))
    assert set(rows["split"]) == {"test"}
    assert set(rows["patient_id"]) == {patient_pseudonym(SECRET, name) for name in "ABC"}
    assert rows["label"].notna().sum() == 2


def test_an_external_set_without_a_labelled_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of 1 accepted image has a label"):
        divided_as_external(make(tmp_path, {"A": 1}, [{"path": "Z/0", "label": "well"}]))


# ---------------------------------------------------------------- further labels


def with_further(**labels: dict) -> Card:
    """Return a card with further labels, each given as `column`, `positive` and `negative`."""
    words = {"definition": "d", "reference_standard": "r"}
    further = [FurtherLabel(id=name, name=name, **words, **content) for name, content in labels.items()]
    card = make_card(path="path", positive=["bacterial", "viral"], negative=["well"])
    return card.model_copy(update={"further_labels": further})


CLASSES = {
    "bacterial": {"positive": ["bacterial"], "negative": ["well", "viral"]},
    "viral": {"positive": ["viral"], "negative": ["well"]},
}


def classes(count: int = 300) -> tuple[dict[str, int], list[dict[str, str]]]:
    patients, labels = cohort(count)
    kinds = ("bacterial", "well", "viral", "well")
    return patients, [{**row, "label": kinds[int(row["path"][1:].split("/")[0]) % 4]} for row in labels]


def values(archive: Archive, label_id: str) -> dict[str, int]:
    """Return the labels that are known, by image."""
    table = archive.table("split", "further_labels")
    own = table[table["label_id"] == label_id].dropna()
    return dict(zip(own["image_id"], own["label"].astype(int), strict=True))


def image(path: str) -> str:
    return pseudonym(SECRET, "image", f"uid-{path}")


def test_classes_of_one_column_are_labels_of_their_own_and_move_nobody(tmp_path):
    patients, labels = classes()
    plain = make(tmp_path / "plain", patients, labels, card=with_further()).run("split")
    archive = make(tmp_path / "further", patients, labels, card=with_further(**CLASSES)).run("split")
    assert archive.files("split")["split.parquet"] == plain.files("split")["split.parquet"]
    assert set(archive.files("split")) - set(plain.files("split")) == {"further_labels.parquet"}
    truth = {image(row["path"]): row["label"] for row in labels}
    assert values(archive, "bacterial") == {i: int(kind == "bacterial") for i, kind in truth.items()}
    # A value in neither list is no answer: bacterial patients take no part in viral against well.
    assert values(archive, "viral") == {i: int(kind == "viral") for i, kind in truth.items() if kind != "bacterial"}
    counts = archive.summary("split")["further_labels"]["viral"]["test"]
    split = archive.table("split", "split").set_index("image_id")
    tested = {i: v for i, v in values(archive, "viral").items() if split.loc[i, "split"] == "test"}
    assert (counts["images"], counts["positive_images"]) == (len(tested), sum(tested.values()))


def test_a_further_label_without_the_main_one_is_not_used_and_said_to_be(tmp_path):
    patients, labels = classes()
    rows = [{**row, "sign": str(n % 2)} for n, row in enumerate(labels)]
    rows[0]["label"] = rows[5]["sign"] = ""
    log = RunLog("split", quiet=True)
    card = with_further(sign={"column": "sign", "positive": ["1"], "negative": ["0"]})
    archive = make(tmp_path, patients, rows, card=card).run("split", log)
    assert image(rows[0]["path"]) not in set(archive.table("split", "further_labels")["image_id"])
    assert image(rows[5]["path"]) not in values(archive, "sign")
    assert image(rows[1]["path"]) in values(archive, "sign")
    assert "further label sign: 1 image lacks the main label; it is not used" in log.warnings


def test_what_is_wrong_with_further_labels_is_said_at_once(tmp_path):
    patients, labels = classes()
    rows = [{**row, "sign": "2"} for row in labels]
    wrong = {
        "sign": {"column": "sign", "positive": ["1"], "negative": ["0"]},
        "other": {"column": "other", "positive": ["1"], "negative": ["0"]},
    }
    with pytest.raises(LabelsError, match=r"(?s)label sign: .*no row has a label.*label other: .*no column other"):
        make(tmp_path, patients, rows, card=with_further(**wrong)).run("split")


def test_a_further_label_that_a_split_lacks_a_class_of_is_refused_by_name(tmp_path):
    patients, labels = classes()
    rows = [{**row, "sign": str(int(row["path"] == "P7/0"))} for row in labels]
    card = with_further(sign={"column": "sign", "positive": ["1"], "negative": ["0"]})
    with pytest.raises(ValueError, match=r"further label sign: \w+ has 0 positive.*off the card's further_labels"):
        make(tmp_path, patients, rows, card=card).run("split")


def test_an_external_test_set_is_there_for_the_main_label(tmp_path):
    patients, labels = classes(40)
    archive = make(tmp_path, patients, labels, card=with_further(**CLASSES))
    archive.work("split").mkdir()
    inputs = replace(archive.inputs("split"), test_only=True)
    split(SplitSettings(), inputs, archive.work("split"), RunLog("split", quiet=True))
    assert "further_labels.parquet" not in archive.files("split")
