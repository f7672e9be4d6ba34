"""Discrimination and calibration on the test patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.reporting.document import Block, Box, Figure, Figures, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, prevalence_assumed
from pipeline.reporting.figures import calibration_curves, decision, precision_recall, reliability, roc, score_histogram
from pipeline.reporting.numbers import (
    count,
    interval,
    limits,
    missing,
    number,
    percent,
    plain_percent,
    short,
    short_interval,
)
from pipeline.reporting.sections.operating import WITHHELD
from pipeline.reporting.sections.summary import AT_THE_END
from pipeline.store.results.interval import Interval
from pipeline.store.results.metrics import Calibration
from pipeline.store.wording import counted

CALIBRATORS = {
    "logistic": "logistic regression on the score (Platt)",
    "beta": "beta calibration",
    "isotonic": "isotonic regression",
    "temperature": "temperature scaling",
    "venn_abers": "inductive Venn–Abers, both probabilities merged into one",
    "prevalence": "none could be fitted, so that everyone gets the same probability",
}

# Shares from which on a reader would refer who screens; the figure goes further where more have the condition.
SHARES, LEAST_SHOWN, PER = (0.01, 0.02, 0.05, 0.1, 0.2), 0.2, 1000

METHODS = {
    "wilson": "Wilson score interval",
    "wilson_transformed": "Wilson score interval, transformed",
    "newcombe_score": "Newcombe's score interval of an AUC of 0 or 1 (method 5)",
    "newcombe": "Newcombe's interval of a difference of independent proportions",
    "mover_wilson": "Wilson limits joined (method of variance estimates recovery)",
    "monte_carlo": "Monte Carlo from Jeffreys distributions of sensitivity and specificity",
    "delong_logit": "DeLong variance, limits on the logit scale",
    "patient_bootstrap": "bootstrap of patients, percentiles",
    "patient_bootstrap_norm": "bootstrap of patients, limits of a norm",
    "wald": "Wald interval of a logistic regression",
}
METHODS_SAID = (
    "Limits stand in brackets behind their value. How each was computed is in report.json and data/methods.csv."
)
MEASURES = {
    "auc": "AUC",
    "recall": "sensitivity",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "f1": "F1",
    "youden": "Youden index",
    "lr_positive": "likelihood ratio of “refer”",
    "lr_negative": "likelihood ratio of “no refer”",
    "brier": "Brier score",
    "brier_skill": "Brier skill",
    "ece": "expected calibration error",
    "slope": "calibration slope",
    "intercept": "calibration intercept",
    "in_the_large": "calibration in the large",
    "prevalence": "share with the condition",
    "ppv per 1,000": "positive predictive value at a prevalence",
    "npv per 1,000": "negative predictive value at a prevalence",
    "number_needed_to_recall per 1,000": "referred per person found",
}


def discrimination(e: Evidence) -> Section:
    """Return how well scores separate patients with the condition from the others."""
    d, arm = e.metrics.discrimination, e.reported_arm
    auc, prevalence = d.auc, e.metrics.prevalence
    positives, negatives = e.metrics.positives, e.metrics.patients - e.metrics.positives
    rows = [
        ["Area under the ROC curve (AUC)", interval(auc, why=AT_THE_END), "0.5"],
        ["Average precision", interval(d.average_precision), number(prevalence.value)],
        ["Share with the condition", interval(prevalence, as_percent=True), "—"],
    ]
    caption = f"Test patients: {count(positives)} with, {count(negatives)} without the condition"
    cross = "" if e.point is None else " The cross is the operating point with both intervals."
    curve = Figure(
        "roc",
        f"ROC curve of the test patients, area {number(auc.value)}.{cross}",
        f"ROC curve, area {interval(auc, why=AT_THE_END)}.{cross}",
        8.0,
        roc(e.curve("roc", arm), e.point),
    )
    precision = Figure(
        "precision_recall",
        f"Precision against recall; average precision {number(d.average_precision.value)}; the dotted line "
        f"is the share with the condition, {percent(prevalence.value)}.",
        "Precision and recall. The dotted line is what a model without skill would reach.",
        8.0,
        precision_recall(e.curve("precision_recall", arm), prevalence.value, e.point),
    )
    table = Table("discrimination", caption, ["Measure", "Result", "Without skill"], rows)
    scores = e.scores[e.scores["arm"] == arm]
    blocks = [table, Figures([curve, _histogram(e, scores)])]
    return Section("discrimination", "Discrimination", blocks, [Figures([precision]), Paragraph(METHODS_SAID)])


def methods(e: Evidence) -> Table:
    """Say how the limits of each measure of the report were computed, from the results themselves."""
    m = e.metrics
    measured = vars(m.discrimination) | (vars(e.point) if e.point else {}) | vars(m.calibration.after)
    measured |= {"prevalence": m.prevalence}
    measured |= {f"{name} per 1,000": i for row in m.consequences[:1] for name, i in vars(row).items()}
    found: dict[str, list[str]] = {}
    for name, i in measured.items():
        if isinstance(i, Interval):
            found.setdefault(i.method, []).append(MEASURES.get(name, name.replace("_", " ")))
    rows = [[METHODS.get(method, method), ", ".join(names)] for method, names in found.items()]
    rows.append(["paired DeLong", "differences in AUC between arms on the same patients"])
    if e.point is not None:
        both = "bootstrap of calibration positives and test patients together, percentiles"
        rows.append([both, "differences between arms at matched sensitivity"])
        rows.append(["exact binomial (Clopper–Pearson), each at a level by Šidák", "groups, all at once"])
        rows.append(["exact joint law of order statistics, equal local levels", "the band over thresholds"])
    rows.append(["exact binomial (Clopper–Pearson), one-sided", "the certificate, and what test patients say of it"])
    return Table("methods", "How intervals and tests were computed", ["Method", "For"], rows)


def _histogram(e: Evidence, score: pd.DataFrame) -> Figure:
    threshold = None if e.point is None else e.point.threshold
    values, label = score["score"].to_numpy(), score["label"].to_numpy()
    middles = [
        float(np.median(values[label == of_class])) if (label == of_class).any() else None for of_class in (0, 1)
    ]
    line = "" if threshold is None else " The dashed line is the threshold."
    return Figure(
        "scores",
        f"Two histograms of patient scores. Median without the condition {number(middles[0], 2)}, with the condition "
        f"{number(middles[1], 2)}.{line}",
        f"Scores of test patients without (above) and with the condition (below).{line}",
        8.0,
        score_histogram(values, label, threshold),
    )


def calibration(e: Evidence) -> Section:
    """Return whether probabilities mean what they say, before and after calibration."""
    c = e.metrics.calibration
    measures = (
        ("brier", "Brier score", "0"),
        ("brier_skill", "Brier skill over the share with the condition", "1"),
        ("ece", f"Expected calibration error, bins: {c.bins}", "0"),
        ("log_loss", "Log loss", "0"),
        ("slope", "Calibration slope", "1"),
        ("intercept", "Calibration intercept", "0"),
        ("in_the_large", "Calibration in the large (intercept at slope 1)", "0"),
    )
    why = "too few patients of one kind, or all probabilities equal"
    rows = [
        [words, *(_measured(getattr(when, m), why) for when in (c.before, c.after)), ideal]
        for m, words, ideal in measures
    ]
    brier = c.after.brier
    caption = f"Calibration on {counted(brier.n, 'test patient')}, with {plain_percent(brier.level)} intervals"
    good = (
        "Good calibration alone does not make a useful model: one that gives everybody the same probability can be "
        "well calibrated. Read it together with the AUC and the Brier skill."
    )
    blocks: list[Block] = [
        Paragraph(_fitted(e)),
        *_change(c),
        *_curves(e),
        Table("calibration", caption, ["Measure", "Before", "After", "Ideal"], rows),
    ]
    return Section("calibration", "Calibration", blocks, [Paragraph(good), Figures([_binned(e)])])


def _measured(i: Interval, why: str) -> str:
    """Return a measure with its limits; `why` says why there are none, should it have none."""
    if missing(i.low) and missing(i.high):
        return f"{number(i.value)} (no interval: {why})"
    return short(i)


def _curves(e: Evidence) -> list[Block]:
    """Return the smooth calibration curve; nothing where patients are too few for one."""
    if e.calibration_curves is None:
        return [Paragraph("Patients are too few for a calibration curve; shares by bins are in the appendix.")]
    curves = {name: e.calibration_curves[e.calibration_curves["calibrated"] == name] for name in ("before", "after")}
    shown = {f"{name} calibration": curve for name, curve in curves.items() if len(curve)}
    level = plain_percent(e.metrics.prevalence.level)
    figure = Figure(
        "calibration_curve",
        f"Observed share against predicted probability, {' and '.join(shown)}, as a smooth curve with its band. "
        f"{_ends(shown)}",
        f"Predicted and observed, by local regression (loess) with pointwise {level} bootstrap limits; on the dotted "
        "line they agree. Spikes: patients with the condition from above, others from below.",
        16,
        calibration_curves(shown),
    )
    return [Figures([figure])]


def _ends(shown: Mapping[str, pd.DataFrame]) -> str:
    """Return three points of each curve, for who cannot see it."""
    said = []
    for title, curve in shown.items():
        at = curve.iloc[[0, len(curve) // 2, -1]].to_dict("records")
        said.append(f"{title}: " + ", ".join(f"{number(r['observed'], 2)} at {number(r['predicted'], 2)}" for r in at))
    return "; ".join(said) + "."


def _binned(e: Evidence) -> Figure:
    arm, ece = e.reported_arm, e.metrics.calibration.after.ece.value
    return Figure(
        "reliability",
        f"Observed share against predicted probability in bins, before and after calibration; expected calibration "
        f"error after: {number(ece)}.",
        "Predicted and observed in bins of equally many patients. On the dotted line they agree.",
        16,
        reliability(e.curve("reliability_before", arm), e.curve("reliability_after", arm)),
    )


def _change(c: Calibration) -> list[Block]:
    """Say whether calibration made probabilities better or worse on these patients, where that is known."""
    change, before, after = c.log_loss_change, c.before.log_loss.value, c.after.log_loss.value
    if missing(change.low):
        return []
    by = f"log loss {number(before)} before, {number(after)} after, change {_signed(change)}"
    if change.low > 0:
        title = "Calibration made the probabilities of these patients worse"
        return [Box("caution", title, [f"{by.capitalize()}."])]
    better = change.high < 0
    words = "better" if better else "neither better nor worse by more than chance explains"
    return [Paragraph(f"On these patients calibration made probabilities {words}: {by}.")]


def _signed(i: Interval) -> str:
    """Return a difference with its interval, to four digits where three would hide its sign."""
    digits = 4 if any(abs(end) < 0.0005 for end in (i.low, i.high)) else 3
    level = plain_percent(i.level)
    return f"{number(i.value, digits)} ({level} interval {limits(i.low, i.high, digits=digits)})"


def _fitted(e: Evidence) -> str:
    """Say how scores were turned into probabilities, and on whom."""
    c = e.calibrator
    chosen = ""
    if e.records["calibrate"]["settings"]["calibrator"] == "auto":
        chosen = ", chosen by cross-validation on these patients (logistic below 500 patients of a kind)"
    return (
        f"From score to probability: {CALIBRATORS[c['method']]}{chosen}; {counted(c['n'], 'calibration patient')}, "
        f"{count(c['n_positive'])} with the condition. It decides nothing: the threshold stands on the score. "
        f"Probabilities of single patients and thresholds in this report are {prevalence_assumed(e)}; this section "
        f"judges them as fitted, at the calibration patients' prevalence."
    )


def decision_curve(e: Evidence) -> Section:
    """Return whom the model would do good, by how much harm a needless referral is held to do."""
    if e.point is None:
        return Section("decision_curve", "Decision curve", [Paragraph(WITHHELD)])
    at, arm = e.metrics.headline_prevalence, e.reported_arm
    names = {
        "the model's probabilities": "screening_benefit",
        "refer everyone": "screening_benefit_all",
        "the operating threshold": "screening_benefit_operating_point",
    }
    curves = {label: e.curve(name, arm) for label, name in names.items()}
    if any(curve.empty for curve in curves.values()):
        nothing = "One kind of patient is missing: there is no decision curve."
        return Section("decision_curve", "Decision curve", [Paragraph(nothing)])
    rows = [
        [plain_percent(share), number(1 / share - 1, 0), *(_benefit_at(curve, share) for curve in curves.values())]
        for share in SHARES
    ]
    columns = ["Would refer from", "Needless referrals worth one found"]
    columns += [label[0].upper() + label[1:] for label in curves]
    n, positives = counted(e.metrics.patients, "test patient"), count(e.metrics.positives)
    level = plain_percent(e.metrics.prevalence.level)
    caption = (
        f"Net benefit per {count(PER)} people of whom {plain_percent(at)} have the condition (assumed, as on page "
        f"one): found, less needless referrals at that exchange; from {n}, {positives} with the condition, {level} "
        "intervals. To refer no one: 0"
    )
    words = Paragraph(
        "How to read it: who would refer a patient from a probability of 10 % on accepts nine needless referrals for "
        "one patient found. At each such preference, whatever lies highest does most good; below 0 it does harm. "
        f"Probabilities are carried to {plain_percent(at)} as well. It guarantees nothing about the share found."
    )
    figure = Figure(
        "decision_curve",
        f"Net benefit against threshold probability of {', '.join(curves)} and refer no one; numbers below.",
        f"Decision curve where {plain_percent(at)} have the condition, an assumption. The band is the {level} interval "
        "of the model's probabilities; to refer everyone has no interval.",
        16,
        decision(curves, min(max(LEAST_SHOWN, 3 * at), 0.99)),
    )
    table = Table("decision_curve", caption, columns, rows)
    return Section("decision_curve", "Decision curve", [words, Figures([figure]), table])


def _benefit_at(curve: pd.DataFrame, share: float) -> str:
    row = curve[np.isclose(curve["x"], share)].to_dict("records")[0]
    if missing(row["y_low"]):
        return number(PER * row["y"], 1)
    return short_interval(row["y"], row["y_low"], row["y_high"], digits=1, scale=PER)
