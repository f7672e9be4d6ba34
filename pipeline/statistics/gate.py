"""The gate: does this model separate patients at all, and do its own numbers agree? One `fail` closes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import comb

from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.intervals import Interval, newcombe
from pipeline.statistics.metrics import confusion
from pipeline.statistics.patients import Patients, validate
from pipeline.statistics.reliability import brier_skill
from pipeline.store.results.finding import Finding, Level
from pipeline.store.wording import agreeing, counted

Found = list[tuple[str, str]]

LEVELS: dict[str, Level] = {
    "no_discrimination": "fail",
    "reversed": "fail",
    "ppv_no_lift": "fail",
    "refers_everyone": "fail",
    "refers_no_one": "fail",
    "threshold_outside_scores": "fail",
    "table_inconsistent": "fail",
    "weak": "warn",
    "no_skill": "warn",
    "narrow_calibrated": "warn",
    "few_values": "warn",
    "narrow_raw_range": "info",
}


def assess_discrimination(
    y: Any,
    s: Any,
    p: Any,
    threshold: float | None = None,
    *,
    raw: Any = None,
    sweep: pd.DataFrame | None = None,
    on: str = "calibration",
    level: float = 0.95,
) -> list[Finding]:
    """Return the findings of the gate about one set of patients.

    y, s, p, raw: (n,) labels, scores, calibrated and uncalibrated probabilities. Without `threshold`, rules
    about an operating point are left out. `sweep` is a table that claims to come from these scores: columns
    `threshold`, `true_positive`, `false_positive`, `true_negative`, `false_negative`.
    """
    clean = validate(y, s)
    with collect_warnings():
        auc = roc_auc(clean.y, clean.s, level)
        skill = brier_skill(clean.y, p)
    found = _about_auc(auc, int(clean.y.sum()))
    if threshold is not None:
        found += _about_threshold(clean.y, clean.s, threshold, level)
    if sweep is not None:
        found += _about_sweep(clean.s, sweep)
    if skill <= 0:
        worse = f"Brier skill {signed(skill)}"
        found += [("no_skill", f"the probabilities are no better than always stating the prevalence ({worse})")]
    found += _about_spread(clean.s, np.asarray(p, float), raw)
    return [Finding(code, LEVELS[code], on, message) for code, message in found]


def assess_other_target(
    y: Any, s: Any, threshold: float, target: float, *, on: str = "calibration", level: float = 0.95
) -> list[Finding]:
    """Return what is wrong with the threshold of a further recall target: notes, since the gate is about the first."""
    clean = validate(y, s)
    return [
        Finding(f"other_{code}", "info", on, f"at the further target of {100 * target:.6g} %: {message}")
        for code, message in _about_threshold(clean.y, clean.s, threshold, level)
    ]


def of_further_label(label_id: str, findings: Sequence[Finding]) -> list[Finding]:
    """Return findings about a further label, named after it. They warn at most: the gate is about the main label."""
    where = f"patients, further label {label_id}"
    return [
        replace(one, level="warn" if one.level == "fail" else one.level, on=f"{one.on} {where}") for one in findings
    ]


def _about_auc(auc: Interval, positives: int) -> Found:
    if math.isnan(auc.value):
        return [("no_discrimination", "all patients have the same label: nothing shows that the model separates them")]
    shown = f"AUC {auc.value:.3f}"
    low, high = auc.low, auc.high
    if auc.value in (0.0, 1.0):
        # DeLong has no interval here. Were all orders of the n patients equally likely, this one would have
        # probability 1/C(n, positives); below that of one tail of the interval, it is a demonstration.
        demonstrated = 1 / comb(auc.n, positives) <= (1 - auc.level) / 2
        low = high = auc.value if demonstrated else math.nan
    elif not math.isnan(low):
        shown += f", {_level(auc.level)} interval {low:.3f} to {high:.3f}"
    if math.isnan(low):
        return [("no_discrimination", f"{shown}, without an interval: nothing shows that the model separates patients")]
    found: Found = []
    if high < 0.5:
        found.append(("reversed", f"higher scores go with patients without the condition ({shown})"))
    if low <= 0.5:
        found.append(("no_discrimination", f"the model is not shown to separate patients better than chance ({shown})"))
    elif low < 0.6:
        found.append(("weak", f"the model may separate patients only a little better than chance ({shown})"))
    return found


def _about_threshold(y: np.ndarray, s: np.ndarray, threshold: float, level: float) -> Found:
    c = confusion(y, s, threshold)
    referral = (c.tp + c.fp) / c.n
    # Where few have the condition, those without it are the people screened. A share of all patients would stop a good
    # model for being tried on many with the condition.
    of, who = (c.fp / c.negatives, "patients without the condition") if c.negatives else (referral, "patients")
    found: Found = []
    if c.positives and c.negatives:
        lift = newcombe(c.tp, c.positives, c.fp, c.negatives, level)
        if lift.low <= 0:
            limits = f"{_level(level)} interval {signed(lift.low)} to {signed(lift.high)}"
            shown = f"{signed(lift.value)}, {limits}, from {c.positives} patients with and {c.negatives} without it"
            found.append(
                (
                    "ppv_no_lift",
                    "referred patients are not shown to have the condition more often than the others"
                    f" (recall + specificity − 1 = {shown})",
                )
            )
    if of >= 0.95:
        found.append(("refers_everyone", f"the threshold refers {100 * of:.1f} % of {who}: it does not screen"))
    if referral <= 0:
        found.append(("refers_no_one", "the threshold refers no patient"))
    if not s.min() <= threshold <= s.max():
        # Without its value: the finding closes the gate, and what is behind it must be read nowhere.
        outside = "the threshold lies outside the scores: it tells none of these patients apart"
        found.append(("threshold_outside_scores", outside))
    return found


def _about_sweep(s: np.ndarray, sweep: pd.DataFrame) -> Found:
    referred = sweep["true_positive"] + sweep["false_positive"]
    kept = sweep["true_negative"] + sweep["false_negative"]
    outside = (sweep["threshold"] < s.min()) | (sweep["threshold"] > s.max())
    impossible = int((outside & (referred > 0) & (kept > 0)).sum())
    if not impossible:
        return []
    return [
        (
            "threshold_outside_scores",
            f"{counted(impossible, 'row')} of the table of thresholds {agreeing(impossible, 'claims', 'claim')} some"
            " patients referred and some not, at thresholds outside the scores: these scores cannot have produced them",
        )
    ]


def _about_spread(s: np.ndarray, p: np.ndarray, raw: Any) -> Found:
    found: Found = []
    between = "between the 5th and the 95th percentile"
    if raw is not None and (spread := _spread(raw)) < 0.05:
        no_comfort = "this says nothing about confidence, see the AUC"
        found.append(("narrow_raw_range", f"raw probabilities differ by only {spread:.3f} {between}; {no_comfort}"))
    if (spread := _spread(p)) < 0.05:
        alike = "the model hardly tells patients apart"
        found.append(("narrow_calibrated", f"probabilities differ by only {spread:.3f} {between}: {alike}"))
    if (values := len(np.unique(s))) < 10:
        found.append(("few_values", f"the model gives only {counted(values, 'distinct score')}"))
    return found


def signed(value: float, form: str = ".3f") -> str:
    """Return a number with a minus sign, not a hyphen, where it is negative."""
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


def _level(level: float) -> str:
    return f"{100 * level:.4g} %"


def _spread(p: Any) -> float:
    low, high = np.quantile(np.asarray(p, np.float64), [0.05, 0.95])
    return float(high - low)


def linked_findings(patients: Patients, on: str) -> list[Finding]:
    """Return `linked_patients` when patients were left out who share a picture with another of the same label."""
    if not patients.linked:
        return []
    are = "patient shares" if patients.linked == 1 else "patients share"
    message = (
        f"{patients.linked} {are} a picture with another patient of the same label; each such group counts once, in the"
        " certificate and in every interval"
    )
    return [Finding("linked_patients", "info", on, message)]


def compare_tables(stored: pd.DataFrame, recomputed: pd.DataFrame, on: str = "calibration") -> list[Finding]:
    """Return the finding `table_inconsistent` when a stored table differs from the recomputed one in any number.

    The columns of `recomputed` are compared, missing values equal to each other, to 1e-9.
    """
    if len(stored) != len(recomputed):
        message = (
            f"the stored table of thresholds has {counted(len(stored), 'row')}, the recomputed one {len(recomputed)}"
        )
        return [Finding("table_inconsistent", LEVELS["table_inconsistent"], on, message)]
    a, b = (np.asarray(frame[list(recomputed.columns)], float) for frame in (stored, recomputed))
    rows = int((~np.isclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)).any(axis=1).sum())
    if rows == 0:
        return []
    differ = agreeing(rows, "differs", "differ")
    message = f"{rows} of {counted(len(stored), 'row')} of the table of thresholds {differ} from what its scores give"
    return [Finding("table_inconsistent", LEVELS["table_inconsistent"], on, message)]
