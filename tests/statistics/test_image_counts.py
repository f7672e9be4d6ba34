"""Numbers of images per patient, and what they do to a certificate on the highest score."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from pipeline.statistics.image_counts import assess_image_numbers, first_images, images_per_patient


def counts(numbers, label=1):
    return pd.DataFrame({"images": numbers, "label": label})


def test_calibrated_on_several_images_the_promise_fails_for_one_and_a_finding_says_so():
    generator, kept, said, runs = np.random.default_rng(1), {"same": 0, "one": 0}, {"same": 0, "one": 0}, 150
    for _ in range(runs):

        def highest(images):
            own = np.sqrt(0.6) * generator.normal(size=len(images))
            rest = np.sqrt(0.4) * generator.normal(size=(len(images), images.max()))
            rest[np.arange(images.max()) >= images[:, None]] = -np.inf
            return own + rest.max(axis=1)

        numbers = 1 + generator.poisson(1, 111)
        threshold = np.sort(highest(numbers))[1]
        others = {"same": 1 + generator.poisson(1, 116), "one": np.ones(116, int)}
        kept["one"] += norm.sf(threshold) >= 0.95
        kept["same"] += (highest(1 + generator.poisson(1, 4000)) >= threshold).mean() >= 0.95
        for name, theirs in others.items():
            said[name] += bool(assess_image_numbers(counts(numbers), {"test patients": counts(theirs)}, "test"))
    assert kept["same"] / runs > 0.93
    assert kept["one"] / runs < 0.9
    assert said["one"] == runs
    assert said["same"] / runs <= 0.05


def test_the_finding_names_who_differs_and_by_how_much():
    calibration = counts([2] * 60)
    others = {"those without it": counts([1] * 40, 0), "test patients": counts([2] * 40)}
    (finding,) = assess_image_numbers(calibration, others, "calibration")
    assert (finding.code, finding.level) == ("image_numbers_differ", "warn")
    assert "have 2.00 images each, those without it 1.00; a patient's highest score" in finding.message
    assert assess_image_numbers(counts([1, 2, 3] * 20), {"few": counts([1] * 3)}, "test") == []
    assert assess_image_numbers(calibration, {"nobody": counts([])}, "test") == []


@pytest.fixture
def scores():
    return pd.DataFrame(
        {
            "image_id": ["a2", "a1", "b1", "a2", "a1", "b1"],
            "patient_id": ["a", "a", "b"] * 2,
            "arm": "mae",
            "seed": [1, 1, 1, 2, 2, 2],
            "logit": [4.0, 1.0, -1.0, 6.0, 3.0, -3.0],
            "label": [1, 0, 0] * 2,
        }
    )


def test_images_are_counted_once_whatever_the_number_of_seeds(scores):
    found = images_per_patient(scores, "mae")
    assert found["images"].to_dict() == {"a": 2, "b": 1}
    assert found["label"].to_dict() == {"a": 1, "b": 0}


def test_the_first_image_has_the_label_of_its_patient(scores):
    first = first_images(scores, "mae")
    assert first.ids.tolist() == ["a", "b"]
    assert first.s.tolist() == [2.0, -2.0]
    assert first.y.tolist() == [1, 0]
    assert first_images(scores[scores["image_id"] != "a2"], "mae") is None
