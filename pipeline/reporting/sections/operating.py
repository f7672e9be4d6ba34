"""The operating point: how it was chosen, what it does on the test patients, what it would do to a thousand people."""

from __future__ import annotations

from pipeline.reporting.document import Block, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, Json, prevalence_assumed
from pipeline.reporting.numbers import (
    count,
    interval,
    number,
    people_interval,
    percent,
    plain_percent,
    probability,
    short,
)
from pipeline.reporting.sections.readings import how_often_read, verdict_of
from pipeline.reporting.sections.summary import stop
from pipeline.reporting.sections.thresholds import slider, sweep
from pipeline.store.results.operating_point import AtTarget, MainPoint
from pipeline.store.results.threshold import Target
from pipeline.store.wording import counted

WITHHELD = "Numbers that depend on a threshold are withheld: there is no usable operating point."


def operating_point(e: Evidence) -> Section:
    """Return how the threshold was chosen and what it does; without a usable one, why there is none.

    The slider is made here alone, where `Evidence.point` says that an operating point may be used.
    """
    t, at = e.threshold, e.at
    shared = f" ({plain_percent(t.confidence_used)} after sharing it out)" if t.confidence_used != t.confidence else ""
    wanted = [
        ["Wanted: share found of those with the condition", f"at least {plain_percent(t.recall_target)}"],
        ["Wanted: confidence", plain_percent(t.confidence) + (shared if e.point is not None else "")],
        ["Calibration patients", f"{count(t.positives)} with, {count(t.negatives)} without the condition"],
        *_linked(t.linked_patients),
        ["Models calibrated on these patients, as counted or stated", count(t.models_compared)],
        *([["Labels certified on these patients", count(t.labels_certified)]] if e.further else []),
    ]
    needed = [
        ["Patients with the condition needed at least", count(t.positives_needed)],
        ["Highest share that these patients can certify", percent(t.certifiable_recall)],
    ]
    title, columns = "Operating point", ["What", "Value"]
    if e.point is None or at is None:
        caption = "What was wanted, and the calibration patients"
        return Section(
            "operating_point", title, [stop(e), Table("certificate", caption, columns, [*wanted, *needed], True)]
        )
    means = f"a calibrated probability of {probability(at.probability)} {prevalence_assumed(e)}"
    score = f"{number(at.threshold, 4)} (log-odds), {means}"
    rows = [
        *wanted,
        [
            "Misses allowed / seen among calibration patients",
            f"{count(at.misses_allowed)} / {count(at.misses_seen)}",
        ],
        ["Certified: share found", f"at least {percent(at.certified_recall)}"],
        ["Threshold: refer when the patient's score is at least", score],
    ]
    more = [
        *needed,
        ["Calibration patients with the condition referred", _by_construction(t.positives, at.misses_seen)],
        ["Calibration patients without it not referred", interval(at.specificity, as_percent=True)],
        ["Calibration patients referred", interval(at.referral_rate, as_percent=True)],
    ]
    how = Paragraph(
        "How it was chosen: the threshold is the highest one that leaves so few calibration patients with the "
        "condition unreferred that, by the exact binomial distribution, the wanted share is certified. No assumption "
        "is made about the distribution of scores; patients must be independent of each other, and new ones have as "
        f"many images each. {_chosen(e)}"
    )
    measures, more_measures = _measures(e.point)
    blocks = [
        *(how, Table("certificate", "The certificate", columns, rows, True), _verified(e, e.point)),
        *(_two_by_two(e, e.point), measures, *_targets(e, e.point), slider(e)),
    ]
    appendix = [
        Table("certificate_more", "More about the certificate", columns, more, True),
        *(_more_verified(e, e.point), more_measures, sweep(e)),
    ]
    return Section("operating_point", title, blocks, appendix)


def _linked(n: int) -> list[list[str]]:
    """Return a row on patients who count as one with another, whose picture they share; none without such."""
    return [["Patients left out, since they share a picture with one who counts", count(n)]] if n else []


