"""Page one: what was asked, what would happen to a thousand people, whether the promise held, the limits."""

from __future__ import annotations

from pipeline.inference.decision import Json, in_words
from pipeline.reporting.diagrams import icons
from pipeline.reporting.document import (
    RESEARCH_USE,
    Block,
    Box,
    Bullets,
    Figure,
    Figures,
    Heading,
    Level,
    Paragraph,
    Section,
    Table,
)
from pipeline.reporting.document import shortened as short
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import (
    count,
    interval,
    missing,
    people_interval,
    percent,
    plain_percent,
)
from pipeline.store.wording import counted

AT_THE_END = "it is exactly 0 or 1, or one kind of patient is missing"
VERDICTS = {
    "confirmed": "confirmed there",
    "not_confirmed": "neither confirmed nor contradicted there",
    "contradicted": "contradicted there",
}
NOT_CERTIFIED = "No operating point: this model must not be used to refer anyone"


def summary(e: Evidence) -> Section:
    """Return page one. Without a usable operating point, a box says why, and no threshold is shown."""
    condition, population = e.card["label"]["name"], e.card["intended_use"]["population"]
    target = plain_percent(e.threshold["recall_target"])
    blocks: list[Block] = [
        Paragraph(
            f"What was asked: which people should a reader look at, so that at least {target} of those with the "
            f"condition are found? Condition: {short(condition)}. People: {short(population)}."
        )
    ]
    if e.point is None:
        blocks.append(stop(e))
    else:
        row = headline_row(e)
        blocks += [_consequence(e, row), Figures([_icons(row)]), promise(e, e.point)]
    return Section("summary", "Summary", [*blocks, _headline(e), Heading("What the limits are"), _limits(e)])


def stop(e: Evidence) -> Box:
    """Return the box that stands where the operating point would stand, with every reason."""
    return Box("stop", NOT_CERTIFIED, e.problems)


def headline_row(e: Evidence) -> Json:
    """Return the consequences at the prevalence of page one."""
    wanted = e.metrics["headline_prevalence"]
    return next(row for row in e.metrics["consequences"] if row["prevalence"] == wanted)


def promise(e: Evidence, point: Json) -> Box:
    """Return what was promised from the calibration patients and whether the test patients bear it out."""
    t, recall = e.threshold, point["recall"]
    target = plain_percent(t["recall_target"])
    made = (
        f"Promised from {counted(t['positives'], 'calibration patient')} with the condition: with "
        f"{plain_percent(t['confidence'])} confidence, at least {target} of people like them who have the condition "
        f"are referred."
    )
    seen = f"Test patients, used for nothing else: {interval(recall, as_percent=True)} were referred."
    lower = point["recall_lower_one_sided"]
    low = "" if missing(lower) else f" ({plain_percent(t['confidence'])} sure of at least {percent(lower)})"
    unchecked: tuple[Level, str, str] = (
        "caution",
        "The promise could not be checked",
        "No test patient has the condition.",
    )
    verdicts: dict[str, tuple[Level, str, str]] = {
        "confirmed": ("good", "The promise was confirmed", f"This shows again that at least {target} are found{low}."),
        "not_confirmed": (
            "caution",
            "The promise was not confirmed, and not contradicted",
            f"They neither show again nor contradict that at least {target} are found{low}.",
        ),
        "contradicted": (
            "stop",
            "The promise was contradicted: do not rely on it",
            f"On the test patients fewer than {target} are found. They differ from the calibration patients.",
        ),
    }
    level, title, verdict = verdicts.get(point["verification"], unchecked)
    return Box(level, title, [made, f"{seen} {verdict}"])


def _consequence(e: Evidence, row: Json) -> Box:
    per = row["per"]
    with_condition = f"{per * row['prevalence']:g}"
    level = plain_percent(row["found"]["level"])
    return Box(
        "result",
        f"Of {count(per)} people like these, at {plain_percent(row['prevalence'])} prevalence, about "
        f"{people_interval(row['referred'], per)} would be referred",
        [
            f"{people_interval(row['found'], per)} of the {with_condition} with the condition would be found and "
            f"{people_interval(row['missed'], per)} missed.",
            f"{people_interval(row['false_alarms'], per)} would be referred although free of the condition.",
            f"In brackets: {level} intervals, from {counted(e.metrics['patients'], 'test patient')}, "
            f"{count(e.metrics['positives'])} of them with the condition.",
        ],
    )


def _icons(row: Json) -> Figure:
    found, missed, alarms = (row[name]["value"] for name in ("found", "missed", "false_alarms"))
    per, prevalence = row["per"], plain_percent(row["prevalence"])
    return Figure(
        "thousand_people",
        f"One mark per person. Of {count(per)}: about {count(found)} found, {count(missed)} missed, {count(alarms)} "
        f"referred although free of the condition, the others neither ill nor referred.",
        f"{count(per)} people screened at {prevalence} prevalence",
        15.2,
        icons(found, missed, alarms, per),
    )


def _external(e: Evidence) -> list[str]:
    """Return one line on all external test sets; none without such sets."""
    said = [
        f"{its['group']}, {percent(its['operating_point']['recall']['value'])} of {count(its['positives'])} with the "
        f"condition found, {VERDICTS.get(its['operating_point']['verification'], 'not checked there')}"
        for its in e.metrics["external"].values()
        if its["patients"]
    ]
    return [short(f"The promise elsewhere: {'; '.join(said)}.", 300)] if said else []


def _shared(e: Evidence) -> list[str]:
    """Return one line on the confidence shared out; none without further labels."""
    if not e.further:
        return []
    labels = counted(e.threshold["labels_certified"], "label")
    confidence = plain_percent(e.threshold["confidence"])
    return [f"The confidence is shared out over {labels}: one can be {confidence} sure of all promises at once."]


def _headline(e: Evidence) -> Table:
    auc = e.metrics["discrimination"]["auc"]
    rows = []
    if e.point is not None:
        row = headline_row(e)
        at = plain_percent(row["prevalence"])
        rows = [
            ["Found, of those with the condition (sensitivity)", interval(e.point["recall"], as_percent=True)],
            ["Not referred, of those without it (specificity)", interval(e.point["specificity"], as_percent=True)],
            [
                f"With the condition, of those referred, at {at} prevalence",
                interval(row["ppv"], as_percent=True),
            ],
        ]
    rows.append(["Ranking of patients, 0.5 = chance, 1 = perfect (AUC)", interval(auc, why=AT_THE_END)])
    return Table("headline", "Results on the test patients", ["Measure", "Result"], rows)


def _limits(e: Evidence) -> Bullets:
    use = e.card["intended_use"]
    items = [f"{RESEARCH_USE}. “No refer” does not rule out the condition."]
    if e.point is not None:
        items.append("The promise covers people like the calibration patients, read on the same kind of equipment.")
        items += _shared(e)
    if use["not_for"]:
        items.append(f"Not for: {short('; '.join(use['not_for']), 200)}.")
    items += [short(trap, 300) for trap in e.card["known_traps"][:2]]
    if e.point is not None:
        items += _external(e)
        items += [
            short(in_words(finding), 200)
            for finding in e.findings
            if finding["level"] == "warn" and finding["on"] in ("calibration", "test")
        ][:3]
    return Bullets(items)
