"""Whether the patients of the test set are like those that certified the threshold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from pipeline.statistics.gate import Finding


@dataclass(frozen=True)
class ScoreShift:
    """Two-sample Kolmogorov-Smirnov test of two sets of scores: largest distance, two-sided asymptotic p."""

    statistic: float
    p: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)


def score_shift(calibration: Any, test: Any) -> ScoreShift:
    """Compare the scores of two sets of patients, (n,) and (m,)."""
    result = ks_2samp(np.asarray(calibration, float), np.asarray(test, float), method="asymp")
    return ScoreShift(float(result.statistic), float(result.pvalue))


def assess_shift(shift: ScoreShift, calibration_images: pd.DataFrame, test_images: pd.DataFrame) -> list[Finding]:
    """Return the findings about exchangeability: `shift` for other scores or unseen sites.

    The image frames have the columns of the image table. The certificate speaks of patients like the
    calibration patients only.
    """
    found = []
    if shift.p < 0.001:
        test = f"Kolmogorov-Smirnov distance {shift.statistic:.3f}, p {shift.p:.1g}"
        found.append(
            f"scores are distributed differently from those of the calibration patients ({test}):"
            " the certificate may not cover these patients"
        )
    unseen = test_images[~test_images["site"].isin(set(calibration_images["site"]))]
    if len(unseen):
        found.append(
            f"{unseen['patient_id'].nunique()} patients come from {unseen['site'].nunique()} sites that no calibration"
            " patient came from: the certificate does not cover these sites"
        )
    return [Finding("shift", "warn", "test", message) for message in found]


def assess_image_counts(images: pd.DataFrame) -> list[Finding]:
    """Return `image_counts_differ` when the median number of images per patient differs over 1.5-fold between sites.

    The maximum over a patient's images rises with their number.
    """
    counts = images.groupby(["site", "patient_id"]).size().groupby("site").median()
    if len(counts) < 2 or counts.max() <= 1.5 * counts.min():
        return []
    message = (
        f"the median number of images per patient ranges from {counts.min():g} to {counts.max():g} between sites; the"
        " highest score of a patient rises with it, so that one threshold does not mean the same at every site"
    )
    return [Finding("image_counts_differ", "warn", "test", message)]