def _by_construction(positives: int, missed: int) -> str:
    """Return the share of calibration patients found. It follows from the rule, so that it has no interval."""
    return f"{count(positives - missed)} of {count(positives)}, by construction"


def _chosen(e: Evidence) -> str:
    """Say whether test patients can have had a part in what was certified."""
    if e.read_first:
        return "It was fixed before the test patients were read, and they had no part in it."
    return f"It stands on calibration patients alone. {how_often_read(e)}"


def _verified(e: Evidence, point: MainPoint) -> Table:
    """Return what test patients say of the certificate, and how much that is worth."""
    confidence = plain_percent(e.threshold.confidence)
    lower, upper = point.recall_lower_one_sided, point.recall_upper_one_sided
    rows = [["Verdict of the test patients", verdict_of(e, point)]]
    if point.recall.n:
        rows.append([f"One-sided limits of the share found, each with {confidence} confidence",
                     f"at least {percent(lower)}, at most {percent(upper)}"])  # fmt: skip
    chance = f"{round(100 * point.chance_of_confirmation)} of 100"
    rows += [
        ["How often so many patients confirm a promise that is kept", chance],
        ["How often they were read", how_often_read(e)],
        *_linked(e.metrics.linked),
    ]
    return Table("verified", "The certificate on the test patients", ["What", "Value"], rows, True)


def _more_verified(e: Evidence, point: MainPoint) -> Table:
    """Return what it takes to confirm the certificate, and what the first image of each patient alone would do."""
    planned = e.threshold.planning
    rows = [
        ["Patients with the condition needed to confirm at all", count(point.positives_to_confirm)],
        ["Needed to confirm in 80 / 90 of 100 cases", " / ".join(_needed(planned, at) for at in ("0.8", "0.9"))],
    ]
    if first := point.first_image:
        recall, specificity = (interval(i, as_percent=True) for i in (first.recall, first.specificity))
        rows.append(["With the first image of each patient only", f"sensitivity {recall}; specificity {specificity}"])
    return Table("verified_more", "More about the certificate on the test patients", ["What", "Value"], rows, True)


def _needed(planned: Json | None, chance: str) -> str:
    needed = None if planned is None else planned[f"test_positives_for_{chance}"]
    return "no number is enough" if needed is None else count(needed)


def _targets(e: Evidence, point: MainPoint) -> list[Block]:
    """Return every recall target of the run with what became of it; nothing when there is but one."""
    others = e.threshold.other_operating_points
    if not others:
        return []
    seen = [point, *(other.operating_point for other in e.metrics.other_operating_points)]
    rows = [
        _target(e, promised, found, mark)
        for promised, found, mark in zip([e.threshold, *others], seen, [" ◄", *[""] * len(others)], strict=True)
    ]
    n, positives = counted(e.metrics.patients, "test patient"), count(e.metrics.positives)
    caption = (
        f"Every share asked for: certified on the calibration patients, seen on {n}, {positives} with "
        f"the condition ({plain_percent(point.recall.level)} intervals); ◄ marks the operating point"
    )
    columns = ["Wanted", "Certified, %", "Score", "Probability", "Sensitivity, %", "Specificity, %", "Referred, %",
               "Promise"]  # fmt: skip
    joint = e.threshold.joint_confidence
    at_once = f" All that are certified hold at once with {percent(joint)}." if joint else ""
    one_by_one = Paragraph(
        f"Each promise holds by itself, with {plain_percent(e.threshold.confidence)} confidence.{at_once} A target "
        "picked because its row looks best is less sure: the operating point is the first that the configuration "
        f"names{', which it did before the test patients were read' if e.read_first else ''}."
    )
    return [Table("targets", caption, columns, rows), one_by_one]


