"""From raw score to probability. The threshold stays on the raw score; probabilities are for people to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedKFold

from pipeline.statistics.calibrators import (
    BetaCalibrator,
    Calibrator,
    IsotonicCalibrator,
    LogisticCalibrator,
    PrevalenceCalibrator,
    TemperatureCalibrator,
    VennAbersCalibrator,
)
from pipeline.statistics.errors import NotEnoughData, collect_warnings, warn
from pipeline.statistics.logistic import fit_logistic
from pipeline.statistics.patients import validate
from pipeline.statistics.venn_abers import venn_abers_pairs

# Below this many patients in a class, isotonic fits follow the noise, and logistic is taken without a contest.
MANY = 500


@dataclass(frozen=True)
class _Sample:
    """Patients to fit on: scores `s`, labels `y`, weights `w` (n,), and Platt's `target` (n,)."""

    y: np.ndarray
    s: np.ndarray
    w: np.ndarray
    target: np.ndarray

    @property
    def facts(self) -> tuple[int, int, float]:
        """What every calibrator states: patients, positives, prevalence."""
        return len(self.y), int(self.y.sum()), float(np.average(self.y, weights=self.w))

    def level(self, reason: str) -> PrevalenceCalibrator:
        """The calibrator that gives everyone the smoothed prevalence (n1+1)/(n+2)."""
        n, n_positive, _ = self.facts
        smoothed = float((self.w[self.y == 1].sum() + 1) / (self.w.sum() + 2))
        return PrevalenceCalibrator(n, n_positive, smoothed, reason)


def fit_calibrator(
    y: Any, s: Any, method: str = "logistic", weight: Any = None, *, min_per_class: int = 10
) -> Calibrator:
    """Fit a calibrator: logistic, beta, isotonic, temperature or venn_abers. y, s, weight: (n,).

    Scores are log-odds. The parametric ones are fitted by maximum likelihood with Platt's targets (n1+1)/(n1+2) and
    1/(n0+2), so that separated classes have a finite fit too. Raises NotEnoughData with fewer than `min_per_class`
    patients in a class. Where scores are equal (warning `constant_score`) or the logistic slope is not positive
    (`calibration_reversed`), everyone gets the smoothed prevalence, whatever the method.
    """
    sample = _sample(y, s, weight)
    n, n_positive, _ = sample.facts
    if min(n_positive, n - n_positive) < min_per_class:
        raise NotEnoughData(
            f"calibration needs at least {min_per_class} patients with and {min_per_class} without the condition;"
            f" there are {n_positive} and {n - n_positive}",
            positives=n_positive,
            needed=min_per_class,
        )
    if np.ptp(sample.s) == 0:
        warn("constant_score", "all scores are equal: every patient gets the smoothed prevalence")
        return sample.level("constant_score")
    straight = _logistic(sample)
    if not straight.slope > 0:
        everyone = "scores do not rise with the condition: every patient gets the smoothed prevalence"
        warn("calibration_reversed", everyone)
        return sample.level("calibration_reversed")
    fits: dict[str, Callable[[_Sample], Calibrator]] = {
        "logistic": lambda _: straight,
        "beta": _beta,
        "isotonic": _isotonic,
        "temperature": _temperature,
        "venn_abers": _venn_abers,
    }
    if method not in fits:
        raise ValueError(f"unknown calibrator {method}; known: {', '.join(fits)}")
    if method in ("isotonic", "venn_abers") and min(n_positive, n - n_positive) < MANY:
        few = f"{method} follows the noise with fewer than {MANY} patients in a class"
        warn("few_for_isotonic", f"{few}; there are {n_positive} and {n - n_positive}: logistic is closer to the truth")
    return fits[method](sample)


def uncalibrated(y: Any) -> PrevalenceCalibrator:
    """Return what is left where there are too few patients to calibrate: the smoothed prevalence, for everyone."""
    labels = validate(y).y
    return _sample(labels, np.zeros(len(labels))).level("not_calibrated")


def choose_calibrator(y: Any, s: Any, *, folds: int = 10, seed: int = 0) -> str:
    """Choose a method by what the calibration patients alone say; the test patients are not asked.

    Logistic with fewer than 500 patients in a class. Else beta or isotonic, if its cross-validated log loss is below
    that of logistic by more than one standard error of their paired difference; of two, the lower.
    """
    clean = validate(y, s)
    n_positive = int(clean.y.sum())
    if min(n_positive, len(clean.y) - n_positive) < MANY:
        return "logistic"
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(clean.s, clean.y))

    def losses(method: str) -> np.ndarray:
        p = np.empty(len(clean.y))
        with collect_warnings():
            for fitted, held_out in parts:
                p[held_out] = fit_calibrator(clean.y[fitted], clean.s[fitted], method).predict(clean.s[held_out])
        return -np.where(clean.y == 1, np.log(p), np.log1p(-p))

    logistic, best, gain = losses("logistic"), "logistic", 0.0
    for method in ("beta", "isotonic"):
        won = logistic - losses(method)
        if won.mean() > max(gain, won.std(ddof=1) / np.sqrt(len(won))):
            best, gain = method, float(won.mean())
    return best


