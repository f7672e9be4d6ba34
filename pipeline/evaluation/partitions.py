"""Whether the scores are those of the split: nobody in two parts, nobody missing, nobody more."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from pipeline.statistics.patients import refuse_overlap


def check_partitions(split: pd.DataFrame, scores: Mapping[str, pd.DataFrame], images: pd.DataFrame) -> None:
    """Raise ValueError unless patients are in one split each and the scores are those of their split's images."""
    refuse_overlap({str(name): rows["patient_id"] for name, rows in split.groupby("split")})
    refuse_overlap({f"the {name} scores": rows["patient_id"] for name, rows in scores.items()})
    problems = []
    for name, rows in scores.items():
        labelled = split[(split["split"] == name) & split["label"].notna()]
        expected, scored = set(labelled["image_id"]), set(rows["image_id"])
        counts = {
            f"images of {name} are not scored": len(expected - scored),
            f"images scored as {name} are not labelled images of that split": len(scored - expected),
            f"images scored as {name} are not in images.parquet": len(scored - set(images["image_id"])),
        }
        problems += [f"{count} {what}" for what, count in counts.items() if count]
    if problems:
        raise ValueError("scores do not fit the split: " + "; ".join(problems) + "; rebuild with --rebuild score")
