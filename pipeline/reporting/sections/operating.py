"""The operating point: how it was chosen, what it does on the test patients, what it would do to a thousand people."""

from __future__ import annotations

import numpy as np

from pipeline.reporting.document import Block, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Json, prevalence_assumed
from pipeline.reporting.numbers import (
    count,
    interval,
    missing,
    number,
    percent,
    plain_percent,
    probability,
    short_interval,
)
from pipeline.reporting.sections.summary import promise, stop
from pipeline.store.wording import counted

SWEEP_ROWS, NEIGHBOURS = 9, 3
WITHHELD = "Numbers that depend on a threshold are withheld: there is no usable operating point."


def operating_point(e: Evidence) -> Section:
    """Return how the threshold was chosen and what it does; without a usable one, why there is none."""
    t = e.threshold
    rows = [
        ["Wanted: share found of those with the condition", f"at least {plain_percent(t['recall_target'])}"],
        ["Wanted: confidence", plain_percent(t["confidence"])],
        ["Calibration patients", f"{count(t['positives'])} with, {count(t['negatives'])} without the condition"],
        ["Patients with the condition needed at least", count(t["positives_needed"])],
        ["Highest share that these patients can certify", percent(t["certifiable_recall"])],
        ["Models compared on these patients", count(t["models_compared"])],
        *([["Labels certified on these patients", count(t["labels_certified"])]] if e.further else []),
    ]
    if e.point is None:
        return Section(
            "operating_point",
            "Operating point",
            [
                stop(e),
                Table("certificate", "What was wanted, and the calibration patients", ["What", "Value"], rows, True),
            ],
        )
    shared = (
        f" ({plain_percent(t['confidence_used'])} after sharing it out)"
        if t["confidence_used"] != t["confidence"]
        else ""
    )
    rows[1][1] += shared
    misses = f"{count(t['misses_allowed'])} / {count(t['misses_seen'])}"
    means = f"a calibrated probability of {probability(t['probability'])} {prevalence_assumed(e)}"
    at = f"{number(t['threshold'], 4)} (log-odds), {means}"
    rows += [
        ["Misses allowed / seen among calibration patients", misses],
        ["Certified: share found", f"at least {percent(t['certified_recall'])}"],
        ["Threshold: refer when the patient's score is at least", at],
        ["Calibration patients with the condition referred", interval(t["recall"], as_percent=True)],
        ["Calibration patients without it not referred", interval(t["specificity"], as_percent=True)],
        ["Calibration patients referred", interval(t["referral_rate"], as_percent=True)],
    ]
    how = Paragraph(
        "How it was chosen: the threshold is the highest one that leaves so few calibration patients with the "
        "condition unreferred that, by the exact binomial distribution, the wanted share is certified. No assumption "
        "is made about the distribution of scores. The test patients were not used to choose it."
    )
    blocks = [how, Table("certificate", "The certificate", ["What", "Value"], rows, True), promise(e, e.point)]
    return Section(
        "operating_point",
        "Operating point",
        [*blocks, _two_by_two(e, e.point), _measures(e.point), *_targets(e, e.point), _sweep(e)],
    )


def _targets(e: Evidence, point: Json) -> list[Block]:
    """Return every recall target of the run with what became of it; nothing when there is but one."""
    others = e.threshold["other_operating_points"]
    if not others:
        return []
    seen = [point, *(other["operating_point"] for other in e.metrics["other_operating_points"])]
    rows = [
        _target(promised, found, mark)
        for promised, found, mark in zip([e.threshold, *others], seen, [" ◄", *[""] * len(others)], strict=True)
    ]
    n, positives = counted(e.metrics["patients"], "test patient"), count(e.metrics["positives"])
    caption = (
        f"Every share asked for: certified on the calibration patients, seen on {n}, {positives} with "
        f"the condition ({plain_percent(point['recall']['level'])} intervals); ◄ marks the operating point"
    )
    columns = ["Wanted", "Certified, %", "Score", "Probability", "Sensitivity, %", "Specificity, %", "Referred, %",
               "Promise"]  # fmt: skip
    one_by_one = Paragraph(
        f"Each promise holds by itself, with {plain_percent(e.threshold['confidence'])} confidence. That all of them "
        "hold at once is less sure, and so is a target picked because its row looks best: the operating point was "
        "fixed beforehand."
    )
    return [Table("targets", caption, columns, rows), one_by_one]


def _target(promised: Json, found: Json | None, mark: str) -> list[str]:
    wanted = plain_percent(promised["recall_target"]) + mark
    if found is None:
        return [wanted, *["—"] * 6, f"not certified: {counted(promised['positives_needed'], 'patient')} needed"]
    rates = [_short(found[name], scale=100) for name in ("recall", "specificity", "referral_rate")]
    verdict = (found["verification"] or "not checked").replace("_", " ")
    numbers = [number(100 * promised["certified_recall"], 1), number(promised["threshold"], 2)]
    return [wanted, *numbers, probability(promised["probability"]), *rates, verdict]


