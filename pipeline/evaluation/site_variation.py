"""How the frozen model's results vary between the sites of the test patients, and between those of external sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.evaluation.external_validation import External
from pipeline.statistics.between_sites import FEWEST, between_sites
from pipeline.statistics.patients import Patients
from pipeline.statistics.subgroups import SEVERAL, UNKNOWN, patient_attributes

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings

TEST, EXTERNAL = "test", "external sets"


def site_variation(
    settings: EvaluateSettings,
    threshold: float | None,
    test: Patients,
    images: pd.DataFrame,
    trained: set[str],
    external: Mapping[str, External],
) -> list[dict[str, Any]]:
    """Return what is known of the variation between sites, for JSON: of test patients, and of external sets together.

    `images` are those of the test patients, `trained` the sites of the training images: sites that a model was trained
    on say nothing of others. An external set that states no site is one. A group with fewer than two sites is left out;
    patients without a single site are, too, and counted.
    """
    stated = patient_attributes(images)["site"].loc[test.ids].to_numpy(str)
    groups = [(TEST, test.y, test.s, np.where(np.isin(stated, (UNKNOWN, SEVERAL)), "", stated))]
    sets = [
        (one.members.y, one.members.s, np.where(np.isin(one.sites, (UNKNOWN, SEVERAL)), name, one.sites))
        for name, one in external.items()
        if one.members is not None and one.sites is not None
    ]
    if sets:
        y, s, sites = map(np.concatenate, zip(*sets, strict=True))
        groups.append((EXTERNAL, y, s, sites))
    return [
        _variation(settings, threshold, *group, trained) for group in groups if len(set(group[3].tolist()) - {""}) > 1
    ]


def _variation(
    settings: EvaluateSettings,
    threshold: float | None,
    group: str,
    y: np.ndarray,
    s: np.ndarray,
    sites: np.ndarray,
    trained: set[str],
) -> dict[str, Any]:
    known = sites != ""
    members = Patients(np.arange(known.sum()).astype(str), y[known], s[known], 0, 0, ())
    names = set(sites[known].tolist())
    found = {
        measure: between_sites(
            members, sites[known], measure, threshold, settings.min_subgroup_positives, settings.level
        )
        for measure in ("recall", "specificity", "auc")
    }
    return {
        "group": group,
        "sites": len(names),
        "in_training": len(names & trained),
        "patients_without_site": int((~known).sum()),
        "fewest_patients": settings.min_subgroup_positives,
        "fewest_sites": FEWEST,
        **{measure: one and one.to_dict() for measure, one in found.items()},
    }
