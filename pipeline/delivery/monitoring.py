"""Whether a model in use is still what was certified: lights, each with a sentence and what to do, and all numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pipeline.delivery.followup import Followup, Judged, Outcome, joined
from pipeline.delivery.streams import (
    MISSED,
    RECALL,
    UNLABELLED,
    Stream,
    Verification,
    Watched,
    alarms_at,
    monday,
    of_site,
    part,
    sites_of,
    streams,
    verification,
    week_name,
)
from pipeline.reporting.numbers import number, percent, plain_percent, share
from pipeline.statistics.sequential import ALPHA, confidence_sequence
from pipeline.store.wording import agreeing, counted

SCHEMA = "monitor/1"
Level = Literal["green", "amber", "red"]
# Amber: a quarter of what raises the alarm, which chance reaches on at most one device in five, ever.
AMBER = 4
LATEST = 4  # weeks that a sentence speaks of when nothing began
NAMES = {
    RECALL: "Recall",
    "referral": "Share referred",
    "scores": "Scores",
    "typicality": "Typicality",
    "quality": "Not assessable",
}
WHAT = {
    "referral": "of studies with a decision, {share} were referred; {expected} is expected",
    "scores": "of scores below the threshold, {share} lie in the upper half of those of calibration patients without "
    "the condition; {expected} is expected",
    "typicality": "of studies, {share} are as unusual as {expected} of calibration patients",
    "quality": "of studies, {share} were not assessable; up to {expected} is accepted",
}
TODO = {
    RECALL: "Have every study read as if there were no model. Look at the missed ones together, then certify again on "
    "outcomes of this place, or stop using the model.",
    "referral": "Compare referred studies with those of earlier weeks: has the population, the scanner or the way of "
    "taking images changed? Until that is known, audit studies that were not referred.",
    "scores": "Look for what changed in equipment, protocol, export or population at that time. Until that is known, "
    "the certificate may not speak for these studies: audit some that were not referred.",
    "typicality": "Look at the most unusual studies and for what changed in equipment, protocol or export at that "
    "time. The certificate may not speak for these studies: audit some that were not referred.",
    "quality": "Look at the reasons in results.csv: what arrives is often another format, another series, or "
    "incomplete. People lose nothing, since all these studies are looked at, but the model spares no work.",
}
NOT_WATCHED = {
    "referral": "The model folder does not say how many referrals to expect.",
    "scores": "The model folder holds too few calibration scores to compare with.",
    "typicality": "The model cannot tell whether a study is like those of the calibration.",
}
RUN_AGAIN = "Package the model again with this version and more calibration patients; until then nobody watches this."


@dataclass(frozen=True)
class Light:
    """One thing watched at one site, or at all of them (None): green, amber or red, why, and what to do."""

    kind: str
    site: str | None
    level: Level
    sentence: str
    todo: str = ""

    @property
    def name(self) -> str:
        """What is watched, in words."""
        return NAMES[self.kind]


@dataclass(frozen=True)
class Monitored:
    """What was found: the lights of all studies first, and everything as plain values for JSON and pages."""

    lights: Sequence[Light]
    content: Mapping[str, Any]

    @property
    def alarm(self) -> bool:
        """Whether any light is red."""
        return any(light.level == "red" for light in self.lights)


def lights(results: Sequence[Judged], outcomes: Sequence[Outcome], model: Watched) -> list[Light]:
    """Return the lights of these results and the outcomes that came back, those of all studies first.

    Of sites, only what is not green. Raises FollowupError when there is no study of this model.
    """
    return list(monitor(joined(results, outcomes, model.sha256), model).lights)


def monitor(followup: Followup, model: Watched, declared: float | None = None, alpha: float = ALPHA) -> Monitored:
    """Watch studies and outcomes; the probability that recall ever raises a false alarm is at most `alpha`, and so is
    that of all others together.

    `declared` is the share of people not referred who are audited, as it was fixed beforehand.
    """
    made = streams(followup, model, declared)
    at = alarms_at(made, alpha)
    seen = verification(followup)
    overall = {one.kind: one for one in made if one.site is None}
    found = [_of_recall(overall.get(RECALL), seen, model, at[RECALL])]
    found += [
        _of_stream(overall[kind], at[kind]) if kind in overall else _unwatched(kind, model) for kind in UNLABELLED
    ]
    for one in made:
        if one.site is None:
            continue
        light = _of_stream(one, at[one.kind]) if one.kind != RECALL else _judged_recall(one, model, at[RECALL])
        found += [light] if light.level != "green" else []
    return Monitored(found, _content(followup, model, made, at, seen, found, declared, alpha))


# ---------------------------------------------------------------- lights


def _of_stream(stream: Stream, alarm_at: float) -> Light:
    level, alarm, start = _level(stream, alarm_at)
    first = start if start is not None else max(0, len(stream.weeks) - LATEST)
    last = len(stream.weeks) - 1 if alarm is None else max(alarm, start or 0)
    ones, n = int(stream.ones[first : last + 1].sum()), int(stream.n[first : last + 1].sum())
    said = WHAT[stream.kind].format(share=share(ones, n), expected=_expected(stream))
    sentence = f"{_when(stream, first, last)}: {said}. {_odds(stream, alarm, alarm_at)}"
    return Light(stream.kind, stream.site, level, sentence, _todo(stream.kind, level))


def _level(stream: Stream, alarm_at: float) -> tuple[Level, int | None, int | None]:
    """Return the level, the week of the alarm, and that of the likeliest beginning; None where there is none."""
    alarm = stream.alarm(alarm_at)
    if alarm is not None:
        return "red", alarm, stream.start(alarm)
    if stream.evidence[-1] >= math.log(alarm_at / AMBER):
        return "amber", None, stream.start(len(stream.weeks) - 1)
    return "green", None, None


def _todo(kind: str, level: Level) -> str:
    if level == "red":
        return TODO[kind]
    return "" if level == "green" else "Nothing yet but to look again next week: this is not an alarm."


def _when(stream: Stream, first: int, last: int) -> str:
    begin, end = (week_name(stream.weeks[at]) for at in (first, last))
    return f"Week {begin}" if begin == end else f"Weeks {begin} to {end}"


def _expected(stream: Stream) -> str:
    low, high = stream.expected
    return f"{plain_percent(low)} to {plain_percent(high)}" if 0 < low < high else percent(high)


def _odds(stream: Stream, alarm: int | None, alarm_at: float) -> str:
    if alarm is not None:
        return f"Alarm in week {week_name(stream.weeks[alarm])}: the evidence reached {alarm_at:,.0f} to 1."
    return f"Evidence {_to_one(float(stream.evidence[-1]))}; the alarm is at {alarm_at:,.0f} to 1."


def _to_one(log_evidence: float) -> str:
    odds = math.exp(min(log_evidence, 30))
    return f"{odds:,.0f} to 1" if odds >= 10 else f"{number(odds, 1)} to 1"


def _unwatched(kind: str, model: Watched) -> Light:
    known = {
        "referral": model.band is not None,
        "scores": len(model.gaps) > 0,
        "typicality": model.patients is not None,
    }
    if known.get(kind):
        return Light(kind, None, "amber", "No study can be judged by it yet.", "Look again when some were scored.")
    return Light(kind, None, "amber", NOT_WATCHED[kind], RUN_AGAIN)


def _of_recall(stream: Stream | None, seen: Verification, model: Watched, alarm_at: float) -> Light:
    if seen.why_not:
        others = seen.counts.not_referred
        draw = (
            f"Draw {counted(seen.audits, 'study', 'studies')} at random from the {others:,} that were not referred, "
            f"and record their outcomes: if none has the condition, at most {plain_percent(MISSED)} of those not "
            "referred are missed."
        )
        few = f"{counted(others, 'study was', 'studies were')} not referred, and a part of so few says too little"
        todo = f"Recall cannot be stated. {draw if seen.audits < others else f'Record all outcomes: {few}.'}"
        return Light(RECALL, None, "amber", f"{seen.why_not[0].upper()}{seen.why_not[1:]}.", todo)
    if stream is None:
        said = "No audited person with the condition yet, so recall cannot be stated."
        return Light(RECALL, None, "amber", said, "Go on recording outcomes of referred and audited studies alike.")
    return _judged_recall(stream, model, alarm_at)


def _judged_recall(stream: Stream, model: Watched, alarm_at: float) -> Light:
    level, alarm, start = _level(stream, alarm_at)
    k, n = int(stream.ones.sum()), int(stream.n.sum())
    low, high = confidence_sequence(k, n)
    people = f"{share(k, n)} audited {agreeing(n, 'person', 'people')} with the condition"
    said = (
        f"{people} {agreeing(k, 'was', 'were')} missed. Recall is {percent(1 - k / n)} ({percent(1 - high)} to "
        f"{percent(1 - low)}, limits that hold at all times together); "
        f"{plain_percent(model.recall_target)} was promised."
    )
    if start is not None:
        said += f" It fell about week {week_name(stream.weeks[start])}."
    return Light(RECALL, stream.site, level, f"{said} {_odds(stream, alarm, alarm_at)}", _todo(RECALL, level))


# ---------------------------------------------------------------- everything as plain values


def _content(
    followup: Followup,
    model: Watched,
    made: Sequence[Stream],
    at: Mapping[str, float],
    seen: Verification,
    found: Sequence[Light],
    declared: float | None,
    alpha: float,
) -> dict[str, Any]:
    studies = followup.studies
    return {
        "schema": SCHEMA,
        "model": {
            "title": model.title,
            "sha256": model.sha256,
            "recall_target": model.recall_target,
            "referral_expected": model.band,
            "at_prevalence": model.prevalence,
        },
        "first": studies[0].day.isoformat(),
        "last": studies[-1].day.isoformat(),
        "false_alarm_ever": {RECALL: alpha, "others together": alpha},
        "lights": [{**asdict(light), "name": light.name} for light in found],
        "counts": _counts(studies, seen),
        "recall": _recall_content(made, seen, declared),
        "weeks": [_row({"week": week_name(week)}, own) for week, own in _weeks(followup)],
        "sites": [_row({"site": site}, of_site(followup, site)) for site in sites_of(studies)],
        "streams": [_stream(one, at[one.kind]) for one in made],
        "remarks": list(followup.remarks),
    }


def _counts(studies: Sequence[Judged], seen: Verification) -> dict[str, Any]:
    kinds = ("refer", "no refer", "not assessable")
    return {
        "studies": len(studies),
        "decisions": {kind: sum(one.decision == kind for one in studies) for kind in kinds},
        "looked_at": seen.looked_at,
        "outcomes": asdict(seen.counts),
        "audits_needed": seen.audits,
        "missed_bound": MISSED,
    }


def _recall_content(made: Sequence[Stream], seen: Verification, declared: float | None) -> dict[str, Any]:
    own = [one for one in made if one.kind == RECALL and one.site is None]
    if not own:
        return {"stated": False, "why_not": seen.why_not or "no audited person with the condition yet"}
    k, n = int(own[0].ones.sum()), int(own[0].n.sum())
    low, high = confidence_sequence(k, n)
    numbers = {"audited_positives": n, "missed": k, "value": 1 - k / n, "low": 1 - high, "high": 1 - low}
    return {"stated": True, **numbers, "audited_share_declared": declared}


def _weeks(followup: Followup) -> list[tuple[Any, Followup]]:
    places: dict[Any, list[int]] = {}
    for at, one in enumerate(followup.studies):
        places.setdefault(monday(one.day), []).append(at)
    return [(week, part(followup, own)) for week, own in sorted(places.items())]


def _row(name: dict[str, Any], own: Followup) -> dict[str, Any]:
    p_values = [one.typicality for one in own.studies if one.typicality is not None]
    scores = [one.score for one in own.studies if one.score is not None]
    back = {at: o.found for at, o in own.outcomes.items() if o.found is not None}
    return name | {
        "studies": len(own.studies),
        "referred": sum(one.decision == "refer" for one in own.studies),
        "not_assessable": sum(one.decision == "not assessable" for one in own.studies),
        "median_score": float(np.median(scores)) if scores else None,
        "median_typicality": float(np.median(p_values)) if p_values else None,
        "outcomes_looked_at": sum(own.studies[at].looked_at for at in back),
        "outcomes_others": sum(not own.studies[at].looked_at for at in back),
        "found": sum(bool(found) and own.studies[at].looked_at for at, found in back.items()),
        "missed": sum(bool(found) and not own.studies[at].looked_at for at, found in back.items()),
    }


def _stream(one: Stream, alarm_at: float) -> dict[str, Any]:
    alarm = one.alarm(alarm_at)
    return {
        "kind": one.kind,
        "site": one.site,
        "weeks": [week_name(week) for week in one.weeks],
        "ones": one.ones.tolist(),
        "n": one.n.tolist(),
        "expected": list(one.expected),
        "log10_evidence": (one.evidence / math.log(10)).tolist(),
        "alarm_at": alarm_at,
        "alarm_week": None if alarm is None else week_name(one.weeks[alarm]),
        "began_about": None if alarm is None else week_name(one.weeks[one.start(alarm)]),
    }
