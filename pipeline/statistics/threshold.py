"""The recall certificate: a threshold that finds at least the target share of patients, with stated confidence.

Refer when s >= t. With t the k-th smallest of n independent positive scores, the share of future positives
below t is Beta(k, n-k+1) for a continuous score, and stochastically smaller with ties, whatever the
distribution. Hence P(recall >= T) >= P(Bin(n, 1-T) >= k): allow k-1 misses, the most for which Bin(n, 1-T) <=
k-1 has probability at most 1 - confidence. This is the one-sided tolerance limit of Wilks (1941), and the
Clopper-Pearson lower bound.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import beta, binom

from pipeline.statistics.errors import NotEnoughData, warn
from pipeline.statistics.intervals import Interval, proportion_ci, undefined
from pipeline.statistics.metrics import confusion
from pipeline.statistics.patients import validate
from pipeline.store.results.operating_point import Verdict


@dataclass(frozen=True)
class Certificate:
    """A certified threshold, and what it did on the patients that certified it.

    `confidence_used` is the confidence that each certificate had to reach so that `confidence` holds whichever of
    `models_compared` was chosen, and for all of `labels_certified` at once. `certified_recall` is the lower bound for
    the misses allowed, at that confidence.
    """

    threshold: float
    recall_target: float
    confidence: float
    confidence_used: float
    models_compared: int
    labels_certified: int
    positives: int
    negatives: int
    misses_allowed: int
    misses_seen: int
    recall: Interval
    specificity: Interval
    referral_rate: Interval
    certified_recall: float
    certifiable_recall: float
    positives_needed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, the threshold also as an exact hexadecimal float."""
        return asdict(self) | {"threshold_hex": float(self.threshold).hex()}


def _check_shares(**shares: float) -> None:
    wrong = [f"{name} {value:g}" for name, value in shares.items() if not 0 < value < 1]
    if wrong:
        raise ValueError(f"must lie strictly between 0 and 1: {', '.join(wrong)}")


def shared_confidence(confidence: float, n_models: int, n_labels: int = 1) -> float:
    """Return the confidence of each certificate when `n_models` were compared on the same patients (Bonferroni).

    With `n_labels` certified on them, all certificates hold at once with `confidence`.
    """
    if n_models < 1:
        raise ValueError(f"at least one model was compared, not {n_models}")
    if n_labels < 1:
        raise ValueError(f"at least one label is certified, not {n_labels}")
    return 1 - (1 - confidence) / (n_models * n_labels)


def max_misses(n_pos: int, recall: float = 0.95, confidence: float = 0.95) -> int | None:
    """Return how many of `n_pos` positives may be missed so that `recall` is certified; None when not even 0."""
    _check_shares(recall=recall, confidence=confidence)
    misses = np.arange(n_pos)
    allowed = int((binom.cdf(misses, n_pos, 1 - recall) <= 1 - confidence).sum())
    return allowed - 1 if allowed else None


def min_positives(recall: float, confidence: float, misses: int = 0) -> int:
    """Return the fewest positives with which `recall` is certified although `misses` are missed."""
    _check_shares(recall=recall, confidence=confidence)
    low, high = misses, misses + 1
    while binom.cdf(misses, high, 1 - recall) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if binom.cdf(misses, middle, 1 - recall) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def certifiable_recall(n_pos: int, misses: int, confidence: float) -> float:
    """Return the recall certified when `misses` of `n_pos` positives are missed: the Clopper-Pearson lower bound."""
    _check_shares(confidence=confidence)
    if not 0 <= misses <= n_pos or n_pos == 0:
        raise ValueError(f"needs 0 <= misses <= positives and a positive, not {misses} and {n_pos}")
    return 0.0 if misses == n_pos else float(beta.ppf(1 - confidence, n_pos - misses, misses + 1))


def certify_threshold(
    y: Any,
    s: Any,
    recall: float = 0.95,
    confidence: float = 0.95,
    *,
    patient_id: Any = None,
    n_models: int = 1,
    n_labels: int = 1,
    weight: Any = None,
    on_fail: Literal["raise", "refer_all"] = "raise",
) -> Certificate:
    """Certify the highest threshold whose recall is at least `recall`, with confidence as `shared_confidence` has it.

    y, s, patient_id: (n,), one row per patient. Raises NotEnoughData when there are too few positives (with
    `on_fail="refer_all"` and at least one positive, the threshold is -inf instead, with the warning
    `refers_everyone`), and ValueError with weights (no exact guarantee exists) or with several rows per patient.
    Warns `single_class` when there are no negatives, and `refers_everyone` when no score lies below the threshold.
    """
    if weight is not None:
        raise ValueError("a weighted sample has no exact guarantee: certify without weights")
    clean = validate(y, s, patient_id)
    if clean.patient_id is not None and (extra := len(clean.y) - len(np.unique(clean.patient_id))):
        raise ValueError(f"{extra} rows repeat a patient: aggregate the images of each patient first")
    positives = np.sort(clean.s[clean.y == 1])
    n = len(positives)
    used = shared_confidence(confidence, n_models, n_labels)
    allowed, needed = max_misses(n, recall, used), min_positives(recall, used)
    if n == 0:
        raise NotEnoughData(
            "there is no patient with the condition: no recall can be certified",
            positives=0,
            needed=needed,
            certifiable_recall=0.0,
        )
    best = certifiable_recall(n, 0, used)
    if allowed is None and on_fail == "raise":
        raise NotEnoughData(
            f"{n} positives: {recall:.4g} recall cannot be certified; at most {best:.3f}; {needed} needed",
            positives=n,
            needed=needed,
            certifiable_recall=best,
        )
    threshold = -math.inf if allowed is None else float(positives[allowed])
    c = confusion(clean.y, clean.s, threshold)
    if c.tn + c.fn == 0:
        warn("refers_everyone", "the threshold refers every patient")
    if c.negatives == 0:
        warn("single_class", "there is no patient without the condition: specificity is undefined")
    return Certificate(
        threshold=threshold,
        recall_target=recall,
        confidence=confidence,
        confidence_used=used,
        models_compared=n_models,
        labels_certified=n_labels,
        positives=n,
        negatives=c.negatives,
        misses_allowed=allowed or 0,
        misses_seen=c.fn,
        recall=proportion_ci(c.tp, n),
        specificity=proportion_ci(c.tn, c.negatives) if c.negatives else undefined(0.95, "wilson"),
        referral_rate=proportion_ci(c.tp + c.fp, c.n),
        # A threshold that refers everyone misses no one, on any sample.
        certified_recall=1.0 if allowed is None else certifiable_recall(n, allowed, used),
        certifiable_recall=best,
        positives_needed=needed,
    )


def recall_bounds(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the one-sided Clopper-Pearson lower and upper bounds of k/n, each at `confidence`."""
    return certifiable_recall(n, n - k, confidence), 1 - certifiable_recall(n, k, confidence)


def verify_threshold(y: Any, s: Any, t: float, recall: float, confidence: float) -> Verdict:
    """Judge a certified recall on other patients, by one-sided Clopper-Pearson bounds at `confidence`.

    `confirmed`: the lower bound reaches `recall`; `contradicted`: the upper bound is below it; otherwise
    `not_confirmed`, the usual result on a test set no larger than the calibration set. Raises ValueError
    without positives.
    """
    c = confusion(y, s, t)
    if c.positives == 0:
        raise ValueError("there is no patient with the condition: recall cannot be verified")
    lower, upper = recall_bounds(c.tp, c.positives, confidence)
    if lower >= recall:
        return "confirmed"
    return "contradicted" if upper < recall else "not_confirmed"
