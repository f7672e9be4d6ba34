"""From rows to patients: checked labels and scores, seeds averaged, images aggregated. The patient is the unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline.store.files import sha256_json

Aggregation = Literal["max", "mean", "noisy_or"]


@dataclass(frozen=True)
class Clean:
    """Checked columns of equal length: y is 0 or 1, s and weight are finite float64. Without scores, s is NaN."""

    y: np.ndarray
    s: np.ndarray
    patient_id: np.ndarray | None
    weight: np.ndarray | None


@dataclass(frozen=True)
class Patients:
    """One row per patient, ordered by pseudonym. `conflicts` counts patients whose images differ in label.

    `linked` counts those left out since a unit of linked patients counts once (`one_per_unit`).
    """

    ids: np.ndarray
    y: np.ndarray
    s: np.ndarray
    images: int
    conflicts: int
    seeds: tuple[int, ...]
    linked: int = 0


def validate(
    y: Any,
    s: Any = None,
    patient_id: Any = None,
    weight: Any = None,
    *,
    missing: Literal["raise", "drop"] = "raise",
) -> Clean:
    """Check labels (0/1, bool or int), scores, patients and weights, each of shape (n,), and return them clean.

    Missing labels and non-finite scores raise ValueError, or are dropped and counted with `missing="drop"`; a
    missing label is never a negative. Raises ValueError, with every problem, for no rows, unequal lengths,
    labels other than 0 and 1, and weights that are negative or not finite.
    """
    labels = np.asarray(y)
    labels = np.array([np.nan if v is None or v is pd.NA else v for v in labels]) if labels.dtype == object else labels
    columns = {"scores": s, "patients": patient_id, "weights": weight}
    arrays = {name: np.asarray(v) for name, v in columns.items() if v is not None}
    problems = [f"{len(v)} {name} for {len(labels)} labels" for name, v in arrays.items() if v.shape != labels.shape]
    if labels.ndim != 1 or len(labels) == 0:
        problems.append("there are no labels" if labels.size == 0 else "labels must be one-dimensional")
    if problems:
        raise ValueError("; ".join(problems))
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"labels must be 0 or 1, not {_shown(labels)}; map them first")

    unlabelled = np.isnan(labels.astype(float))
    other = ~unlabelled & ~np.isin(labels, (0, 1))
    if other.any():
        problems.append(f"labels must be 0 or 1, not {_shown(labels[other])}; map them first")
    scores = arrays["scores"].astype(np.float64) if "scores" in arrays else None
    unscored = np.zeros(len(labels), bool) if scores is None else ~np.isfinite(scores)
    weights = arrays["weights"].astype(np.float64) if "weights" in arrays else None
    if weights is not None and not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        problems.append("weights must be finite, at least 0, and not all 0")
    if missing == "raise":
        problems += [f"{int(unlabelled.sum())} labels are missing"] * bool(unlabelled.any())
        problems += [f"{int(unscored.sum())} scores are missing or not finite"] * bool(unscored.any())
    if problems:
        raise ValueError("; ".join(problems))

    keep = ~(unlabelled | unscored)
    if not keep.any():
        raise ValueError("no row has both a label and a finite score")
    ids = arrays.get("patients")
    return Clean(
        y=labels[keep].astype(np.int64),
        s=np.full(int(keep.sum()), np.nan) if scores is None else scores[keep],
        patient_id=None if ids is None else ids[keep],
        weight=None if weights is None else weights[keep],
    )


def _shown(values: np.ndarray) -> str:
    distinct = [str(v) for v in dict.fromkeys(values.tolist())]
    return ", ".join(distinct[:5]) + (", …" if len(distinct) > 5 else "")


def aggregate_scores(s: np.ndarray, patient_id: np.ndarray, how: Aggregation) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, scores): each patient's score from those of their images, ordered by pseudonym.

    `max` and `mean` take any scale; `noisy_or`, 1 - prod(1 - p), takes probabilities and raises ValueError
    otherwise.
    """
    s = np.asarray(s, np.float64)
    ids, inverse = np.unique(patient_id, return_inverse=True)
    if how == "max":
        scores = np.full(len(ids), -np.inf)
        np.maximum.at(scores, inverse, s)
    elif how == "mean":
        # A plain sum depends on row order in its last bit; sorted by value, the order cannot matter.
        order = np.lexsort((s, inverse))
        scores = np.bincount(inverse[order], s[order]) / np.bincount(inverse)
    elif how == "noisy_or":
        if ((s < 0) | (s > 1)).any():
            raise ValueError("noisy_or aggregates probabilities; some scores lie outside 0 to 1")
        scores = np.ones(len(ids))
        np.multiply.at(scores, inverse, 1 - s)
        scores = 1 - scores
    else:
        raise ValueError(f"aggregation must be max, mean or noisy_or, not {how}")
    return ids, scores


