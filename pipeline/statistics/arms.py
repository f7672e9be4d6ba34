"""Every trained arm on the same patients, and what that says about pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.statistics.compare import PairedResult, delong_test, mcnemar_exact
from pipeline.statistics.discrimination import auc_value, roc_auc
from pipeline.statistics.intervals import newcombe_paired
from pipeline.statistics.patients import Aggregation, Patients, patients_of
from pipeline.store.wording import counted

RATES = {"recall": 1, "specificity": 0}
DECISIONS = (
    "threshold",
    *(f"{rate}{c}" for rate in RATES for c in ("", "_difference", "_difference_low", "_difference_high", "_p")),
)
BASELINES = {
    "scratch": "the same network trained from scratch",
    "imported": "the same network started from public weights",
    "hog": "the classical baseline (HOG and logistic regression)",
}


def comparison_table(
    arms: Mapping[str, Patients],
    seed_aucs: Mapping[str, Sequence[float]],
    reported: str,
    level: float = 0.95,
    thresholds: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Return one row per arm with the columns of the comparison table.

    `seed_aucs` are the AUCs of each arm's single seeds, `thresholds` those of `matched_thresholds`. Differences are
    the reported arm minus the row's, paired; without thresholds, those of decisions are NaN. Raises ValueError when
    the arms were not scored on the same patients with the same labels.
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
        if thresholds is not None:
            row["threshold"] = thresholds[name]
            row |= _decisions(best.y, best.s >= thresholds[reported], patients.s >= thresholds[name], level)
        if name == reported:
            row |= dict.fromkeys((column for column in DECISIONS if "_" in column), math.nan)
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


def _decisions(y: np.ndarray, first: np.ndarray, second: np.ndarray, level: float) -> dict[str, float]:
    """Return what the second arm's decisions find and spare, and the paired differences, first minus second.

    y: (n,) labels; first, second: (n,) bool, referred. Newcombe's interval, McNemar's exact p.
    """
    row: dict[str, float] = {}
    for rate, label in RATES.items():
        own = y == label
        if not own.any():
            continue
        # Right is to refer those with the condition and not to refer the others.
        one, two = first[own] == label, second[own] == label
        a, b, c, d = (int((x & z).sum()) for x in (one, ~one) for z in (two, ~two))
        difference = newcombe_paired(a, b, c, d, level)
        row |= {
            rate: float(two.mean()),
            f"{rate}_difference": difference.value,
            f"{rate}_difference_low": difference.low,
            f"{rate}_difference_high": difference.high,
            f"{rate}_p": mcnemar_exact(b, c),
        }
    return row


def _refuse_others(arms: Mapping[str, Patients], reported: str) -> None:
    best = arms[reported]
    for name, patients in arms.items():
        if not (np.array_equal(patients.ids, best.ids) and np.array_equal(patients.y, best.y)):
            raise ValueError(
                f"arms {reported} and {name} were not scored on the same patients with the same labels:"
                f" {len(best.ids)} and {len(patients.ids)} patients; rebuild with --rebuild score"
            )


def pretraining_benefit(arms: Mapping[str, Patients], level: float = 0.95) -> str:
    """Say in plain words whether pretraining helped: arm `mae` against each baseline that was trained."""
    if "mae" not in arms:
        return benefit_sentence({}, 0, level)
    mae = arms["mae"]
    results = {name: delong_test(mae.y, mae.s, arms[name].s, level) for name in BASELINES if name in arms}
    return benefit_sentence(results, len(mae.y), level)


def benefit_sentence(results: Mapping[str, PairedResult], patients: int, level: float = 0.95) -> str:
    """Say in plain words whether pretraining helped: by how much, and how sure one can be.

    `results` holds the paired AUC differences, pretrained (`mae`) minus each of `scratch`, `imported` and `hog` that
    was trained. Unreserved help is claimed only where `scratch` and `hog` were, and both intervals lie above 0;
    `imported` is reported beside them.
    """
    known = {name: results[name] for name in BASELINES if name in results}
    if not known:
        return "Whether pretraining helped was not measured: it takes arm mae and one of scratch, imported and hog."
    parts = " and ".join(_in_words(result, BASELINES[name], level) for name, result in known.items())
    verdict = _verdict(known.get("scratch"), known.get("hog"))
    return f"{verdict}: on the same {counted(patients, 'test patient')}, the pretrained model's AUC {parts}."


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
    limits = f"{100 * level:g} % interval of the difference {r.low:+.3f} to {r.high:+.3f}, {p}"
    if r.low > 0:
        return f"was {r.diff:.3f} higher than that of {baseline} ({limits})"
    if r.high < 0:
        return f"was {-r.diff:.3f} lower than that of {baseline} ({limits})"
    return f"differed by {r.diff:+.3f} from that of {baseline}, which chance alone could explain ({limits})"
