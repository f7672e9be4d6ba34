"""The threshold to use after the test, and what is promised of it: from calibration patients alone, or pooled.

A certificate needs patients with the condition whom the model never saw. Once they have spoken their verdict on the
first threshold, the test patients are such patients, too. So a second threshold may be certified on both together, by
the same theorem, if that it would be was decided before the test set was read (`calibrate.deploy`, recorded in
threshold.json). More positives allow more misses relative to their number, and fewer people are referred for the same
promise. The verdict of the test patients stays one about the first threshold. As the threshold is made of patients with
the condition alone, specificity on all unseen patients without it is an honest estimate, its interval valid given the
threshold. Wilks 1941; Vovk 2012 (conditional validity); Park et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.intervals import Interval, proportion_ci, undefined
from pipeline.statistics.patients import Patients
from pipeline.statistics.threshold import (
    certifiable_recall,
    certify_threshold,
    min_positives,
    shared_confidence,
)
from pipeline.store.results.deployment import ToUse
from pipeline.store.results.threshold import Target

Rule = Literal["calibration", "pooled"]


def pooled(calibration: Patients, test: Patients) -> Patients:
    """Return both sets of patients as one. Raises ValueError when a patient is in both."""
    ids = np.concatenate([calibration.ids, test.ids])
    if len(np.unique(ids)) < len(ids):
        raise ValueError("calibration and test share patients: they cannot be pooled")
    return Patients(
        ids=ids,
        y=np.concatenate([calibration.y, test.y]),
        s=np.concatenate([calibration.s, test.s]),
        images=calibration.images + test.images,
        conflicts=calibration.conflicts + test.conflicts,
        seeds=calibration.seeds,
        linked=calibration.linked + test.linked,
    )


def deployment(
    rule: Rule,
    calibration: Patients,
    test: Patients,
    certified: Target,
    prevalence: float,
    level: float = 0.95,
) -> ToUse:
    """Return the certificate of the threshold to use: that of `certified`, or the pooled one.

    `specificity` is that on the negatives of both sets, whatever the rule. `referral` is what is expected of people of
    whom a share `prevalence` has the condition, with the limits of specificity; the share found is taken as its mean
    over calibrations, (n - k) / (n + 1) with k misses allowed of n. Raises NotEnoughData when no threshold can be
    certified.
    """
    everyone = pooled(calibration, test)
    on = everyone if rule == "pooled" else calibration
    own = certify_threshold(
        on.y,
        on.s,
        certified.recall_target,
        certified.confidence,
        patient_id=on.ids,
        n_models=certified.models_compared,
        n_labels=certified.labels_certified,
    )
    expected = (own.positives - own.misses_allowed) / (own.positives + 1)
    specificity = _specificity(everyone, own.threshold, level)
    # What calibration patients alone did is in threshold.json.
    return ToUse(
        threshold=own.threshold,
        recall_target=own.recall_target,
        confidence=own.confidence,
        confidence_used=own.confidence_used,
        models_compared=own.models_compared,
        labels_certified=own.labels_certified,
        positives=own.positives,
        negatives=int((everyone.y == 0).sum()),
        misses_allowed=own.misses_allowed,
        misses_seen=own.misses_seen,
        specificity=specificity,
        certified_recall=own.certified_recall,
        certifiable_recall=own.certifiable_recall,
        positives_needed=own.positives_needed,
        threshold_hex=float(own.threshold).hex(),
        expected_recall=expected,
        prevalence=prevalence,
        referral=_referral(expected, specificity, prevalence),
    )


def lowered(made: ToUse, threshold: float, calibration: Patients, test: Patients, level: float = 0.95) -> ToUse:
    """Return a deployment with a lower threshold, for the sake of subgroups: the same promise, more people referred."""
    specificity = _specificity(pooled(calibration, test), threshold, level)
    referral = _referral(made.expected_recall, specificity, made.prevalence)
    return replace(
        made,
        threshold=threshold,
        threshold_hex=float(threshold).hex(),
        specificity=specificity,
        negatives=specificity.n,
        referral=referral,
    )


def _specificity(everyone: Patients, threshold: float, level: float) -> Interval:
    negatives = everyone.s[everyone.y == 0]
    kept = int((negatives < threshold).sum())
    return proportion_ci(kept, len(negatives), level) if len(negatives) else undefined(level, "wilson")


def _referral(found: float, specificity: Interval, prevalence: float) -> Interval:
    def of(share: float) -> float:
        return prevalence * found + (1 - prevalence) * (1 - share)

    value, low, high = of(specificity.value), of(specificity.high), of(specificity.low)
    return Interval(value, low, high, specificity.level, specificity.method, specificity.n)


# ---------------------------------------------------------------- by subgroup


def certified_subgroups(
    patients: Patients,
    attributes: pd.DataFrame,
    named: Sequence[str],
    recall: float,
    confidence: float,
    shared: int,
    threshold: float | None,
) -> dict[str, Any]:
    """Return the certificates of all groups of the attributes `named`, all of which hold at once.

    `attributes` is that of `patient_attributes`; `shared` is over what else the confidence is shared out. `minimum` is
    the lowest threshold of a certified group, with which the promise of each of them holds; None without any.
    """
    groups = {name: attributes[name].loc[patients.ids].to_numpy(str) for name in named}
    total = sum(len(set(of)) for of in groups.values())
    rows = [
        {"attribute": name, **row}
        for name, of in groups.items()
        for row in certify_groups(patients.y, patients.s, of, recall, confidence, threshold, shared * total)
    ]
    thresholds = [row["threshold"] for row in rows if row["certified"]]
    return {
        "recall_target": recall,
        "confidence": confidence,
        "groups": rows,
        "minimum": min(thresholds, default=None),
    }


def certify_groups(
    y: np.ndarray,
    s: np.ndarray,
    groups: np.ndarray,
    recall: float,
    confidence: float,
    threshold: float | None,
    shared: int,
) -> list[dict[str, Any]]:
    """Return the certificate of each group, at a confidence shared out over `shared` promises (Bonferroni).

    y, s, groups: (n,), one row per patient. A promise over everyone is one over nobody in particular: where a fifth are
    harder by half a standard deviation, it holds for them in 72 of 100 calibrations with 111 positives, and in 24 with
    300. A group with too few positives gets `certified` false, the positives needed, and `certifiable_recall`: what can
    be promised of it at `threshold`, the one of everybody (None: at its own lowest score).
    """
    used = shared_confidence(confidence, shared)
    nothing = dict.fromkeys(("threshold", "threshold_hex", "misses_allowed", "certified_recall"))
    rows = []
    for group in sorted(set(groups.tolist())):
        own = groups == group
        positives = s[own][y[own] == 1]
        misses = 0 if threshold is None else int((positives < threshold).sum())
        row = {
            "group": group,
            "patients": int(own.sum()),
            "positives": len(positives),
            "positives_needed": min_positives(recall, used),
            "misses": misses,
            "certifiable_recall": certifiable_recall(len(positives), misses, used) if len(positives) else 0.0,
        }
        try:
            with collect_warnings():  # a group may have no patient without the condition
                made = certify_threshold(y[own], s[own], recall, confidence, n_models=shared).to_dict()
            rows.append({**row, "certified": True, **{name: made[name] for name in nothing}})
        except NotEnoughData:
            rows.append({**row, "certified": False, **nothing})
    return rows
