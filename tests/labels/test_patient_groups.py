"""What linked patients do to the sizes of splits is told apart from chance."""

import pandas as pd

from pipeline.labels.patient_groups import missed_shares, shares_of

FRACTIONS = {"train": 0.5, "tune": 0.1, "calibration": 0.2, "test": 0.2}
SHARES = {"": shares_of(tuple(FRACTIONS), FRACTIONS)}


def labelled(largest: int, **counts: int) -> pd.DataFrame:
    """Return so many patients in each split, `largest` of those in train linked to each other."""
    splits = [name for name, count in counts.items() for _ in range(count)]
    patients = [f"P{n:03d}" for n in range(len(splits))]
    units = ["P000" if n < largest else patient for n, patient in enumerate(patients)]
    return pd.DataFrame({"patient_id": patients, "unit": units, "split": splits, "given": ""})


def test_a_split_that_stays_empty_beside_a_large_group_is_told_of():
    said = missed_shares(labelled(40, train=46, calibration=20, test=14), SHARES)
    assert said.startswith("tune has 0 of 80 labelled patients instead of about 8")
    assert "40 of them are one group" in said


def test_what_chance_does_is_not():
    assert missed_shares(labelled(2, train=36, tune=5, calibration=20, test=19), SHARES) == ""
    assert missed_shares(labelled(2, train=9, calibration=5, test=6), SHARES) == ""  # 12 of 100 such sets have no tune


def test_without_links_nothing_is_said():
    assert missed_shares(labelled(1, train=80), SHARES) == ""


def test_a_split_that_takes_all_that_the_dataset_gives_it_misses_nothing():
    patients = labelled(30, train=80)
    assert missed_shares(patients, {"": {"train": 1.0}}) == ""
