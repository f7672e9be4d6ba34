"""Metrics of a decision: refer, or not, at a threshold; and what it means at another prevalence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.statistics.errors import warn
from pipeline.statistics.intervals import Interval, newcombe, proportion_ci, ratio_ci, undefined
from pipeline.statistics.patients import validate
from pipeline.store.results.operating_point import Counts, PrevalenceRow


def confusion(y: Any, s: Any, t: float) -> Counts:
    """Count decisions at threshold `t`: refer when s >= t. y, s: (n,)."""
    clean = validate(y, s)
    positive, referred = clean.y == 1, clean.s >= t
    return Counts(
        tp=int((positive & referred).sum()),
        fp=int((~positive & referred).sum()),
        tn=int((~positive & ~referred).sum()),
        fn=int((positive & ~referred).sum()),
    )


def operating_metrics(c: Counts, level: float = 0.95) -> dict[str, Interval]:
    """Return the metrics of a 2x2 table, each with its interval.

    recall, specificity, ppv, npv and referral_rate: Wilson. youden = recall + specificity - 1: Newcombe's
    difference of recall and false-positive rate; balanced_accuracy = (youden + 1)/2. f1 = 2q/(1+q) with q =
    tp/(tp+fp+fn), a proportion: Wilson of q, transformed. Likelihood ratios: MOVER from Wilson limits. A zero
    denominator gives NaN; the warnings `single_class` and `nothing_referred`, `everything_referred` say
    which.
    """
    if c.n == 0:
        raise ValueError("there are no patients")
    names = ("recall", "specificity", "ppv", "npv", "referral_rate")
    numerators = (c.tp, c.tn, c.tp, c.tn, c.tp + c.fp)
    denominators = (c.positives, c.negatives, c.tp + c.fp, c.tn + c.fn, c.n)
    metrics = {
        name: proportion_ci(k, n, level) if n else undefined(level, "wilson")
        for name, k, n in zip(names, numerators, denominators, strict=True)
    }
    if c.tp + c.fp == 0:
        warn("nothing_referred", "no patient is referred: the positive predictive value is undefined")
    if c.tn + c.fn == 0:
        warn("everything_referred", "every patient is referred: the negative predictive value is undefined")
    union = c.tp + c.fp + c.fn
    q = proportion_ci(c.tp, union, level) if union else undefined(level, "wilson")
    metrics["f1"] = _transformed(q, lambda v: 2 * v / (1 + v), "wilson_transformed")
    if c.positives == 0 or c.negatives == 0:
        warn("single_class", "all patients have the same label: recall or specificity is undefined")
        nothing = {name: undefined(level, "newcombe", c.n) for name in ("youden", "balanced_accuracy")}
        ratios = {name: undefined(level, "mover_wilson", c.n) for name in ("lr_positive", "lr_negative")}
        return metrics | nothing | ratios
    youden = newcombe(c.tp, c.positives, c.fp, c.negatives, level)
    return metrics | {
        "youden": youden,
        "balanced_accuracy": _transformed(youden, lambda v: (v + 1) / 2, "newcombe"),
        "lr_positive": ratio_ci(c.tp, c.positives, c.fp, c.negatives, level),
        "lr_negative": ratio_ci(c.fn, c.positives, c.tn, c.negatives, level),
    }


def at_prevalence(
    c: Counts, prevalence: float, per: int = 1000, level: float = 0.95, *, seed: int = 0, draws: int = 20_000
) -> PrevalenceRow:
    """Carry recall and specificity over to another prevalence, in (0, 1), by Bayes' rule.

    Counts that depend on one proportion take its Wilson limits; those that depend on both take percentiles of
    `draws` independent draws from Jeffreys betas (Brown, Cai & DasGupta 2001). All NaN when a class is
    absent.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence lies strictly between 0 and 1, not {prevalence}")
    sick, healthy = per * prevalence, per * (1 - prevalence)
    if c.positives == 0 or c.negatives == 0:
        warn("single_class", "all patients have the same label: consequences at a prevalence are undefined")
        return PrevalenceRow(prevalence, per, *[undefined(level, "monte_carlo", c.n)] * 7)
    recall = proportion_ci(c.tp, c.positives, level)
    false_rate = proportion_ci(c.fp, c.negatives, level)
    generator = np.random.default_rng(seed)
    recalls = generator.beta(c.tp + 0.5, c.fn + 0.5, draws)
    false_rates = generator.beta(c.fp + 0.5, c.tn + 0.5, draws)

    def both(formula: Any) -> Interval:
        value = float(formula(np.float64(recall.value), np.float64(false_rate.value)))
        if math.isnan(value):
            return undefined(level, "monte_carlo", c.n)
        low, high = np.quantile(formula(recalls, false_rates), [(1 - level) / 2, (1 + level) / 2])
        # At 0 or n successes the Jeffreys interval is extended to the boundary.
        return Interval(value, min(float(low), value), max(float(high), value), level, "monte_carlo", c.n)

    with np.errstate(invalid="ignore"):
        ppv = both(lambda r, f: sick * r / (sick * r + healthy * f))
        npv = both(lambda r, f: healthy * (1 - f) / (healthy * (1 - f) + sick * (1 - r)))
        referred = both(lambda r, f: sick * r + healthy * f)
    return PrevalenceRow(
        prevalence=prevalence,
        per=per,
        found=_transformed(recall, lambda v: sick * v, "wilson"),
        missed=_transformed(recall, lambda v: sick * (1 - v), "wilson"),
        false_alarms=_transformed(false_rate, lambda v: healthy * v, "wilson"),
        referred=referred,
        ppv=ppv,
        npv=npv,
        number_needed_to_recall=_transformed(ppv, lambda v: 1 / v if v else math.nan, "monte_carlo"),
    )


