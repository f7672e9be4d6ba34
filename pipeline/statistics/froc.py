"""Lesions found against false marks per image: the free-response ROC curve, its points and their intervals.

A mark hits a lesion when its peak lies inside it, the rule of CAMELYON16 (Ehteshami Bejnordi et al., JAMA 318 (2017)
2199-2210). Of several marks in one lesion the highest counts, and the others are neither hits nor false. A mark
elsewhere is false, in whichever image, as in LUNA16 (Setio et al., Medical Image Analysis 42 (2017) 1-13), whose rates
of false marks per image are used as well. Free response and its analysis: Bandos, Rockette, Song and Gur, Biometrics
65 (2009) 247-256; Chakraborty and Berbaum, Medical Physics 31 (2004) 2313-2330.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import chi2

from pipeline.statistics.intervals import Interval, proportion_ci, undefined

# False marks per image at which LUNA16 reads its curves.
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RESAMPLES, AT_ONCE = 2000, 100
MOST_POINTS = 200  # of a curve that is drawn
METHOD = "patient_bootstrap"


def lesions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the lesions of a mask of booleans from 1, 0 elsewhere, and count them.

    A lesion is what hangs together across faces, edges or corners.
    """
    labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return labels, int(count)


def match(lesions: np.ndarray, count: int, peaks: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best score per lesion (count,), -inf for one without a mark, and the scores of false marks.

    `lesions` are the numbered ones of an image, `peaks` (m, axes) the whole indices of the marks' peaks, `scores` (m,).
    """
    best = np.full(count + 1, -np.inf)
    hit = lesions[tuple(np.asarray(peaks, dtype=np.int64).reshape(-1, lesions.ndim).T)]
    np.maximum.at(best, hit, scores)
    return best[1:], np.asarray(scores, dtype=float)[hit == 0]


@dataclass(frozen=True)
class Marked:
    """What was marked in patients 0 … P - 1: `images` (P,) each has, of each lesion (`lesion_of`, `lesion_score`, -inf
    where no mark hit it) and of each false mark (`false_of`, `false_score`) the patient and the score."""

    images: np.ndarray
    lesion_of: np.ndarray
    lesion_score: np.ndarray
    false_of: np.ndarray
    false_score: np.ndarray

    @property
    def lesions(self) -> np.ndarray:
        """How many lesions each patient has, (P,)."""
        return np.bincount(self.lesion_of, minlength=len(self.images))

    @property
    def found(self) -> np.ndarray:
        """How many of them some mark hit."""
        return np.bincount(self.lesion_of[np.isfinite(self.lesion_score)], minlength=len(self.images))

    @property
    def false(self) -> np.ndarray:
        """How many false marks each patient has."""
        return np.bincount(self.false_of, minlength=len(self.images))

    def marks(self) -> Marks:
        """Return the marks that count, highest scores first: the best of each lesion that was hit, and false ones."""
        hit = np.isfinite(self.lesion_score)
        scores = np.concatenate([self.lesion_score[hit], self.false_score])
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
        of = np.concatenate([self.lesion_of[hit], self.false_of])
        return Marks(scores[order], of[order], order < hit.sum(), ends)


@dataclass(frozen=True)
class Marks:
    """Marks in falling order of their scores: patient and whether a lesion was hit, each (m,).

    `ends` (T,) is the last mark of each distinct score, since marks of one score come in together or not at all.
    """

    score: np.ndarray
    of: np.ndarray
    hit: np.ndarray
    ends: np.ndarray

    def counted(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return lesions found and false marks down to each distinct score, (R, T), with patients' weights (R, P)."""
        own = weights[:, self.of]
        return np.cumsum(own * self.hit, axis=1)[:, self.ends], np.cumsum(own * ~self.hit, axis=1)[:, self.ends]


@dataclass(frozen=True)
class Curve:
    """Sensitivity for lesions (T,) and false marks per image (T,) when marks from a score (T,) on count, falling."""

    threshold: np.ndarray
    sensitivity: np.ndarray
    false_per_image: np.ndarray

    def at(self, rates: np.ndarray) -> np.ndarray:
        """Return the highest sensitivity with at most that many false marks per image; 0 where no mark is allowed.

        A curve that ends before a rate keeps its last value: there are no more marks to be had.
        """
        return _at(self.sensitivity, self.false_per_image, rates)


def _at(sensitivity: np.ndarray, false_per_image: np.ndarray, rates: np.ndarray) -> np.ndarray:
    place = np.searchsorted(false_per_image, rates + 1e-12, side="right")
    return np.concatenate([[0.0], sensitivity])[place]


def curve(marked: Marked) -> Curve:
    """Return the FROC curve of all patients together: every lesion counts the same. NaN without lesions or images."""
    marks = marked.marks()
    found, false = (counts[0] for counts in marks.counted(np.ones((1, len(marked.images)))))
    lesions, images = int(marked.lesions.sum()), int(marked.images.sum())
    return Curve(marks.score[marks.ends], _shares(found, lesions), _shares(false, images))


def _shares(counts: np.ndarray, of: float) -> np.ndarray:
    return counts / of if of else np.full(np.shape(counts), math.nan)


def shown_rates(curve: Curve) -> np.ndarray:
    """Return the false marks per image at which a curve is drawn: where it steps, thinned, and those of LUNA16."""
    own = np.unique(curve.false_per_image)
    if len(own) > MOST_POINTS:
        own = own[np.linspace(0, len(own) - 1, MOST_POINTS).round().astype(int)]
    return np.unique(np.concatenate([own, RATES]))


def sensitivities(marked: Marked, rates: Sequence[float], level: float, seed: int) -> list[Interval]:
    """Return the sensitivity for lesions at each rate of false marks per image, with intervals.

    Patients are drawn anew with all their images, lesions and marks, those with and without lesions apart; the scores
    that give the rates are looked up anew in each draw. `n` is the number of patients with lesions. Where all lesions
    are found, or none, draws cannot differ: the limits are then those of Clopper and Pearson for as many patients,
    as if each had one lesion.
    """
    with_lesions = int((marked.lesions > 0).sum())
    if not with_lesions:
        return [undefined(level, METHOD) for _ in rates]
    at = np.asarray(rates, dtype=float)
    values = curve(marked).at(at)
    drawn = drawn_sensitivities(marked, at, seed)
    return [_limited(v, column, with_lesions, level) for v, column in zip(values, drawn.T, strict=True)]


def _limited(value: float, drawn: np.ndarray, patients: int, level: float) -> Interval:
    if value in (0.0, 1.0):
        exact = proportion_ci(round(value) * patients, patients, level, "exact")
        return Interval(value, exact.low, exact.high, level, "exact_of_patients", patients)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if patients > 1 else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high), level, METHOD, patients)


