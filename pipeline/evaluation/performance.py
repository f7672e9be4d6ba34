"""What a frozen model does on a group of patients: every number, each with its interval, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.statistics.arms import matched_decisions
from pipeline.statistics.calibration import displayed_probability
from pipeline.statistics.calibrators import Calibrator
from pipeline.statistics.discrimination import average_precision, roc_auc
from pipeline.statistics.gate import assess_discrimination, assess_other_target, compare_tables, signed
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.metrics import at_prevalence, confusion, operating_metrics
from pipeline.statistics.patients import Patients, one_per_unit, patients_of, scores_sha256
from pipeline.statistics.planner import chance_of_confirmation
from pipeline.statistics.reliability import calibration_summary, log_loss_change
from pipeline.statistics.sequential import watching
from pipeline.statistics.sweep import threshold_sweep
from pipeline.statistics.threshold import min_positives, recall_bounds, verify_threshold
from pipeline.store.results.finding import Finding
from pipeline.store.results.threshold import Target, Threshold
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings


# A rise of the log loss by this share is said even where chance could explain it.
NOTABLE = 0.05


@dataclass(frozen=True)
class Frozen:
    """What was chosen on the calibration patients: what was certified, and the calibrator."""

    certificate: Threshold
    calibrator: Calibrator

    @property
    def threshold(self) -> float | None:
        """The logit from which patients are referred; None when no threshold could be certified."""
        return self.certificate.threshold

    def shown(self, scores: Any) -> np.ndarray:
        """Return the probabilities that are displayed for logits."""
        return displayed_probability(self.calibrator, scores, self.certificate.local_prevalence)


def judge(
    settings: EvaluateSettings, patients: Patients, frozen: Frozen, first_images: Patients | None = None
) -> dict[str, Any]:
    """Return discrimination, operating points, their consequences at other prevalences, and calibration.

    `first_images` are the same patients with one image each, where some have several.
    """
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
    change = log_loss_change(patients.y, probabilities["before"], probabilities["after"], level, seed=seed)
    point = _operating_point(patients, frozen, frozen.certificate, level)
    if point is not None:
        point["first_image"] = _rates(first_images, point["threshold"], level)
    return {
        **prevalence(patients, level),
        "images": patients.images,
        "linked": patients.linked,
        "discrimination": {
            "auc": roc_auc(patients.y, patients.s, level).to_dict(),
            "average_precision": average_precision(patients.y, patients.s, level, seed=seed).to_dict(),
        },
        "operating_point": point,
        "other_operating_points": [
            {
                "recall_target": certified.recall_target,
                "operating_point": _operating_point(patients, frozen, certified, level),
            }
            for certified in frozen.certificate.other_operating_points
        ],
        "consequences": [row.to_dict() for row in rows],
        "headline_prevalence": settings.headline_prevalence,
        "calibration": {
            "bins": settings.calibration_bins,
            **measures,
            "log_loss_change": change.to_dict(),
        },
    }


def _rates(patients: Patients | None, threshold: float, level: float) -> dict[str, Any] | None:
    """Return recall and specificity; None without patients, or where a class is absent."""
    if patients is None:
        return None
    counts = confusion(patients.y, patients.s, threshold)
    if not (counts.positives and counts.negatives):
        return None
    both = {"recall": (counts.tp, counts.positives), "specificity": (counts.tn, counts.negatives)}
    return {name: proportion_ci(k, n, level).to_dict() for name, (k, n) in both.items()}


def prevalence(patients: Patients, level: float) -> dict[str, Any]:
    """Return how many patients there are, and how many of them have the condition."""
    n, positives = len(patients.y), int(patients.y.sum())
    return {"patients": n, "positives": positives, "prevalence": proportion_ci(positives, n, level).to_dict()}


def _operating_point(patients: Patients, frozen: Frozen, certified: Target, level: float) -> dict[str, Any] | None:
    """Return what the threshold of one target does on the patients; None when none was certified."""
    if certified.at is None:
        return None
    threshold = certified.at.threshold
    counts = confusion(patients.y, patients.s, threshold)
    target, confidence = certified.recall_target, certified.confidence
    verified = {"verification": None, "recall_lower_one_sided": None, "recall_upper_one_sided": None}
    if counts.positives:
        lower, upper = recall_bounds(counts.tp, counts.positives, confidence)
        verified = {
            "verification": verify_threshold(patients.y, patients.s, threshold, target, confidence),
            "recall_lower_one_sided": lower,
            "recall_upper_one_sided": upper,
        }
    needed = min_positives(target, confidence)
    chance = chance_of_confirmation(
        certified.positives, certified.at.misses_allowed, counts.positives, target, confidence
    )
    return {
        "threshold": threshold,
        "probability": float(frozen.shown([threshold])[0]),
        "probability_prevalence": frozen.certificate.probability_prevalence,
        "counts": counts.to_dict(),
        **{name: interval.to_dict() for name, interval in operating_metrics(counts, level).items()},
        **verified,
        "positives_to_confirm": needed,
        "can_confirm": counts.positives >= needed,
        "chance_of_confirmation": chance,
        "verification_in_words": verdict_in_words(
            verified["verification"], counts.positives, needed, chance, confidence
        ),
    }


def matched_arms(
    settings: EvaluateSettings, scores: pd.DataFrame, arms: Mapping[str, Patients], frozen: Frozen, units: pd.Series
) -> dict[str, dict[str, float]] | None:
    """Return what every arm decides at matched sensitivity; None without a certified threshold."""
    certificate = frozen.certificate
    if certificate.at is None:
        return None
    how, misses = certificate.aggregation, certificate.at.misses_allowed
    calibration = {name: one_per_unit(patients_of(scores, name, how), units) for name in arms}
    return matched_decisions(calibration, arms, certificate.arm, misses, settings.level, seed=settings.seed)


def to_watch(frozen: Frozen, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what it takes to notice that the model got worse; the band is the referral to expect, with its limits."""
    (row,) = (one for one in metrics["consequences"] if one["prevalence"] == metrics["headline_prevalence"])
    low, high = (row["referred"][end] / row["per"] for end in ("low", "high"))
    # Declared, and so rounded outwards to whole per cents.
    band = (math.floor(100 * low) / 100, math.ceil(100 * high) / 100) if low == low else None
    return watching(frozen.certificate.recall_target, band)