def shift_prior(p: Any, pi_from: float, pi_to: float) -> np.ndarray:
    """Carry probabilities from one prevalence to another: logit p' = logit p + logit pi_to - logit pi_from.

    Right when only the prevalence differs (Saerens, Latinne & Decaestecker 2002). Raises ValueError unless
    both prevalences lie strictly between 0 and 1.
    """
    if not (0 < pi_from < 1 and 0 < pi_to < 1):
        raise ValueError("prevalences lie strictly between 0 and 1")
    return expit(logit(np.asarray(p, np.float64)) + logit(pi_to) - logit(pi_from))


def displayed_probability(calibrator: Calibrator, s: Any, local_prevalence: float | None = None) -> np.ndarray:
    """Return the probabilities (n,) that people are shown: calibrated, and carried to a local prevalence if stated.

    For display alone: thresholds stand on the score, and calibration is judged without the shift, since the patients
    it is judged on have their own prevalence.
    """
    p = calibrator.predict(s)
    return p if local_prevalence is None else shift_prior(p, calibrator.prevalence, local_prevalence)


def _sample(y: Any, s: Any, weight: Any = None) -> _Sample:
    clean = validate(y, s, weight=weight)
    w = np.ones(len(clean.y)) if clean.weight is None else clean.weight
    n1, n0 = float(w[clean.y == 1].sum()), float(w[clean.y == 0].sum())
    return _Sample(clean.y, clean.s, w, np.where(clean.y == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2)))


def _line(sample: _Sample, *columns: np.ndarray) -> np.ndarray:
    """Return intercept and coefficients (1 + k,) of the targets' logistic regression on `columns` (n,), maybe NaN."""
    # Standardised, scores squeezed into 0.617-0.640 are as easy to fit as any.
    design = np.column_stack(columns)
    centre, spread = design.mean(axis=0), design.std(axis=0)
    if not (spread > 0).all():
        return np.full(1 + design.shape[1], np.nan)
    standard = np.column_stack([np.ones(len(design)), (design - centre) / spread])
    beta, _ = fit_logistic(standard, sample.target, sample.w)
    rises = beta[1:] / spread
    return np.concatenate([[beta[0] - rises @ centre], rises])


def _logistic(sample: _Sample) -> LogisticCalibrator:
    intercept, slope = _line(sample, sample.s)
    return LogisticCalibrator(*sample.facts, slope=float(slope), intercept=float(intercept))


def _temperature(sample: _Sample) -> Calibrator:
    scale = float(np.sqrt(np.mean(sample.s**2)))
    beta, _ = fit_logistic(sample.s[:, None] / scale, sample.target, sample.w)
    if not beta[0] > 0:
        off = "scores are off by a constant, which no temperature removes: every patient gets the smoothed prevalence"
        warn("temperature_collapsed", off)
        return sample.level("temperature_collapsed")
    return TemperatureCalibrator(*sample.facts, temperature=float(scale / beta[0]))


def _beta(sample: _Sample) -> BetaCalibrator:
    high, low = -np.logaddexp(0, -sample.s), np.logaddexp(0, sample.s)  # ln q and -ln(1-q)
    c, a, b = _line(sample, high, low)
    if not (a >= 0 and b >= 0):
        # The loss is convex: with its lowest point outside, the lowest allowed one lies on an edge, a = 0 or b = 0.
        (c_a, a), (c_b, b) = _line(sample, high), _line(sample, low)
        edges = [(a, 0.0, c_a), (0.0, b, c_b)]
        rising = [edge for edge in edges if edge[0] + edge[1] > 0]
        a, b, c = min(rising, key=lambda edge: _loss(sample, edge[0] * high + edge[1] * low + edge[2]))
    return BetaCalibrator(*sample.facts, a=float(a), b=float(b), c=float(c))


def _loss(sample: _Sample, log_odds: np.ndarray) -> float:
    return float((sample.w * (np.logaddexp(0, log_odds) - sample.target * log_odds)).sum())


def _isotonic(sample: _Sample) -> IsotonicCalibrator:
    fit = IsotonicRegression(out_of_bounds="clip").fit(sample.s, sample.y.astype(np.float64), sample.w)
    return IsotonicCalibrator(
        *sample.facts, scores=tuple(fit.X_thresholds_.tolist()), probabilities=tuple(fit.y_thresholds_.tolist())
    )


def _venn_abers(sample: _Sample) -> VennAbersCalibrator:
    scores, group = np.unique(sample.s, return_inverse=True)
    weights, sums = np.bincount(group, sample.w), np.bincount(group, sample.w * sample.y)
    pairs = np.array(venn_abers_pairs(weights, sums))
    # Between two scores begins right above the lower one; steps that change nothing are not kept.
    starts = np.column_stack([scores, np.nextafter(scores, np.inf)]).ravel()[:-1]
    changes = np.append(True, (np.diff(pairs) != 0).any(axis=0))
    starts, (low, high) = starts[changes].tolist(), pairs[:, changes].tolist()
    return VennAbersCalibrator(*sample.facts, scores=tuple(starts), low=tuple(low), high=tuple(high))
