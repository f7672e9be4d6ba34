"""Unpenalised logistic regression with an offset and soft targets, which scikit-learn does not offer."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, xlogy


def fit_logistic(
    design: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    offset: np.ndarray | float = 0.0,
    steps: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit P(target) = expit(offset + design @ beta) by Newton's method.

    design: (n, k); target: (n,) in [0, 1], not only 0 and 1; weight: (n,). Returns beta (k,) and its
    covariance (k, k), the inverse of the Fisher information. Both are NaN when no finite optimum exists, as
    for separated classes with targets of 0 and 1, or when the design is singular.
    """
    w = np.ones(len(target)) if weight is None else weight
    k = design.shape[1]
    beta, nothing = np.zeros(k), (np.full(k, np.nan), np.full((k, k), np.nan))
    for _ in range(steps):
        p = expit(offset + design @ beta)
        gradient = design.T @ (w * (target - p))
        information = (design * (w * p * (1 - p))[:, None]).T @ design
        if not np.isfinite(information).all() or np.linalg.cond(information) > 1e12:
            return nothing
        step = np.linalg.solve(information, gradient)
        size, before = 1.0, _loss(design, target, w, offset, beta)
        while size > 1e-8 and _loss(design, target, w, offset, beta + size * step) > before + 1e-12 * abs(before):
            size /= 2
        beta = beta + size * step
        if np.abs(step).max() < 1e-9 * (1 + np.abs(beta).max()):
            return beta, np.linalg.inv(information)
    return nothing


def _loss(design: np.ndarray, target: np.ndarray, w: np.ndarray, offset: np.ndarray | float, beta: np.ndarray) -> float:
    p = expit(offset + design @ beta)
    with np.errstate(divide="ignore"):
        return float(-(w * (xlogy(target, p) + xlogy(1 - target, 1 - p))).sum())
