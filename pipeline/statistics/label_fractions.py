"""How well arms do with fewer labelled patients, and what that says about pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.statistics.arms import BASELINES, DECISIONS, comparison_table, seed_aucs
from pipeline.statistics.intervals import Interval
from pipeline.statistics.patients import Aggregation, patients_of
from pipeline.store.wording import counted

PRETRAINED, BASELINE = "mae", "scratch"


def label_fraction_table(
    scores: pd.DataFrame, labelled_positives: Mapping[int, int], how: Aggregation, level: float = 0.95
) -> pd.DataFrame:
    """Return one row per number of labelled patients and arm with the columns of the label-fraction table.

    `scores` has the columns of the label-fraction scores, all labelled patients included; `labelled_positives` says
    how many of each number of labelled patients are positive. Differences are arm `mae` minus the row's, paired.
    Raises ValueError when models were not all scored on the same images.
    """
    images = scores.groupby("labelled_patients")["image_id"].agg(frozenset)
    if images.nunique() > 1:
        raise ValueError("models of fewer labelled patients were scored on other images; rebuild with --rebuild score")
    parts = []
    for count, own in scores.groupby("labelled_patients"):
        arms = {arm: patients_of(own, arm, how) for arm in sorted(set(own["arm"]))}
        compared = comparison_table(arms, seed_aucs(own, arms, how), PRETRAINED, level)
        parts.append(compared.assign(labelled_patients=count, labelled_positives=labelled_positives[int(str(count))]))
    return pd.concat(parts, ignore_index=True).drop(columns=[*DECISIONS, "reported"])


def label_fraction_intervals(table: pd.DataFrame, level: float = 0.95) -> dict[str, Interval]:
    """Return the AUCs and the differences from `scratch` by name, e.g. `auc_mae_with_100_labelled`."""
    found = {}
    for row in table.to_dict("records"):
        suffix = f"with_{row['labelled_patients']}_labelled"
        limits = {f"auc_{row['arm']}_{suffix}": ("auc", "delong_logit")}
        if row["arm"] == BASELINE:
            limits[f"auc_{PRETRAINED}_minus_{BASELINE}_{suffix}"] = ("difference", "delong_paired")
        for name, (column, method) in limits.items():
            values = (row[column], row[f"{column}_low"], row[f"{column}_high"])
            found[name] = Interval(*values, level, method, row["patients"])
    return found


def label_fraction_sentence(table: pd.DataFrame, level: float = 0.95) -> str:
    """Say in plain words with how many labelled patients pretraining helped, by how much, and how sure one can be."""
    rows = table[table["arm"] == BASELINE].sort_values("labelled_patients").to_dict("records")
    if not rows:
        return (
            "With how many labelled patients pretraining helped was not measured: no network was trained from scratch."
        )
    verdicts = {
        "Pretraining helped with": [row for row in rows if row["difference_low"] > 0],
        "Training from scratch was better with": [row for row in rows if row["difference_high"] < 0],
        "No difference was shown with": [row for row in rows if row["difference_low"] <= 0 <= row["difference_high"]],
        "No interval exists, so that nothing is shown, with": [r for r in rows if math.isnan(r["difference_low"])],
    }
    said = [f"{verdict} {_listed(own)}." for verdict, own in verdicts.items() if own]
    return " ".join(said) + (
        f" In brackets: the pretrained model's AUC minus that of {BASELINES[BASELINE].words}, on the same"
        f" {counted(rows[0]['patients'], 'test patient')}, with {100 * level:g} % interval and p, each by itself."
    )


def _listed(rows: list[dict[Any, Any]]) -> str:
    nouns = [" labelled patients", *[""] * (len(rows) - 1)]
    parts = [f"{row['labelled_patients']:,}{noun} ({_difference(row)})" for row, noun in zip(rows, nouns, strict=True)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _difference(row: Mapping[Any, Any]) -> str:
    value = f"{row['difference']:+.3f}"
    if math.isnan(row["difference_low"]):
        return value
    p = "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.3f}"
    return f"{value}, {row['difference_low']:+.3f} to {row['difference_high']:+.3f}, {p}"
