"""Subgroups, and comparison of arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.reporting.document import Block, Bullets, Figure, Figures, Heading, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence, arm_name, known_groups
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
from pipeline.store.wording import counted


def subgroups(e: Evidence) -> Section:
    """Return each group's numbers; without a usable operating point only those that need no threshold."""
    frame = known_groups(e.subgroups)
    unknown = sorted(set(e.subgroups["attribute"]) - set(frame["attribute"]))
    blocks: list[Block] = [Paragraph(f"Not known of any test patient: {', '.join(unknown)}.")] if unknown else []
    if frame.empty:
        nothing = "The studies carry nothing by which patients could be grouped: how groups fare is not known."
        return Section("subgroups", "Subgroups", [*blocks, Paragraph(nothing)])
    shown = [_group_row(r, e.point is not None) for r in frame.to_dict("records")]
    columns = ["Group", "Patients", "With the condition"]
    columns += ["Referred", "Sensitivity, %", "Specificity, %"] if e.point is not None else []
    caption = f"Test patients by group, with {_level(e)} intervals. Not tested for significance"
    drawn = frame[frame[["recall", "auc"]].notna().any(axis=1)] if e.point is not None else frame[frame["auc"].notna()]
    if len(drawn):
        blocks.append(Figures([_forest(e, drawn)]))
    several = frame.groupby("attribute")["group"].transform("size") > 1
    if e.point is not None and frame.loc[several, "recall"].notna().any():
        worst: dict[Any, Any] = frame.loc[frame.loc[several, "recall"].idxmin()].to_dict()
        blocks.append(
            Paragraph(
                f"The group with the lowest share found: {worst['attribute']} {worst['group']}, "
                f"{percent(worst['recall'])} ({limits(worst['recall_low'], worst['recall_high'], as_percent=True)}, "
                f"n = {count(worst['positives'])} with the condition)."
            )
        )
    if e.point is None:
        blocks.append(Paragraph(WITHHELD))
    notes = [
        f"{note}: {', '.join(own['attribute'] + ' ' + own['group'])}"
        for note, own in frame[frame["note"] != ""].groupby("note")
    ]
    remarks = [Heading("Why numbers are missing"), Bullets(notes)] if notes else []
    return Section("subgroups", "Subgroups", [*blocks, Table("subgroups", caption, [*columns, "AUC"], shown), *remarks])


def _group_row(r: Mapping[Any, Any], usable: bool) -> list[str]:
    def cell(measure: str, scale: int) -> str:
        value, low, high = (r[f"{measure}{limit}"] for limit in ("", "_low", "_high"))
        return "—" if missing(value) else short_interval(value, low, high, digits=1 if scale == 100 else 3, scale=scale)

    referred = "—" if pd.isna(r["referred"]) else count(r["referred"])
    at_threshold = [referred, cell("recall", 100), cell("specificity", 100)] if usable else []
    counts = [count(r["patients"]), count(r["positives"])]
    return [f"{r['attribute']}: {r['group']}", *counts, *at_threshold, cell("auc", 1)]


def _forest(e: Evidence, drawn: pd.DataFrame) -> Figure:
    panels = {"auc": "AUC"}
    overall = {"auc": e.metrics["discrimination"]["auc"]["value"]}
    if e.point is not None:
        panels = {"recall": "Sensitivity", "specificity": "Specificity", **panels}
        overall |= {name: e.point[name]["value"] for name in ("recall", "specificity")}
    groups = drawn.assign(name=drawn["attribute"] + ": " + drawn["group"].str.slice(0, 14))
    return Figure(
        "subgroups",
        f"{' and '.join(panels.values())} of {counted(len(drawn), 'group')} with intervals; the numbers are in the "
        "table below.",
        "Groups of test patients with intervals. The dotted line is the value of all test patients.",
        15.5,
        forest(groups, panels, {name: float("nan") if v is None else v for name, v in overall.items()}),
    )


def comparison(e: Evidence) -> Section:
    """Return every arm on the same test patients and, in words, whether pretraining helped."""
    frame = e.comparison.sort_values("reported", ascending=False, kind="stable")
    rows = [
        [
            arm_name(r["arm"]) + (" — reported" if r["reported"] else ""),
            count(r["seeds"]),
            short_interval(r["auc"], r["auc_low"], r["auc_high"]),
            limits(r["auc_seed_min"], r["auc_seed_max"]),
            "—" if r["reported"] else short_interval(r["difference"], r["difference_low"], r["difference_high"]),
            "—" if r["reported"] else p_value(r["p"]),
        ]
        for r in frame.to_dict("records")
    ]
    n, positives = counted(int(frame["patients"].max()), "test patient"), count(frame["positives"].max())
    caption = f"Arms on the same {n}, {positives} with the condition, with {_level(e)} intervals"
    columns = ["Arm", "Seeds", "AUC", "Single seeds", "Reported arm minus this arm (paired)", "p (paired DeLong)"]
    blocks: list[Block] = [Paragraph(e.metrics["comparison_sentence"])]
    drawn = frame[frame["auc"].notna()]
    if len(drawn):
        names = [arm_name(arm) for arm in drawn["arm"]]
        alt = "; ".join(f"{name}: AUC {number(auc)}" for name, auc in zip(names, drawn["auc"], strict=True))
        words = "AUC of each arm with its interval. Grey marks are single training seeds."
        blocks.append(Figures([Figure("arms", f"{alt}.", words, 15.5, arms(drawn, names))]))
    blocks.append(Table("comparison", caption, columns, rows))
    decisions = [_decisions(e, frame)] if e.point else []
    return Section("comparison", "Comparison of arms", [*blocks, *decisions, *label_fractions(e)])


def _decisions(e: Evidence, frame: pd.DataFrame) -> Table:
    """Return what each arm would find and spare at matched sensitivity."""

    def cells(r: Mapping[Any, Any], rate: str) -> list[str]:
        if r["reported"]:
            return [percent(r[rate]), "—", "—"]
        value, low, high = (r[f"{rate}_difference{limit}"] for limit in ("", "_low", "_high"))
        return [percent(r[rate]), short_interval(value, low, high, digits=1, scale=100), p_value(r[f"{rate}_p"])]

    rows = [
        [
            arm_name(r["arm"]) + (" — reported" if r["reported"] else ""),
            *cells(r, "recall"),
            *cells(r, "specificity"),
        ]
        for r in frame.to_dict("records")
    ]
    misses, positives = count(e.threshold["misses_allowed"]), counted(e.threshold["positives"], "calibration patient")
    caption = (
        f"Decisions on the same test patients at matched sensitivity: every arm's threshold is the highest that misses "
        f"at most {misses} of the {positives} with the condition. Differences are the reported "
        f"arm minus this one, paired, in percentage points, with {_level(e)} intervals (Newcombe); p by McNemar's "
        "exact test. Only the reported arm's threshold is certified"
    )
    rates = ("Sensitivity", "Specificity")
    columns = ["Arm", *(f"{rate}{c}" for rate in rates for c in ("", " difference", " p"))]
    return Table("decisions", caption, columns, rows)


def _level(e: Evidence) -> str:
    return plain_percent(e.metrics["discrimination"]["auc"]["level"])