def verdict_in_words(verdict: Any, positives: int, needed: int, chance: float, confidence: float) -> str:
    """Return what the verdict of other patients on a certificate means, and no more than it does."""
    if verdict is None:
        return "Not checked: no patient has the condition."
    if verdict == "confirmed":
        return "The promise was confirmed on these patients."
    if verdict == "contradicted":
        fail = f"{100 * (1 - confidence):.3g}"
        return (
            f"These patients contradict the promise: either it is one of the {fail} in 100 that fail without any"
            " reason, or these patients differ from the calibration patients."
        )
    if positives < needed:
        return (
            f"These patients are too few to confirm the promise: {positives} have the condition, at least"
            f" {needed} are needed."
        )
    return (
        "Neither confirmed nor contradicted: a model that keeps its promise is confirmed by so many patients in"
        f" {round(100 * chance)} of 100 cases."
    )


# ---------------------------------------------------------------- findings


def table_findings(stored: pd.DataFrame, scores: pd.DataFrame, patients: Patients, frozen: Frozen) -> list[Finding]:
    """Compare a stored sweep with the one that the calibration scores of `patients` give now."""
    certificate = frozen.certificate
    again = threshold_sweep(
        patients.y,
        patients.s,
        stored["threshold"],
        confidence=certificate.confidence_used,
        band_missed_share=certificate.band_missed_share,
        **certificate.costs.to_dict(),
    ).assign(probability=frozen.shown(stored["threshold"]))
    findings = compare_tables(stored, again)
    if scores_sha256(scores, certificate.arm) != certificate.data_sha256:
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
    findings += _worse(metrics["calibration"], on)
    point = metrics["operating_point"]
    if point and point["verification"] == "contradicted":
        # No count: what was found at a threshold that may not be used is no result.
        target, confidence = frozen.certificate.recall_target, frozen.certificate.confidence
        who = counted(metrics["positives"], "patient")
        message = (
            f"the certificate is contradicted: recall on these {who} with the condition is, "
            f"with {100 * confidence:.4g} % confidence, below the target of {target:g}; either it is one of the"
            f" {100 * (1 - confidence):.3g} in 100 certificates that fail without any reason, or these patients differ"
            " from the calibration patients"
        )
        findings.append(Finding("recall_contradicted", "fail", on, message))
    return findings + [
        finding
        for other in metrics["other_operating_points"]
        for finding in _other_findings(settings, patients, other, on)
    ]


def _worse(calibration: Mapping[str, Any], on: str) -> list[Finding]:
    """Return `calibration_worse` when the calibrator raised the log loss; a warning where chance explains it not."""
    change = calibration["log_loss_change"]
    before, after = (calibration[when]["log_loss"]["value"] for when in ("before", "after"))
    shown = change["low"] > 0
    if not (shown or change["value"] > NOTABLE * before):
        return []
    limits = f"{signed(change['low'])} to {signed(change['high'])}"
    chance = "" if shown else ", which chance could explain"
    message = (
        f"calibration made the probabilities of these patients worse: log loss {before:.3f} before, {after:.3f} after"
        f" ({100 * change['level']:.4g} % interval of the change {limits}{chance})"
    )
    return [Finding("calibration_worse", "warn" if shown else "info", on, message)]


def _other_findings(settings: EvaluateSettings, patients: Patients, other: Mapping[str, Any], on: str) -> list[Finding]:
    point, target = other["operating_point"], other["recall_target"]
    if point is None:
        return []
    findings = assess_other_target(patients.y, patients.s, point["threshold"], target, on=on, level=settings.level)
    if point["verification"] == "contradicted":
        message = f"the recall certified at the further target of {100 * target:.6g} % did not hold on these patients"
        findings.append(Finding("other_recall_contradicted", "info", on, message))
    return findings
