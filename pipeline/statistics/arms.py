"""Every trained arm on the same patients, and what that says about pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.statistics.compare import PairedResult, delong_test
from pipeline.statistics.discrimination import auc_value, roc_auc
from pipeline.statistics.patients import Aggregation, Patients, patients_of
from pipeline.store.wording import counted

RATES = {"recall": 1, "specificity": 0}
# The columns of p stay empty: both thresholds are estimates, and no test of decisions at fixed ones is right for them.
DECISIONS = (
    "threshold",
    *(f"{rate}{c}" for rate in RATES for c in ("", "_difference", "_difference_low", "_difference_high", "_p")),
)


@dataclass(frozen=True)
class Comparator:
    """An arm that the pretrained one is compared with in words: as what (`role`), and how it is called there.

    `scratch` is the same network from random weights, `public` the same one from public weights, `classical` the
    strongest model without a network, `rival` another model that has nothing to do with pretraining.
    """

    role: str
    words: str


# Those of artifacts made before fine-tuning recorded them.
BASELINES = {
    "scratch": Comparator("scratch", "the same network trained from scratch"),
    "imported": Comparator("public", "the same network started from public weights"),
    "hog": Comparator("classical", "the classical baseline (HOG and logistic regression)"),
}
ROLES = ("scratch", "public", "classical")


def comparators(arms: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Comparator]:
    """Return with what arm `mae` is compared, from what fine-tuning recorded of each arm.

    Of several classical arms only the one with the highest AUC on the tuning images counts, the later of equals: who
    beats a weak baseline has shown little.
    """
    if not any("role" in record for record in arms.values()):
        return BASELINES
    found = {arm: Comparator(one["role"], one["compared_as"]) for arm, one in arms.items() if one.get("role")}
    classical = [arm for arm, one in found.items() if one.role == "classical"]
    strongest = max(reversed(classical), key=lambda arm: _tune_auc(arms[arm]), default=None)
    return {arm: one for arm, one in found.items() if one.role != "classical" or arm == strongest}


def _tune_auc(record: Mapping[str, Any]) -> float:
    return max(seed["tune_auc"] for seed in record["seeds"].values())


def comparison_table(
    arms: Mapping[str, Patients],
    seed_aucs: Mapping[str, Sequence[float]],
    reported: str,
    level: float = 0.95,
    decisions: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Return one row per arm with the columns of the comparison table.

    `seed_aucs` are the AUCs of each arm's single seeds, `decisions` what `matched_decisions` returned. Differences are
    the reported arm minus the row's, paired; without decisions, theirs are NaN. Raises ValueError when the arms were
    not scored on the same patients with the same labels.
    """
    best = arms[reported]
    _refuse_others(arms, reported)
    rows = []
    for name, patients in arms.items():
        auc = roc_auc(patients.y, patients.s, level)
        row = {
            "arm": name,
            "seeds": len(patients.seeds),
            "patients": len(patients.y),
            "positives": int(patients.y.sum()),
            "auc": auc.value,
            "auc_low": auc.low,
            "auc_high": auc.high,
            "auc_seed_min": min(seed_aucs[name]),
            "auc_seed_max": max(seed_aucs[name]),
            **dict.fromkeys(("difference", "difference_low", "difference_high", "p"), math.nan),
            **dict.fromkeys(DECISIONS, math.nan),
            "reported": name == reported,
        }
        if name != reported:
            paired = delong_test(best.y, best.s, patients.s, level)
            row |= {
                "difference": paired.diff,
                "difference_low": paired.low,
                "difference_high": paired.high,
                "p": paired.p,
            }
        if decisions is not None:
            row |= decisions[name]
        rows.append(row)
    return pd.DataFrame(rows)


