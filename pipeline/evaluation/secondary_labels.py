"""Further labels, each judged on the test patients that have it, with its own calibrator and threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.evaluation.performance import Frozen, findings_of, judge, table_findings
from pipeline.statistics.macro import macro_averages
from pipeline.statistics.patients import Patients, one_per_unit, patients_of
from pipeline.store.results.finding import Finding, that_fail
from pipeline.store.results.metrics import FurtherMetrics, Macro

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings


@dataclass(frozen=True)
class FurtherLabel:
    """What came of a further label on the test patients that have it; `frozen` stands on the `calibration` patients."""

    frozen: Frozen
    calibration: Patients
    test: Patients
    metrics: FurtherMetrics
    findings: list[Finding]


def judge_further_label(
    settings: EvaluateSettings,
    frozen: Frozen,
    scores: Mapping[str, pd.DataFrame],
    sweep: pd.DataFrame,
    of_calibration: list[Finding],
    units: pd.Series,
) -> FurtherLabel:
    """Judge one further label; its `problems` are what would close the gate, were it the main label.

    `scores` are those of this label on calibration and test images, `sweep` and `of_calibration` what calibrate found,
    `units` the unit of each patient.
    """
    arm, how = frozen.certificate.arm, frozen.certificate.aggregation
    calibration, test = (one_per_unit(patients_of(scores[name], arm, how), units) for name in ("calibration", "test"))
    metrics = judge(settings, test, frozen)
    findings = [
        *of_calibration,
        *table_findings(sweep, scores["calibration"], calibration, frozen),
        *findings_of(settings, test, frozen, metrics),
    ]
    with_problems = FurtherMetrics(**vars(metrics), problems=tuple(that_fail(findings)))
    return FurtherLabel(frozen, calibration, test, with_problems, findings)


def macro_metrics(
    settings: EvaluateSettings, test: Patients, threshold: float | None, further: Mapping[str, FurtherLabel]
) -> Macro | None:
    """Return the means over the main label and all further ones; None when there are none."""
    if not further:
        return None
    thresholds = [threshold, *(one.frozen.threshold for one in further.values())]
    patients = [test, *(one.test for one in further.values())]
    return macro_averages(patients, thresholds, settings.level, seed=settings.seed)
