"""Padding that no header declares, told by how CT of one maker differs from that of another."""

from __future__ import annotations

import numpy as np
import pandas as pd

# The corners outside of a CT's circle are 21 % of the square around it.
SHARE_APART = 0.1
FEWEST_PATIENTS = 5


def padding_of_maker(images: pd.DataFrame) -> np.ndarray:
    """Return which of N images are CT with far more pixels at one end of their values than another maker's, (N,).

    `images` has modality, manufacturer, patient_id and clipped_share; makers with too few patients to tell, and
    images that name none, are not compared.
    """
    ct = images[(images["modality"] == "CT") & (images["manufacturer"] != "")]
    makers = ct.groupby("manufacturer")
    usual = makers["clipped_share"].median()[makers["patient_id"].nunique() >= FEWEST_PATIENTS]
    if len(usual) < 2:
        return np.zeros(len(images), bool)
    limit = float(usual.min()) + SHARE_APART
    padded = images["manufacturer"].isin(usual.index[usual > limit]) & (images["clipped_share"] > limit)
    return ((images["modality"] == "CT") & padded).to_numpy()
