"""Whether other patients are like the calibration patients, and whom the certificate therefore does not cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2, ks_2samp

from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.gate import Finding
from pipeline.statistics.intervals import Interval, proportion_ci, undefined
from pipeline.statistics.metrics import confusion
from pipeline.statistics.patients import Patients
from pipeline.statistics.reliability import calibration_line
from pipeline.statistics.threshold import verify_threshold
from pipeline.store.wording import agreeing, counted

# Below this p, two distributions are held to differ: there are many groups, and a needless alarm has its price.
DIFFERENT = 0.001


@dataclass(frozen=True)
class ScoreShift:
    """Two-sample Kolmogorov-Smirnov test of two sets of scores: largest distance, two-sided asymptotic p."""

    statistic: float
    p: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Stability:
    """Population stability index over `bins` bins; `by_chance` is what it stays below in 95 % when nothing shifted."""

    index: float
    by_chance: float
    bins: int


@dataclass(frozen=True)
class Promise:
    """What was certified, to be held against other patients; without a threshold nothing was."""

    threshold: float | None
    target: float
    confidence: float


@dataclass(frozen=True)
class GroupShift:
    """A group of patients against the calibration patients.

    `unseen` counts patients from sites that no calibration patient came from. `slope` and `in_the_large` are the
    calibration line of their probabilities. `differences` says in words why they are not like the calibration
    patients; empty when nothing shows it.
    """

    group: str
    patients: int
    positives: int
    unseen: int
    prevalence: Interval
    score_ks: ScoreShift
    stability: Stability
    slope: Interval
    in_the_large: Interval
    recall: Interval | None
    verification: str | None
    differences: tuple[str, ...]

    @property
    def covered(self) -> bool:
        """Whether nothing speaks against the certificate for this group, neither its make-up nor its recall."""
        return not self.differences and self.verification != "contradicted"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `covered` as a dictionary, for JSON."""
        return {**asdict(self), "differences": list(self.differences), "covered": self.covered}


def score_shift(calibration: Any, other: Any) -> ScoreShift:
    """Compare the scores of two sets of patients, (n,) and (m,)."""
    result = ks_2samp(np.asarray(calibration, float), np.asarray(other, float), method="asymp")
    return ScoreShift(float(result.statistic), float(result.pvalue))


def population_stability(calibration: Any, other: Any, bins: int = 10) -> Stability:
    """Return the population stability index of scores (m,): sum (q - p) ln(q / p) over quantile bins of the first (n,).

    Half a patient more in every bin gives empty ones a logarithm; equal scores share a bin, so that bins can be fewer.
    Without a shift, PSI / (1/n + 1/m) is about chi-square with bins - 1 degrees of freedom (Yurdakul, Statistical
    Properties of Population Stability Index, Western Michigan University 2018), which the usual limits of 0.1 and 0.25
    leave out of account: in small groups, chance alone exceeds them.
    """
    scores = [np.asarray(values, float) for values in (calibration, other)]
    edges = np.unique(np.quantile(scores[0], np.arange(1, bins) / bins, method="inverted_cdf"))
    counts = [np.bincount(np.searchsorted(edges, s), minlength=len(edges) + 1) + 0.5 for s in scores]
    p, q = (count / count.sum() for count in counts)
    chance = float(chi2.ppf(0.95, len(edges))) * sum(1 / len(s) for s in scores)
    return Stability(float(((q - p) * np.log(q / p)).sum()), chance, len(edges) + 1)


