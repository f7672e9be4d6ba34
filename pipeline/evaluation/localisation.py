"""Where the finding lies: predicted masks and marks against the reference masks of the test patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.statistics.froc import (
    RATES,
    Marked,
    all_marks,
    curve,
    lesions_of,
    match,
    sensitivities,
    sensitivity_difference,
    shown_rates,
)
from pipeline.statistics.segmentation import (
    CASES,
    agreement,
    mean_interval,
    patient_means,
    size_of_voxel,
)
from pipeline.store.tables.masks import NOT_ANNOTATED

MEASURES = ("dice", "nsd", "size_error", "relative_size_error")
PAIRED = ("dice", "nsd")
PAIRED_RATE = 1.0  # false marks per image at which the sensitivity of arms is compared
HIT = "the peak of the mark lies inside the lesion"


@dataclass(frozen=True)
class Masks:
    """The test images of a segmentation task.

    `index` has `image_id`, `patient_id`, `label`, `shard` and `row`; `spacing_mm` by image the distance of voxels along
    each axis of the arrays, None where one is unknown. `reference` are the masks by shard, `predicted` those of each
    arm by shard, both uint8 (N, H, W) or (N, D, H, W): 0 background, 1… structures, 255 not annotated. `marks` has a
    row per mark of any arm: arm, image_id, structure, score, and its peak z, y, x. `structures` are named by number.
    """

    index: pd.DataFrame
    spacing_mm: Mapping[str, tuple[float, ...] | None]
    structures: Mapping[int, str]
    reference: Mapping[str, np.ndarray]
    predicted: Mapping[str, Mapping[str, np.ndarray]]
    marks: pd.DataFrame


@dataclass(frozen=True)
class Localisation:
    """What segmentation.json says, and the rows of the tables in store/tables/segmentation.py."""

    summary: dict[str, Any]
    patients: pd.DataFrame
    froc: pd.DataFrame
    comparison: pd.DataFrame


def judge_masks(masks: Masks, reported: str, tolerance_mm: float, level: float, seed: int) -> Localisation | None:
    """Judge the masks and marks of every arm on the same annotated test images; `reported` is the calibrated arm.

    Means are over patients, each the mean of its images; a missed or invented structure counts 0 in Dice and NSD, an
    image without it in either mask counts in none. Lesions are compared by the rule in statistics/froc.py; a mark whose
    peak nobody annotated is left out and counted. Images without an annotated pixel are left out and counted. None
    where no image has one.
    """
    annotated = masks.index[[_annotated(masks, row) for row in masks.index.to_dict("records")]].reset_index(drop=True)
    if annotated.empty:
        return None
    arms = {arm: _Arm.of(masks, annotated, arm, tolerance_mm) for arm in sorted(masks.predicted)}
    names = list(masks.structures.values())
    found = {arm: {name: one.numbers(name, level, seed) for name in names} for arm, one in arms.items()}
    summary = {
        "arm": reported if reported in arms else None,
        "structures": {str(number): name for number, name in masks.structures.items()},
        "tolerance_mm": tolerance_mm,
        "size_unit": "ml" if next(iter(masks.reference.values())).ndim == 4 else "cm²",
        "hit": HIT,
        "level": level,
        "patients": int(annotated["patient_id"].nunique()),
        "images": len(annotated),
        "images_not_annotated": len(masks.index) - len(annotated),
        "images_without_spacing": sum(masks.spacing_mm.get(name) is None for name in annotated["image_id"]),
        "label": _against_label(masks, annotated),
        "arms": found,
    }
    return Localisation(
        summary,
        pd.concat([one.patients() for one in arms.values()], ignore_index=True),
        pd.concat([one.curve(name, level, seed) for one in arms.values() for name in names], ignore_index=True),
        _comparison(arms, reported, names, level, seed),
    )


def _reference(masks: Masks, row: Mapping[Any, Any]) -> np.ndarray:
    return masks.reference[row["shard"]][row["row"]]


def _annotated(masks: Masks, row: Mapping[Any, Any]) -> bool:
    return bool((_reference(masks, row) != NOT_ANNOTATED).any())


def _against_label(masks: Masks, annotated: pd.DataFrame) -> dict[str, int]:
    """Count images whose label and reference mask say different things."""
    drawn = np.array(
        [np.isin(_reference(masks, row), list(masks.structures)).any() for row in annotated.to_dict("records")]
    )
    label = annotated["label"].to_numpy(float, na_value=np.nan)
    return {
        "positive": int((label == 1).sum()),
        "negative": int((label == 0).sum()),
        "positive_with_empty_mask": int(((label == 1) & ~drawn).sum()),
        "negative_with_a_mask": int(((label == 0) & drawn).sum()),
    }


@dataclass(frozen=True)
class _Arm:
    """One arm: a row per image and structure in `rows`, and what was marked of each structure."""

    name: str
    rows: pd.DataFrame
    marked: Mapping[str, Marked]
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, masks: Masks, annotated: pd.DataFrame, arm: str, tolerance_mm: float) -> _Arm:
        own = masks.marks[masks.marks["arm"] == arm]
        by_image = dict(list(own.groupby(["image_id", "structure"])))
        people = {patient: at for at, patient in enumerate(sorted(set(annotated["patient_id"])))}
        rows: list[dict[str, Any]] = []
        lesions: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in masks.structures.values()}
        false: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in masks.structures.values()}
        left_out = dict.fromkeys(masks.structures.values(), 0)
        for row in annotated.to_dict("records"):
            reference, predicted = _reference(masks, row), masks.predicted[arm][row["shard"]][row["row"]]
            patient = people[row["patient_id"]]
            for number, name in masks.structures.items():
                of_image = by_image.get((row["image_id"], number), own.iloc[:0])
                best, wrong, unknown = _match(reference, number, of_image)
                lesions[name].append((patient, best))
                false[name].append((patient, wrong))
                left_out[name] += unknown
                spacing = masks.spacing_mm.get(row["image_id"])
                rows.append(
                    {
                        "patient_id": row["patient_id"],
                        "structure": name,
                        "lesions": len(best),
                        "lesions_found": int(np.isfinite(best).sum()),
                        "false_marks": len(wrong),
                        **_compared(reference, predicted, number, spacing, tolerance_mm),
                    }
                )
        images = annotated.groupby("patient_id").size().reindex(list(people)).to_numpy()
        marked = {name: Marked(images, *_joined(lesions[name]), *_joined(false[name])) for name in lesions}
        return cls(arm, pd.DataFrame(rows), marked, left_out)

    def patients(self) -> pd.DataFrame:
        """Return the rows of the table of patients."""
        rows = self.rows.assign(images=1, **{case: self.rows["case"] == case for case in CASES})
        keys = ["structure", "patient_id"]
        sums = rows.groupby(keys)[["images", *CASES, "lesions", "lesions_found", "false_marks"]].sum().astype(np.int64)
        means = rows.groupby(keys)[list(MEASURES)].mean()
        return sums.join(means).reset_index().assign(arm=self.name)

    def numbers(self, structure: str, level: float, seed: int) -> dict[str, Any]:
        """Return all numbers of one structure, each with its interval."""
        rows, marked = self.rows[self.rows["structure"] == structure], self.marked[structure]
        means = patient_means(rows, MEASURES)
        sensitivity, false_per_image = all_marks(marked, level, seed)
        at = sensitivities(marked, RATES, level, seed)
        return {
            "cases": {case: int((rows["case"] == case).sum()) for case in CASES},
            **{name: mean_interval(means[name].dropna().to_numpy(), level, seed).to_dict() for name in MEASURES},
            "lesions": int(marked.lesions.sum()),
            "lesions_found": int(marked.found.sum()),
            "patients_with_lesions": int((marked.lesions > 0).sum()),
            "false_marks": int(marked.false.sum()),
            "marks_not_annotated": self.left_out[structure],
            "sensitivity": sensitivity.to_dict(),
            "false_marks_per_image": false_per_image.to_dict(),
            "froc": [{"rate": rate, "sensitivity": one.to_dict()} for rate, one in zip(RATES, at, strict=True)],
        }

    def curve(self, structure: str, level: float, seed: int) -> pd.DataFrame:
        """Return the points of the FROC curve; none without lesions."""
        marked = self.marked[structure]
        rates = shown_rates(curve(marked)) if marked.lesions.any() else np.empty(0)
        points = sensitivities(marked, list(rates), level, seed)
        return pd.DataFrame(
            {
                "arm": self.name,
                "structure": structure,
                "false_marks_per_image": rates,
                "sensitivity": [point.value for point in points],
                "low": [point.low for point in points],
                "high": [point.high for point in points],
            }
        )


def _match(reference: np.ndarray, number: int, marks: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the best score of each lesion, the scores of false marks, and how many marks nobody annotated."""
    lesions, count = lesions_of(reference == number)
    peaks = marks[["z", "y", "x"][-reference.ndim :]].to_numpy(np.int64)
    known = reference[tuple(peaks.T)] != NOT_ANNOTATED
    best, wrong = match(lesions, count, peaks[known], marks["score"].to_numpy(float)[known])
    return best, wrong, int((~known).sum())


