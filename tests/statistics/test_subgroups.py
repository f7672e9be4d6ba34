"""Subgroups: who is in them, what is shown, what is not."""

import math

import numpy as np
import pandas as pd
import pytest

from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.subgroups import ATTRIBUTES, age_band, patient_attributes, subgroup_table


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0, "0–4"),
        (4.99, "0–4"),
        (5, "5–17"),
        (17.5, "5–17"),
        (18, "18–39"),
        (64, "40–64"),
        (65, "65–89"),
        (89, "65–89"),
        (90, "90+"),
        (math.nan, "unknown"),
        (pd.NA, "unknown"),  # a column in which no image states an age
    ],
)
def test_age_bands(age, band):
    assert age_band(age) == band


def test_a_patients_attributes_come_from_all_their_images():
    images = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "b"],
            "sex": ["F", "", "", ""],
            "age_years": [40.0, 39.0, np.nan, np.nan],
            "view": ["PA", "LL", "AP", "AP"],
            "manufacturer": ["GE", "GE", "", ""],
            "site": ["s1", "s1", "s2", "s2"],
        }
    )
    table = patient_attributes(images)
    assert table.loc["a"].tolist() == ["F", "18–39", "several", "GE", "s1"]
    assert table.loc["b"].tolist() == ["unknown", "unknown", "AP", "unknown", "s2"]
    assert tuple(table.columns) == ATTRIBUTES


@pytest.fixture
def patients():
    generator = np.random.default_rng(4)
    label = np.repeat([1, 0], [60, 140])
    frame = pd.DataFrame({"label": label, "score": generator.normal(size=200) + 2 * label})
    frame["sex"] = np.where(np.arange(200) % 2, "F", "M")
    frame["site"] = np.where(np.arange(200) < 8, "small", "large")
    return frame


def test_numbers_of_a_group_are_those_of_its_patients(patients):
    women = patients[patients["sex"] == "F"]
    row = subgroup_table(patients, ["sex"], 0.5).set_index("group").loc["F"]
    found = int((women[women["label"] == 1]["score"] >= 0.5).sum())
    recall, auc = proportion_ci(found, 30), roc_auc(women["label"], women["score"])
    assert (row["patients"], row["positives"], row["referred"]) == (100, 30, (women["score"] >= 0.5).sum())
    assert (row["recall"], row["recall_low"], row["recall_high"]) == (recall.value, recall.low, recall.high)
    assert (row["auc"], row["auc_low"]) == (auc.value, auc.low)
    assert row["note"] == ""


def test_groups_of_an_attribute_add_up(patients):
    table = subgroup_table(patients, ["sex", "site"], 0.5)
    assert (table.groupby("attribute")[["patients", "positives"]].sum() == [200, 60]).all(axis=None)


def test_few_positives_give_counts_only_and_say_so(patients):
    row = subgroup_table(patients, ["site"], 0.5).set_index("group").loc["small"]
    assert row["positives"] == 8
    assert row["note"] == "fewer than 10 patients with the condition: counts only"
    assert row[["recall", "specificity", "auc"]].isna().all()
    assert subgroup_table(patients, ["site"], 0.5, min_pos=5)["recall"].notna().all()


def test_without_a_threshold_the_auc_remains(patients):
    table = subgroup_table(patients, ["sex"], None)
    assert table["referred"].isna().all()
    assert table["recall"].isna().all()
    assert table["auc"].notna().all()


def test_groups_without_an_interval_say_why(patients):
    alone = patients[patients["label"] == 1]
    assert subgroup_table(alone, ["sex"], 0.5)["note"].tolist() == ["no patient without the condition"] * 2
    perfect = patients.assign(score=patients["label"].astype(float) + patients.index / 1e6)
    assert "exactly 0 or 1" in subgroup_table(perfect, ["sex"], 0.5)["note"][0]