def aggregate_by_patient(
    y: Any, s: Any, patient_id: Any, how: Aggregation = "max"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (y, s, ids) per patient: positive when any of their images is, score by `aggregate_scores`."""
    clean = validate(y, s, patient_id)
    ids, scores = aggregate_scores(clean.s, np.asarray(patient_id), how)
    _, labels = aggregate_scores(clean.y, np.asarray(patient_id), "max")
    return labels.astype(np.int64), scores, ids


def patients_of(scores: pd.DataFrame, arm: str, how: Aggregation, seed: int | None = None) -> Patients:
    """Return the patients of one arm: logits averaged over seeds per image, then aggregated over images.

    `scores` has the columns of the score table; `seed` takes that seed alone. Raises ValueError when the arm
    is absent, an image lacks a seed or is there twice, its patient or label differs between seeds, or a logit
    is not finite.
    """
    rows = scores[scores["arm"] == arm]
    if seed is not None:
        rows = rows[rows["seed"] == seed]
    if rows.empty:
        raise ValueError(f"there are no scores of arm {arm}; it has: {', '.join(sorted(set(scores['arm'])))}")
    seeds = tuple(sorted(int(v) for v in set(rows["seed"])))
    images = rows.groupby("image_id", sort=True)
    several = images[["patient_id", "label"]].nunique(dropna=False) > 1
    twice = rows[rows.duplicated(["image_id", "seed"])]
    counts = {
        "logits are not finite": (~np.isfinite(rows["logit"])).sum(),
        "images are scored twice by a seed": twice["image_id"].nunique(),
        f"images are not scored by all {len(seeds)} seeds": (images["seed"].nunique() < len(seeds)).sum(),
        "images belong to several patients": several["patient_id"].sum(),
        "images have different labels in different seeds": several["label"].sum(),
    }
    problems = [f"{int(count)} {what}" for what, count in counts.items() if count]
    if problems:
        raise ValueError(f"scores of arm {arm} cannot be used: " + "; ".join(problems))
    ordered = rows.sort_values(["image_id", "seed"])
    logits = ordered["logit"].to_numpy().reshape(-1, len(seeds)).mean(axis=1)
    first = images[["patient_id", "label"]].first()
    y, s, ids = aggregate_by_patient(first["label"], logits, first["patient_id"], how)
    conflicts = int((first.groupby("patient_id")["label"].nunique() > 1).sum())
    return Patients(ids, y, s, len(first), conflicts, seeds)


def one_per_unit(patients: Patients, units: pd.Series) -> Patients:
    """Return the patients with one of each label per unit, the first by pseudonym; `units` is indexed by patient.

    A unit holds patients who share a picture: perhaps one person under two pseudonyms, with the same score twice.
    Counted as independent, they make a certificate hold in 88 of 100 cases instead of 95 (pairs), or 85 (fours). Which
    one is kept must not depend on the score. Raises ValueError when a patient has no unit.
    """
    unit = units.reindex(patients.ids)
    if unit.isna().any():
        raise ValueError(f"{int(unit.isna().sum())} scored patients are not in the split; rebuild with --rebuild score")
    repeated = pd.DataFrame({"unit": unit.to_numpy(), "y": patients.y}).duplicated().to_numpy()
    if not repeated.any():
        return patients
    ids, y, s = patients.ids[~repeated], patients.y[~repeated], patients.s[~repeated]
    return replace(patients, ids=ids, y=y, s=s, linked=patients.linked + int(repeated.sum()))


def units_of(split: pd.DataFrame) -> pd.Series:
    """Return the unit of each patient, indexed by pseudonym; `split` has the columns of the split table."""
    return split.drop_duplicates("patient_id").set_index("patient_id")["unit"]


def deciding_images(scores: pd.DataFrame, arm: str) -> pd.Series:
    """Return the image of each patient with the highest mean logit of an arm's seeds, by patient; the first of equals.

    It is the one that makes the score when scores are aggregated by their maximum.
    """
    rows = scores[scores["arm"] == arm]
    logits = rows.groupby(["patient_id", "image_id"], sort=True)["logit"].mean().reset_index("image_id")
    ordered = logits.sort_values("logit", ascending=False, kind="stable")
    return ordered.groupby(level="patient_id")["image_id"].first()


def patient_table(
    arm: str, patients: Patients, probability: np.ndarray | None, threshold: float | None
) -> pd.DataFrame:
    """Return one arm's rows of the patient-score table; what is None stays missing."""
    n = len(patients.y)
    referred = [pd.NA] * n if threshold is None else patients.s >= threshold
    return pd.DataFrame(
        {
            "patient_id": patients.ids,
            "arm": arm,
            "score": patients.s,
            "probability": np.full(n, np.nan) if probability is None else probability,
            "label": patients.y,
            "referred": pd.array(referred, "boolean"),
        }
    )


def scores_sha256(scores: pd.DataFrame, arm: str) -> str:
    """Return the SHA-256 of one arm's scores in canonical form: rows sorted, logits as exact hexadecimal floats."""
    rows = scores[scores["arm"] == arm]
    columns = zip(rows["image_id"], rows["patient_id"], rows["seed"], rows["logit"], rows["label"], strict=True)
    return sha256_json(sorted([i, p, int(k), float(v).hex(), int(y)] for i, p, k, v, y in columns))


def refuse_overlap(partitions: Mapping[str, Any]) -> None:
    """Raise ValueError, with counts and never pseudonyms, when a patient is in two of the named partitions."""
    sets = {name: set(ids) for name, ids in partitions.items()}
    names = list(sets)
    shared = [
        f"{len(common)} patients are both in {first} and in {second}"
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        if (common := sets[first] & sets[second])
    ]
    if shared:
        raise ValueError("patients must not be shared between splits: " + "; ".join(shared))