def seed_aucs(scores: pd.DataFrame, arms: Mapping[str, Patients], how: Aggregation) -> dict[str, list[float]]:
    """Return the AUC of every single seed of each arm; `scores` has the columns of the score table."""
    return {
        name: [auc_value(one.y, one.s) for one in (patients_of(scores, name, how, seed) for seed in arm.seeds)]
        for name, arm in arms.items()
    }


def matched_thresholds(arms: Mapping[str, Patients], reported: str, misses: int) -> dict[str, float]:
    """Return each arm's highest threshold that misses at most `misses` of the same positive patients: (k+1)-th score.

    Decisions of arms are comparable at matched sensitivity alone. With the misses that the certificate allows, the
    reported arm's threshold is the certified one. Those of other arms are for comparison; none is certified.
    """
    _refuse_others(arms, reported)
    return {name: float(np.sort(patients.s[patients.y == 1])[misses]) for name, patients in arms.items()}


def matched_decisions(
    calibration: Mapping[str, Patients],
    test: Mapping[str, Patients],
    reported: str,
    misses: int,
    level: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, dict[str, float]]:
    """Return each arm's threshold at matched sensitivity, what it finds and spares, and the paired differences.

    Differences are the reported arm minus the row's. Each threshold is one low order statistic of the calibration
    positives and hardly known: taken as fixed, two arms of one distribution "differ" in a third to three quarters of
    runs. So calibration positives and test patients are resampled together, the same ones for every arm, the thresholds
    are taken anew, and the limits are percentiles of the differences. No p: a percentile interval has none.
    Raises ValueError when the arms were not scored on the same patients.
    """
    thresholds = matched_thresholds(calibration, reported, misses)
    _refuse_others(test, reported)
    y = test[reported].y
    positives = {name: one.s[one.y == 1] for name, one in calibration.items()}
    generator = np.random.default_rng(seed)
    n = len(positives[reported])
    drawn = generator.integers(0, n, (resamples, n))
    moved = {name: np.partition(s[drawn], misses, axis=1)[:, misses] for name, s in positives.items()}
    rows: dict[str, dict[str, float]] = {name: {"threshold": thresholds[name]} for name in test}
    tail = (1 - level) / 2
    for rate, label in RATES.items():
        if not (own := y == label).any():
            continue
        weights = generator.multinomial(own.sum(), np.full(own.sum(), 1 / own.sum()), resamples)

        def right(name: str, at: np.ndarray, own: np.ndarray = own, label: int = label) -> np.ndarray:
            """Return who is decided rightly at each of several thresholds: (thresholds, patients)."""
            # Right is to refer those with the condition and not to refer the others.
            return (test[name].s[own] >= at[:, None]) == label

        now = {name: float(right(name, np.array([thresholds[name]])).mean()) for name in test}
        shares = {name: (right(name, moved[name]) * weights).sum(axis=1) / own.sum() for name in test}
        for name, row in rows.items():
            row[rate] = now[name]
            if name != reported:
                low, high = np.quantile(shares[reported] - shares[name], [tail, 1 - tail])
                value = now[reported] - now[name]
                # A statistic with few values can lie outside its own percentiles.
                limits = {"": value, "_low": min(low, value), "_high": max(high, value)}
                row |= {f"{rate}_difference{end}": float(limit) for end, limit in limits.items()}
    return rows


def _refuse_others(arms: Mapping[str, Patients], reported: str) -> None:
    best = arms[reported]
    for name, patients in arms.items():
        if not (np.array_equal(patients.ids, best.ids) and np.array_equal(patients.y, best.y)):
            raise ValueError(
                f"arms {reported} and {name} were not scored on the same patients with the same labels:"
                f" {len(best.ids)} and {len(patients.ids)} patients; rebuild with --rebuild score"
            )


def pretraining_benefit(
    arms: Mapping[str, Patients], level: float = 0.95, against: Mapping[str, Comparator] = BASELINES
) -> str:
    """Say in plain words whether pretraining helped: arm `mae` against each of those `against` that was trained."""
    if "mae" not in arms:
        return benefit_sentence({}, 0, level, against)
    mae = arms["mae"]
    results = {name: delong_test(mae.y, mae.s, arms[name].s, level) for name in against if name in arms}
    return benefit_sentence(results, len(mae.y), level, against)


