"""Monotone maps from raw score to probability: plain numbers, kept as JSON, never exactly 0 or 1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, log_expit

SCHEMA = "calibrator/2"


@dataclass(frozen=True)
class Calibrator:
    """What every calibrator is: fitted on `n` patients, `n_positive` of them positive, at a share `prevalence`.

    `method` names the kind. Probabilities are clipped to [1/(n+2), 1 - 1/(n+2)]: no patient is ever told 0 or 1.
    """

    n: int
    n_positive: int
    prevalence: float
    method: ClassVar[str]

    def predict(self, s: Any) -> np.ndarray:
        """Return probabilities of scores (n,). Raises ValueError for scores that are not finite."""
        return self._clipped(self._probability(_finite(s)))

    def to_dict(self) -> dict[str, Any]:
        """Return schema, method and numbers, for JSON."""
        return {"schema": SCHEMA, "method": self.method, **asdict(self)}

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _clipped(self, p: np.ndarray) -> np.ndarray:
        edge = 1 / (self.n + 2)
        return np.clip(p, edge, 1 - edge)


@dataclass(frozen=True)
class PrevalenceCalibrator(Calibrator):
    """Every patient gets the smoothed prevalence, since nothing more can be said of one.

    `reason` is a stable code: `not_calibrated` (too few patients), `constant_score`, `calibration_reversed` (scores
    do not rise with the condition) or `temperature_collapsed` (no positive temperature fits).
    """

    reason: str
    method: ClassVar[str] = "prevalence"

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        return np.full(scores.shape, self.prevalence)


@dataclass(frozen=True)
class LogisticCalibrator(Calibrator):
    """P = expit(slope * s + intercept). Platt, Advances in Large Margin Classifiers (1999) 61-74."""

    slope: float
    intercept: float
    method: ClassVar[str] = "logistic"

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        return expit(self.slope * scores + self.intercept)


@dataclass(frozen=True)
class TemperatureCalibrator(Calibrator):
    """P = expit(s / temperature). Guo et al., ICML 2017. It cannot move scores that are off by a constant."""

    temperature: float
    method: ClassVar[str] = "temperature"

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        return expit(scores / self.temperature)


@dataclass(frozen=True)
class BetaCalibrator(Calibrator):
    """P = expit(a ln q - b ln(1-q) + c) with q = expit(s) and a, b >= 0.

    Kull, Silva Filho & Flach, AISTATS 2017.
    """

    a: float
    b: float
    c: float
    method: ClassVar[str] = "beta"

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        return expit(self.a * log_expit(scores) - self.b * log_expit(-scores) + self.c)


@dataclass(frozen=True)
class IsotonicCalibrator(Calibrator):
    """Straight lines between the knots of the isotonic regression, level outside them.

    Zadrozny & Elkan, KDD 2002. `scores` (k,) rise strictly, `probabilities` (k,) do not fall.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    method: ClassVar[str] = "isotonic"

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        return np.interp(scores, self.scores, self.probabilities)


@dataclass(frozen=True)
class VennAbersCalibrator(Calibrator):
    """Inductive Venn-Abers: isotonic regression with the patient added, once as negative, once as positive.

    Vovk & Petej, UAI 2014. Both probabilities are steps: from each of the rising `scores` (k,) on, they are `low` and
    `high` (k,), until the next. A score beyond the outermost counts as that one: further out, the two only drift apart.
    """

    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    method: ClassVar[str] = "venn_abers"

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        p0, p1 = self._pair(scores)
        return p1 / (1 - p0 + p1)

    def _pair(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = np.maximum(np.searchsorted(self.scores, scores, side="right") - 1, 0)
        return np.asarray(self.low)[step], np.asarray(self.high)[step]


KINDS: dict[str, type[Calibrator]] = {
    kind.method: kind
    for kind in (
        PrevalenceCalibrator,
        LogisticCalibrator,
        TemperatureCalibrator,
        BetaCalibrator,
        IsotonicCalibrator,
        VennAbersCalibrator,
    )
}


def calibrator_from_dict(content: dict[str, Any]) -> Calibrator:
    """Rebuild the calibrator that `to_dict` described, to the last bit.

    Raises ValueError for another schema, an unknown method, or numbers that are missing or too many.
    """
    fields = dict(content)
    if fields.pop("schema", None) != SCHEMA:
        raise ValueError(f"this is not a calibrator of schema {SCHEMA}; rebuild with --rebuild calibrate")
    method = fields.pop("method", None)
    if method not in KINDS:
        raise ValueError(f"unknown calibrator {method}; known: {', '.join(KINDS)}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    try:
        return KINDS[method](**values)
    except TypeError as error:
        raise ValueError(f"calibrator {method} has other numbers than its schema says: {', '.join(fields)}") from error


def _finite(s: Any) -> np.ndarray:
    scores = np.asarray(s, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are missing or not finite")
    return scores
