"""Every trained arm on the same patients, and what that says about pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.statistics.compare import PairedResult, delong_test
from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.patients import Patients

BASELINES = {
    "scratch": "the same network trained from scratch",
    "hog": "the classical baseline (HOG and logistic regression)",
}


def comparison_table(
    arms: Mapping[str, Patients], seed_aucs: Mapping[str, Sequence[float]], reported: str, level: float = 0.95
) -> pd.DataFrame:
    """Return one row per arm with the columns of the comparison table.

    `seed_aucs` are the AUCs of each arm's single seeds. Differences are the reported arm minus the row's,
    paired. Raises ValueError when the arms were not scored on the same patients with the same labels.
    """
    best = arms[reported]
    for name, patients in arms.items():
        if not (np.array_equal(patients.ids, best.ids) and np.array_equal(patients.y, best.y)):
            raise ValueError(
                f"arms {reported} and {name} were not scored on the same patients with the same labels:"
                f" {len(best.ids)} and {len(patients.ids)} patients; rebuild with --rebuild score"
            )
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
        rows.append(row)
    return pd.DataFrame(rows)


def pretraining_benefit(arms: Mapping[str, Patients], level: float = 0.95) -> str:
    """Say in plain words whether pretraining helped: arm `mae` against each baseline that was trained."""
    if "mae" not in arms:
        return benefit_sentence({}, 0, level)
    mae = arms["mae"]
    results = {name: delong_test(mae.y, mae.s, arms[name].s, level) for name in BASELINES if name in arms}
    return benefit_sentence(results, len(mae.y), level)


def benefit_sentence(results: Mapping[str, PairedResult], patients: int, level: float = 0.95) -> str:
    """Say in plain words whether pretraining helped: by how much, and how sure one can be.

    `results` holds the paired AUC differences, pretrained (`mae`) minus each of `scratch` and `hog` that was
    trained. Unreserved help is claimed only where both were, and both intervals lie above 0.
    """
    known = {name: results[name] for name in BASELINES if name in results}
    if not known:
        return "Whether pretraining helped was not measured: it takes arm mae and one of scratch and hog."
    parts = " and ".join(_in_words(result, BASELINES[name], level) for name, result in known.items())
    verdict = _verdict(known.get("scratch"), known.get("hog"))
    return f"{verdict}: on the same {patients} test patients, the pretrained model's AUC {parts}."


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
