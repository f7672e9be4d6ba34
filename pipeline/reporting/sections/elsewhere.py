"""Other patients: external test sets, and whether anyone differs from the calibration patients."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.reporting.document import Block, Box, Bullets, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import (
    count,
    interval,
    missing,
    number,
    p_value,
    plain_percent,
    short,
)
from pipeline.reporting.sections.between_sites import between_sites
from pipeline.reporting.sections.operating import WITHHELD
from pipeline.reporting.sections.readings import verdict
from pipeline.store.results.interval import Interval
from pipeline.store.results.metrics import ComparedGroup, Excluded, ExternalSet, GroupMetrics
from pipeline.store.wording import agreeing, counted

MOST_ROWS, MOST_LINES, MOST_SETS = 8, 5, 3  # on a page; the appendix has all
LEVELS = {"fail": "stop", "warn": "caution", "info": "note"}
NOBODY_NEW = "—"
TESTED = "test patients"


def external(e: Evidence) -> Section:
    """Return each external test set beside the run's own test patients, and what its label means where that differs."""
    sets = e.metrics.external
    title = "External test sets"
    if not sets:
        nothing = "None was given: how the model does on patients from elsewhere is not known."
        return Section("external", title, [Paragraph(nothing)])
    said = Paragraph(
        "These patients were scored with the frozen model, calibrator and threshold; nobody whom the run had met is "
        "among them. "
        "The certificate is about people like the calibration patients; here one sees how it fares with others."
    )
    verdicts = [_verdict(e, name) for name in sets]
    definitions = [_definitions(e)] if any(_differs(e, name) for name in sets) else []
    if len(sets) <= MOST_SETS:
        beside, calibrated = _beside(e, list(sets.values()), "")
        return Section("external", title, [said, *verdicts, beside, *definitions], [calibrated])
    parts = [list(sets.values())[at : at + MOST_SETS] for at in range(0, len(sets), MOST_SETS)]
    tables = [table for at, some in enumerate(parts, 1) for table in _beside(e, some, f"_{at}")]
    return Section("external", title, [said, _overview(e)], [*verdicts, *tables, *definitions])


def _overview(e: Evidence) -> Table:
    """Return a row for each of many external sets."""
    rates = ["recall", "specificity", "referral_rate"] if e.point is not None else []
    rows = [
        [
            _capital(its.group),
            _people(its.judged),
            _auc(its.judged),
            *(_rate(its.judged, rate) for rate in rates),
            *([_outcome(e, its)] if rates else []),
        ]
        for its in e.metrics.external.values()
    ]
    shown = ["Sensitivity, %", "Specificity, %", "Referred, %", "The promise"] if rates else []
    level = plain_percent(e.metrics.discrimination.auc.level)
    caption = (
        f"{count(len(rows))} external test sets, with {level} intervals: same model, calibrator and threshold. What "
        "differs in them, and all measures, are in the appendix"
    )
    return Table("external", caption, ["External set", "Patients / with the condition", "AUC", *shown], rows)


def _outcome(e: Evidence, its: ExternalSet) -> str:
    if its.judged is None:
        return NOBODY_NEW
    shift = e.metrics.shift.of(its.group)
    return f"{_group_verdict(e, shift)}{'' if shift.covered else '; these patients differ'}"


