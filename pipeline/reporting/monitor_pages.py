"""The pages of monitor: lights, weeks, sites, outcomes. Renders finished numbers; computes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reporting.document import Block, Box, Bullets, Document, Figure, Figures, Level, Paragraph, Section, Table
from pipeline.reporting.monitor_figures import weeks_of
from pipeline.reporting.numbers import count, number, percent, plain_percent, share
from pipeline.store.wording import counted

LATEST_WEEKS = 16
LOOKS: Mapping[str, Level] = {"red": "stop", "amber": "caution", "green": "good"}
WORDS = {"red": "Red", "amber": "Amber", "green": "Green"}
Json = Mapping[str, Any]


def build(content: Json, name: Mapping[str, str]) -> Document:
    """Return the document of what `monitor` found; `name` says what each kind of light is called."""
    red = [light for light in content["lights"] if light["level"] == "red"]
    model = content["model"]
    sections = [
        Section("lights", "What to do", _lights(content["lights"])),
        Section("weeks", "Week by week", _weeks(content, name)),
        *([Section("sites", "Site by site", _sites(content))] if content["sites"] else []),
        Section("outcomes", "Outcomes and recall", _outcomes(content)),
        Section("how", "How this is judged", [_how(content)]),
    ]
    period = f"{content['first']} to {content['last']}"
    return Document(
        title="Is the model still what was certified?",
        subtitle=f"{model['title']} · {counted(content['counts']['studies'], 'study', 'studies')} · {period}",
        date=content["last"],
        contact="",
        footer=f"Watched {period} · model {model['sha256'][:16]}",
        keys={},
        usable=not red,
        sections=sections,
    )


def _lights(lights: Sequence[Json]) -> list[Block]:
    blocks: list[Block] = [
        Box(LOOKS[light["level"]], _title(light), [text for text in (light["sentence"], light["todo"]) if text])
        for level in ("red", "amber")
        for light in lights
        if light["level"] == level
    ]
    green = [light for light in lights if light["level"] == "green"]
    if green:
        rows = [[_title(light), light["sentence"]] for light in green]
        blocks.append(Table("green", "Nothing speaks against these", ["Light", "Why"], rows))
    if len(green) == len(lights):
        blocks.insert(0, Box("result", "All lights are green", ["Nothing to do but to go on watching."]))
    return blocks


def _title(light: Json) -> str:
    where = "" if light["site"] is None else f", {light['site'] or 'no site stated'}"
    return f"{WORDS[light['level']]}: {light['name'].lower()}{where}"


def _weeks(content: Json, name: Mapping[str, str]) -> list[Block]:
    overall = [one for one in content["streams"] if one["site"] is None]
    alt = "; ".join(f"{name[one['kind']]}: {_alarm(one)}" for one in overall)
    caption = (
        "Left: what each week showed, dots the larger the more studies; grey is what is expected. Right: the evidence "
        "that something is wrong, on a scale of tenfold steps; the dashed line is the alarm"
    )
    shown = content["weeks"][-LATEST_WEEKS:]
    left_out = len(content["weeks"]) - len(shown)
    columns = ["Week", "Studies", "Referred", "Not assessable", "Median score", "Median typicality",
               "Outcomes, looked at", "Outcomes, others"]  # fmt: skip
    rest = f" The {counted(left_out, 'week')} before are in monitor.json." if left_out else ""
    return [
        Figures([Figure("weeks", f"Weekly shares and evidence. {alt}.", caption, 16, weeks_of(overall, name))]),
        Table("weeks", f"The weeks, newest last.{rest}", columns, [[row["week"], *_row(row)] for row in shown]),
    ]


def _alarm(one: Json) -> str:
    return f"alarm in week {one['alarm_week']}" if one["alarm_week"] else "no alarm"


def _row(row: Json) -> list[str]:
    n = row["studies"]
    medians = [("—" if row[key] is None else number(row[key], 2)) for key in ("median_score", "median_typicality")]
    rates = [f"{count(row[key])} ({percent(row[key] / n, 0)})" for key in ("referred", "not_assessable")]
    return [count(n), *rates, *medians, count(row["outcomes_looked_at"]), count(row["outcomes_others"])]


def _sites(content: Json) -> list[Block]:
    columns = ["Site", "Studies", "Referred", "Not assessable", "Median score", "Median typicality",
               "Outcomes, looked at", "Outcomes, others", "Alarms"]  # fmt: skip
    rows = []
    for row in content["sites"]:
        own = [one for one in content["streams"] if one["site"] == row["site"]]
        alarms = [f"{one['kind']} ({one['alarm_week']})" for one in own if one["alarm_week"]]
        rows.append([row["site"] or "not stated", *_row(row), ", ".join(alarms) or "none"])
    return [Table("sites", "The sites", columns, rows)]


def _outcomes(content: Json) -> list[Block]:
    counts, recall = content["counts"], content["recall"]
    back = counts["outcomes"]
    rows = [
        ["Looked at: referred or not assessable", count(counts["looked_at"]), count(back["referred"]),
         count(back["referred_positive"])],
        ["Not referred", count(back["not_referred"]), count(back["audited"]), count(back["audited_positive"])],
    ]  # fmt: skip
    table = Table("outcomes", "Outcomes that came back", ["Studies", "All", "With outcome", "With the condition"], rows)
    if not recall["stated"]:
        said = Box("caution", "Recall is not stated", [f"Why: {recall['why_not']}."])
    else:
        limits = f"{percent(recall['low'])} to {percent(recall['high'])}"
        said = Box(
            "result",
            f"Recall {percent(recall['value'])}",
            [
                f"{share(recall['missed'], recall['audited_positives'])} audited people with the condition "
                f"were missed; limits that hold at all times together: {limits}. Promised: "
                f"{plain_percent(content['model']['recall_target'])}.",
            ],
        )
    bound = plain_percent(counts["missed_bound"])
    needed = Paragraph(
        f"Outcomes of {count(counts['audits_needed'])} people not referred, drawn at random, bound the missed at "
        f"{bound} of them (95 % confidence) if no more of them have the condition than until now; "
        f"{count(back['audited'])} are there."
    )
    return [table, said, needed]


def _how(content: Json) -> Bullets:
    model, ever = content["model"], content["false_alarm_ever"]
    band = model["referral_expected"]
    items = [
        f"Each light is a test martingale that may be looked at as often as one likes. The probability of a false "
        f"alarm, ever, is at most {plain_percent(ever['recall'])} for recall, and "
        f"{plain_percent(ever['others together'])} for all other lights and sites together. Amber is a quarter of the "
        "evidence for an alarm. Red stays red: after what was wrong is mended, watch anew with --since.",
        "Recall counts audited people with the condition of all decisions alike: those not referred stand for the "
        "others, and must have been drawn at random, not because they fell ill. Where a smaller share of one kind came "
        "back, as small a share of the other is counted, chosen by lot."
        + (
            ""
            if content["recall"].get("audited_share_declared")
            else " The share is estimated from what came back; fix it beforehand and name it with --audited."
        ),
        "Scores are compared below the threshold alone, with calibration patients without the condition: there, how "
        "frequent the condition is hardly matters. Scores and typicality are judged by ranks, which is exact for any "
        "number of calibration patients; what these could not show is not held against a scanner.",
        "A new bet begins every week, so that a change is seen soon whenever it comes.",
    ]
    if band is not None:
        items.append(
            f"Referral is expected between {plain_percent(band[0])} and {plain_percent(band[1])} if "
            f"{plain_percent(model['at_prevalence'])} have the condition; another share is given with --prevalence."
        )
    if content["remarks"]:
        items.append(f"Left out: {'; '.join(content['remarks'])}.")
    return Bullets(items)
