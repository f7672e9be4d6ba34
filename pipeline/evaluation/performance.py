"""What a frozen model does on a group of patients: every number, each with its interval, and what to say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.statistics.calibration import displayed_probability
from pipeline.statistics.calibrators import Calibrator
from pipeline.statistics.discrimination import average_precision, roc_auc
from pipeline.statistics.gate import Finding, assess_discrimination, assess_other_target, compare_tables
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.metrics import at_prevalence, confusion, operating_metrics
from pipeline.statistics.patients import Patients, scores_sha256
from pipeline.statistics.reliability import calibration_summary
from pipeline.statistics.sweep import threshold_sweep
from pipeline.statistics.threshold import recall_bounds, verify_threshold
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.config import EvaluateSettings


@dataclass(frozen=True)
class Frozen:
    """What was chosen on the calibration patients: threshold.json as `certificate`, and the calibrator."""

    certificate: Mapping[str, Any]
    calibrator: Calibrator

    @property
    def threshold(self) -> float | None:
        """The logit from which patients are referred; None when no threshold could be certified."""
        return threshold_of(self.certificate)

    def shown(self, scores: Any) -> np.ndarray:
        """Return the probabilities that are displayed for logits."""
        return displayed_probability(self.calibrator, scores, self.certificate["local_prevalence"])


def threshold_of(certified: Mapping[str, Any]) -> float | None:
    """Return the threshold of one recall target, bit for bit; None when it could not be certified."""
    return float.fromhex(certified["threshold_hex"]) if certified["certified"] else None


def judge(settings: EvaluateSettings, patients: Patients, frozen: Frozen) -> dict[str, Any]:
    """Return discrimination, operating points, their consequences at other prevalences, and calibration."""
    level, seed, threshold = settings.level, settings.seed, frozen.threshold
    counts = None if threshold is None else confusion(patients.y, patients.s, threshold)
    prevalences = sorted({*settings.prevalences, settings.headline_prevalence})
    rows = [at_prevalence(counts, pi, level=level, seed=seed) for pi in prevalences] if counts else []
    probabilities = {"before": expit(patients.s), "after": frozen.calibrator.predict(patients.s)}
    measures = {
        when: {
            name: interval.to_dict()
            for name, interval in calibration_summary(
                patients.y, p, settings.calibration_bins, level, seed=seed
            ).items()
        }
        for when, p in probabilities.items()
    }
    return {
        **prevalence(patients, level),
        "images": patients.images,
        "discrimination": {
            "auc": roc_auc(patients.y, patients.s, level).to_dict(),
            "average_precision": average_precision(patients.y, patients.s, level, seed=seed).to_dict(),
        },
        "operating_point": _operating_point(patients, frozen, frozen.certificate, level),
        "other_operating_points": [
            {
                "recall_target": certified["recall_target"],
                "operating_point": _operating_point(patients, frozen, certified, level),
            }
            for certified in frozen.certificate["other_operating_points"]
        ],
        "consequences": [row.to_dict() for row in rows],
        "headline_prevalence": settings.headline_prevalence,
        "calibration": {"bins": settings.calibration_bins, **measures},
    }


def prevalence(patients: Patients, level: float) -> dict[str, Any]:
    """Return how many patients there are, and how many of them have the condition."""
    n, positives = len(patients.y), int(patients.y.sum())
    return {"patients": n, "positives": positives, "prevalence": proportion_ci(positives, n, level).to_dict()}


def _operating_point(
    patients: Patients, frozen: Frozen, certified: Mapping[str, Any], level: float
) -> dict[str, Any] | None:
    """Return what the threshold of one target does on the patients; None when none was certified."""
    threshold = threshold_of(certified)
    if threshold is None:
        return None
    counts = confusion(patients.y, patients.s, threshold)
    target, confidence = certified["recall_target"], certified["confidence"]
    verified = {"verification": None, "recall_lower_one_sided": None, "recall_upper_one_sided": None}
    if counts.positives:
        lower, upper = recall_bounds(counts.tp, counts.positives, confidence)
        verified = {
            "verification": verify_threshold(patients.y, patients.s, threshold, target, confidence),
            "recall_lower_one_sided": lower,
            "recall_upper_one_sided": upper,
        }
    return {
        "threshold": threshold,
        "probability": float(frozen.shown([threshold])[0]),
        "probability_prevalence": frozen.certificate["probability_prevalence"],
        "counts": counts.to_dict(),
        **{name: interval.to_dict() for name, interval in operating_metrics(counts, level).items()},
        **verified,
    }


# ---------------------------------------------------------------- findings


def table_findings(stored: pd.DataFrame, scores: pd.DataFrame, patients: Patients, frozen: Frozen) -> list[Finding]:
    """Compare a stored sweep with the one that the calibration scores of `patients` give now."""
    certificate = frozen.certificate
    again = threshold_sweep(
        patients.y,
        patients.s,
        stored["threshold"],
        confidence=certificate["confidence_used"],
        **certificate["costs"],
    ).assign(probability=frozen.shown(stored["threshold"]))
    findings = compare_tables(stored, again)
    if scores_sha256(scores, certificate["arm"]) != certificate["data_sha256"]:
        other = "the calibration scores are not those that the threshold was certified on (SHA-256 differs)"
        findings.append(Finding("table_inconsistent", "fail", "calibration", other))
    return findings


def findings_of(
    settings: EvaluateSettings, patients: Patients, frozen: Frozen, metrics: Mapping[str, Any], on: str = "test"
) -> list[Finding]:
    """Return what has to be said of the numbers that `judge` gave for these patients."""
    findings = assess_discrimination(
        patients.y,
        patients.s,
        frozen.calibrator.predict(patients.s),
        frozen.threshold,
        raw=expit(patients.s),
        on=on,
        level=settings.level,
    )
    point = metrics["operating_point"]
    if point and point["verification"] == "contradicted":
        # No count: what was found at a threshold that may not be used is no result.
        target, confidence = frozen.certificate["recall_target"], frozen.certificate["confidence"]
        who = counted(metrics["positives"], "patient")
        message = (
            f"the certificate is contradicted: recall on these {who} with the condition is, "
            f"with {100 * confidence:.4g} % confidence, below the target of {target:g}"
        )
        findings.append(Finding("recall_contradicted", "fail", on, message))
    return findings + [
        finding
        for other in metrics["other_operating_points"]
        for finding in _other_findings(settings, patients, other, on)
    ]


def _other_findings(settings: EvaluateSettings, patients: Patients, other: Mapping[str, Any], on: str) -> list[Finding]:
    point, target = other["operating_point"], other["recall_target"]
    if point is None:
        return []
    findings = assess_other_target(patients.y, patients.s, point["threshold"], target, on=on, level=settings.level)
    if point["verification"] == "contradicted":
        message = f"the recall certified at the further target of {100 * target:.6g} % did not hold on these patients"
        findings.append(Finding("other_recall_contradicted", "info", on, message))
    return findings