def _verdict(e: Evidence, name: str) -> Box | Paragraph:
    """Say in words whether the certificate covers an external test set, and what became of it there."""
    its = e.metrics.external[name]
    if its.judged is None:
        left_out = its.excluded.patients
        gone = agreeing(
            left_out,
            "Its one labelled patient occurs in this run already.",
            f"All {count(left_out)} of its labelled patients occur in this run already.",
        )
        return Box("caution", f"Nothing can be said of {its.group}", [gone])
    shift, point = e.metrics.shift.of(its.group), its.judged.operating_point
    differences = [f"{_capital(text)}." for text in shift.differences]
    if e.point is None or point is None:
        return Paragraph(" ".join([f"{_capital(its.group)}.", WITHHELD, *differences]))
    found_to_be = _group_verdict(e, shift)
    found = f"{interval(point.recall, as_percent=True)} of those with the condition were referred."
    promised = f"The promise of at least {plain_percent(e.threshold.recall_target)} {_stands(found_to_be)}."
    lines = [f"{found} {promised}", *differences]
    good = shift.verification == "confirmed"
    title = f"{_capital(its.group)}: the promise {_stands(found_to_be)}"
    if not shift.covered:
        # Agreement there is better evidence than any likeness; both are said.
        lines.append("The certificate does not speak of these patients: they differ from the calibration patients.")
        return Box("good" if good else "caution", f"{title}; these patients differ", lines)
    return Box("good" if good else "caution", title, lines)


def _stands(verdict: str) -> str:
    return verdict if verdict == "agrees" else f"is {verdict}"


def _group_verdict(e: Evidence, group: ComparedGroup) -> str:
    """Return what a group says of the promise; one too small to confirm it says nothing."""
    needed = e.point.positives_to_confirm if e.point else 0
    few = needed if group.positives < needed else 0
    return verdict(group.verification, first=e.read_first, few=few)


def _beside(e: Evidence, some: Sequence[ExternalSet], part: str) -> tuple[Table, Table]:
    """Return the measures of the run's own test patients beside those of external sets; calibration by itself.

    `part` tells the names of several such tables apart.
    """
    sets: list[GroupMetrics | None] = [e.metrics, *(its.judged for its in some)]
    level = plain_percent(e.metrics.discrimination.auc.level)
    at = plain_percent(e.metrics.headline_prevalence)
    rows = [
        ["Patients / with the condition", *(_people(its) for its in sets)],
        ["Patients left out, since they occur in this run", NOBODY_NEW, *(_left_out(its.excluded) for its in some)],
        ["Share with the condition, %", *(NOBODY_NEW if its is None else short(its.prevalence, 100) for its in sets)],
        ["AUC", *(_auc(its) for its in sets)],
    ]
    if e.point is not None:
        rates = {"recall": "Sensitivity, %", "specificity": "Specificity, %", "referral_rate": "Referred, %"}
        rows += [[words, *(_rate(its, rate) for its in sets)] for rate, words in rates.items()]
        predictive = {"ppv": f"With the condition, of those referred, at {at} prevalence, %",
                      "npv": f"Without it, of those not referred, at {at} prevalence, %"}  # fmt: skip
        rows += [[words, *(_predicted(its, measure) for its in sets)] for measure, words in predictive.items()]
    line = {
        "slope": "Calibration slope (ideal 1)",
        "intercept": "Calibration intercept (ideal 0)",
        "in_the_large": "Calibration in the large (ideal 0)",
        "ece": "Expected calibration error",
        "brier": "Brier score",
        "brier_skill": "Brier skill",
    }
    calibrated = [
        [words, *(NOBODY_NEW if its is None else short(getattr(its.calibration.after, m)) for its in sets)]
        for m, words in line.items()
    ]
    caption = (
        f"The test patients of this run beside external test sets: same model, calibrator and threshold; {level} "
        "intervals. Sensitivity is of the patients with the condition, specificity of the others"
    )
    columns = ["Measure", *map(_capital, [TESTED, *(its.group for its in some)])]
    more = f"Calibration of the test patients of this run beside that of external test sets; {level} intervals"
    return (
        Table(f"external{part}", caption, columns, rows),
        Table(f"external_calibration{part}", more, columns, calibrated),
    )


def _people(its: GroupMetrics | None) -> str:
    return f"{count(its.patients)} / {count(its.positives)}" if its else "0"


def _left_out(excluded: Excluded) -> str:
    why = ", ".join(f"{counted(n, 'image')}: {reason}" for reason, n in excluded.images.items())
    return count(excluded.patients) + (f" ({why})" if why else "")


