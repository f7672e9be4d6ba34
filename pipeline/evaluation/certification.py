"""One recall target on the calibration patients: its certificate, or why there is none, in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.statistics.band import joint_confidence
from pipeline.statistics.calibration import displayed_probability
from pipeline.statistics.calibrators import Calibrator
from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.patients import Patients
from pipeline.statistics.planner import chance_of_confirmation, confirming_positives
from pipeline.statistics.threshold import Certificate, certify_threshold, shared_confidence
from pipeline.store.results.threshold import AtThreshold, Target
from pipeline.store.wording import agreeing, counted

if TYPE_CHECKING:
    from pipeline.settings.decision import CalibrateSettings


ADVICE = "to certify something, lower calibrate.recall_targets or add patients"


def certify(
    settings: CalibrateSettings, patients: Patients, calibrator: Calibrator, target: float, labels: int
) -> Target:
    """Certify one target of one label at the same confidence, whatever the number of targets.

    The operating point is the first target, fixed before any patient was seen. Sharing the confidence out over the
    others would weaken its promise for the sake of rows that stand beside it. So each certificate holds by itself,
    and not all of them at once; the report says so.
    """
    try:
        made = certify_threshold(
            patients.y,
            patients.s,
            target,
            settings.confidence,
            patient_id=patients.ids,
            n_models=settings.models_compared,
            n_labels=labels,
        )
    except NotEnoughData as error:
        return _refused(settings, patients, target, error, labels)
    return Target(
        certified=True,
        at=AtThreshold(
            threshold=made.threshold,
            probability=float(displayed_probability(calibrator, [made.threshold], settings.local_prevalence)[0]),
            certified_recall=made.certified_recall,
            misses_allowed=made.misses_allowed,
            misses_seen=made.misses_seen,
            recall=made.recall,
            specificity=made.specificity,
            referral_rate=made.referral_rate,
        ),
        recall_target=made.recall_target,
        confidence=made.confidence,
        confidence_used=made.confidence_used,
        models_compared=made.models_compared,
        labels_certified=made.labels_certified,
        positives=made.positives,
        negatives=made.negatives,
        certifiable_recall=made.certifiable_recall,
        positives_needed=made.positives_needed,
        message=_promise(made),
        advice="",
    )


def _refused(
    settings: CalibrateSettings, patients: Patients, target: float, error: NotEnoughData, labels: int
) -> Target:
    """Return the target without what a threshold would be needed for."""
    return Target(
        certified=False,
        at=None,
        recall_target=target,
        confidence=settings.confidence,
        confidence_used=shared_confidence(settings.confidence, settings.models_compared, labels),
        models_compared=settings.models_compared,
        labels_certified=labels,
        positives=error.positives,
        negatives=len(patients.y) - error.positives,
        certifiable_recall=error.certifiable_recall,
        positives_needed=error.needed,
        message=_refusal(settings, target, error, labels),
        advice=ADVICE,
    )


def _refusal(settings: CalibrateSettings, target: float, error: NotEnoughData, labels: int) -> str:
    shared, over = "", _shared_over(settings.models_compared, labels)
    if over:
        used = shared_confidence(settings.confidence, settings.models_compared, labels)
        shared = f" ({100 * used:.4g} % for each of the {over})"
    there = f"there {agreeing(error.positives, 'is', 'are')} {error.positives}"
    return (
        f"recall {target:g} with {100 * settings.confidence:g} % confidence{shared} needs at least"
        f" {error.needed} positive patients in the calibration split; {there}"
        f" (at most {error.certifiable_recall:.3f} can be certified)."
    )


def _shared_over(models: int, labels: int) -> str:
    """Return in words what the confidence is shared out over; nothing when it is not."""
    parts = [f"{models} models compared"] * (models > 1) + [f"{labels} labels certified"] * (labels > 1)
    return " and the ".join(parts)


def _promise(c: Certificate) -> str:
    over = _shared_over(c.models_compared, c.labels_certified)
    shared = f", shared out over {over}," if over else ""
    return (
        f"with {100 * c.confidence:g} % confidence{shared} at least {c.recall_target:.1%} of patients with the"
        f" condition who are like the {counted(c.positives, 'positive calibration patient')} are referred:"
        f" {c.misses_seen} of these {agreeing(c.misses_seen, 'was', 'were')} missed, {c.misses_allowed}"
        f" {agreeing(c.misses_allowed, 'was', 'were')} allowed"
    )


def joint(targets: Sequence[Target]) -> float | None:
    """Return how surely all certified targets hold at once, by the exact joint law; None without any."""
    made = [(one.at.misses_allowed, one.recall_target) for one in targets if one.at]
    if not made:
        return None
    misses, recalls = zip(*made, strict=True)
    return joint_confidence(targets[0].positives, misses, recalls)


def planning(target: Target) -> dict[str, float | int | None] | None:
    """Return how likely other patients are to confirm the first target, and how many it takes; None without it."""
    if target.at is None:
        return None
    asked = target.positives, target.at.misses_allowed
    needed = {
        f"test_positives_for_{chance:g}": confirming_positives(chance, *asked, target.recall_target, target.confidence)
        for chance in (0.8, 0.9)
    }
    equal = chance_of_confirmation(*asked, target.positives, target.recall_target, target.confidence)
    return {"chance_with_as_many_test_positives": equal, **needed}
