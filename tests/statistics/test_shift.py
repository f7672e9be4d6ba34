"""Whether other patients are like the calibration patients."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.patients import Patients
from pipeline.statistics.shift import (
    Promise,
    among_several,
    assess_image_counts,
    assess_shift,
    group_shift,
    holm,
    population_stability,
    score_shift,
    sites_beyond_chance,
    tail_test,
    unseen_patients,
)
from pipeline.statistics.threshold import verify_threshold

PROMISE = Promise(threshold=-1.0, target=0.9, confidence=0.95)


def images(patients_per_site, images_per_patient=None):
    rows = [
        (site, f"{site}-{i}")
        for site, count in patients_per_site.items()
        for i in range(count)
        for _ in range((images_per_patient or {}).get(site, 1))
    ]
    return pd.DataFrame(rows, columns=["site", "patient_id"])


def patients(generator, n, prevalence=0.5, lower=0.0):
    """Return patients with binormal scores two apart, those of positives `lower`."""
    y = (np.arange(n) < round(n * prevalence)).astype(int)
    s = generator.normal(size=n) + np.where(y == 1, 1 - lower, -1)
    return Patients(np.array([f"p{i}" for i in range(n)]), y, s, n, 0, (1,))


def shift_of(calibration, members, **choices):
    return group_shift("test", calibration, members, expit(2 * members.s), PROMISE, **choices)


def test_distance_of_two_score_sets_worked_by_hand():
    assert score_shift([1, 2, 3, 4], [3, 4, 5, 6]).statistic == pytest.approx(0.5)


def test_stability_index_worked_by_hand():
    # Two bins cut after the second of four: 2 and 2 patients there, 1 and 3 here, half a patient more in each.
    found = population_stability([1, 2, 3, 4], [1, 3, 4, 5], bins=2)
    assert found.index == pytest.approx((0.3 - 0.5) * np.log(0.3 / 0.5) + (0.7 - 0.5) * np.log(0.7 / 0.5))
    assert found.by_chance == pytest.approx(3.8415 * (1 / 4 + 1 / 4), abs=1e-4)


def test_chance_keeps_the_index_below_its_limit_in_95_of_100_groups():
    generator = np.random.default_rng(1)
    found = [population_stability(generator.normal(size=300), generator.normal(size=200)) for _ in range(600)]
    assert 0.93 <= np.mean([one.index < one.by_chance for one in found]) <= 0.97
    assert np.mean([population_stability(np.arange(100), generator.uniform(0, 100, 30)).index > 0.1
                    for _ in range(100)]) > 0.9, "the usual limit would call most small groups shifted"  # fmt: skip


def test_equal_scores_share_a_bin():
    found = population_stability([0.0] * 90 + [1.0] * 10, [0.0] * 9 + [1.0])
    assert found.bins == 2
    assert found.index == pytest.approx(0, abs=0.02)


def test_another_prevalence_alone_leaves_the_certificate_alone():
    generator = np.random.default_rng(2)
    calibration, rare = patients(generator, 800), patients(generator, 800, prevalence=0.1)
    shift = shift_of(calibration, rare)
    assert shift.score_ks.p < 1e-9
    assert shift.stability.index > shift.stability.by_chance
    assert shift.covered
    (finding,) = assess_shift(shift, "external set b")
    assert (finding.code, finding.level, finding.on) == ("calibration_drift", "info", "external set b")
    assert "probabilities are too high" in finding.message


def test_positives_with_other_scores_are_not_covered():
    generator = np.random.default_rng(3)
    calibration, like, harder = (patients(generator, 600, lower=lower) for lower in (0, 0, 1.5))
    assert shift_of(calibration, like).covered
    shift = shift_of(calibration, harder)
    assert (shift.covered, shift.verification) == (False, "contradicted")
    (finding,) = [f for f in assess_shift(shift, "test") if f.code == "shift"]
    assert "patients with the condition have other scores" in finding.message
    assert "without" not in finding.message


def test_parts_that_are_not_covered_are_named():
    generator = np.random.default_rng(4)
    calibration = patients(generator, 600)
    whole, strange = (
        shift_of(calibration, patients(generator, 600)),
        shift_of(calibration, patients(generator, 9), unseen=4),
    )
    (finding,) = [f for f in assess_shift(whole, "test", [whole, strange]) if f.code == "shift"]
    assert "1 of 2 groups: test" in finding.message


def test_a_site_that_calibration_never_saw_is_not_covered():
    seen, tested = images({"s1": 5, "": 2}), images({"s1": 4, "s2": 3, "s3": 2, "": 1})
    assert unseen_patients(seen, tested) == {"s2-0", "s2-1", "s2-2", "s3-0", "s3-1"}
    assert unseen_patients(seen, tested, elsewhere=True) == unseen_patients(seen, tested) | {"-0"}
    generator = np.random.default_rng(5)
    shift = shift_of(patients(generator, 300), patients(generator, 300), unseen=5)
    assert not shift.covered
    assert "5 of 300 patients come from sites that no calibration patient" in assess_shift(shift, "test")[0].message


def test_few_patients_and_one_label_give_no_calibration_line_and_no_failure():
    generator = np.random.default_rng(6)
    calibration = patients(generator, 300)
    few, healthy = shift_of(calibration, patients(generator, 12)), shift_of(calibration, patients(generator, 50, 0))
    assert np.isnan([few.slope.value, few.in_the_large.value, healthy.slope.value]).all()
    assert (healthy.recall, healthy.verification, healthy.positives) == (None, None, 0)


def test_sites_with_more_images_per_patient_are_said():
    assert assess_image_counts(images({"s1": 5, "s2": 5}, {"s1": 2, "s2": 3})) == []
    (finding,) = assess_image_counts(images({"s1": 5, "s2": 5}, {"s1": 2, "s2": 4}))
    assert finding.code == "image_counts_differ"
    assert assess_image_counts(images({"s1": 5}, {"s1": 9})) == []


def zipf_sites(generator, sites, n):
    share = 1 / np.arange(1, sites + 1)
    return generator.choice(sites, n, p=share / share.sum()).astype(str)


def at_sites(sites, name):
    return pd.DataFrame({"site": sites, "patient_id": [f"{name}{i}" for i in range(len(sites))]})


def test_many_small_sites_are_covered_when_patients_were_divided_at_random():
    """Called not covered, every random division of an archive with 30 sites was in 91 of 100 runs."""
    generator, said, unseen, runs = np.random.default_rng(15), 0, 0, 150
    for _ in range(runs):
        calibration, tested = (at_sites(zipf_sites(generator, 30, n), c) for n, c in ((165, "c"), (182, "t")))
        unseen += bool(unseen_patients(calibration, tested))
        said += bool(sites_beyond_chance(calibration, tested))
    assert unseen / runs > 0.8
    assert said / runs <= 0.01
    # A site that was kept out of calibration is no chance.
    calibration, tested = at_sites(["a"] * 165, "c"), at_sites(["a"] * 150 + ["b"] * 32, "t")
    assert sites_beyond_chance(calibration, tested) == {"b"}


def test_unseen_patients_who_are_not_strange_leave_the_certificate_alone():
    generator = np.random.default_rng(5)
    shift = shift_of(patients(generator, 300), patients(generator, 300), unseen=5, strange=0)
    assert shift.covered
    assert shift.unseen == 5


def test_the_tail_test_keeps_its_level_and_sees_what_kolmogorov_smirnov_does_not():
    """A tenth of positives is hard to find. Exact law of misses, so that the level holds whatever the scores."""
    generator, runs = np.random.default_rng(16), 300
    found = {"same": 0, "hard": 0, "hard by KS": 0}
    for _ in range(runs):
        calibration = np.sort(generator.normal(size=200))
        promise = Promise(calibration[4], 0.95, 0.95, 200, 4)
        same = generator.normal(size=200)
        hard = np.where(np.arange(200) < 20, same - 3, same)
        for name, other in (("same", same), ("hard", hard)):
            found[name] += tail_test(int((other < calibration[4]).sum()), 200, promise).p < 0.001
        found["hard by KS"] += score_shift(calibration, hard).p < 0.001
    assert found["same"] <= 3
    assert found["hard"] / runs > 0.4
    assert found["hard by KS"] / runs < 0.1


def test_what_could_have_been_seen_is_said():
    few, many = (tail_test(2, m, Promise(0.0, 0.95, 0.95, 111, 1)) for m in (40, 400))
    assert list(few.noticed) == ["0.9", "0.85", "0.8"]
    assert few.noticed["0.9"] < few.noticed["0.85"] < few.noticed["0.8"]
    assert few.noticed["0.9"] < 0.4
    assert many.noticed["0.9"] > 0.95
    assert few.expected == pytest.approx(40 * 2 / 112)
    assert tail_test(2, 40, PROMISE) is None
    generator = np.random.default_rng(1)
    calibration, members = patients(generator, 300), patients(generator, 300, lower=2.5)
    shift = group_shift(
        "test", calibration, members, expit(members.s), replace(PROMISE, positives=150, misses_allowed=9)
    )
    assert any(text.startswith("more patients with the condition are missed than when") for text in shift.differences)
    # In JSON, what was found at the threshold goes with the threshold.
    assert not {"tail", "verification_alone"} & set(shift.compared.to_dict())
    assert shift.tail is not None
    assert shift.tail.misses > shift.tail.expected


def test_twenty_sites_that_differ_in_nothing_are_contradicted_as_rarely_as_one():
    """Each by itself, one of twenty is contradicted in about 12 of 100 runs."""
    generator, runs, alone, together = np.random.default_rng(17), 150, 0, 0
    promise = Promise(0.0, 0.95, 0.95, 500, 16)
    template = shift_of(patients(generator, 60), patients(generator, 60, 1.0))
    for _ in range(runs):
        missed = generator.binomial(60, generator.beta(17, 484), 20)
        sites = [
            replace(
                template,
                positives=60,
                recall=proportion_ci(60 - int(k), 60),
                verification=verify_threshold(np.ones(60, int), np.r_[np.zeros(k), np.ones(60 - k)], 0.5, 0.95, 0.95),
            )
            for k in missed
        ]
        alone += any(site.verification == "contradicted" for site in sites)
        together += any(site.verification == "contradicted" for site in among_several(sites, promise))
    assert alone / runs > 0.06
    assert together / runs <= 0.05


def test_holms_rule_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05).tolist() == [True, False, False, True]
    assert holm([0.2], 0.05).tolist() == [False]