def _auc(its: GroupMetrics | None) -> str:
    return NOBODY_NEW if its is None else short(its.discrimination.auc)


def _rate(its: GroupMetrics | None, rate: str) -> str:
    return short(getattr(its.operating_point, rate), 100) if its and its.operating_point else NOBODY_NEW


def _predicted(its: GroupMetrics | None, measure: str) -> str:
    return short(getattr(its.headline, measure), 100) if its and its.consequences else NOBODY_NEW


def _differs(e: Evidence, name: str) -> bool:
    return any(
        e.card["label"][part] != e.external[name]["label"][part] for part in ("definition", "reference_standard")
    )


def _definitions(e: Evidence) -> Table:
    """Return what makes a patient positive, here and there: recall of another condition is another number."""
    cards = {TESTED: e.card, **{its.group: e.external[name] for name, its in e.metrics.external.items()}}
    parts = ("name", "definition", "reference_standard")
    rows = [[_capital(name), *(card["label"][part] for part in parts)] for name, card in cards.items()]
    columns = ["Patients", "Condition", "What makes a patient positive", "Who decided, how"]
    caption = "The label does not mean the same everywhere: numbers of different definitions do not compare"
    return Table("definitions", caption, columns, rows)


def shift(e: Evidence) -> Section:
    """Return who differs from the calibration patients, whom the certificate does not cover, and all findings."""
    groups = e.metrics.shift.groups
    blocks: list[Block] = []
    appendix: list[Block] = []
    if e.point is None:
        blocks.append(Paragraph(WITHHELD))
    elif len(groups) <= MOST_ROWS:
        blocks.append(_coverage(e, groups))
    else:
        blocks.append(_coverage(e, _first(groups), len(groups)))
        appendix.append(_coverage(e, groups))
    variation, by_site = between_sites(e)
    blocks.append(variation)
    uncovered = [f"{_group_name(g)}: {'; '.join(_why(g))}." for g in groups if not g.covered]
    if e.point is not None and uncovered:
        title = "The certificate may not speak of everyone tested: these differ from the calibration patients"
        blocks.append(Box("caution", title, _cut(uncovered)))
        if len(uncovered) > MOST_LINES:
            appendix.append(Bullets(uncovered))
    columns, about = ["Level", "Patients", "Finding"], "What the automatic checks found"
    ranked = (
        sorted(e.findings, key=lambda f: list(LEVELS).index(f.level)) if len(e.findings) > MOST_ROWS else e.findings
    )
    findings = [[LEVELS[f.level], f.on, f.message] for f in ranked]
    if not findings:
        blocks.append(Paragraph("The automatic checks found nothing to remark."))
    elif len(findings) <= MOST_ROWS:
        blocks.append(Table("findings", about, columns, findings))
    else:
        first = f"{about}: the first {MOST_ROWS} of {count(len(findings))}, the gravest first; the appendix has all"
        gravest = sorted(findings, key=lambda row: list(LEVELS.values()).index(row[0]))[:MOST_ROWS]
        blocks.append(Table("findings_first", first, columns, gravest))
        appendix.append(Table("findings", about, columns, findings))
    appendix += [*by_site, _distributions(e), Paragraph(HOW_TO_READ)]
    return Section("shift", "Shift and automatic checks", blocks, appendix)


def _first(groups: Sequence[ComparedGroup]) -> list[ComparedGroup]:
    """Return as many groups as a page has room for: all test patients, those that differ, then the lowest."""

    def rank(g: ComparedGroup) -> tuple[bool, bool, float]:
        return g.group != "test", g.covered, 1.0 if g.recall is None else g.recall.value

    chosen = sorted(range(len(groups)), key=lambda at: rank(groups[at]))[:MOST_ROWS]
    return [groups[at] for at in sorted(chosen)]


def _cut(lines: Sequence[str]) -> list[str]:
    """Return as many lines as a page has room for, and how many more there are."""
    rest = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"And {count(rest)} more, in the appendix."] if rest > 0 else list(lines)


