"""How much results differ between sites, and what another site might show.

Sites are taken for a sample of sites: the true share (or AUC) of site k is expit(theta_k), and theta_k is normal with
mean mu and standard deviation tau (random effects; Higgins, Thompson & Spiegelhalter, JRSS-A 172 (2009) 137-159).
What a site showed enters with its own likelihood, so that 40 found of 40 need no correction: binomial for a share;
for an AUC normal on the logit scale with DeLong's variance, and at exactly 0 or 1 the exponent of Newcombe's score
interval (`discrimination.newcombe_auc`). With few sites the data say little of tau: to put its best value in would
promise too much. It is integrated out, with a half-normal prior of scale 1 (Roever et al., Research Synthesis Methods
12 (2021) 448-474) and a uniform one for expit(mu), on a grid of theta:

    p(data | mu, tau) = prod over k of (L_k * N(0, tau^2))(mu)    with * a convolution.

What another site's own true value is has the law of theta given the data, again a convolution. Below `FEWEST` sites
its limits are those of the prior more than of the data: nothing is said of another site then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import expit, log_expit, logit
from scipy.stats import norm

from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.metrics import confusion
from pipeline.statistics.patients import Patients

Measure = Literal["recall", "specificity", "auc"]
FEWEST = 5
STEP = 0.02
LOGITS = np.arange(-8.0, 14.0 + STEP / 2, STEP)
SPREADS = np.arange(0.0, 4.0 + 0.05, 0.1)  # of tau
DRAWS = 10_000


@dataclass(frozen=True)
class BetweenSites:
    """One measure at several sites: the lowest and the highest value seen, and what they say of another site.

    `sites` had enough patients, `left_out` had not. `chance` is the probability of as uneven counts when sites differ
    in nothing (None for an AUC, and where there is nothing uneven). `spread` is tau with its limits, `another` those of
    the true value at another such site; both None below FEWEST sites.
    """

    measure: Measure
    sites: int
    left_out: int
    lowest: float
    highest: float
    chance: float | None
    level: float
    spread: tuple[float, float, float] | None
    another: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Site:
    """What one site showed: its value, and the logarithm of its likelihood on the grid (G,). Counts are of a share."""

    value: float
    log_likelihood: np.ndarray
    right: int = 0
    n: int = 0


def between_sites(
    patients: Patients, sites: np.ndarray, measure: Measure, threshold: float | None, fewest: int, level: float = 0.95
) -> BetweenSites | None:
    """Return how a measure differs between sites; None where fewer than two of them have enough patients.

    sites: (n,) one per patient. A site needs `fewest` patients of each label that the measure is about. Recall and
    specificity are at `threshold`; without one there is neither.
    """
    names = sorted(set(sites.tolist()))
    found = [_site(patients, sites == name, measure, threshold, fewest) for name in names]
    shown = [one for one in found if one is not None]
    if len(shown) < 2:
        return None
    values = [one.value for one in shown]
    spread = another = None
    if len(shown) >= FEWEST:
        spread, another = _random_effects(np.stack([one.log_likelihood for one in shown]), level)
    return BetweenSites(
        measure=measure,
        sites=len(shown),
        left_out=len(names) - len(shown),
        lowest=min(values),
        highest=max(values),
        chance=None if measure == "auc" else uneven([one.right for one in shown], [one.n for one in shown]),
        level=level,
        spread=spread,
        another=another,
    )


def _site(patients: Patients, own: np.ndarray, measure: Measure, threshold: float | None, fewest: int) -> _Site | None:
    y, s = patients.y[own], patients.s[own]
    positives = int(y.sum())
    needed = {"recall": positives, "specificity": len(y) - positives, "auc": min(positives, len(y) - positives)}
    if needed[measure] < fewest:
        return None
    if measure == "auc":
        with collect_warnings():
            area = roc_auc(y, s, 0.95)
        return None if np.isnan(area.low) else _Site(area.value, _log_likelihood_of_auc(area, positives, len(y)))
    if threshold is None:
        return None
    counts = confusion(y, s, threshold)
    right, n = (counts.tp, counts.positives) if measure == "recall" else (counts.tn, counts.negatives)
    return _Site(right / n, right * log_expit(LOGITS) + (n - right) * log_expit(-LOGITS), right, n)


def _log_likelihood_of_auc(area: Any, positives: int, n: int) -> np.ndarray:
    if area.value in (0.0, 1.0):
        t = expit(LOGITS if area.value == 1 else -LOGITS)
        more = n / 2 - 1
        spread = 1 + more * (1 - t) / (2 - t) + more * t / (1 + t)
        return -(1 - t) * positives * (n - positives) / (2 * t * spread)
    standard_error = (logit(area.high) - logit(area.value)) / norm.ppf((1 + area.level) / 2)
    return norm.logpdf(LOGITS, logit(area.value), standard_error)


def uneven(right: Sequence[int], n: Sequence[int], seed: int = 0) -> float | None:
    """Return the probability that counts are as uneven as these, or more, when all sites have one share.

    Pearson's chi-square against its law given the totals (multivariate hypergeometric), by random draws. None where all
    or none are right: then nothing can be uneven.
    """
    sizes, total = np.asarray(n), int(np.sum(right))
    if total in (0, sizes.sum()):
        return None
    expected = sizes * total / sizes.sum()

    def distance(counts: np.ndarray) -> np.ndarray:
        return ((counts - expected) ** 2 / sizes).sum(axis=-1)

    drawn = np.random.default_rng(seed).multivariate_hypergeometric(sizes, total, DRAWS, method="marginals")
    beyond = int((distance(drawn) >= distance(np.asarray(right)) - 1e-9).sum())
    return (beyond + 1) / (DRAWS + 1)


def _random_effects(
    log_likelihoods: np.ndarray, level: float
) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Return tau with its limits, and the limits of another site's value. log_likelihoods: (K, G)."""
    likelihoods = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    prior = log_expit(LOGITS) + log_expit(-LOGITS)  # uniform for expit(mu)
    kernels = [_kernel(tau) for tau in SPREADS]
    # Rounding of the transform leaves less than 1e-15 of the highest value, and below 0.
    logs = np.stack([
        np.log(np.maximum(fftconvolve(likelihoods, kernel[None], "same", axes=1), 1e-15)).sum(axis=0) + prior
        for kernel in kernels
    ]) + norm.logpdf(SPREADS)[:, None]  # fmt: skip
    posterior = np.exp(logs - logs.max())
    posterior /= posterior.sum()
    of_tau = posterior.sum(axis=1)
    other = sum(fftconvolve(row, kernel, "same") for row, kernel in zip(posterior, kernels, strict=True))
    tail = (1 - level) / 2
    low, middle, high = (float(_quantile(SPREADS, of_tau, q)) for q in (tail, 0.5, 1 - tail))
    ends = [float(expit(_quantile(LOGITS, np.maximum(other, 0), q))) for q in (tail, 1 - tail)]
    return (middle, low, high), (ends[0], ends[1])


def _kernel(tau: float) -> np.ndarray:
    """Return the normal distribution with standard deviation `tau` on the grid's steps, of odd length."""
    half = int(np.ceil(5 * tau / STEP))
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) * STEP / max(tau, 1e-9)) ** 2)
    return weights / weights.sum()


def _quantile(at: np.ndarray, weights: np.ndarray, q: float) -> float:
    return float(np.interp(q, np.cumsum(weights) / weights.sum(), at))
