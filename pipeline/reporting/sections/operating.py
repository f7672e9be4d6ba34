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
from pipeline.reporting.sections.readings import how_often_read, verdict_of
from pipeline.reporting.sections.summary import stop
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
        ["Models calibrated on these patients, as counted or stated", count(t["models_compared"])],
        *_linked(t["linked_patients"]),
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
        ["Calibration patients with the condition referred", _by_construction(t)],
        ["Calibration patients without it not referred", interval(t["specificity"], as_percent=True)],
        ["Calibration patients referred", interval(t["referral_rate"], as_percent=True)],
    ]
    how = Paragraph(
        "How it was chosen: the threshold is the highest one that leaves so few calibration patients with the "
        "condition unreferred that, by the exact binomial distribution, the wanted share is certified. No assumption "
        "is made about the distribution of scores; patients must be independent of each other, and new ones have as "
        f"many images each. {_chosen(e)}"
    )
    blocks = [how, Table("certificate", "The certificate", ["What", "Value"], rows, True), _verified(e, e.point)]
    return Section(
        "operating_point",
        "Operating point",
        [*blocks, _two_by_two(e, e.point), _measures(e.point), *_targets(e, e.point), _sweep(e)],
    )


def _linked(n: int) -> list[list[str]]:
    """Return a row on patients who count as one with another, whose picture they share; none without such."""
    return [["Patients left out, since they share a picture with one who counts", count(n)]] if n else []


def _by_construction(t: Json) -> str:
    """Return the share of calibration patients found. It follows from the rule, so that it has no interval."""
    return f"{count(t['positives'] - t['misses_seen'])} of {count(t['positives'])}, by construction"


def _chosen(e: Evidence) -> str:
    """Say whether test patients can have had a part in what was certified."""
    if e.read_first:
        return "It was fixed before the test patients were read, and they had no part in it."
    return f"It stands on calibration patients alone. {how_often_read(e)}"


def _verified(e: Evidence, point: Json) -> Table:
    """Return what test patients say of the certificate, and what they could have said."""
    confidence, planned = plain_percent(e.threshold["confidence"]), e.threshold["planning"]
    lower, upper = (point[f"recall_{end}_one_sided"] for end in ("lower", "upper"))
    rows = [["Verdict of the test patients", verdict_of(e, point)]]
    if point["recall"]["n"]:
        rows.append([f"One-sided limits of the share found, each with {confidence} confidence",
                     f"at least {percent(lower)}, at most {percent(upper)}"])  # fmt: skip
    chance = f"{round(100 * point['chance_of_confirmation'])} of 100"
    rows += [
        ["How often so many patients confirm a promise that is kept", chance],
        ["Patients with the condition needed to confirm at all", count(point["positives_to_confirm"])],
        ["Needed to confirm in 80 / 90 of 100 cases", " / ".join(_needed(planned, at) for at in ("0.8", "0.9"))],
        ["How often they were read", how_often_read(e)],
    ]
    rows += _linked(e.metrics["linked"])
    if point["first_image"]:
        first = {name: interval(point["first_image"][name], as_percent=True) for name in ("recall", "specificity")}
        rows.append(["With the first image of each patient only",
                     f"sensitivity {first['recall']}; specificity {first['specificity']}"])  # fmt: skip
    return Table("verified", "The certificate on the test patients", ["What", "Value"], rows, True)


def _needed(planned: Json | None, chance: str) -> str:
    needed = None if planned is None else planned[f"test_positives_for_{chance}"]
    return "no number is enough" if needed is None else count(needed)


def _targets(e: Evidence, point: Json) -> list[Block]:
    """Return every recall target of the run with what became of it; nothing when there is but one."""
    others = e.threshold["other_operating_points"]
    if not others:
        return []
    seen = [point, *(other["operating_point"] for other in e.metrics["other_operating_points"])]
    rows = [
        _target(e, promised, found, mark)
        for promised, found, mark in zip([e.threshold, *others], seen, [" ◄", *[""] * len(others)], strict=True)
    ]
    n, positives = counted(e.metrics["patients"], "test patient"), count(e.metrics["positives"])
    caption = (
        f"Every share asked for: certified on the calibration patients, seen on {n}, {positives} with "
        f"the condition ({plain_percent(point['recall']['level'])} intervals); ◄ marks the operating point"
    )
    columns = ["Wanted", "Certified, %", "Score", "Probability", "Sensitivity, %", "Specificity, %", "Referred, %",
               "Promise"]  # fmt: skip
    joint = e.threshold["joint_confidence"]
    at_once = f" All that are certified hold at once with {percent(joint)}." if joint else ""
    one_by_one = Paragraph(
        f"Each promise holds by itself, with {plain_percent(e.threshold['confidence'])} confidence.{at_once} A target "
        "picked because its row looks best is less sure: the operating point is the first that the configuration "
        f"names{', which it did before the test patients were read' if e.read_first else ''}."
    )
    return [Table("targets", caption, columns, rows), one_by_one]


def _target(e: Evidence, promised: Json, found: Json | None, mark: str) -> list[str]:
    wanted = plain_percent(promised["recall_target"]) + mark
    if found is None:
        return [wanted, *["—"] * 6, f"not certified: {counted(promised['positives_needed'], 'patient')} needed"]
    rates = [_short(found[name], scale=100) for name in ("recall", "specificity", "referral_rate")]
    numbers = [number(100 * promised["certified_recall"], 1), number(promised["threshold"], 2)]
    return [wanted, *numbers, probability(promised["probability"]), *rates, verdict_of(e, found)]


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
    """Show the operating point with its neighbours, and rows spread over those with a limit; data/sweep.csv has all."""
    every = e.sweep.reset_index(drop=True)
    s = every[every["band_recall"].notna() | every["operating_point"]].reset_index(drop=True)
    spread = np.linspace(0, len(s) - 1, min(len(s), SWEEP_ROWS)).round().astype(int)
    point = int(np.flatnonzero(s["operating_point"])[0])
    chosen = s.iloc[sorted({*spread, *range(max(0, point - NEIGHBOURS), min(len(s), point + NEIGHBOURS + 1))})]
    rows = [
        [
            number(r["threshold"], 2) + (" ◄" if r["operating_point"] else ""),
            probability(r["probability"]),
            *(count(r[n]) for n in ("false_negative", "false_positive")),
            number(100 * r["recall"], 1),
            *(
                "—" if missing(r[name]) else number(100 * r[name], 1)
                for name in ("band_recall", "specificity", "referral_rate")
            ),
            "—" if missing(r["cost_per_found"]) else number(r["cost_per_found"], 2),
        ]
        for r in chosen.to_dict("records")
    ]
    columns = ["Score", "Probability", "Missed", "False alarms", "Sensitivity, %", "Band: at least, %",
               "Specificity, %", "Referred, %", "Cost per found"]  # fmt: skip
    confidence, most = plain_percent(e.threshold["confidence_used"]), plain_percent(e.threshold["band_missed_share"])
    caption = (
        f"Other thresholds, calibration patients, {count(e.threshold['positives'])} with the condition. Band: the "
        f"limits of all rows that miss up to {most} hold at once with {confidence} confidence, so that any of them may "
        f"be picked after looking; ◄ marks the operating point, which was certified by itself, for more. {len(rows)} "
        f"of {counted(len(every), 'threshold')}, all in data/sweep.csv. Probabilities are {prevalence_assumed(e)}. "
        f"Cost: {_costs(e)}"
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
