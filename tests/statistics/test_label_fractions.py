"""The label-fraction table in words: no more is claimed than the intervals show."""

import pandas as pd
import pytest

from pipeline.statistics.intervals import Interval
from pipeline.statistics.label_fractions import label_fraction_intervals, label_fraction_sentence

NAN = float("nan")
HELPED, WORSE = (0.03, 0.01, 0.05, 0.0004), (-0.03, -0.05, -0.01, 0.0037)
UNCLEAR, UNKNOWN = (0.01, -0.02, 0.04, 0.48), (0.01, NAN, NAN, NAN)


def table(differences, arm="scratch"):
    rows = [
        {"labelled_patients": count, "arm": arm, "patients": 160, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}
        | dict(zip(("difference", "difference_low", "difference_high", "p"), values, strict=True))
        for count, values in differences.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ({100: HELPED}, "Pretraining helped with 100 labelled patients (+0.030, +0.010 to +0.050, p < 0.001). In"),
        (
            {100: WORSE},
            "Training from scratch was better with 100 labelled patients (-0.030, -0.050 to -0.010, p = 0.004).",
        ),
        ({100: UNCLEAR}, "No difference was shown with 100 labelled patients (+0.010, -0.020 to +0.040, p = 0.480)."),
        ({100: UNKNOWN}, "No interval exists, so that nothing is shown, with 100 labelled patients (+0.010)."),
        ({100: (0.0, 0.0, 0.0, 1.0)}, "No difference was shown with 100 labelled patients (+0.000"),
    ],
)
def test_each_verdict(differences, words):
    assert label_fraction_sentence(table(differences)).startswith(words)


def test_numbers_of_patients_are_put_together_by_verdict():
    said = label_fraction_sentence(table({2600: UNCLEAR, 300: HELPED, 100: HELPED, 1000: UNCLEAR}))
    assert said.index("helped with 100 labelled") < said.index(") and 300 (") < said.index("shown with 1,000 labelled")
    assert "and 2,600 (" in said
    assert "on the same 160 test patients, with 95 % interval and p, each by itself." in said


def test_without_a_network_from_scratch_nothing_is_claimed():
    assert "was not measured" in label_fraction_sentence(table({100: HELPED}, arm="hog"))


def test_numbers_for_the_tracker_have_their_limits():
    found = label_fraction_intervals(table({100: HELPED}), 0.95)
    assert set(found) == {"auc_scratch_with_100_labelled", "auc_mae_minus_scratch_with_100_labelled"}
    difference = Interval(0.03, 0.01, 0.05, 0.95, "delong_paired", 160)
    assert found["auc_mae_minus_scratch_with_100_labelled"] == difference