HOW_TO_READ = (
    "How to read it: the largest gap between distributions of scores (Kolmogorov–Smirnov) and the population stability "
    "index (PSI) rise with any difference, also with another share of people with the condition, which alone does not "
    "touch the promise. Chance keeps the index below the number beside it in 95 of 100 groups. Calibration in the "
    "large is above 0 where probabilities are too low. Studies carry no calendar dates, which are removed at the "
    "start, so that there are no periods to compare."
)


def _distributions(e: Evidence) -> Table:
    calibration = e.metrics.shift.calibration
    rows = [["Calibration patients", count(calibration.patients), short(calibration.prevalence, 100), *["—"] * 4]]
    rows += [
        [
            _group_name(g),
            count(g.patients),
            short(g.prevalence, 100),
            f"{number(g.score_ks.statistic)}, p {p_value(g.score_ks.p)}",
            f"{number(g.stability.index, 2)} / {number(g.stability.by_chance, 2)}",
            _line(g.slope),
            _line(g.in_the_large),
        ]
        for g in e.metrics.shift.groups
    ]
    columns = ["Group", "Patients", "With the condition, %", "Score gap",
               "PSI/chance", "Calibration slope", "Calibration in the large"]  # fmt: skip
    level = plain_percent(calibration.prevalence.level)
    caption = (
        f"Everyone tested against the calibration patients; {level} intervals. —: too few "
        "patients of one kind, or probabilities that tell both kinds apart without exception, so that no line has a "
        "finite slope"
    )
    return Table("shift", caption, columns, rows)


def _line(i: Interval) -> str:
    return "—" if missing(i.value) else short(i, digits=2)


def _coverage(e: Evidence, groups: Sequence[ComparedGroup], of: int = 0) -> Table:
    """Return these groups, of so many where they are not all, beside the certificate."""
    held = {one.group: one.tail for one in e.point.held_against_certificate} if e.point else {}
    tails = [held.get(g.group) for g in groups]
    falls = sorted({float(fall) for tail in tails if tail for fall in tail.noticed}, reverse=True)
    rows = [
        [
            _group_name(g),
            count(g.positives),
            "—" if g.recall is None else short(g.recall, 100),
            "—" if tail is None else f"{count(tail.misses)} / {number(tail.expected, 1)}, p {p_value(tail.p)}",
            _group_verdict(e, g),
            *("—" if tail is None else number(100 * tail.noticed[f"{fall:g}"], 0) for fall in falls[:2]),
            "nothing seen" if g.covered else "yes: below",
        ]
        for g, tail in zip(groups, tails, strict=True)
    ]
    target, confidence = plain_percent(e.threshold.recall_target), plain_percent(e.threshold.confidence)
    several = ", shared out where several sites are asked (Holm)" if len(rows) > 2 else ""
    chosen = (
        f" {count(len(rows))} of {counted(of, 'group')}: those that differ, then those with the lowest sensitivity; "
        "the appendix has all."
        if of
        else ""
    )
    caption = (
        f"Each group against the certificate: at least {target} found, with {confidence} confidence{several}. Missed / "
        "expected when nothing differs, with the probability of as many misses or more. Noticed: in how many of 100 "
        f"cases misses would have shown a fall to that share; where that is few, “nothing seen” says little.{chosen}"
    )
    caption = caption if of else caption.rstrip(".")
    columns = ["Group", "With the condition", "Sensitivity, %", "Missed / expected", "The promise",
               *(f"Noticed at {plain_percent(fall)}" for fall in falls[:2]), "Different"]  # fmt: skip
    return Table("coverage_first" if of else "coverage", caption, columns, rows)


def _why(group: ComparedGroup) -> list[str]:
    """Say how a group differs; one that only contradicts the promise differs in that."""
    return list(group.differences) or ["the promise is contradicted there"]


def _group_name(group: ComparedGroup) -> str:
    return "Test patients, all" if group.group == "test" else _capital(group.group)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
