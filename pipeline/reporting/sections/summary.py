"""Page one: what was asked, what is promised and at what price, what test patients say of it, the limits.

It is meant to be read aloud in less than a minute, and no sentence of it is a constant that a run could make untrue.
"""

from __future__ import annotations

import math

from pipeline.reporting.diagrams import icons
from pipeline.reporting.document import (
    Block,
    Box,
    Bullets,
    Figure,
    Figures,
    Heading,
    Level,
    Paragraph,
    Section,
    ended,
    shortened,
)
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import (
    count,
    missing,
    people,
    people_interval,
    percent,
    plain_percent,
    scaled,
    short,
)
from pipeline.reporting.sections.deployment import lowered
from pipeline.reporting.sections.readings import briefly_read, verdict_of
from pipeline.store.results.interval import Interval
from pipeline.store.results.operating_point import OperatingPoint, PrevalenceRow
from pipeline.store.wording import agreeing, counted

AT_THE_END = "it is exactly 0 or 1, or one kind of patient is missing"
NOT_CERTIFIED = "No operating point: this model must not be used to refer anyone"
# Test patients of whom this many times as many have the condition as was assumed of people screened are no such people.
ENRICHED = 2
REASONS = 2  # that page one gives for a stop


def summary(e: Evidence) -> Section:
    """Return page one. Without a usable operating point, a box says why, and no threshold is shown."""
    condition, population = e.card["label"]["name"], e.card["intended_use"]["population"]
    about = f"Condition: {ended(shortened(condition, 60))} People: {ended(shortened(population, 100))}"
    asked = f"Whom should a reader look at? {about}"
    blocks: list[Block] = [Paragraph(asked)]
    if e.point is None:
        blocks.append(_stopped(e))
    else:
        row = e.metrics.headline
        blocks += [_consequence(e, row), Figures([_icons(row)]), promise(e, e.point)]
    return Section("summary", "Summary", [*blocks, Heading("Limits"), limits(e)])


def stop(e: Evidence) -> Box:
    """Return the box that stands where the operating point would stand, with every reason."""
    return Box("stop", NOT_CERTIFIED, e.problems)


def _stopped(e: Evidence) -> Box:
    """Return the first reasons, and how many more there are; the section on the operating point has them all."""
    rest = len(e.problems) - REASONS
    more = [f"{counted(rest, 'more reason')}: “Operating point”."] if rest > 0 else []
    return Box("stop", NOT_CERTIFIED, [*e.problems[:REASONS], *more])


def promise(e: Evidence, point: OperatingPoint) -> Box:
    """Return what the test patients say of what was promised from the calibration patients, and no more than that."""
    level, title, meaning = _verdict(e, point)
    n = point.recall.n
    seen = f"{short(point.recall, 100)} % of {counted(n, 'test patient')} with the condition were referred."
    return Box(level, title, [" ".join(part for part in (seen if n else "", meaning) if part)])


def _verdict(e: Evidence, point: OperatingPoint) -> tuple[Level, str, str]:
    """Return the level of the verdict's box, its title, and what the verdict means."""
    verification, read = point.verification, briefly_read(e)
    if verification == "contradicted":
        fail = f"{100 * (1 - e.threshold.confidence):.3g}"
        why = (
            f"Either this is one of the {fail} in 100 certificates that fail without any reason, or these patients "
            "differ from the calibration patients."
        )
        return "stop", "The promise was contradicted: do not rely on it", f"{why} {read}"
    if verification is None:
        return "caution", "The promise could not be checked", "No test patient has the condition."
    if verification == "confirmed":
        lower = point.recall_lower_one_sided
        sure = f"They show at least {percent(lower)}, {plain_percent(e.threshold.confidence)} sure."
        if e.read_first:
            return "good", "The promise was confirmed on other patients", f"{sure} {read}"
        return "caution", "The test patients agree with the promise", read
    if not point.can_confirm:
        needed = f"At least {count(point.positives_to_confirm)} with the condition are needed."
        return "caution", "There are too few test patients to confirm the promise", f"{needed} {read}"
    chance = round(100 * point.chance_of_confirmation)
    usual = f"So many confirm a kept promise in {chance} of 100 cases."
    return "caution", "The promise was neither confirmed nor contradicted", f"{usual} {read}"


