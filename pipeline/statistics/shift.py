"""Whether other patients are like the calibration patients, and whom the certificate therefore does not cover.

Two tests of scores, since each sees what the other does not: Kolmogorov-Smirnov within each label, for scores that
moved as a whole, and one of the tail, where the certificate lives: were the patients with the condition like those of
calibration, the number missed would be beta-binomial (`planner`). Ten in a hundred who are hard to find, which bring
the recall from 95 to 91 %, are seen by the second in a third of cases with 111 and 116 positives, by the first in 1
of 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaln
from scipy.stats import binom, chi2, ks_2samp

from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.gate import signed
from pipeline.statistics.intervals import proportion_ci, undefined
from pipeline.statistics.metrics import confusion
from pipeline.statistics.patients import Patients
from pipeline.statistics.planner import misses_at_least
from pipeline.statistics.reliability import calibration_line
from pipeline.statistics.threshold import verify_threshold
from pipeline.store.results.finding import Finding
from pipeline.store.results.metrics import AgainstCalibration, ComparedGroup, ScoreShift, Stability
from pipeline.store.results.operating_point import Held, Tail, Verdict
from pipeline.store.wording import agreeing, counted

# Below this p, two distributions are held to differ: there are many groups, and a needless alarm has its price.
DIFFERENT = 0.001


@dataclass(frozen=True)
class Promise:
    """What was certified, to be held against other patients; without a threshold nothing was.

    The threshold misses `misses_allowed` of `positives` calibration patients; where they are not given, the tail is not
    tested.
    """

    threshold: float | None
    target: float
    confidence: float
    positives: int | None = None
    misses_allowed: int | None = None


@dataclass(frozen=True)
class GroupShift(AgainstCalibration):
    """The same with what holding the group against the certificate showed.

    `verification_alone` is the verdict of this group by itself where several were held against the certificate, and
    `verification` the one that stands among them (`among_several`).
    """

    tail: Tail | None = None
    verification_alone: Verdict | None = None

    @property
    def covered(self) -> bool:
        """Whether nothing speaks against the certificate for this group, neither its make-up nor its recall."""
        return not self.differences and self.verification != "contradicted"

    @property
    def compared(self) -> ComparedGroup:
        """What is kept of the group, without `held`, which goes with the threshold."""
        shown = {one.name: getattr(self, one.name) for one in fields(ComparedGroup)}
        return ComparedGroup(**shown)

    @property
    def held(self) -> Held:
        """What came of holding the group against the certificate."""
        return Held(self.group, self.tail, self.verification_alone)


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
    strange: int | None = None,
    level: float = 0.95,
    min_positives: int = 10,
) -> GroupShift:
    """Compare a group of patients and its calibrated probabilities (n,) with the calibration patients.

    The certificate is about patients with the condition, so another prevalence alone does not touch it: scores are
    tested within each label. The calibration line needs `min_positives` patients with and without the condition.

    `unseen` patients are from sites that no calibration patient came from, of whom `strange` (default: all) speak
    against the certificate: with many small sites, some are unseen in every random division, which covers them.
    """
    n, positives = len(members.y), int(members.y.sum())
    slope = in_the_large = undefined(level, "wald", n)
    if min(positives, n - positives) >= min_positives:
        with collect_warnings():  # an undefined value says it
            line = calibration_line(members.y, probabilities, level)
        slope, in_the_large = line.slope, line.in_the_large
    recall = verification = tail = None
    if promise.threshold is not None and positives:
        counts = confusion(members.y, members.s, promise.threshold)
        recall = proportion_ci(counts.tp, positives, level)
        verification = verify_threshold(members.y, members.s, promise.threshold, promise.target, promise.confidence)
        tail = tail_test(counts.fn, positives, promise)
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
        differences=tuple(_differences(calibration, members, unseen if strange is None else strange, tail)),
        tail=tail,
        verification_alone=verification,
    )


def tail_test(misses: int, positives: int, promise: Promise) -> Tail | None:
    """Hold the number missed against its exact law when nothing differs; None where the promise has no counts.

    Scores that are tied make fewer misses, and the test a careful one.
    """
    n, allowed = promise.positives, promise.misses_allowed
    if n is None or allowed is None:
        return None
    least = next(x for x in range(positives + 2) if misses_at_least(x, positives, n, allowed) < DIFFERENT)
    at = 1 - promise.confidence
    contradicted = int(binom.isf(at, positives, 1 - promise.target)) + 1
    noticed = {
        f"{r:g}": float(binom.sf(min(least, contradicted) - 1, positives, 1 - r)) for r in _falls(promise.target)
    }
    expected = positives * (allowed + 1) / (n + 1)
    return Tail(misses, positives, expected, misses_at_least(misses, positives, n, allowed), noticed)


def _falls(target: float) -> list[float]:
    """Return recalls with two, three and four times the misses that the target allows: 0.90, 0.85, 0.80 of 0.95."""
    return [round(1 - times * (1 - target), 6) for times in (2, 3, 4) if times * (1 - target) < 1]


def among_several(groups: Sequence[GroupShift], promise: Promise) -> list[GroupShift]:
    """Return the groups with verdicts that hold although several were asked: Holm's rule over those with positives.

    With 20 sites, one is contradicted by itself in 12 of 100 runs when nothing differs. Confirmations and
    contradictions are each a family of their own (Holm, Scandinavian Journal of Statistics 6 (1979) 65-70).
    """
    asked = [i for i, group in enumerate(groups) if group.recall is not None]
    if promise.threshold is None or len(asked) < 2:
        return list(groups)
    missed = np.array([groups[i].positives - round(groups[i].recall.value * groups[i].positives) for i in asked])  # type: ignore[union-attr]
    positives = np.array([groups[i].positives for i in asked])
    worse = holm(binom.sf(missed - 1, positives, 1 - promise.target), 1 - promise.confidence)
    better = holm(binom.cdf(missed, positives, 1 - promise.target), 1 - promise.confidence)
    verdicts = np.where(worse, "contradicted", np.where(better, "confirmed", "not_confirmed"))
    found = list(groups)
    for i, verdict in zip(asked, verdicts.tolist(), strict=True):
        found[i] = replace(groups[i], verification=verdict)
    return found


def holm(p: Any, alpha: float) -> np.ndarray:
    """Return which of several hypotheses are refused, none wrongly with probability 1 - alpha. p: (k,)."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    kept = values[order] > alpha / (len(values) - np.arange(len(values)))
    refused = np.zeros(len(values), bool)
    refused[order] = ~np.maximum.accumulate(kept)
    return refused


