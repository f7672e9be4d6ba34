"""With how many labelled patients pretraining is worth it: the label-fraction curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.reporting.document import Block, Figure, Figures, Heading, Paragraph, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.figures import label_curve
from pipeline.reporting.numbers import count, limits, number, p_value, percent, plain_percent, short_interval
from pipeline.store.wording import counted


def label_fractions(e: Evidence) -> tuple[Sequence[Block], Sequence[Block]]:
    """Return a sentence on the arms with fewer labelled patients, and, for the appendix, their curve and numbers.

    Nothing when none was trained.
    """
    if e.label_fractions is None:
        return [], []
    frame = e.label_fractions
    level = plain_percent(e.metrics.discrimination.auc.level)
    everyone = frame["labelled_patients"].max()
    arms = sorted(set(frame["arm"]), key=e.arms.index)
    rows = [
        [
            f"{count(r['labelled_patients'])} ({percent(r['labelled_patients'] / everyone)})",
            count(r["labelled_positives"]),
            e.arm_name(r["arm"]),
            short_interval(r["auc"], r["auc_low"], r["auc_high"]),
            limits(r["auc_seed_min"], r["auc_seed_max"]),
            "—" if r["arm"] == "mae" else short_interval(r["difference"], r["difference_low"], r["difference_high"]),
            "—" if r["arm"] == "mae" else p_value(r["p"]),
        ]
        for _, same in frame.groupby("labelled_patients")
        for r in same.set_index("arm", drop=False).loc[arms].to_dict("records")
    ]
    columns = ["Labelled patients", "With condition", "Arm", "AUC", "Single seeds", "Pretrained minus this arm", "p"]
    caption = (
        f"Arms trained with fewer and with all labelled patients, on the same test patients, with {level} intervals; "
        "differences are paired (DeLong)"
    )
    curves = {e.arm_name(arm): frame[frame["arm"] == arm] for arm in arms}
    figure = Figure(
        "label_fractions",
        f"AUC on the test patients against the number of labelled training patients. {_ends(curves)}",
        f"AUC by the number of labelled training patients (logarithmic). Bands are {level} intervals of the first two "
        "arms; those of all are in the table.",
        16,
        label_curve(curves),
    )
    read = [Heading("With fewer labelled patients"), Paragraph(e.metrics.label_fractions.sentence)]
    return read, [Figures([figure]), Table("label_fractions", caption, columns, rows), Paragraph(_how(e))]


def _ends(curves: Mapping[str, pd.DataFrame]) -> str:
    """Return where each curve begins and ends, for who cannot see it."""
    said = []
    for name, curve in curves.items():
        first, last = curve.iloc[0], curve.iloc[-1]
        said.append(
            f"{name}: {number(first['auc'])} with {count(first['labelled_patients'])}, "
            f"{number(last['auc'])} with {count(last['labelled_patients'])}"
        )
    return "; ".join(said) + "."


def _how(e: Evidence) -> str:
    tuning = e.finetune["tune_patients"]
    # An artifact that was kept may be older than the setting.
    early = e.records["finetune"]["settings"].get("early_stopping_epochs") is not None
    steps = "at most as many steps" if early else "as many steps"
    return (
        "The fewer patients are one draw by a hash of their pseudonyms, in the proportion of all; each smaller set "
        "lies within the larger, and every arm and seed has the same. Another draw would give other numbers, which "
        "the intervals do not cover: they speak of the test patients alone. Networks were trained for "
        f"{steps} as with all patients. Pretraining saw the images of all patients, without labels. The "
        f"labels of the {counted(tuning, 'tuning patient')} were not reduced and are not counted."
    )