def net_benefit(c: Counts, pt: float, level: float = 0.95) -> Interval:
    """Return TP/n - FP/n * pt/(1-pt), with its interval at the prevalence of these patients.

    Vickers & Elkin, Medical Decision Making 26 (2006) 565-574: true positives per patient, less false positives at
    the weight that someone gives them who would refer from probability `pt`, in (0, 1), on. A weighted difference of
    two independent proportions; its limits join their Wilson limits (MOVER, Zou & Donner 2008).
    """
    if not 0 < pt < 1:
        raise ValueError(f"a threshold probability lies strictly between 0 and 1, not {pt}")
    weight = pt / (1 - pt)
    value, below, above = c.tp / c.n - weight * c.fp / c.n, 0.0, 0.0
    if c.positives:
        recall, scale = proportion_ci(c.tp, c.positives, level), c.positives / c.n
        below, above = scale * (recall.value - recall.low), scale * (recall.high - recall.value)
    if c.negatives:
        false_rate, scale = proportion_ci(c.fp, c.negatives, level), weight * c.negatives / c.n
        below = math.hypot(below, scale * (false_rate.high - false_rate.value))
        above = math.hypot(above, scale * (false_rate.value - false_rate.low))
    return Interval(value, value - below, value + above, level, "mover_wilson", c.n)


def net_benefit_at(c: Counts, pt: float, prevalence: float, level: float = 0.95) -> Interval:
    """Return the net benefit per person where a share `prevalence` has the condition, both in (0, 1).

    prevalence * recall - (1 - prevalence) * false-positive rate * pt/(1-pt): that of `net_benefit` with recall and
    false-positive rate carried over. What a decision is worth at 64 % says nothing of what it is worth at 5 %. NaN
    when a class is absent.
    """
    if not (0 < pt < 1 and 0 < prevalence < 1):
        raise ValueError(f"threshold probability and prevalence lie strictly between 0 and 1, not {pt}, {prevalence}")
    if not (c.positives and c.negatives):
        return undefined(level, "mover_wilson", c.n)
    recall, false_rate = proportion_ci(c.tp, c.positives, level), proportion_ci(c.fp, c.negatives, level)
    weight = (1 - prevalence) * pt / (1 - pt)
    value = prevalence * recall.value - weight * false_rate.value
    below = math.hypot(prevalence * (recall.value - recall.low), weight * (false_rate.high - false_rate.value))
    above = math.hypot(prevalence * (recall.high - recall.value), weight * (false_rate.value - false_rate.low))
    return Interval(value, value - below, value + above, level, "mover_wilson", c.n)


def _transformed(interval: Interval, monotone: Any, method: str) -> Interval:
    value, first, second = (monotone(v) for v in (interval.value, interval.low, interval.high))
    low, high = (second, first) if second < first else (first, second)
    return Interval(value, low, high, interval.level, method, interval.n)