def _target(e: Evidence, promised: Target, found: AtTarget | None, mark: str) -> list[str]:
    wanted = plain_percent(promised.recall_target) + mark
    if found is None or promised.at is None:
        return [wanted, *["—"] * 6, f"not certified: {counted(promised.positives_needed, 'patient')} needed"]
    rates = [short(i, 100) for i in (found.recall, found.specificity, found.referral_rate)]
    numbers = [number(100 * promised.at.certified_recall, 1), number(promised.at.threshold, 2)]
    return [wanted, *numbers, probability(promised.at.probability), *rates, verdict_of(e, found)]


def _two_by_two(e: Evidence, point: MainPoint) -> Table:
    c, name = point.counts, e.card["label"]["name"]
    rows = [
        ["Refer", count(c.tp), count(c.fp), count(c.tp + c.fp)],
        ["No refer", count(c.fn), count(c.tn), count(c.fn + c.tn)],
        ["All", count(c.positives), count(c.negatives), count(c.n)],
    ]
    return Table("two_by_two", f"Test patients by model and reference standard ({name})",
                 ["Model", "With the condition", "Without", "All"], rows)  # fmt: skip


def _measures(point: MainPoint) -> tuple[Table, Table]:
    """Return sensitivity, specificity and the share referred, and, for the appendix, every other measure."""
    nobody = "nobody is on one side of the threshold"
    shares = (
        (point.recall, "Sensitivity (recall): found, of those with the condition", "no such patients"),
        (point.specificity, "Specificity: not referred, of those without the condition", "no such patients"),
        (point.referral_rate, "Referred, of all", nobody),
    )
    others = (
        (point.ppv, "Positive predictive value, at the share of these patients", nobody),
        (point.npv, "Negative predictive value, at the share of these patients", nobody),
        (point.balanced_accuracy, "Balanced accuracy", "one kind of patient is missing"),
    )
    plain = (
        (point.f1, "F1 score"),
        (point.youden, "Youden index (sensitivity + specificity − 1)"),
        (point.lr_positive, "Likelihood ratio of “refer”"),
        (point.lr_negative, "Likelihood ratio of “no refer”"),
    )
    columns, caption = ["Measure", "Result"], "At the operating point, test patients"
    rows = [[words, interval(i, as_percent=True, why=why)] for i, words, why in shares]
    more = [[words, interval(i, as_percent=True, why=why)] for i, words, why in others]
    more += [[words, interval(i, why="a denominator is zero")] for i, words in plain]
    return Table("measures", caption, columns, rows), Table("measures_more", f"{caption}: more", columns, more)


def consequences(e: Evidence) -> Section:
    """Return what would happen per 1,000 people at several prevalences."""
    if e.point is None:
        return Section("consequences", "Consequences", [Paragraph(WITHHELD)])
    rows = [
        [
            plain_percent(r.prevalence),
            f"{r.per * r.prevalence:g}",
            *(short(i, digits=1) for i in (r.found, r.missed)),
            *(people_interval(i, r.per) for i in (r.false_alarms, r.referred)),
            short(r.ppv, 100),
            short(r.npv, 100, digits=2),
            short(r.number_needed_to_recall, digits=1),
        ]
        for r in e.metrics.consequences
    ]
    first = e.metrics.consequences[0]
    caption = (
        f"Per {count(first.per)} people screened, with {plain_percent(first.found.level)} intervals; from "
        f"{counted(e.metrics.patients, 'test patient')}, {count(e.metrics.positives)} with the condition"
    )
    columns = ["Prevalence", "With the condition", "Found", "Missed", "False alarms", "Referred",
               "Positive predictive value, %", "Negative predictive value, %", "Referred per person found"]  # fmt: skip
    note = Paragraph(
        "The share of people with the condition is an assumption here; sensitivity and specificity are those of the "
        "test patients. “Referred per person found” is how many people a reader looks at for each one with the "
        "condition."
    )
    return Section("consequences", "Consequences", [note, Table("consequences", caption, columns, rows)])