def group_shift(
    group: str,
    calibration: Patients,
    members: Patients,
    probabilities: np.ndarray,
    promise: Promise,
    *,
    unseen: int = 0,
    level: float = 0.95,
    min_positives: int = 10,
) -> GroupShift:
    """Compare a group of patients and its calibrated probabilities (n,) with the calibration patients.

    The certificate is about patients with the condition, so another prevalence alone does not touch it: scores are
    tested within each label. The calibration line needs `min_positives` patients with and without the condition.
    """
    n, positives = len(members.y), int(members.y.sum())
    slope = in_the_large = undefined(level, "wald", n)
    if min(positives, n - positives) >= min_positives:
        with collect_warnings():  # an undefined value says it
            line = calibration_line(members.y, probabilities, level)
        slope, in_the_large = line.slope, line.in_the_large
    recall = verification = None
    if promise.threshold is not None and positives:
        counts = confusion(members.y, members.s, promise.threshold)
        recall = proportion_ci(counts.tp, positives, level)
        verification = verify_threshold(members.y, members.s, promise.threshold, promise.target, promise.confidence)
    return GroupShift(
        group=group,
        patients=n,
        positives=positives,
        unseen=unseen,
        prevalence=proportion_ci(positives, n, level),
        score_ks=score_shift(calibration.s, members.s),
        stability=population_stability(calibration.s, members.s),
        slope=slope,
        in_the_large=in_the_large,
        recall=recall,
        verification=verification,
        differences=tuple(_differences(calibration, members, unseen)),
    )


def _differences(calibration: Patients, members: Patients, unseen: int) -> list[str]:
    found = []
    if unseen:
        found.append(
            f"{unseen} of {counted(len(members.y), 'patient')} {agreeing(unseen, 'comes', 'come')} from sites that no "
            "calibration patient is known to come from"
        )
    for label, who in ((1, "with"), (0, "without")):
        mine, theirs = (patients.s[patients.y == label] for patients in (calibration, members))
        if len(mine) and len(theirs) and (shift := score_shift(mine, theirs)).p < DIFFERENT:
            found.append(
                f"patients {who} the condition have other scores than calibration patients {who} it"
                f" (Kolmogorov-Smirnov distance {shift.statistic:.3f}, p {shift.p:.1g})"
            )
    return found


def unseen_patients(calibration_images: pd.DataFrame, images: pd.DataFrame, *, elsewhere: bool = False) -> set[str]:
    """Return the patients with an image from a site that no calibration patient came from.

    The frames have the columns of the image table. A site that is not stated is one of its own, and, of images from
    `elsewhere`, never that of a calibration patient.
    """
    seen = set(calibration_images["site"]) - ({""} if elsewhere else set())
    return set(images.loc[~images["site"].isin(seen), "patient_id"])


def assess_shift(shift: GroupShift, on: str, parts: Sequence[GroupShift] = ()) -> list[Finding]:
    """Return `shift` when a set of patients is not like the calibration patients, or one of its `parts` is not covered,
    and `calibration_drift` when the set's probabilities are too high or too low.
    """
    findings = []
    if shift.differences:
        message = f"the certificate may not cover these patients: {'; '.join(shift.differences)}"
        findings.append(Finding("shift", "warn", on, message))
    if uncovered := [part.group for part in parts if not part.covered]:
        message = (
            f"the certificate may not cover {len(uncovered)} of {counted(len(parts), 'group')}: {', '.join(uncovered)}"
        )
        findings.append(Finding("shift", "warn", on, message))
    drift = shift.in_the_large
    if drift.low > 0 or drift.high < 0:
        message = (
            f"probabilities are too {'low' if drift.value > 0 else 'high'} for these patients (calibration in the large"
            f" {drift.value:.2f}, {drift.level:.0%} interval {drift.low:.2f} to {drift.high:.2f}; their share with the"
            f" condition is {shift.prevalence.value:.1%}); it moves no patient across the threshold"
        )
        findings.append(Finding("calibration_drift", "info", on, message))
    return findings


def assess_image_counts(images: pd.DataFrame) -> list[Finding]:
    """Return `image_counts_differ` when the median number of images per patient differs over 1.5-fold between sites.

    The maximum over a patient's images rises with their number.
    """
    counts = images.groupby(["site", "patient_id"]).size().groupby("site").median()
    if len(counts) < 2 or counts.max() <= 1.5 * counts.min():
        return []
    message = (
        f"the median number of images per patient ranges from {counts.min():g} to {counts.max():g} between sites; the"
        " highest score of a patient rises with it, so that one threshold does not mean the same at every site"
    )
    return [Finding("image_counts_differ", "warn", "test", message)]
