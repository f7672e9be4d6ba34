"""Patients by sex, age band, view, manufacturer, site and side, and what may be said of the lowest of many groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.intervals import Interval, newcombe, proportion_ci
from pipeline.statistics.metrics import confusion
from pipeline.store.results.operating_point import Gap, LowestGroup, LowestGroups

ATTRIBUTES = ("sex", "age band", "view", "manufacturer", "site")
AGE_BANDS = ((0, "0–4"), (5, "5–17"), (18, "18–39"), (40, "40–64"), (65, "65–89"), (90, "90+"))
UNKNOWN, SEVERAL = "unknown", "several"
RATES = {"recall": 1, "specificity": 0}


def age_band(age_years: float) -> str:
    """Return the band of an age in years; 'unknown' when missing. 90 stands for 90 and above."""
    if pd.isna(age_years) or age_years < 0:
        return UNKNOWN
    return [name for start, name in AGE_BANDS if age_years >= start][-1]


def patient_attributes(images: pd.DataFrame) -> pd.DataFrame:
    """Return one row per patient, indexed by pseudonym, with the columns ATTRIBUTES, and `laterality` where any image
    states one.

    `images` has the columns of the image table. The age is the youngest; an attribute whose images disagree
    is 'several', one that no image states 'unknown'.
    """
    patients = images.groupby("patient_id", sort=True)

    def common(values: pd.Series) -> str:
        stated = {v for v in values if v}
        return UNKNOWN if not stated else stated.pop() if len(stated) == 1 else SEVERAL

    names = [*ATTRIBUTES, *(["laterality"] if images["laterality"].any() else [])]
    table = {name: patients[name].agg(common) for name in names if name != "age band"}
    table["age band"] = patients["age_years"].min().map(age_band)
    return pd.DataFrame(table)[names]


def subgroup_table(
    df: pd.DataFrame, by: Sequence[str], t: float | None, min_pos: int = 10, level: float = 0.95
) -> pd.DataFrame:
    """Return one row per value of each attribute in `by`, with the columns of the subgroup table.

    `df` has a row per patient: `label`, `score` and the attributes. Recall and specificity at threshold `t`
    (NaN when None) have Wilson limits, the AUC DeLong's on the logit scale. Recall needs `min_pos` patients with the
    condition, specificity as many without it, the AUC both; `note` says why a number is missing.

    Columns `_simultaneous` hold exact limits that are true of all groups at once, each at the level that Sidak's
    inequality asks of so many; `_gap` is the group minus all others, with limits at that level joined from exact
    ones. Both are NaN where an attribute has one group, which is everybody. Groups are described, not tested.
    """
    parts = [
        (attribute, str(group), members, df.drop(members.index))
        for attribute in by
        for group, members in df.groupby(attribute, sort=True)
    ]
    rows = [
        {"attribute": attribute, "group": group, **group_row(members, t, min_pos, level)}
        for attribute, group, members, _ in parts
    ]
    for rate, label in RATES.items():
        compared = [i for i, part in enumerate(parts) if len(part[3]) and not np.isnan(rows[i][rate])]
        # Sidak: all of K independent (or positively dependent) limits hold with the product of their levels.
        each = level ** (1 / max(len(compared), 1))
        for i, (_, _, members, others) in enumerate(parts):
            names = [f"{rate}_low_simultaneous", f"{rate}_high_simultaneous"]
            gaps = [f"{rate}_gap", f"{rate}_gap_low", f"{rate}_gap_high"]
            rows[i] |= dict.fromkeys([*names, *gaps], np.nan)
            if t is None or i not in compared:
                continue
            (k, n), (k2, n2) = (_right(one, label, t) for one in (members, others))
            together = proportion_ci(k, n, each, "exact")
            rows[i] |= dict(zip(names, (together.low, together.high), strict=True))
            if n2:
                # Wilson's limits would call one of 20 equal groups different in 15 of 100 runs.
                gap = newcombe(k, n, k2, n2, each, "exact")
                rows[i] |= dict(zip(gaps, (gap.value, gap.low, gap.high), strict=True))
    table = pd.DataFrame(rows)
    return table.assign(referred=table["referred"].astype("Int64"))


def _right(members: pd.DataFrame, label: int, t: float) -> tuple[int, int]:
    """Return how many patients of a label are decided rightly, and how many there are."""
    own = members.loc[members["label"] == label, "score"].to_numpy(float)
    return int(((own >= t) == label).sum()), len(own)


def lowest_groups(table: pd.DataFrame, level: float = 0.95) -> LowestGroups:
    """Return for recall and specificity the group with the lowest share, or None where nothing is to be said.

    Of many equal groups one is always lowest, and the interval of that one alone misses the truth in a third of cases
    with ten groups: the limits are those that hold for all `groups` at once. `lowest_possible` is the lowest of their
    lower limits, and of which group. Nothing is said where fewer than two groups can be compared, or all are equal.
    """
    found: dict[str, LowestGroup | None] = {}
    for rate in RATES:
        shown = table[table[f"{rate}_low_simultaneous"].notna()]
        several = shown.groupby("attribute")["group"].transform("size") > 1
        shown = shown[several]
        if len(shown) < 2 or shown[rate].max() == shown[rate].min():
            found[rate] = None
            continue
        lowest, possible = shown.loc[shown[rate].idxmin()], shown.loc[shown[f"{rate}_low_simultaneous"].idxmin()]
        found[rate] = LowestGroup(
            attribute=str(lowest["attribute"]),
            group=str(lowest["group"]),
            share=float(lowest[rate]),
            share_low=float(lowest[f"{rate}_low_simultaneous"]),
            share_high=float(lowest[f"{rate}_high_simultaneous"]),
            groups=len(shown),
            lowest_possible=float(possible[f"{rate}_low_simultaneous"]),
            lowest_possible_attribute=str(possible["attribute"]),
            lowest_possible_group=str(possible["group"]),
            gaps=tuple(_gap(row, rate) for row in shown.to_dict("records") if _differs(row, rate)),
        )
    return LowestGroups(level=level, **found)


def _differs(row: Mapping[Any, Any], rate: str) -> bool:
    return bool(row[f"{rate}_gap_low"] > 0 or row[f"{rate}_gap_high"] < 0)


def _gap(row: Mapping[Any, Any], rate: str) -> Gap:
    """Return a group that differs from all others although all groups are looked at."""
    return Gap(row["attribute"], row["group"], *(float(row[f"{rate}_gap{end}"]) for end in ("", "_low", "_high")))


def group_row(members: pd.DataFrame, t: float | None, min_pos: int, level: float) -> dict[str, Any]:
    """Return the numbers of a group by itself, from `label` and `score` of its members; see `subgroup_table`."""
    y, s = members["label"].to_numpy(int), members["score"].to_numpy(float)
    n, positives = len(y), int(y.sum())
    row: dict[str, Any] = {
        "patients": n,
        "positives": positives,
        "referred": None if t is None else int((s >= t).sum()),
        **{
            f"{metric}{limit}": np.nan for metric in ("recall", "specificity", "auc") for limit in ("", "_low", "_high")
        },
    }
    enough = {"recall": positives >= min_pos, "specificity": n - positives >= min_pos}
    notes = []
    few = [who for who, rate in (("with", "recall"), ("without", "specificity")) if not enough[rate]]
    if len(few) == 2:
        return row | {"note": f"fewer than {min_pos} patients with and without the condition: counts only"}
    for who in few:
        none = n - positives == 0 if who == "without" else positives == 0
        notes.append(
            f"no patient {who} the condition" if none else f"fewer than {min_pos} patients {who} the condition"
        )
    if t is None:
        notes.append("no operating threshold")
    else:
        c = confusion(y, s, t)
        if enough["recall"]:
            row |= _columns("recall", proportion_ci(c.tp, c.positives, level))
        if enough["specificity"]:
            row |= _columns("specificity", proportion_ci(c.tn, c.negatives, level))
    if all(enough.values()):
        with collect_warnings():  # the note says it
            auc = roc_auc(y, s, level)
        row |= _columns("auc", auc)
        if np.isnan(auc.low):
            notes.append("the AUC has no interval: too few or equal scores")
    return row | {"note": "; ".join(notes)}


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
