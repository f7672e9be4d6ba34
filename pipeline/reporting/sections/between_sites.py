"""How much results vary between sites, and what may be said of another site: where sites are too few, that it is not
known."""

from __future__ import annotations

from pipeline.reporting.document import Block, Paragraph, Table
from pipeline.reporting.evidence import Evidence, Json
from pipeline.reporting.numbers import count, limits, number, p_value, percent, plain_percent
from pipeline.store.wording import agreeing, counted

MEASURES = {"recall": "Sensitivity", "specificity": "Specificity", "auc": "AUC"}
NOTHING = "—"


def between_sites(e: Evidence) -> tuple[Paragraph, list[Block]]:
    """Return what is known of variation between sites, and the table for the appendix, where several sites are known.

    Without a usable operating point only the AUC is spoken of.
    """
    if not e.between_sites:
        nothing = "Fewer than two sites are stated of those tested: how results vary between sites is not known."
        return Paragraph(nothing), []
    said = [_group(e, group) for group in e.between_sites]
    return Paragraph(" ".join(said)), [_table(e)]


def _measures(e: Evidence, group: Json) -> dict[str, Json]:
    """Return what may be shown of a group, by measure."""
    names = MEASURES if e.point is not None else ("auc",)
    return {name: group[name] for name in names if group[name] is not None}


def _group(e: Evidence, group: Json) -> str:
    whose = "test patients" if group["group"] == "test" else "external sets"
    shown = _measures(e, group)
    if not shown:
        few = f"fewer than two of {counted(group['sites'], 'site')} have {counted(group['fewest_patients'], 'patient')}"
        return f"Sites of {whose}: {few} of the kind that it takes, so that how results vary between them is not known."
    enough = any(one["another"] is not None for one in shown.values())
    seen = "; ".join(_seen(name, one, enough) for name, one in shown.items())
    fewest = count(group["fewest_sites"])
    closing = (
        _another(group)
        if enough
        else f"So few sites do not tell how much sites differ, nor what another would show: it takes {fewest}."
    )
    without = group["patients_without_site"]
    gone = ""
    if without:
        gone = f" {counted(without, 'patient')} without one stated site {agreeing(without, 'is', 'are')} not in it."
    which = f"with at least {counted(group['fewest_patients'], 'patient')} of each kind that a measure is about"
    return f"Sites of {whose} {which}, from the lowest to the highest seen: {seen}. {closing}{gone}"


def _seen(name: str, one: Json, enough: bool) -> str:
    low, high = (_value(name, one[end]) for end in ("lowest", "highest"))
    values = f"{MEASURES[name]} {low} to {high} at {counted(one['sites'], 'site')}"
    chance = "" if one["chance"] is None else f" (p {p_value(one['chance'])} if sites differ in nothing)"
    if one["another"] is not None:
        between = " to ".join(_value(name, end) for end in one["another"])
        return f"{values}{chance}, expected at another {between}"
    return f"{values}{chance}{', too few to expect anything of another' if enough else ''}"


def _value(name: str, value: float) -> str:
    return number(value) if name == "auc" else percent(value)


def _another(group: Json) -> str:
    levels = {one["level"] for name in MEASURES if (one := group[name]) is not None}
    level = plain_percent(max(levels))
    known = group["in_training"]
    trained = (
        f" Training had patients of {count(known)} of {counted(group['sites'], 'site')}: one that it never saw may "
        f"differ by more."
        if known
        else ""
    )
    return (
        f"What is expected is a {level} prediction interval of the true value at one more site, if sites are like a "
        f"random sample (random effects).{trained}"
    )


def _table(e: Evidence) -> Table:
    rows = [
        [
            "Test patients" if group["group"] == "test" else "External sets",
            MEASURES[name],
            f"{count(one['sites'])} ({count(one['left_out'])})",
            f"{_value(name, one['lowest'])}–{_value(name, one['highest'])}",
            NOTHING if one["chance"] is None else p_value(one["chance"]),
            _spread(one),
            NOTHING if one["another"] is None else limits(*one["another"], as_percent=name != "auc"),
        ]
        for group in e.between_sites
        for name, one in _measures(e, group).items()
    ]
    fewest = {group["fewest_patients"] for group in e.between_sites}
    caption = (
        f"Variation between sites with at least {counted(max(fewest), 'patient')} of each kind that a measure is about "
        "(in brackets: sites with fewer, left out). p: how often counts are as uneven when sites differ in nothing. "
        "Spread: standard deviation between sites on the logit scale, with its limits; prior half-normal of scale 1. "
        "Another site: prediction interval of its true value"
    )
    columns = ["Sites of", "Measure", "Sites", "Seen", "p", "Spread", "Another site"]
    return Table("between_sites", caption, columns, rows)


def _spread(one: Json) -> str:
    if one["spread"] is None:
        return NOTHING
    middle, low, high = (number(value, 1) for value in one["spread"])
    return f"{middle} ({low}–{high})"
