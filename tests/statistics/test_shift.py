"""Whether test patients are like the calibration patients."""

import numpy as np
import pandas as pd
import pytest

from pipeline.statistics.shift import assess_image_counts, assess_shift, score_shift


def images(patients_per_site, images_per_patient=None):
    rows = [
        (site, f"{site}-{i}")
        for site, count in patients_per_site.items()
        for i in range(count)
        for _ in range((images_per_patient or {}).get(site, 1))
    ]
    return pd.DataFrame(rows, columns=["site", "patient_id"])


def test_distance_of_two_score_sets_worked_by_hand():
    assert score_shift([1, 2, 3, 4], [3, 4, 5, 6]).statistic == pytest.approx(0.5)


def test_other_scores_are_a_warning_and_like_scores_are_not():
    generator = np.random.default_rng(0)
    same, other = generator.normal(size=300), generator.normal(1, size=300)
    sites = images({"s1": 3})
    assert assess_shift(score_shift(same, generator.normal(size=300)), sites, sites) == []
    (finding,) = assess_shift(score_shift(same, other), sites, sites)
    assert (finding.code, finding.level) == ("shift", "warn")


def test_a_site_that_calibration_never_saw_is_not_covered():
    shift = score_shift([1, 2], [1, 2])
    (finding,) = assess_shift(shift, images({"s1": 5}), images({"s1": 4, "s2": 3, "s3": 2}))
    assert finding.code == "shift"
    assert "5 patients come from 2 sites" in finding.message
    assert "s2" not in finding.message


def test_sites_with_more_images_per_patient_are_said():
    assert assess_image_counts(images({"s1": 5, "s2": 5}, {"s1": 2, "s2": 3})) == []
    (finding,) = assess_image_counts(images({"s1": 5, "s2": 5}, {"s1": 2, "s2": 4}))
    assert finding.code == "image_counts_differ"
    assert assess_image_counts(images({"s1": 5}, {"s1": 9})) == []
