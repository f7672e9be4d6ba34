"""Fewer labelled patients: who they are, and that nobody else's presence or order decides it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.models.images import Images
from pipeline.models.labelled_patients import labelled_subsets, patient_order, same_steps
from pipeline.models.training import TrainingError
from pipeline.settings.training import FinetuneSettings


def images(positives: int = 30, negatives: int = 90, each: int = 2) -> Images:
    """Return images whose positive patients have one positive image, the last."""
    people = [f"p{i:03d}" for i in np.random.default_rng(0).permutation(positives + negatives)]
    rows = [(person, int(i < positives and k == each - 1)) for i, person in enumerate(people) for k in range(each)]
    index = pd.DataFrame(rows, columns=["patient_id", "label"]).astype({"label": "Int64"})
    names = [f"i{i:04d}" for i in range(len(index))]
    return Images(index.assign(image_id=names, shard="train-000.npy", row=range(len(index))), {})


def people(part: Images) -> set[str]:
    return set(part.index["patient_id"])


def test_subsets_have_the_number_asked_for_and_lie_within_each_other():
    subsets = labelled_subsets(images(), [60, 5, 17], seed=1)
    assert {count: len(people(part)) for count, part in subsets.items()} == {5: 5, 17: 17, 60: 60}
    assert list(subsets) == [5, 17, 60]
    assert people(subsets[5]) < people(subsets[17]) < people(subsets[60])


def test_a_chosen_patient_brings_all_images():
    whole = images()
    part = labelled_subsets(whole, [17], seed=1)[17]
    chosen = whole.index[whole.index["patient_id"].isin(people(part))]
    assert part.index["image_id"].tolist() == chosen["image_id"].tolist()


@pytest.mark.parametrize(("positives", "negatives"), [(30, 90), (90, 30), (7, 113), (60, 60), (1, 119)])
def test_every_beginning_has_the_share_of_all_to_within_one_patient(positives, negatives):
    positive = pd.Series([True] * positives + [False] * negatives, [f"p{i}" for i in range(positives + negatives)])
    order = patient_order(positive, seed=3)
    assert sorted(order) == sorted(positive.index)
    found = positive[order].cumsum().to_numpy()
    exact = np.arange(1, len(order) + 1) * positives / len(order)
    assert np.abs(found - exact).max() < 1


def test_the_order_depends_on_seed_and_pseudonyms_alone():
    positive = pd.Series([True, False] * 40, [f"p{i}" for i in range(80)])
    order = patient_order(positive, seed=1)
    assert patient_order(positive.sample(frac=1, random_state=0), seed=1) == order
    assert patient_order(positive, seed=2) != order
    positives = [patient for patient in order if positive[patient]]
    joined = patient_order(pd.concat([positive, pd.Series([True], ["new"])]), seed=1)
    assert [patient for patient in joined if patient in positives] == positives, "a new patient reorders nobody"


def test_numbers_that_cannot_be_had_are_refused_together_with_counts():
    with pytest.raises(TrainingError) as error:
        labelled_subsets(images(2, 98), [10, 60, 100, 200], seed=1)
    said = str(error.value)
    assert "10 would be 0 positive and 10 negative patients" in said
    assert "100 is not fewer than all 100" in said
    assert "200 is not fewer than all 100" in said
    assert "60" not in said
    assert "split train has 2 positive and 98 negative patients" in said


@pytest.mark.parametrize("count", [6, 35, 47, 70, 110])
def test_few_patients_get_as_many_steps_as_all(count):
    whole, settings = images(), FinetuneSettings(epochs=20, warmup_epochs=3.0)
    part = labelled_subsets(whole, [count], seed=1)[count]
    repeated, longer = same_steps(part, whole, settings)
    assert (repeated.index["image_id"].value_counts() == len(repeated) // len(part)).all()
    assert longer.epochs * len(repeated) == pytest.approx(20 * len(whole), rel=0.02)
    assert longer.warmup_epochs / longer.epochs == pytest.approx(3 / 20)
    assert longer.model_copy(update={"epochs": 20, "warmup_epochs": 3.0}) == settings


def test_the_curve_needs_the_pretrained_arm():
    with pytest.raises(ValueError, match="add mae to arms"):
        FinetuneSettings(arms=["hog"], labelled_patients=[10])
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        FinetuneSettings(labelled_patients=[1])
    with pytest.raises(ValueError, match="distinct"):
        FinetuneSettings(labelled_patients=[10, 10])