def drawn_sensitivities(marked: Marked, rates: np.ndarray, seed: int) -> np.ndarray:
    """Return sensitivities (RESAMPLES, rates) of patients drawn anew; with one seed, arms get the same patients."""
    marks, lesions = marked.marks(), marked.lesions
    drawn = np.empty((RESAMPLES, len(rates)))
    at = 0
    for weights in _draws(lesions > 0, seed):
        found, false = marks.counted(weights)
        shares = found / (weights @ lesions)[:, None], false / (weights @ marked.images)[:, None]
        curves = zip(*shares, strict=True)
        for sensitivity, false_per_image in curves:
            drawn[at] = _at(sensitivity, false_per_image, rates)
            at += 1
    return drawn


def _draws(positive: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each patient is drawn, (AT_ONCE, P), patients of either kind among themselves."""
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES // AT_ONCE):
        weights = np.zeros((AT_ONCE, len(positive)))
        for own in (positive, ~positive):
            if n := int(own.sum()):
                weights[:, own] = generator.multinomial(n, np.full(n, 1 / n), size=AT_ONCE)
        yield weights


def all_marks(marked: Marked, level: float, seed: int) -> tuple[Interval, Interval]:
    """Return sensitivity for lesions and false marks per image when every mark counts, with intervals.

    Intervals as in `sensitivities`. Without a false mark, the upper limit is that of a Poisson count (Garwood,
    Biometrika 28 (1936) 437-442) of one image per patient.
    """
    lesions, images, patients = marked.lesions, marked.images, len(marked.images)
    with_lesions, total = int((lesions > 0).sum()), int(images.sum())
    draws = list(_draws(lesions > 0, seed))
    rate = _shares(np.array(marked.false.sum()), total)
    if not patients:
        per_image = undefined(level, METHOD)
    elif not marked.false.any():
        highest = chi2.ppf((1 + level) / 2, 2) / 2 / patients
        per_image = Interval(0.0, 0.0, float(highest), level, "exact_of_patients", patients)
    else:
        own = np.concatenate([(w @ marked.false) / (w @ images) for w in draws])
        low, high = np.quantile(own, [(1 - level) / 2, (1 + level) / 2])
        per_image = Interval(float(rate), float(low), float(high), level, METHOD, patients)
    if not with_lesions:
        return undefined(level, METHOD), per_image
    own = np.concatenate([(w @ marked.found) / (w @ lesions) for w in draws])
    return _limited(marked.found.sum() / lesions.sum(), own, with_lesions, level), per_image


def sensitivity_difference(first: Marked, second: Marked, rate: float, level: float, seed: int) -> Interval:
    """Return sensitivity of the first minus that of the second at a rate of false marks per image, paired.

    Both are of the same patients in the same order, drawn anew together. Raises ValueError when they are not.
    """
    if not np.array_equal(first.lesions, second.lesions) or not np.array_equal(first.images, second.images):
        raise ValueError("lesions of different patients cannot be compared in pairs")
    patients = int((first.lesions > 0).sum())
    if not patients:
        return undefined(level, METHOD)
    at = np.array([rate])
    values = [curve(one).at(at)[0] for one in (first, second)]
    drawn = drawn_sensitivities(first, at, seed)[:, 0] - drawn_sensitivities(second, at, seed)[:, 0]
    if patients == 1:
        return Interval(float(values[0] - values[1]), math.nan, math.nan, level, METHOD, 1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0] - values[1]), float(low), float(high), level, METHOD, patients)
