"""Subgroups, and comparison of arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.reporting.document import Block, Bullets, Figure, Figures, Heading, Paragraph, Section, Table, shortened
from pipeline.reporting.evidence import Evidence, known_groups
from pipeline.reporting.figures import arms, forest
from pipeline.reporting.numbers import (
    count,
    limits,
    missing,
    number,
    p_value,
    percent,
    plain_percent,
    short_interval,
)
from pipeline.reporting.sections.label_fractions import label_fractions
from pipeline.reporting.sections.operating import WITHHELD
from pipeline.store.results.operating_point import Gap, MainPoint
from pipeline.store.wording import counted

RECALL = "Sensitivity", "with the condition referred"
SPECIFICITY = "Specificity", "without it not referred"
LIMITS = ("", "_low", "_high")
MOST_DRAWN = 15  # groups


def subgroups(e: Evidence) -> Section:
    """Return each group's numbers; without a usable operating point only those that need no threshold."""
    frame = known_groups(e.subgroups)
    unknown = sorted(set(e.subgroups["attribute"]) - set(frame["attribute"]))
    blocks: list[Block] = [Paragraph(f"Not known of any test patient: {', '.join(unknown)}.")] if unknown else []
    if frame.empty:
        nothing = "The studies carry nothing by which patients could be grouped: how groups fare is not known."
        return Section("subgroups", "Subgroups", [*blocks, Paragraph(nothing)])
    alone = frame.groupby("attribute")["group"].transform("size") == 1
    if alone.any():
        same = "; ".join(f"{r['attribute']} {r['group']}" for r in frame[alone].to_dict("records"))
        blocks.append(Paragraph(f"Of all test patients the same, so that nothing can be compared: {same}."))
    frame = frame[~alone]
    if frame.empty:
        return Section("subgroups", "Subgroups", blocks)
    shown = [_group_row(r, e.point is not None) for r in frame.to_dict("records")]
    columns = ["Group", "Patients", "With the condition"]
    columns += ["Referred", "Sensitivity, %", "Specificity, %"] if e.point is not None else []
    caption = (
        f"Test patients by group. Sensitivity and specificity have limits that hold for all groups at once with "
        f"{_level(e)} confidence, the AUC {_level(e)} intervals"
        if e.point is not None
        else f"Test patients by group, with {_level(e)} intervals"
    )
    drawn = frame[frame[["recall", "auc"]].notna().any(axis=1)] if e.point is not None else frame[frame["auc"].notna()]
    if len(drawn):
        blocks.append(Figures([_forest(e, drawn)]))
    if e.point is not None:
        blocks += _lowest(e.point)
    if e.point is None:
        blocks.append(Paragraph(WITHHELD))
    notes = [
        f"{note}: {', '.join(own['attribute'] + ' ' + own['group'])}"
        for note, own in frame[frame["note"] != ""].groupby("note")
    ]
    remarks = [Heading("Why numbers are missing"), Bullets(notes)] if notes else []
    table = Table("subgroups", caption, [*columns, "AUC"], shown)
    return Section("subgroups", "Subgroups", blocks, [table, *remarks])


def _lowest(point: MainPoint) -> list[Block]:
    """Say which groups fare worst and which differ, with limits for all at once; nothing where all are equal."""
    said: list[Block] = []
    lowest = point.lowest_groups
    for low, (measure, of) in ((lowest.recall, RECALL), (lowest.specificity, SPECIFICITY)):
        if low is None:
            continue
        level = plain_percent(lowest.level)
        within = limits(low.share_low, low.share_high, as_percent=True)
        gaps = "; ".join(map(_gap, low.gaps))
        differ = (
            f" Groups that differ from all other patients, in percentage points: {gaps}."
            if gaps
            else " No group differs from all other patients by more than chance explains."
        )
        said.append(
            Paragraph(
                f"{measure}: the lowest of {counted(low.groups, 'group')} is {low.attribute} {low.group}, "
                f"{percent(low.share)} of those {of} "
                f"({level} limits for all groups at once {within}); "
                f"{low.lowest_possible_attribute} {low.lowest_possible_group} may be as low as "
                f"{percent(low.lowest_possible)}.{differ}"
            )
        )
    return said


def _gap(gap: Gap) -> str:
    shown = short_interval(gap.gap, gap.gap_low, gap.gap_high, digits=1, scale=100)
    return f"{gap.attribute} {gap.group} {shown}"


def _group_row(r: Mapping[Any, Any], usable: bool) -> list[str]:
    def cell(measure: str, scale: int) -> str:
        value, low, high = (r[name] for name in _limit_columns(r, measure))
        return "—" if missing(value) else short_interval(value, low, high, digits=1 if scale == 100 else 3, scale=scale)

    referred = "—" if pd.isna(r["referred"]) else count(r["referred"])
    at_threshold = [referred, cell("recall", 100), cell("specificity", 100)] if usable else []
    counts = [count(r["patients"]), count(r["positives"])]
    return [f"{r['attribute']}: {r['group']}", *counts, *at_threshold, cell("auc", 1)]


def _limit_columns(r: Mapping[Any, Any], measure: str) -> tuple[str, str, str]:
    """Return the columns of a value and its limits: those for all groups at once, where there are any."""
    at_once = f"{measure}_low_simultaneous"
    end = "" if pd.isna(r.get(at_once, np.nan)) else "_simultaneous"
    return measure, f"{measure}_low{end}", f"{measure}_high{end}"


