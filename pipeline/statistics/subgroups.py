"""Patients by sex, age band, view, manufacturer and site."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.intervals import Interval, proportion_ci
from pipeline.statistics.metrics import confusion

ATTRIBUTES = ("sex", "age band", "view", "manufacturer", "site")
AGE_BANDS = ((0, "0–4"), (5, "5–17"), (18, "18–39"), (40, "40–64"), (65, "65–89"), (90, "90+"))
UNKNOWN = "unknown"


def age_band(age_years: float) -> str:
    """Return the band of an age in years; 'unknown' when missing. 90 stands for 90 and above."""
    if pd.isna(age_years) or age_years < 0:
        return UNKNOWN
    return [name for start, name in AGE_BANDS if age_years >= start][-1]


def patient_attributes(images: pd.DataFrame) -> pd.DataFrame:
    """Return one row per patient, indexed by pseudonym, with the columns ATTRIBUTES.

    `images` has the columns of the image table. The age is the youngest; an attribute whose images disagree
    is 'several', one that no image states 'unknown'.
    """
    patients = images.groupby("patient_id", sort=True)

    def common(values: pd.Series) -> str:
        stated = {v for v in values if v}
        return UNKNOWN if not stated else stated.pop() if len(stated) == 1 else "several"

    table = {name: patients[name].agg(common) for name in ATTRIBUTES if name != "age band"}
    table["age band"] = patients["age_years"].min().map(age_band)
    return pd.DataFrame(table)[list(ATTRIBUTES)]


def subgroup_table(
    df: pd.DataFrame, by: Sequence[str], t: float | None, min_pos: int = 10, level: float = 0.95
) -> pd.DataFrame:
    """Return one row per value of each attribute in `by`, with the columns of the subgroup table.

    `df` has a row per patient: `label`, `score` and the attributes. Recall and specificity at threshold `t`
    (NaN when None) have Wilson limits, the AUC DeLong's on the logit scale. A group with fewer than `min_pos`
    positives gets counts only; `note` says why a number is missing. Groups are described, not tested.
    """
    rows = [
        {"attribute": attribute, "group": str(group), **_group(members, t, min_pos, level)}
        for attribute in by
        for group, members in df.groupby(attribute, sort=True)
    ]
    table = pd.DataFrame(rows)
    return table.assign(referred=table["referred"].astype("Int64"))


def _group(members: pd.DataFrame, t: float | None, min_pos: int, level: float) -> dict[str, object]:
    y, s = members["label"].to_numpy(int), members["score"].to_numpy(float)
    n, positives = len(y), int(y.sum())
    row: dict[str, object] = {
        "patients": n,
        "positives": positives,
        "referred": None if t is None else int((s >= t).sum()),
        **{
            f"{metric}{limit}": np.nan for metric in ("recall", "specificity", "auc") for limit in ("", "_low", "_high")
        },
    }
    if positives < min_pos:
        return row | {"note": f"fewer than {min_pos} patients with the condition: counts only"}
    notes = []
    if t is None:
        notes.append("no operating threshold")
    else:
        c = confusion(y, s, t)
        row |= _columns("recall", proportion_ci(c.tp, c.positives, level))
        if c.negatives:
            row |= _columns("specificity", proportion_ci(c.tn, c.negatives, level))
    if positives == n:
        notes.append("no patient without the condition")
    else:
        with collect_warnings():  # the note says it
            auc = roc_auc(y, s, level)
        row |= _columns("auc", auc)
        if np.isnan(auc.low):
            notes.append(
                "the AUC has no interval: "
                + ("it is exactly 0 or 1" if auc.value in (0, 1) else "too few or equal scores")
            )
    return row | {"note": "; ".join(notes)}


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
