"""Other patients are held to the recall target at the confidence of the certificate, and not the other way about."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.external_validation import Reference
from pipeline.evaluation.performance import Frozen, findings_of, judge
from pipeline.settings.decision import EvaluateSettings
from pipeline.statistics.calibrators import SCHEMA, calibrator_from_dict
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.patients import Patients
from pipeline.store.results.threshold import AtThreshold, Costs, Threshold

CALIBRATOR = {"schema": SCHEMA, "method": "logistic", "n": 400, "n_positive": 200, "prevalence": 0.5, "slope": 1.0,
              "intercept": 0.0}  # fmt: skip


def some(found: int, missed: int, negatives: int = 200) -> Patients:
    """Return patients with the condition above and below a threshold of 0, and others below it."""
    y = np.repeat([1, 1, 0], [found, missed, negatives])
    s = np.repeat([1.0, -1.0, -2.0], [found, missed, negatives]) + np.linspace(0, 0.5, len(y))
    return Patients(ids=np.array([f"p{i}" for i in range(len(y))]), y=y, s=s, seeds=(1,), images=len(y), conflicts=0)


def frozen(target: float, confidence: float) -> Frozen:
    share = proportion_ci(195, 200)
    certificate = Threshold(
        certified=True, at=AtThreshold(0.0, 0.5, 0.95, 5, 5, share, share, share), recall_target=target,
        confidence=confidence, confidence_used=confidence, models_compared=1, labels_certified=1, positives=200,
        negatives=200, certifiable_recall=0.98, positives_needed=59, message="", advice="", other_operating_points=(),
        local_prevalence=None, probability_prevalence=0.5, costs=Costs(0.0, 1.0), deploy="calibration",
        subgroup_threshold="report", subgroup_attributes=(), band_missed_share=0.1, joint_confidence=None,
        planning=None, linked_patients=0, arm="mae", seeds=(1,), aggregation="max", model_sha256={},
        data_sha256="", warnings=(),
    )  # fmt: skip
    return Frozen(certificate, calibrator_from_dict(CALIBRATOR))


# 184 of 200 found. With 95 % confidence their recall is at most 0.949 and at least 0.881; with 90 % at most 0.944.
@pytest.mark.parametrize(
    ("target", "confidence", "verdict"),
    [
        (0.9, 0.95, "not_confirmed"),
        (0.95, 0.9, "contradicted"),
        (0.85, 0.99, "confirmed"),
        (0.99, 0.85, "contradicted"),
    ],
)
def test_target_and_confidence_are_not_confused(target, confidence, verdict):
    settings, patients = EvaluateSettings(), some(184, 16)
    reference = Reference(settings, frozen(target, confidence), some(195, 5), pd.DataFrame(), pd.DataFrame())
    assert reference.shift("external set b", patients, set()).verification == verdict
    metrics = judge(settings, patients, reference.frozen)
    assert metrics.operating_point is not None
    assert metrics.operating_point.verification == verdict
    messages = [one.message for one in findings_of(settings, patients, reference.frozen, metrics) if
                one.code == "recall_contradicted"]  # fmt: skip
    wanted = f"with {100 * confidence:g} % confidence, below the target of {target:g}"
    assert [wanted in message for message in messages] == ([True] if verdict == "contradicted" else [])
