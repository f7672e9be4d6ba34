"""Lower limits of recall that hold at every threshold at once, so that one may be picked after looking.

With F the distribution of the scores of patients with the condition, a threshold that misses m of n of them (it is at
most the (m+1)-th smallest score) misses a share of at most U_(m+1) of all such patients, where U_(1) <= ... <= U_(n)
are order statistics of n uniform variables when F is continuous, and less with ties. Their joint law does not depend on
F. So P(U_(k) <= u_k for k = 1..K) is one number, the same for every model, and limits u_k can be chosen that hold all
at once. Here all have the same level by themselves (equal local levels: Berk & Jones 1979; Owen, JASA 90 (1995)
516-521; Aldor-Noiman et al., American Statistician 67 (2013) 249-260): u_k is the quantile 1 - gamma of
Beta(k, n-k+1), the law of U_(k), and gamma is as large as the joint confidence allows.

The joint probability is exact (a recursion over first crossings, as in Moscovich & Nadler, Statistics and Probability
Letters 123 (2017) 177-182). Let N(u) be the number of uniforms up to u. U_(k) <= u_k means N(u_k) >= k, so where k is
the first to fail, N(u_k) is exactly k - 1. With f_k the probability that k is the first to fail,

    P(N(u_k) = k-1) = f_k + sum over i < k of f_i P(N(u_k) = k-1 given N(u_i) = i-1),

in which both probabilities are binomial. The joint probability is 1 - sum f_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import gammaln, xlog1py, xlogy
from scipy.stats import beta


def joint_probability(n: int, limits: np.ndarray) -> float:
    """Return P(U_(k) <= limits[k-1] for all k), U the order statistics of `n` uniform variables.

    limits: (K,) with K <= n, non-decreasing, in [0, 1]. Raises ValueError otherwise.
    """
    u = np.asarray(limits, np.float64)
    if len(u) > n or (np.diff(u) < 0).any() or ((u < 0) | (u > 1)).any():
        raise ValueError(f"limits of {n} order statistics are at most {n} non-decreasing numbers from 0 to 1")
    first = np.zeros(len(u))
    earlier = np.arange(len(u))  # i - 1 for i = 1..K
    for k, reached in enumerate(u, 1):
        before = earlier[: k - 1]
        # N(u_k) = k-1 given N(u_i) = i-1: k-i of the n-i+1 that lie above u_i fall below u_k.
        share = np.divide(reached - u[: k - 1], 1 - u[: k - 1], out=np.zeros(k - 1), where=u[: k - 1] < 1)
        again = _binomial(k - 1 - before, n - before, share)
        first[k - 1] = (
            float(_binomial(np.array([k - 1]), np.array([n]), np.array([reached]))[0]) - first[: k - 1] @ again
        )
    return float(min(max(1 - first.sum(), 0.0), 1.0))


def _binomial(k: np.ndarray, n: np.ndarray, p: np.ndarray) -> np.ndarray:
    # scipy's binom.pmf checks its arguments for ten times as long as this takes.
    return np.exp(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + xlogy(k, p) + xlog1py(n - k, -p))


@lru_cache(maxsize=64)
def local_level(n: int, last: int, confidence: float) -> float:
    """Return the level gamma of each limit so that those of the first `last` of `n` order statistics hold together."""
    k = np.arange(1, last + 1)

    def excess(log_level: float) -> float:
        return joint_probability(n, beta.isf(math.exp(log_level), k, n - k + 1)) - confidence

    # All limits together fail at least as often as one, and at most as often as their sum.
    low, high = math.log((1 - confidence) / last), math.log(1 - confidence)
    if excess(high) >= 0:
        return math.exp(high)
    # The lower end of the bracket is safe: limits must not fail more often than they promise.
    return math.exp(float(root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-4).root) - 1e-4)


def recall_band(n_pos: int, confidence: float, max_missed: float = 0.1) -> np.ndarray:
    """Return the lower limits of recall of thresholds that miss 0, 1, 2, ... of `n_pos` positives, all at once.

    They hold with `confidence` at every threshold that misses at most the share `max_missed`: that of 0 misses is
    always among them. Shape: (K,). Raises ValueError without positives or with shares outside (0, 1).
    """
    if n_pos < 1 or not (0 < confidence < 1 and 0 < max_missed < 1):
        raise ValueError(
            f"a band needs a positive patient and shares strictly between 0 and 1, not {n_pos} patients, confidence"
            f" {confidence:g}, missed share {max_missed:g}"
        )
    # 0.1 * 1110 is 111.00000000000001.
    last = min(int(max_missed * n_pos + 1e-9) + 1, n_pos)
    k = np.arange(1, last + 1)
    return np.asarray(beta.ppf(local_level(n_pos, last, confidence), n_pos - k + 1, k))


def joint_confidence(n_pos: int, misses: Sequence[int], recalls: Sequence[float]) -> float:
    """Return the exact probability that several certified recalls hold at once.

    The i-th threshold misses `misses[i]` of the same `n_pos` positives and promises `recalls[i]`: its promise holds
    when U_(misses[i] + 1) <= 1 - recalls[i]. An order statistic without a promise of its own lies below the next one
    that has one, which gives every k a limit.
    """
    limits = np.ones(max(misses) + 1)
    for allowed, recall in zip(misses, recalls, strict=True):
        limits[: allowed + 1] = np.minimum(limits[: allowed + 1], 1 - recall)
    return joint_probability(n_pos, limits)
