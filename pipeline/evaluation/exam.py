"""Test patients judged by the images of one view or one side alone, beside all of their images together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.statistics.patients import one_per_unit, patients_of
from pipeline.statistics.subgroups import group_row

if TYPE_CHECKING:
    from pipeline.evaluation.performance import Frozen
    from pipeline.settings.decision import EvaluateSettings

ALL, OF_BOTH = "all images", "B"


def exam_table(
    settings: EvaluateSettings,
    frozen: Frozen,
    scores: pd.DataFrame,
    images: pd.DataFrame,
    units: pd.Series,
    exam: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Return the columns of tables.EXAM: a row for all images, and one for each view and each side of `exam`.

    `scores` are those of the test images, `images` has their view and laterality, `units` the unit of each patient. A
    patient's score and label are those of the images looked at, aggregated as always; the threshold is that of all
    images together. Patients are the unit in every row, and the same patients are in several.
    """
    arm, how = frozen.certificate.arm, frozen.certificate.aggregation
    groups = [("patient", ALL, scores["image_id"].notna())]
    for by, column, values in (("view", "view", exam.get("views", ())), ("side", "laterality", exam.get("sides", ()))):
        of_image = scores["image_id"].map(images.set_index("image_id")[column])
        both = {OF_BOTH} if by == "side" else set()
        groups += [(by, value, of_image.isin({value} | both)) for value in values]
    rows: list[dict[str, Any]] = []
    for by, group, chosen in groups:
        own = scores[chosen]
        row = {"by": by, "group": group, "images": int(own.loc[own["arm"] == arm, "image_id"].nunique())}
        if row["images"]:
            patients = one_per_unit(patients_of(own, arm, how), units)
            members = pd.DataFrame({"label": patients.y, "score": patients.s})
        else:
            members = pd.DataFrame({"label": [], "score": []})
        rows.append(row | group_row(members, frozen.threshold, settings.min_subgroup_positives, settings.level))
    table = pd.DataFrame(rows)
    return table.assign(referred=table["referred"].astype("Int64"))