def _two_by_two(e: Evidence, point: Json) -> Table:
    c, name = point["counts"], e.card["label"]["name"]
    rows = [
        ["Refer", count(c["tp"]), count(c["fp"]), count(c["tp"] + c["fp"])],
        ["No refer", count(c["fn"]), count(c["tn"]), count(c["fn"] + c["tn"])],
        ["All", count(c["tp"] + c["fn"]), count(c["fp"] + c["tn"]), count(sum(c.values()))],
    ]
    return Table("two_by_two", f"Test patients by model and reference standard ({name})",
                 ["Model", "With the condition", "Without", "All"], rows)  # fmt: skip


def _measures(point: Json) -> Table:
    nobody = "nobody is on one side of the threshold"
    shares = (
        ("recall", "Sensitivity (recall): found, of those with the condition", "no such patients"),
        ("specificity", "Specificity: not referred, of those without the condition", "no such patients"),
        ("referral_rate", "Referred, of all", nobody),
        ("ppv", "Positive predictive value, at the share of these patients", nobody),
        ("npv", "Negative predictive value, at the share of these patients", nobody),
        ("balanced_accuracy", "Balanced accuracy", "one kind of patient is missing"),
    )
    plain = (
        ("f1", "F1 score"),
        ("youden", "Youden index (sensitivity + specificity − 1)"),
        ("lr_positive", "Likelihood ratio of “refer”"),
        ("lr_negative", "Likelihood ratio of “no refer”"),
    )
    rows = [[words, interval(point[name], as_percent=True, why=why)] for name, words, why in shares]
    rows += [[words, interval(point[name], why="a denominator is zero")] for name, words in plain]
    return Table("measures", "At the operating point, test patients", ["Measure", "Result"], rows)


def _sweep(e: Evidence) -> Table:
    """Show the operating point with its neighbours, and thresholds spread over the table; data/sweep.csv has all."""
    s = e.sweep.reset_index(drop=True)
    spread = np.linspace(0, len(s) - 1, min(len(s), SWEEP_ROWS)).round().astype(int)
    point = int(np.flatnonzero(s["operating_point"])[0])
    chosen = s.iloc[sorted({*spread, *range(max(0, point - NEIGHBOURS), min(len(s), point + NEIGHBOURS + 1))})]
    rows = [
        [
            number(r["threshold"], 2) + (" ◄" if r["operating_point"] else ""),
            probability(r["probability"]),
            *(count(r[n]) for n in ("true_positive", "false_positive", "true_negative", "false_negative")),
            short_interval(r["recall"], r["recall_low"], r["recall_high"], digits=1, scale=100),
            *(
                "—" if missing(r[name]) else number(100 * r[name], 1)
                for name in ("certified_recall", "specificity", "ppv", "npv", "referral_rate")
            ),
            "—" if missing(r["cost_per_found"]) else number(r["cost_per_found"], 2),
        ]
        for r in chosen.to_dict("records")
    ]
    columns = ["Score", "Probability", "Found", "False alarms", "Rightly left", "Missed", "Sensitivity, %",
               "Certified, %", "Specificity, %", "PPV, %", "NPV, %", "Referred, %", "Cost per found"]  # fmt: skip
    level = plain_percent(e.threshold["recall"]["level"])
    caption = (
        f"Other thresholds, calibration patients ({level} intervals, n = {count(e.threshold['positives'])} with the "
        f"condition); ◄ marks the operating point, and only this one carries the promise; {len(rows)} of "
        f"{counted(len(s), 'threshold')}, all in data/sweep.csv. Probabilities are {prevalence_assumed(e)}. PPV, NPV: "
        f"positive and negative predictive value. Cost: {_costs(e)}"
    )
    return Table("sweep", caption, columns, rows)


def _costs(e: Evidence) -> str:
    person, referral = e.threshold["costs"]["cost_per_person"], e.threshold["costs"]["cost_per_referral"]
    if (person, referral) == (0, 1):
        return "in referrals"
    return f"{person:g} per person screened and {referral:g} per person referred"


def consequences(e: Evidence) -> Section:
    """Return what would happen per 1,000 people at several prevalences."""
    if e.point is None:
        return Section("consequences", "Consequences", [Paragraph(WITHHELD)])
    rows = [
        [
            plain_percent(r["prevalence"]),
            f"{r['per'] * r['prevalence']:g}",
            *(_short(r[name]) for name in ("found", "missed")),
            *(_short(r[name], digits=0) for name in ("false_alarms", "referred")),
            _short(r["ppv"], scale=100),
            _short(r["npv"], scale=100, digits=2),
            _short(r["number_needed_to_recall"]),
        ]
        for r in e.metrics["consequences"]
    ]
    first = e.metrics["consequences"][0]
    caption = (
        f"Per {count(first['per'])} people screened, with {plain_percent(first['found']['level'])} intervals; from "
        f"{counted(e.metrics['patients'], 'test patient')}, {count(e.metrics['positives'])} with the condition"
    )
    columns = ["Prevalence", "With the condition", "Found", "Missed", "False alarms", "Referred",
               "Positive predictive value, %", "Negative predictive value, %", "Referred per person found"]  # fmt: skip
    note = Paragraph(
        "The share of people with the condition is an assumption here; sensitivity and specificity are those of the "
        "test patients. “Referred per person found” is how many people a reader looks at for each one with the "
        "condition."
    )
    return Section("consequences", "Consequences", [note, Table("consequences", caption, columns, rows)])


def _short(i: Json, *, digits: int = 1, scale: int = 1) -> str:
    return short_interval(i["value"], i["low"], i["high"], digits=digits, scale=scale)