def _differences(calibration: Patients, members: Patients, strange: int, tail: Tail | None) -> list[str]:
    found = []
    if strange:
        come = agreeing(strange, "comes from a site", "come from sites")
        found.append(
            f"{strange} of {counted(len(members.y), 'patient')} {come} that no calibration patient is known to come "
            "from"
        )
    if tail is not None and tail.p < DIFFERENT:
        # No count: what was found at a threshold that may not be used is no result.
        found.append(f"more patients with the condition are missed than when nothing differs (p {tail.p:.1g})")
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


def sites_beyond_chance(calibration_images: pd.DataFrame, images: pd.DataFrame) -> set[str]:
    """Return the sites of these images that no calibration patient came from although a random division shows some.

    Of N = n + m patients, n in calibration, the k of a site fall all among the other m with probability
    C(m, k) / C(N, k). A site is returned where that is below 0.001, shared out over the unseen sites. Frames have the
    columns of the image table.
    """
    seen = set(calibration_images["site"])
    m = images["patient_id"].nunique()
    everyone = m + calibration_images["patient_id"].nunique()
    unseen = images[~images["site"].isin(seen)].groupby("site")["patient_id"].nunique()
    logs = {
        str(site): sum(_log_falling(total, int(k)) * sign for total, sign in ((m, 1), (everyone, -1)))
        for site, k in unseen.items()
    }
    return {site for site, log in logs.items() if log < np.log(DIFFERENT / len(logs))}


def _log_falling(total: int, k: int) -> float:
    return float(gammaln(total + 1) - gammaln(total - k + 1))


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
            f" {signed(drift.value, '.2f')}, {100 * drift.level:.4g} % interval {signed(drift.low, '.2f')} to"
            f" {signed(drift.high, '.2f')}; their share with the condition is {100 * shift.prevalence.value:.1f} %); it"
            " moves no patient across the threshold"
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