def benefit_sentence(
    results: Mapping[str, PairedResult],
    patients: int,
    level: float = 0.95,
    against: Mapping[str, Comparator] = BASELINES,
) -> str:
    """Say in plain words whether pretraining helped: by how much, and how sure one can be.

    `results` holds the paired AUC differences, pretrained (`mae`) minus each of those `against` that was trained.
    Unreserved help is claimed only where the network was trained from scratch and a classical model was, and both
    intervals lie above 0; public weights are reported beside them. Each rival has a sentence of its own.
    """
    by_role = {one.role: name for name, one in against.items() if name in results}
    known = {by_role[role]: results[by_role[role]] for role in ROLES if role in by_role}
    rivals = [_of_rival(results[name], one.words, patients, level)
              for name, one in against.items() if name in results and one.role == "rival"]  # fmt: skip
    if not known:
        base = (
            "Whether pretraining helped was not measured: it takes arm mae, and beside it scratch, imported or a "
            "classical baseline."
        )
        return " ".join([base, *rivals])
    parts = " and ".join(_in_words(result, against[name].words, level) for name, result in known.items())
    verdict = _verdict(*(known.get(by_role.get(role, "")) for role in ("scratch", "classical")))
    base = f"{verdict}: on the same {counted(patients, 'test patient')}, the pretrained model's AUC {parts}."
    return " ".join([base, *rivals])


def _of_rival(result: PairedResult, words: str, patients: int, level: float) -> str:
    """Say whether the pretrained model is better than a rival."""
    verdict = f"It is not shown which is better, the pretrained model or {words}"
    if result.high < 0:
        verdict = f"{words[0].upper()}{words[1:]} is better than the pretrained model"
    elif result.low > 0:
        verdict = f"The pretrained model is better than {words}"
    # Named once is enough.
    said = _in_words(result, "the latter" if verdict.endswith(words) else "the former", level)
    return f"{verdict}: on the same {counted(patients, 'test patient')}, the pretrained model's AUC {said}."


def _verdict(scratch: PairedResult | None, hog: PairedResult | None) -> str:
    if scratch is None:
        return "Whether pretraining helped was not measured, as no network was trained from scratch"
    if scratch.high < 0:
        return "Pretraining did not help"
    if not scratch.low > 0:
        return "It is not shown that pretraining helped"
    if hog is None:
        return "Pretraining helped, but no classical baseline was trained"
    if hog.high < 0:
        return "Pretraining helped the network, but the classical baseline is better"
    if not hog.low > 0:
        return "Pretraining helped the network, but it is not shown to be better than the classical baseline"
    return "Pretraining helped"


def _in_words(r: PairedResult, baseline: str, level: float) -> str:
    if math.isnan(r.low):
        return f"cannot be compared with that of {baseline}, as no interval exists"
    if r.low == r.high:
        return f"was the same as that of {baseline}, as both rank the patients alike"
    p = "p < 0.001" if r.p < 0.001 else f"p = {r.p:.3f}"
    limits = f"{100 * level:g} % interval of the difference {_signed(r.low)} to {_signed(r.high)}, {p}"
    if r.low > 0:
        return f"was {r.diff:.3f} higher than that of {baseline} ({limits})"
    if r.high < 0:
        return f"was {-r.diff:.3f} lower than that of {baseline} ({limits})"
    return f"differed by {_signed(r.diff)} from that of {baseline}, which chance alone could explain ({limits})"


def _signed(value: float) -> str:
    """Return a difference with its sign, of three digits, or four where three would hide on which side of 0 it lies."""
    digits = 3 if value == 0 or abs(value) >= 0.0005 else 4
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