def _forest(e: Evidence, every: pd.DataFrame) -> Figure:
    """Draw the groups, the largest ones where they are more than a page has room for: by size, whatever they show."""
    drawn, of = every, ""
    if len(every) > MOST_DRAWN:
        drawn = every[every.index.isin(every["patients"].nlargest(MOST_DRAWN, keep="first").index)]
        of = f" The {count(len(drawn))} largest of {counted(len(every), 'group')}; the appendix has the numbers of all."
    panels = {"auc": "AUC"}
    overall = {"auc": e.metrics.discrimination.auc.value}
    if e.point is not None:
        panels = {"recall": "Sensitivity, %", "specificity": "Specificity, %", **panels}
        overall |= {"recall": e.point.recall.value, "specificity": e.point.specificity.value}
    panels = {name: title for name, title in panels.items() if drawn[name].notna().any()}
    at_once = [
        {**r, **{f"{m}{end}": r[name] for m in panels for end, name in zip(LIMITS, _limit_columns(r, m), strict=True)}}
        for r in drawn.to_dict("records")
    ]
    names = [f"{shortened(r['attribute'] + ' ' + r['group'], 24)} (n = {count(r['patients'])})" for r in at_once]
    groups = pd.DataFrame(at_once).assign(name=names)
    return Figure(
        "subgroups",
        f"{' and '.join(panels.values())} of {counted(len(drawn), 'group')} with intervals; the numbers are in the "
        "appendix.",
        f"Groups of test patients with intervals, n patients each. Dotted: the value of all test patients.{of}",
        16,
        forest(groups, panels, overall),
    )


def comparison(e: Evidence) -> Section:
    """Return every arm on the same test patients and, in words, whether pretraining helped."""
    frame = e.comparison.sort_values("reported", ascending=False, kind="stable")
    rows = [
        [
            e.arm_name(r["arm"]) + (" — reported" if r["reported"] else ""),
            count(r["seeds"]),
            short_interval(r["auc"], r["auc_low"], r["auc_high"]),
            limits(r["auc_seed_min"], r["auc_seed_max"]) if r["seeds"] > 1 else "—",
            "—" if r["reported"] else short_interval(r["difference"], r["difference_low"], r["difference_high"]),
            "—" if r["reported"] else p_value(r["p"]),
        ]
        for r in frame.to_dict("records")
    ]
    n, positives = counted(int(frame["patients"].max()), "test patient"), count(frame["positives"].max())
    caption = (
        f"Arms on the same {n}, {positives} with the condition, with {_level(e)} intervals; differences, the reported "
        "arm minus this one, and p are paired (DeLong)"
    )
    columns = ["Arm", "Seeds", "AUC", "Single seeds", "Difference", "p"]
    blocks: list[Block] = [Paragraph(e.metrics.comparison_sentence)]
    drawn = frame[frame["auc"].notna()]
    if len(drawn):
        names = [e.arm_name(arm) for arm in drawn["arm"]]
        alt = "; ".join(f"{name}: AUC {number(auc)}" for name, auc in zip(names, drawn["auc"], strict=True))
        words = "AUC of each arm with its interval. Grey marks are single training seeds."
        blocks.append(Figures([Figure("arms", f"{alt}.", words, 16, arms(drawn, names))]))
    blocks.append(Table("comparison", caption, columns, rows))
    decisions = [_decisions(e, frame)] if e.point else []
    fewer, numbers = label_fractions(e)
    return Section("comparison", "Comparison of arms", [*blocks, *fewer], [*decisions, *numbers])


def _decisions(e: Evidence, frame: pd.DataFrame) -> Table:
    """Return what each arm would find and spare at matched sensitivity."""

    def cells(r: Mapping[Any, Any], rate: str) -> list[str]:
        if r["reported"]:
            return [percent(r[rate]), "—"]
        value, low, high = (r[f"{rate}_difference{limit}"] for limit in ("", "_low", "_high"))
        return [percent(r[rate]), short_interval(value, low, high, digits=1, scale=100)]

    rows = [
        [
            e.arm_name(r["arm"]) + (" — reported" if r["reported"] else ""),
            *cells(r, "recall"),
            *cells(r, "specificity"),
        ]
        for r in frame.to_dict("records")
    ]
    misses, positives = (
        count(None if e.at is None else e.at.misses_allowed),
        counted(e.threshold.positives, "calibration patient"),
    )
    caption = (
        f"Decisions on the same test patients at matched sensitivity: every arm's threshold is the highest that misses "
        f"at most {misses} of the {positives} with the condition. Differences are the reported arm minus this one, in "
        f"percentage points, with {_level(e)} limits for which calibration and test patients were drawn anew together, "
        "since every threshold is hardly known. Only the reported arm's is certified; to choose an arm by this table "
        "would use up the test patients"
    )
    rates = ("Sensitivity", "Specificity")
    columns = ["Arm", *(f"{rate}{c}" for rate in rates for c in ("", " difference"))]
    return Table("decisions", caption, columns, rows)


def _level(e: Evidence) -> str:
    return plain_percent(e.metrics.discrimination.auc.level)
