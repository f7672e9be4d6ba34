"""Other thresholds than the operating point: a table, and in the HTML report a slider, with what the band promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.reporting.document import Slider, Table
from pipeline.reporting.evidence import Evidence, prevalence_assumed
from pipeline.reporting.numbers import count, missing, number, percent, plain_percent, probability
from pipeline.store.wording import counted

SWEEP_ROWS, NEIGHBOURS = 9, 3
POSITIONS = 201  # of the slider at most
PER = 1000


def _promised(e: Evidence) -> pd.DataFrame:
    """Return the rows of the sweep that the band speaks of, and the operating point."""
    rows = e.sweep[e.sweep["band_recall"].notna() | e.sweep["operating_point"]]
    return rows.sort_values("threshold", kind="stable").reset_index(drop=True)


def slider(e: Evidence) -> Slider:
    """Return what each threshold would do to a thousand people, and what the band promises there.

    Found and missed are those of calibration patients. Raises ValueError when no operating point may be used: nobody is
    to move a threshold that the gate holds back.
    """
    if e.point is None:
        raise ValueError("there is no usable operating point, and so no threshold to choose")
    rows = _promised(e)
    point = int(np.flatnonzero(rows["operating_point"])[0])
    spread = np.linspace(0, len(rows) - 1, min(len(rows), POSITIONS)).round().astype(int)
    shown = sorted({*map(int, spread), point})
    at = e.metrics.headline_prevalence
    calibration = f"{counted(e.threshold.positives, 'calibration patient')} with the condition and "
    calibration += f"{count(e.threshold.negatives)} without"
    return Slider(
        "thresholds",
        f"From {calibration}; {plain_percent(at)} of the people are assumed to have the condition. What the band "
        f"promises holds at every position at once, with {plain_percent(e.threshold.confidence_used)} confidence, "
        f"so that any may be picked after looking; the operating point was certified by itself, for more.{_other(e)}",
        "Another threshold: from many referred, on the left, to few",
        [_sentence(e, row, at) for row in rows.iloc[shown].to_dict("records")],
        shown.index(point),
        "sweep",
    )


def _other(e: Evidence) -> str:
    """Point to the threshold to use where it is another than the operating point that was tested."""
    if not e.another_to_use:
        return ""
    return " The threshold to use is another: see “The threshold to use”."


def _sentence(e: Evidence, row: Mapping[Any, Any], at: float) -> str:
    found, alarms = PER * at * row["recall"], PER * (1 - at) * (1 - row["specificity"])
    ill, band = PER * at, row["band_recall"]
    point = "The operating point. " if row["operating_point"] else ""
    referred = (
        f"Of {count(PER)} people, {number(found + alarms, 0)} referred, "
        if not missing(alarms)
        else f"Of {count(PER)} people, an unknown number referred, "
    )
    promise = (
        "The band promises nothing here."
        if missing(band)
        else f"The band promises at least {percent(band)} found: of {ill:g} with the condition, at most "
        f"{number(math.ceil(10 * ill * (1 - band)) / 10, 1)} missed."
    )
    return (
        f"{point}Refer from a score of {number(row['threshold'], 2)}, a probability of "
        f"{probability(row['probability'])} {prevalence_assumed(e)}. {referred}"
        f"{number(found, 1)} found, {number(ill - found, 1)} missed. {promise}"
    )


def sweep(e: Evidence) -> Table:
    """Show the operating point with its neighbours, and rows spread over those with a limit; data/sweep.csv has all."""
    every, s = e.sweep, _promised(e)
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
    confidence, most = plain_percent(e.threshold.confidence_used), plain_percent(e.threshold.band_missed_share)
    caption = (
        f"Other thresholds, calibration patients, {count(e.threshold.positives)} with the condition. Band: the "
        f"limits of all rows that miss up to {most} hold at once with {confidence} confidence, so that any of them may "
        f"be picked after looking; ◄ marks the operating point, which was certified by itself, for more. {len(rows)} "
        f"of {counted(len(every), 'threshold')}, all in data/sweep.csv. Probabilities are {prevalence_assumed(e)}. "
        f"Cost: {_costs(e)}"
    )
    return Table("sweep", caption, columns, rows)


def _costs(e: Evidence) -> str:
    person, referral = e.threshold.costs.cost_per_person, e.threshold.costs.cost_per_referral
    if (person, referral) == (0, 1):
        return "in referrals"
    return f"{person:g} per person screened and {referral:g} per person referred"
