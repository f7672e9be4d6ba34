"""power: how many patients it takes to certify a recall, to confirm it, and what that costs in referrals.

Nothing is read: every number follows from the counts that are asked about (`statistics.planner` has the derivations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.statistics.planner import (
    best_division,
    chance_of_confirmation,
    confirming_positives,
    divisions,
    equal_sets_for,
    expected_referral,
    ideal_referral,
    subgroup_needs,
)
from pipeline.statistics.sequential import outcomes_to_notice
from pipeline.statistics.threshold import certifiable_recall, max_misses, min_positives

SIZES = (59, 100, 200, 500, 1000)
CHANCES = (0.8, 0.9)
# Of the figure: areas under the ROC curve, places along the axis, how many times the first number the last one is.
AREAS, POINTS, LARGEST, PER = (0.9, 0.95, 0.98), 36, 40, 1000


@dataclass(frozen=True)
class Question:
    """What is asked: `positives` patients with the condition are there for calibration and test together, if stated."""

    recall: float = 0.95
    confidence: float = 0.95
    auc: float = 0.95
    prevalence: float = 0.05
    positives: int | None = None
    groups: int = 1


def answer(asked: Question) -> dict[str, Any]:
    """Return every number as JSON holds it. Raises ValueError for shares outside (0, 1) and areas outside [0.5, 1)."""
    recall, confidence = asked.recall, asked.confidence
    sizes = sorted({*SIZES, *([asked.positives] if asked.positives else [])})
    return {
        "asked": asked.__dict__,
        "positives_to_certify": {str(misses): min_positives(recall, confidence, misses) for misses in range(4)},
        "positives_in_each_group": subgroup_needs(recall, confidence, asked.groups),
        "by_calibration_positives": [_size(asked, n) for n in sizes],
        "ideal_referral": ideal_referral(asked.auc, recall, asked.prevalence),
        "equal_sets": [_equal(asked, certify) for certify in _higher(recall)],
        "division": _division(asked),
        "audited_positives_to_notice": {
            f"{fallen:g}": outcomes_to_notice(1 - fallen, 1 - recall)
            for fallen in (round(1 - times * (1 - recall), 6) for times in (2, 3, 4))
            if fallen > 0
        },
    }


def figure(asked: Question) -> bytes:
    """Return the answer as a picture, SVG: referral by calibration patients, chance of confirmation by certificate."""
    from pipeline.reporting.power_figure import power

    least = min_positives(asked.recall, asked.confidence)
    sizes = sorted({round(least * LARGEST ** (at / POINTS)) for at in range(POINTS + 1)})
    areas = sorted({*AREAS, asked.auc})
    promised = (asked.recall, *_higher(asked.recall))
    return power(
        {f"AUC {area:g}": [(n, PER * _expected(asked, area, n)) for n in sizes] for area in areas},
        {f"AUC {area:g}": PER * ideal_referral(area, asked.recall, asked.prevalence) for area in areas},
        {
            f"certified {100 * certify:g} %": [
                (n, 100 * chance_of_confirmation(n, allowed, n, asked.recall, asked.confidence))
                for n in sizes
                if (allowed := max_misses(n, certify, asked.confidence)) is not None
            ]
            for certify in promised
            if max_misses(sizes[-1], certify, asked.confidence) is not None
        },
    )


def _expected(asked: Question, area: float, n: int) -> float:
    allowed = max_misses(n, asked.recall, asked.confidence)
    if allowed is None:
        raise ValueError(f"{n} patients with the condition certify no recall of {asked.recall:g}")
    return expected_referral(area, n, allowed, asked.prevalence)


def _size(asked: Question, n: int) -> dict[str, Any]:
    """Return what `n` calibration patients with the condition allow."""
    allowed = max_misses(n, asked.recall, asked.confidence)
    row: dict[str, Any] = {
        "calibration_positives": n,
        "misses_allowed": allowed,
        "certifiable_recall": certifiable_recall(n, 0, asked.confidence),
    }
    if allowed is None:
        return row | dict.fromkeys(("expected_referral", "chance_with_as_many", "test_positives"))
    needed = {
        f"{chance:g}": confirming_positives(chance, n, allowed, asked.recall, asked.confidence) for chance in CHANCES
    }
    return row | {
        "expected_referral": expected_referral(asked.auc, n, allowed, asked.prevalence),
        "chance_with_as_many": chance_of_confirmation(n, allowed, n, asked.recall, asked.confidence),
        "test_positives": needed,
    }


def _higher(recall: float) -> list[float]:
    """Return recalls above the one to be confirmed, a fifth, two and three fifths of the way to 1: 0.96, 0.97, 0.98."""
    return [round(recall + share * (1 - recall), 6) for share in (0.2, 0.4, 0.6)]


def _equal(asked: Question, certify: float) -> dict[str, Any]:
    needed = {f"{chance:g}": equal_sets_for(chance, certify, asked.recall, asked.confidence) for chance in CHANCES}
    return {"certified": certify, "positives_in_each": needed}


def _division(asked: Question) -> dict[str, Any] | None:
    if asked.positives is None:
        return None
    found = [
        one
        for certify in (asked.recall, *_higher(asked.recall))
        for one in divisions(asked.positives, asked.auc, asked.recall, asked.confidence, asked.prevalence, certify)
    ]
    best = best_division(found)
    return {"best": best and best.to_dict(), "all": [one.to_dict() for one in found]}


def lines(found: dict[str, Any]) -> list[str]:
    """Return the answer in lines that a person reads."""
    asked = found["asked"]
    recall, sure = f"{100 * asked['recall']:g} %", f"{100 * asked['confidence']:g} %"
    certify = found["positives_to_certify"]
    said = [
        f"To certify that at least {recall} are found, {sure} sure: {certify['0']} patients with the condition, of whom"
        f" none may be missed; {certify['1']} with one missed, {certify['2']} with two, {certify['3']} with three.",
    ]
    if asked["groups"] > 1:
        each = found["positives_in_each_group"]
        said.append(f"In each of {asked['groups']} groups, all promises at once: {each}.")
    said += [
        "",
        f"Patients with the condition in calibration, and what to expect at AUC {asked['auc']:g} if"
        f" {100 * asked['prevalence']:g} % have it",
        f"{'calibration':>12}{'misses':>8}{'referred':>10}{'confirmed by':>14}{'test patients for':>21}",
        f"{'':>12}{'allowed':>8}{'per 1,000':>10}{'as many':>14}{'80 %':>11}{'90 %':>10}",
    ]
    said += [_line(row) for row in found["by_calibration_positives"]]
    said += [
        f"Somebody who knew the right threshold would refer {1000 * found['ideal_referral']:.0f} per 1,000.",
        "",
        "Certified higher than what is to be confirmed, in two equal sets:",
    ]
    said += [
        f"  certified {100 * row['certified']:g} %: {_count(row['positives_in_each']['0.8'])} in each for 80 %,"
        f" {_count(row['positives_in_each']['0.9'])} for 90 %"
        for row in found["equal_sets"]
    ]
    if found["division"] is not None:
        said += ["", _best(found["division"]["best"], asked)]
    notice = ", ".join(
        f"{100 * float(fallen):g} %: {_count(n)}" for fallen, n in found["audited_positives_to_notice"].items()
    )
    said += ["", f"In use, audited patients with the condition until a fall is noticed (median), to {notice}."]
    return said


def _line(row: dict[str, Any]) -> str:
    n = f"{row['calibration_positives']:>12,}"
    if row["misses_allowed"] is None:
        return f"{n}   too few; at most {100 * row['certifiable_recall']:.1f} % can be certified"
    needed = [_count(row["test_positives"][f"{chance:g}"]) for chance in CHANCES]
    return (
        f"{n}{row['misses_allowed']:>8}{1000 * row['expected_referral']:>10.0f}"
        f"{100 * row['chance_with_as_many']:>12.0f} %{needed[0]:>11}{needed[1]:>10}"
    )


def _count(n: int | None) -> str:
    return "never" if n is None else f"{n:,}"


def _best(best: dict[str, Any] | None, asked: dict[str, Any]) -> str:
    if best is None:
        return f"{asked['positives']} patients with the condition cannot be divided so that anything is certified."
    return (
        f"Best division of {asked['positives']:,}: {best['calibration_positives']:,} to calibration, certified at"
        f" {100 * best['certify']:g} %, {best['test_positives']:,} to test; confirmed in {100 * best['chance']:.0f} of"
        f" 100 cases, {1000 * best['referral']:.0f} of 1,000 referred. Where the test cannot confirm anyway, put more"
        " into calibration, or set calibrate.deploy: pooled."
    )