def _compared(
    reference: np.ndarray,
    predicted: np.ndarray,
    number: int,
    spacing_mm: Sequence[float] | None,
    tolerance_mm: float,
) -> dict[str, Any]:
    one = agreement(reference, predicted, number, spacing_mm, tolerance_mm)
    missing, error = one.case == "both_empty", one.predicted - one.reference
    return {
        "case": one.case,
        "dice": one.dice,
        "nsd": one.nsd,
        "size_error": np.nan if missing or spacing_mm is None else error * size_of_voxel(spacing_mm),
        "relative_size_error": abs(error) / one.reference if one.reference else np.nan,
    }


def _joined(parts: Sequence[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return patient and score of everything that was found image by image."""
    of = np.repeat([patient for patient, _ in parts], [len(scores) for _, scores in parts]).astype(np.int64)
    return of, np.concatenate([scores for _, scores in parts])


def _comparison(
    arms: Mapping[str, _Arm], reported: str, structures: Sequence[str], level: float, seed: int
) -> pd.DataFrame:
    """Return the reported arm minus every other one on patients who have the structure; empty when it drew no masks.

    What arms invent where nothing is, false marks count.
    """
    rows = []
    for other in sorted(arms.keys() - {reported}) if reported in arms else []:
        for structure in structures:
            first, second = (arms[name] for name in (reported, other))
            means = [
                patient_means(
                    one.rows[(one.rows["structure"] == structure) & one.rows["case"].isin(["found", "missed"])], PAIRED
                )
                for one in (first, second)
            ]
            found = {
                name: mean_interval((means[0][name] - means[1][name]).dropna().to_numpy(), level, seed)
                for name in PAIRED
            }
            found["sensitivity"] = sensitivity_difference(
                first.marked[structure], second.marked[structure], PAIRED_RATE, level, seed
            )
            rows += [
                {
                    "arm": other,
                    "structure": structure,
                    "measure": measure,
                    "patients": one.n,
                    "difference": one.value,
                    "low": one.low,
                    "high": one.high,
                }
                for measure, one in found.items()
            ]
    columns = ["arm", "structure", "measure", "patients", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
