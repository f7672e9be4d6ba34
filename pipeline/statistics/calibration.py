"""From raw score to probability. The threshold stays on the raw score; probabilities are for people to read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit

from pipeline.statistics.errors import NotEnoughData, warn
from pipeline.statistics.logistic import fit_logistic
from pipeline.statistics.patients import validate

SCHEMA = "logistic_calibrator/1"


@dataclass(frozen=True)
class LogisticCalibrator:
    """P(condition) = expit(slope * s + intercept), clipped to [1/(n+2), 1 - 1/(n+2)]; never exactly 0 or 1.

    `n` and `n_positive` patients were fitted on. `flat` says that the fit had no positive slope, so that
    every patient gets the smoothed prevalence: the scores do not rise with the condition.
    """

    slope: float
    intercept: float
    n: int
    n_positive: int
    flat: bool = False

    @classmethod
    def fit(cls, y: Any, s: Any, weight: Any = None, *, min_per_class: int = 10) -> LogisticCalibrator:
        """Fit by Platt's method: maximum likelihood with targets (n1+1)/(n1+2) and 1/(n0+2), slope at least 0.

        Platt, Advances in Large Margin Classifiers (1999) 61-74. y, s, weight: (n,). Raises NotEnoughData
        with fewer than `min_per_class` patients in a class. A slope that is not positive is set to 0 with the
        warning `calibration_reversed`; equal scores with `constant_score`.
        """
        clean = validate(y, s, weight=weight)
        n, n_positive = len(clean.y), int(clean.y.sum())
        if min(n_positive, n - n_positive) < min_per_class:
            raise NotEnoughData(
                f"calibration needs at least {min_per_class} patients with and {min_per_class} without the condition;"
                f" there are {n_positive} and {n - n_positive}",
                positives=n_positive,
                needed=min_per_class,
            )
        w = np.ones(n) if clean.weight is None else clean.weight
        n1, n0 = float(w[clean.y == 1].sum()), float(w[clean.y == 0].sum())
        target = np.where(clean.y == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
        smoothed = float(logit((n1 + 1) / (n1 + n0 + 2)))
        centre, spread = float(clean.s.mean()), float(clean.s.std())
        if np.ptp(clean.s) == 0:
            warn("constant_score", "all scores are equal: every patient gets the smoothed prevalence")
            return cls(0.0, smoothed, n, n_positive, flat=True)
        # Standardised, scores squeezed into 0.617-0.640 are as easy to fit as any.
        design = np.column_stack([np.ones(n), (clean.s - centre) / spread])
        (level, rise), _ = fit_logistic(design, target, w)
        if not rise > 0:
            warn(
                "calibration_reversed",
                "scores do not rise with the condition: every patient gets the smoothed prevalence",
            )
            return cls(0.0, smoothed, n, n_positive, flat=True)
        return cls(float(rise / spread), float(level - rise * centre / spread), n, n_positive)

    def predict(self, s: Any) -> np.ndarray:
        """Return probabilities of scores (n,). Raises ValueError for scores that are not finite."""
        scores = np.asarray(s, np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are missing or not finite")
        edge = 1 / (self.n + 2)
        return np.clip(expit(self.slope * scores + self.intercept), edge, 1 - edge)

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and schema name, for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LogisticCalibrator:
        """Rebuild a calibrator; raises ValueError when `content` follows another schema."""
        fields = dict(content)
        if fields.pop("schema", None) != SCHEMA:
            raise ValueError(f"this is not a calibrator of schema {SCHEMA}")
        return cls(**fields)


def shift_prior(p: Any, pi_from: float, pi_to: float) -> np.ndarray:
    """Carry probabilities from one prevalence to another: logit p' = logit p + logit pi_to - logit pi_from.

    Right when only the prevalence differs (Saerens, Latinne & Decaestecker 2002). Raises ValueError unless
    both prevalences lie strictly between 0 and 1.
    """
    if not (0 < pi_from < 1 and 0 < pi_to < 1):
        raise ValueError("prevalences lie strictly between 0 and 1")
    return expit(logit(np.asarray(p, np.float64)) + logit(pi_to) - logit(pi_from))
