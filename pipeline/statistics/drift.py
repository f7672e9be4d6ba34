"""Whether new studies are still like those of calibration: without outcomes, at any time, for ever.

Bins are cut at calibration values. While new values are exchangeable with those, the next one falls into a bin with
probability (a + c) / (A + n), where the bin has a of the A gaps between calibration values (one more than there are
values) and c of the n new values so far: a Polya urn, exact for any distribution and any number of calibration values
(the ranks behind a conformal p-value; Vovk, Gammerman & Shafer 2005, chapter 8). A bettor whose bins start with 1/2
each multiplies his money by the ratio of both probabilities: a test martingale, and since the urn learns as well, what
he can win is bounded by the size of the calibration set. A few calibration patients never condemn a scanner for a
difference that they could not have shown.

A model is good for a year and then gets worse: a bet from the first day has by then lost too much to see it. Therefore
a new bet begins at every look, the j-th with 1 / (j (j + 1)) of the money, which adds up to 1; their sum is a test
martingale again, and a fall is seen soon whenever it comes (Shin, Ramdas & Rinaldo, "E-detectors", 2023).

Shapes: T looks (weeks with studies), K bins.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

from pipeline.statistics.sequential import log_e_values

HALF = 0.5  # of a study in every bin of the bettor (Krichevsky & Trofimov 1981)
# Bins of conformal p-values end at these shares: narrow where studies are unusual.
P_VALUE_ENDS = (0.01, 0.05, 0.2, 0.5, 1.0)


def restarting(log_e: np.ndarray) -> np.ndarray:
    """Return the logarithm of the evidence after each look, (T,), of a bet that begins anew at every look.

    log_e: (T, T), entry [j, t] for a bet that began just before look j, after look t >= j. Others are not read.
    """
    looks = len(log_e)
    at = np.arange(1, looks + 1)
    shares = -np.log(at) - np.log(at + 1)
    begun = np.where(np.tri(looks, dtype=bool).T, log_e + shares[:, None], -np.inf)
    # What is kept for bets that have not begun is worth what it was.
    return np.logaddexp(np.logaddexp.reduce(begun, axis=0), -np.log(at + 1))


def since(counts: np.ndarray) -> np.ndarray:
    """Return counts (T, ...) added up from look j to look t, as (T, T, ...); nothing where t < j."""
    total = np.cumsum(counts, axis=0)
    before = np.concatenate([np.zeros_like(total[:1]), total[:-1]])
    return np.maximum(total[None] - before[:, None], 0)


def urn_bets(counts: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Return the bets, (T, T) as `restarting` takes them, that new studies are not like those of calibration.

    counts: (T, K) new studies by bin; gaps: (K,) of the bins, all positive.
    """
    total = np.cumsum(np.asarray(counts, float), axis=0)
    before = np.concatenate([np.zeros_like(total[:1]), total[:-1]])
    urn = _log_probability(total, gaps)[None, :] - _log_probability(before, gaps)[:, None]
    return _log_probability(since(np.asarray(counts, float)), np.full(len(gaps), HALF)) - urn


def _log_probability(counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the logarithm of the probability of a sequence with these counts (..., K) from an urn's start (K,)."""
    n, size = counts.sum(axis=-1), start.sum()
    bins = (gammaln(start + counts) - gammaln(start)).sum(axis=-1)
    return bins - gammaln(size + n) + gammaln(size)


def rate_bets(ones: np.ndarray, n: np.ndarray, at_most: float) -> np.ndarray:
    """Return the bets, (T, T), against a rate <= `at_most`. ones, n: (T,) of each look, as whole numbers."""
    return log_e_values(since(ones), since(n), at_most)


def band_bets(ones: np.ndarray, n: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the bets, (T, T), that a rate lies outside `low` to `high`, of which neither is 0 or 1."""
    k, many = since(ones), since(n)
    above, below = log_e_values(k, many, high), log_e_values(many - k, many, 1 - low)
    return np.logaddexp(above, below) - math.log(2)


def likeliest_start(log_e: np.ndarray, look: int) -> int:
    """Return before which look (from 0) the bet began that has most after `look`: about when things changed."""
    at = np.arange(1, look + 2)
    return int(np.argmax(log_e[: look + 1, look] - np.log(at) - np.log(at + 1)))


# ---------------------------------------------------------------- bins


def p_value_gaps(patients: int) -> np.ndarray:
    """Return how many of the `patients` + 1 gaps each bin of conformal p-values has; a bin without any is left out."""
    ends = sorted({math.floor(share * (patients + 1) + 1e-9) for share in P_VALUE_ENDS} - {0})
    return np.diff([0, *ends])


def p_value_bins(p_values: np.ndarray, patients: int) -> np.ndarray:
    """Return the bin of each conformal p-value (n,), a multiple of 1 / (`patients` + 1)."""
    ranks = np.rint(np.asarray(p_values, float) * (patients + 1)).astype(int)
    return np.searchsorted(np.cumsum(p_value_gaps(patients)), ranks)


def first_look(evidence: np.ndarray, alarm_at: float) -> int | None:
    """Return the first look (from 0) at which the evidence, a logarithm, reaches `alarm_at`, or None."""
    reached = np.flatnonzero(evidence >= math.log(alarm_at))
    return int(reached[0]) if len(reached) else None
