"""Planted discs: every number as counted by hand, and the certificate on the score of the most suspicious place."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation.planted import planted

from pipeline.evaluation.localisation import Masks, judge_masks
from pipeline.statistics.threshold import certify_threshold
from pipeline.store.tables.io import write_table
from pipeline.store.tables.masks import NOT_ANNOTATED
from pipeline.store.tables.segmentation import FROC, SEGMENTATION_COMPARISON, SEGMENTATION_PATIENTS

ABOVE = 0.3


def masks_of(some, predicted=None, marks=None, patients=None, spacing=(0.5, 0.5)):
    names = [f"i{at:04d}" for at in range(len(some.masks))]
    index = pd.DataFrame(
        {
            "image_id": names,
            "patient_id": patients or [f"p{at:04d}" for at in range(len(names))],
            "label": pd.array([int(bool(own)) for own in some.discs], "Int64"),
            "shard": "test-0.npy",
            "row": range(len(names)),
        }
    )
    predicted = {"mae": some.predicted(ABOVE)} if predicted is None else predicted
    return Masks(
        index=index,
        spacing_mm=dict.fromkeys(names, spacing),
        structures={1: "disc"},
        reference={"test-0.npy": some.masks},
        predicted={arm: {"test-0.npy": own} for arm, own in predicted.items()},
        marks=some.marks(ABOVE) if marks is None else marks,
    )


def judged(masks, reported="mae", tolerance=1.0):
    return judge_masks(masks, reported, tolerance, 0.95, 17)


@pytest.fixture(scope="module")
def some():
    return planted(40, 25, seed=3)


@pytest.fixture(scope="module")
def result(some):
    return judged(masks_of(some))


def by_hand(some, marks, threshold):
    """Count lesions found and false marks from the discs that were planted, without any mask."""
    found, false = 0, 0
    rows = list(zip(marks["image_id"], marks["score"], marks["y"], marks["x"], strict=True))
    for at, discs in enumerate(some.discs):
        places = [(y, x) for image, score, y, x in rows if image == f"i{at:04d}" and score >= threshold]
        found += sum(any(math.hypot(y - a, x - b) <= r for y, x in places) for a, b, r in discs)
        false += sum(all(math.hypot(y - a, x - b) > r for a, b, r in discs) for y, x in places)
    return found, false


def test_froc_of_planted_discs_is_as_counted_by_hand(some, result):
    marks, lesions = some.marks(ABOVE), sum(map(len, some.discs))
    numbers = result.summary["arms"]["mae"]["disc"]
    assert (numbers["lesions"], numbers["patients_with_lesions"]) == (lesions, 40)
    counts = {t: by_hand(some, marks, t) for t in sorted(set(marks["score"]), reverse=True)}
    assert (numbers["lesions_found"], numbers["false_marks"]) == counts[min(counts)]
    assert 0 < numbers["lesions_found"] < lesions
    assert numbers["false_marks"] > 0
    for row in result.froc.to_dict("records"):
        allowed = [found for found, false in counts.values() if false / len(some.masks) <= row["false_marks_per_image"]]
        assert row["sensitivity"] == pytest.approx(max(allowed, default=0) / lesions)
        assert row["low"] <= row["sensitivity"] <= row["high"]
    for point in numbers["froc"]:
        assert point["rate"] in set(result.froc["false_marks_per_image"])


def test_masks_that_are_right_and_masks_that_are_empty(some):
    perfect = judged(masks_of(some, {"mae": some.masks}, some.marks(2.0)))
    numbers = perfect.summary["arms"]["mae"]["disc"]
    assert numbers["cases"] == {"found": 40, "missed": 0, "invented": 0, "both_empty": 25}
    for name in ("dice", "nsd"):
        assert (numbers[name]["value"], numbers[name]["n"]) == (1, 40), "both empty is in no mean"
    assert numbers["lesions_found"] == 0
    nothing = judged(masks_of(some, {"mae": np.zeros_like(some.masks)}, some.marks(2.0)))
    numbers = nothing.summary["arms"]["mae"]["disc"]
    assert numbers["cases"] == {"found": 0, "missed": 40, "invented": 0, "both_empty": 25}
    assert (numbers["dice"]["value"], numbers["nsd"]["value"]) == (0, 0)
    assert numbers["relative_size_error"]["value"] == 1
    sizes = some.masks.sum(axis=(1, 2))[:40] * 0.25 / 100
    assert numbers["size_error"]["value"] == pytest.approx(-sizes.mean())
    assert numbers["sensitivity"]["high"] == pytest.approx(1 - 0.025 ** (1 / 40))
    inverted = judged(masks_of(some, {"mae": 1 - some.masks}, some.marks(2.0)))
    assert inverted.summary["arms"]["mae"]["disc"]["cases"] == {
        "found": 0, "missed": 40, "invented": 25, "both_empty": 0
    }  # fmt: skip


def test_a_wider_tolerance_forgives_more(some, result):
    wide = judged(masks_of(some), tolerance=2.0)
    near, far = (one.summary["arms"]["mae"]["disc"]["nsd"]["value"] for one in (result, wide))
    assert near < far < 1


def test_images_of_a_patient_count_together(some):
    # The first image is right, the second empty: one patient with a mean of one half.
    two = replace(some, masks=some.masks[:2], maps=some.maps[:2], discs=some.discs[:2])
    predicted = two.masks.copy()
    predicted[1] = 0
    one = judged(masks_of(two, {"mae": predicted}, some.marks(2.0), ["p", "p"]))
    numbers = one.summary["arms"]["mae"]["disc"]
    assert (numbers["dice"]["value"], numbers["dice"]["n"], numbers["cases"]["missed"]) == (0.5, 1, 1)
    assert math.isnan(numbers["dice"]["low"])
    (row,) = one.patients.to_dict("records")
    assert (row["images"], row["found"], row["missed"], row["lesions"]) == (2, 1, 1, sum(map(len, two.discs)))


def test_what_nobody_annotated_is_left_out_and_counted(some):
    hidden = replace(some, masks=some.masks.copy())
    hidden.masks[40:45] = NOT_ANNOTATED
    hidden.masks[45:, :32] = NOT_ANNOTATED
    marks = some.marks(ABOVE)
    one = judged(masks_of(hidden))
    assert (one.summary["images"], one.summary["images_not_annotated"]) == (60, 5)
    numbers = one.summary["arms"]["mae"]["disc"]
    unknown = marks[(marks["image_id"] >= "i0045") & (marks["y"] < 32)]
    assert numbers["marks_not_annotated"] == len(unknown) > 0
    assert judged(masks_of(replace(some, masks=np.full_like(some.masks, NOT_ANNOTATED)))) is None


def test_label_and_mask_that_contradict_each_other_are_counted(some):
    masks = masks_of(some)
    masks.index.loc[0, "label"] = 0
    masks.index.loc[50, "label"] = 1
    masks.index.loc[51, "label"] = 1
    masks.index.loc[52, "label"] = pd.NA
    assert judged(masks).summary["label"] == {
        "positive": 41, "negative": 23, "positive_with_empty_mask": 2, "negative_with_a_mask": 1
    }  # fmt: skip


def test_arms_are_compared_on_the_same_patients(some):
    predicted = {"mae": some.masks, "scratch": some.predicted(ABOVE)}
    marks = pd.concat([some.marks(ABOVE, "scratch"), perfect_marks(some)], ignore_index=True)
    one = judged(masks_of(some, predicted, marks))
    table = one.comparison.set_index("measure")
    assert set(table["arm"]) == {"scratch"}
    dice = one.patients[one.patients["lesions"] > 0].pivot(index="patient_id", columns="arm", values="dice")
    assert len(dice) == 40
    assert table.loc["dice", "difference"] == pytest.approx((dice["mae"] - dice["scratch"]).mean())
    assert table.loc["dice", "low"] > 0
    assert table.loc["sensitivity", "difference"] > 0
    assert (table["patients"] == 40).all()
    # An arm that draws no masks has none to compare.
    assert judged(masks_of(some, predicted, marks), "hog").comparison.empty
    assert judged(masks_of(some, predicted, marks), "hog").summary["arm"] is None


def perfect_marks(some):
    rows = [
        ("mae", f"i{at:04d}", 1, n, 0.9, 0, y, x, 1)
        for at, discs in enumerate(some.discs)
        for n, (y, x, _) in enumerate(discs)
    ]
    return pd.DataFrame(rows, columns=some.marks(2.0).columns)


def test_tables_are_as_they_are_declared(some, result, tmp_path):
    write_table(tmp_path / "a", result.patients, SEGMENTATION_PATIENTS)
    write_table(tmp_path / "b", result.froc, FROC)
    write_table(tmp_path / "c", result.comparison, SEGMENTATION_COMPARISON)
    assert len(result.patients) == 65


def test_volumes_have_millilitres_and_peaks_in_three_axes():
    reference = np.zeros((1, 6, 8, 8), np.uint8)
    reference[0, 1:3, 2:5, 2:5] = 1
    reference[0, 4, 6, 6] = 2
    marks = pd.DataFrame(
        [("mae", "v", 1, 1, 0.9, 2, 3, 3, 18), ("mae", "v", 2, 1, 0.8, 2, 3, 3, 1)],
        columns=["arm", "image_id", "structure", "mark", "score", "z", "y", "x", "voxels"],
    )
    index = pd.DataFrame({"image_id": ["v"], "patient_id": ["p"], "label": [1], "shard": ["t"], "row": [0]})
    predicted = reference.copy()
    predicted[0, 1, 2, 2] = 0
    masks = Masks(
        index, {"v": (3.0, 0.5, 1.0)}, {1: "head", 2: "tail"}, {"t": reference}, {"mae": {"t": predicted}}, marks
    )
    one = judged(masks)
    head, tail = (one.summary["arms"]["mae"][name] for name in ("head", "tail"))
    assert one.summary["size_unit"] == "ml"
    assert head["size_error"]["value"] == pytest.approx(-0.0015)
    assert head["relative_size_error"]["value"] == pytest.approx(1 / 18)
    assert (head["lesions_found"], head["false_marks"]) == (1, 0)
    assert (tail["lesions_found"], tail["false_marks"]) == (0, 1), "a mark of one structure finds no other"


def test_the_certificate_on_the_most_suspicious_place_holds():
    # The population is the pool itself, so that the recall of a threshold is known exactly.
    pool = planted(600, 100, seed=11)
    positives, negatives = pool.scores[:600], pool.scores[600:]
    generator = np.random.default_rng(23)
    held = {0.9: 0, 0.95: 0}
    for _ in range(500):
        scores = np.concatenate([generator.choice(positives, 120), generator.choice(negatives, 60)])
        labels = np.repeat([1, 0], [120, 60])
        for recall in held:
            threshold = certify_threshold(labels, scores, recall).threshold
            held[recall] += (positives >= threshold).mean() >= recall
    assert min(held.values()) >= 0.945 * 500, held