def _consequence(e: Evidence, row: PrevalenceRow) -> Box:
    per, at, seen = row.per, row.prevalence, e.metrics.prevalence.value
    target, confidence = plain_percent(e.threshold.recall_target), plain_percent(e.threshold.confidence)
    # Test patients of whom so many more are ill are no people who come to be screened.
    differ = ": people screened may differ" if seen >= ENRICHED * at else ""
    lines = [
        f"Assumed: {plain_percent(at)} have the condition, {per * at:g} people; {_missed(row.missed)} Of test "
        f"patients {percent(seen, 0)} had it{differ}.",
        *_pooled(e, per),
        f"{_bracketed(row.missed)}: {plain_percent(row.found.level)} intervals.",
    ]
    return Box(
        "result",
        f"Promised, {confidence} sure: at least {target} of those with the condition are found; about "
        f"{people_interval(row.referred, per)} of {count(per)} people are referred",
        [" ".join(lines)],
    )


def _missed(i: Interval) -> str:
    """Say how many may be missed, the most first: few test patients can show none and still leave room for some."""
    if missing(i.high):
        return f"{people(i.value)} would be missed."
    return f"at most {count(math.ceil(i.high))} would be missed, {people(i.value)} expected."


def _bracketed(missed: Interval) -> str:
    """Say where the limits of intervals stand."""
    return "In brackets" if missing(missed.high) else "Brackets, “at most”"


def _pooled(e: Evidence, per: int) -> list[str]:
    """Return one line on the threshold to use, where it is another than the one that was tested."""
    d = e.deployment
    if d is None or d.to_use is None or not e.another_to_use:
        return []
    which = "Certified on test patients, too, the threshold to use" if d.rule == "pooled" else "The threshold to use"
    lowest = ", the lowest that a group needs," if lowered(d) else ""
    return [f"{which}{lowest} refers about {people_interval(scaled(d.to_use.referral, per), per)}."]


def _icons(row: PrevalenceRow) -> Figure:
    found, missed, alarms = (i.value for i in (row.found, row.missed, row.false_alarms))
    per, prevalence = row.per, plain_percent(row.prevalence)
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
    said = []
    for its in e.metrics.external.values():
        if its.judged is None or (point := its.judged.operating_point) is None:
            continue
        found = f"{short(point.recall, 100)} % of {count(its.judged.positives)} with the condition found"
        said.append(f"{its.group}, {found}, {verdict_of(e, point)}")
    return [shortened(f"Elsewhere: {'; '.join(said)}.", 300)] if said else []


def _shared(e: Evidence) -> list[str]:
    """Return one line on the confidence shared out; none without further labels."""
    if not e.further:
        return []
    labels = counted(e.threshold.labels_certified, "label")
    confidence = plain_percent(e.threshold.confidence)
    return [f"The confidence is shared out over {labels}: one can be {confidence} sure of all promises at once."]


def limits(e: Evidence) -> Bullets:
    """Return who the numbers are about and what they do not say, the general limits first."""
    use, usable = e.card["intended_use"], e.point is not None
    traps = e.card["known_traps"]
    items = ["“No refer” does not rule out the condition."]
    if usable:
        items.append("The promise is about independent people like the calibration patients.")
        items += _shared(e)
    items.append(f"{_tested_where(e)} Truth: {ended(shortened(_truth(e), 60))}")
    if use["not_for"]:
        items.append(f"Not for: {ended(shortened('; '.join(use['not_for']), 90))}")
    if traps:
        items.append(f"{counted(len(traps), 'known trap')}: section 2.")
    if usable:
        items += _external(e)
        items += _remarks(e)
    return Bullets(items)


def _truth(e: Evidence) -> str:
    return e.card["label"]["reference_standard"].partition(";")[0].strip().rstrip(".")


def _tested_where(e: Evidence) -> str:
    """Say at how many sites test patients were seen, and whether any came from elsewhere."""
    tested = e.assignment.loc[e.assignment["split"] == "test", "image_id"]
    sites = set(e.images.loc[e.images["image_id"].isin(tested), "site"]) - {""}
    where = f"Tested at {counted(len(sites), 'site')}" if sites else "Where it was tested is not known"
    elsewhere = any(its.judged for its in e.metrics.external.values())
    return f"{where}{'' if elsewhere else ', on no external set'}, not against readers."


def _remarks(e: Evidence) -> list[str]:
    """Return the first warning of the automatic checks, and how many more there are."""
    warned = [f for f in e.findings if f.level == "warn" and f.on in ("calibration", "test")]
    if not warned:
        return []
    rest = len(warned) - 1
    more = f" {agreeing(rest, 'One more remark', f'{rest} more remarks')}: “Shift and automatic checks”."
    first = shortened(warned[0].in_words.partition(";")[0].rstrip("."), 110)
    return [f"{first}.{more if rest else ''}"]
