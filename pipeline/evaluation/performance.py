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
from pipeline.store.results.metrics import Calibration, Discrimination, GroupMetrics, MakeUp, Reliability
from pipeline.store.results.operating_point import AtTarget, FirstImage, OperatingPoint, OtherPoint, Verdict, Watching
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
) -> GroupMetrics:
    """Return discrimination, operating points, their consequences at other prevalences, and calibration.

    `first_images` are the same patients with one image each, where some have several.
    """
    level, seed, threshold = settings.level, settings.seed, frozen.threshold
    counts = None if threshold is None else confusion(patients.y, patients.s, threshold)
    prevalences = sorted({*settings.prevalences, settings.headline_prevalence})
    rows = [at_prevalence(counts, pi, level=level, seed=seed) for pi in prevalences] if counts else []
    probabilities = {"before": expit(patients.s), "after": frozen.calibrator.predict(patients.s)}
    measures = {
        when: Reliability(**calibration_summary(patients.y, p, settings.calibration_bins, level, seed=seed))
        for when, p in probabilities.items()
    }
    change = log_loss_change(patients.y, probabilities["before"], probabilities["after"], level, seed=seed)
    point = _at_target(patients, frozen, frozen.certificate, level)
    first = None if point is None else _rates(first_images, point.threshold, level)
    return GroupMetrics(
        **vars(make_up(patients, level)),
        images=patients.images,
        linked=patients.linked,
        discrimination=Discrimination(
            roc_auc(patients.y, patients.s, level), average_precision(patients.y, patients.s, level, seed=seed)
        ),
        operating_point=None if point is None else OperatingPoint(**vars(point), first_image=first),
        other_operating_points=tuple(
            OtherPoint(certified.recall_target, _at_target(patients, frozen, certified, level))
            for certified in frozen.certificate.other_operating_points
        ),
        consequences=tuple(rows),
        headline_prevalence=settings.headline_prevalence,
        calibration=Calibration(settings.calibration_bins, **measures, log_loss_change=change),
    )


def _rates(patients: Patients | None, threshold: float, level: float) -> FirstImage | None:
    """Return recall and specificity; None without patients, or where a class is absent."""
    if patients is None:
        return None
    counts = confusion(patients.y, patients.s, threshold)
    if not (counts.positives and counts.negatives):
        return None
    both = (counts.tp, counts.positives), (counts.tn, counts.negatives)
    return FirstImage(*(proportion_ci(k, n, level) for k, n in both))


def make_up(patients: Patients, level: float) -> MakeUp:
    """Return how many patients there are, and how many of them have the condition."""
    n, positives = len(patients.y), int(patients.y.sum())
    return MakeUp(n, positives, proportion_ci(positives, n, level))


def _at_target(patients: Patients, frozen: Frozen, certified: Target, level: float) -> AtTarget | None:
    """Return what the threshold of one target does on the patients; None when none was certified."""
    if certified.at is None:
        return None
    threshold = certified.at.threshold
    counts = confusion(patients.y, patients.s, threshold)
    target, confidence = certified.recall_target, certified.confidence
    verification = lower = upper = None
    if counts.positives:
        lower, upper = recall_bounds(counts.tp, counts.positives, confidence)
        verification = verify_threshold(patients.y, patients.s, threshold, target, confidence)
    needed = min_positives(target, confidence)
    chance = chance_of_confirmation(
        certified.positives, certified.at.misses_allowed, counts.positives, target, confidence
    )
    return AtTarget(
        threshold=threshold,
        probability=float(frozen.shown([threshold])[0]),
        probability_prevalence=frozen.certificate.probability_prevalence,
        counts=counts,
        **operating_metrics(counts, level),
        verification=verification,
        recall_lower_one_sided=lower,
        recall_upper_one_sided=upper,
        positives_to_confirm=needed,
        can_confirm=counts.positives >= needed,
        chance_of_confirmation=chance,
        verification_in_words=verdict_in_words(verification, counts.positives, needed, chance, confidence),
    )


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


def to_watch(frozen: Frozen, metrics: GroupMetrics) -> Watching:
    """Return what it takes to notice that the model got worse; the band is the referral to expect, with its limits."""
    row = metrics.headline
    low, high = row.referred.low / row.per, row.referred.high / row.per
    # Declared, and so rounded outwards to whole per cents.
    band = (math.floor(100 * low) / 100, math.ceil(100 * high) / 100) if low == low else None
    return watching(frozen.certificate.recall_target, band)


def verdict_in_words(verdict: Verdict | None, positives: int, needed: int, chance: float, confidence: float) -> str:
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
    settings: EvaluateSettings, patients: Patients, frozen: Frozen, metrics: GroupMetrics, on: str = "test"
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
    findings += _worse(metrics.calibration, on)
    point = metrics.operating_point
    if point and point.verification == "contradicted":
        # No count: what was found at a threshold that may not be used is no result.
        target, confidence = frozen.certificate.recall_target, frozen.certificate.confidence
        who = counted(metrics.positives, "patient")
        message = (
            f"the certificate is contradicted: recall on these {who} with the condition is, "
            f"with {100 * confidence:.4g} % confidence, below the target of {target:g}; either it is one of the"
            f" {100 * (1 - confidence):.3g} in 100 certificates that fail without any reason, or these patients differ"
            " from the calibration patients"
        )
        findings.append(Finding("recall_contradicted", "fail", on, message))
    return findings + [
        finding
        for other in metrics.other_operating_points
        for finding in _other_findings(settings, patients, other, on)
    ]


def _worse(calibration: Calibration, on: str) -> list[Finding]:
    """Return `calibration_worse` when the calibrator raised the log loss; a warning where chance explains it not."""
    change = calibration.log_loss_change
    before, after = (when.log_loss.value for when in (calibration.before, calibration.after))
    shown = change.low > 0
    if not (shown or change.value > NOTABLE * before):
        return []
    limits = f"{signed(change.low)} to {signed(change.high)}"
    chance = "" if shown else ", which chance could explain"
    message = (
        f"calibration made the probabilities of these patients worse: log loss {before:.3f} before, {after:.3f} after"
        f" ({100 * change.level:.4g} % interval of the change {limits}{chance})"
    )
    return [Finding("calibration_worse", "warn" if shown else "info", on, message)]


def _other_findings(settings: EvaluateSettings, patients: Patients, other: OtherPoint, on: str) -> list[Finding]:
    point, target = other.operating_point, other.recall_target
    if point is None:
        return []
    findings = assess_other_target(patients.y, patients.s, point.threshold, target, on=on, level=settings.level)
    if point.verification == "contradicted":
        message = f"the recall certified at the further target of {100 * target:.6g} % did not hold on these patients"
        findings.append(Finding("other_recall_contradicted", "info", on, message))
    return findings
