"""Results of the test patients: subgroups, arms, curves."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, NUMBER, TEXT, YES_NO, Column, Table
from pipeline.store.tables.score import LABELLED_PATIENTS


def _gap(rate: str) -> tuple[Column, ...]:
    return (
        Column(f"{rate}_gap", NUMBER, f"{rate} of the group minus that of all others", optional=True),
        Column(f"{rate}_gap_low", NUMBER, "lower limit of that difference, for all groups at once", optional=True),
        Column(f"{rate}_gap_high", NUMBER, "upper limit of that difference, for all groups at once", optional=True),
    )


def _matched(rate: str) -> tuple[Column, ...]:
    return (
        Column(rate, NUMBER, f"{rate} at that threshold", optional=True),
        Column(
            f"{rate}_difference", NUMBER, f"{rate} of the reported arm minus that of this one, paired", optional=True
        ),
        Column(
            f"{rate}_difference_low",
            NUMBER,
            "lower limit of the difference, calibration and test patients resampled together",
            optional=True,
        ),
        Column(f"{rate}_difference_high", NUMBER, "upper limit of the difference", optional=True),
        Column(f"{rate}_p", NUMBER, "always missing, since both thresholds are estimates", optional=True),
    )


SUBGROUPS = Table(
    "subgroups",
    (
        Column("attribute", TEXT, "sex, age band, view, manufacturer, site; laterality where images state it"),
        Column("group", TEXT, "value of the attribute; 'unknown' when missing"),
        Column("patients", INTEGER, "patients in the group"),
        Column("positives", INTEGER, "of these, with the condition"),
        Column("referred", INTEGER, "patients referred at the operating threshold", optional=True),
        *(
            Column(f"{metric}{limit}", NUMBER, f"{metric}{limit.replace('_', ' ')}", optional=True)
            for metric in ("recall", "specificity", "auc")
            for limit in ("", "_low", "_high")
        ),
        Column("note", TEXT, "why a number is missing; empty otherwise"),
        *(
            Column(
                f"{rate}_{limit}_simultaneous",
                NUMBER,
                f"{limit} limit of {rate}, for all groups at once",
                optional=True,
            )
            for rate in ("recall", "specificity")
            for limit in ("low", "high")
        ),
        *_gap("recall"),
        *_gap("specificity"),
    ),
    order=("attribute", "group"),
)

ARM_COLUMNS = (
    Column("arm", TEXT, "model compared"),
    Column("seeds", INTEGER, "training seeds averaged"),
    Column("patients", INTEGER, "test patients, the same for every arm"),
    Column("positives", INTEGER, "of these, with the condition"),
    Column("auc", NUMBER, "area under the ROC curve", optional=True),
    Column("auc_low", NUMBER, "lower limit", optional=True),
    Column("auc_high", NUMBER, "upper limit", optional=True),
    Column("auc_seed_min", NUMBER, "lowest AUC of a single seed", optional=True),
    Column("auc_seed_max", NUMBER, "highest AUC of a single seed", optional=True),
)

COMPARISON = Table(
    "comparison",
    (
        *ARM_COLUMNS,
        Column("difference", NUMBER, "AUC of the reported arm minus this arm's, paired", optional=True),
        Column("difference_low", NUMBER, "lower limit, paired DeLong", optional=True),
        Column("difference_high", NUMBER, "upper limit, paired DeLong", optional=True),
        Column("p", NUMBER, "two-sided p, paired DeLong", optional=True),
        Column(
            "threshold",
            NUMBER,
            "logit that misses as many calibration patients as the certificate allows",
            optional=True,
        ),
        *_matched("recall"),
        *_matched("specificity"),
        Column("reported", YES_NO, "the arm that was calibrated and is reported"),
    ),
    order=("arm",),
)

LABEL_FRACTIONS = Table(
    "label_fractions",
    (
        LABELLED_PATIENTS,
        Column("labelled_positives", INTEGER, "of these, with the condition"),
        *ARM_COLUMNS,
        Column("difference", NUMBER, "AUC of arm mae minus this arm's, paired; missing for mae itself", optional=True),
        Column("difference_low", NUMBER, "lower limit, paired DeLong", optional=True),
        Column("difference_high", NUMBER, "upper limit, paired DeLong", optional=True),
        Column("p", NUMBER, "two-sided p, paired DeLong", optional=True),
    ),
    order=("labelled_patients", "arm"),
)

CURVES = Table(
    "curves",
    (
        Column(
            "curve",
            TEXT,
            "roc, precision_recall, reliability_before, reliability_after; net_benefit and, at the headline prevalence,"
            " screening_benefit, each also with _all and _operating_point",
        ),
        Column("arm", TEXT, "model"),
        Column("x", NUMBER, "false-positive rate, recall, mean predicted probability, or threshold probability"),
        Column("y", NUMBER, "recall, precision, observed share with the condition, or net benefit per patient"),
        Column("y_low", NUMBER, "lower limit where one exists", optional=True),
        Column("y_high", NUMBER, "upper limit where one exists", optional=True),
        Column("n", INTEGER, "patients behind the point, where they differ by point", optional=True),
    ),
    order=(),
)

CALIBRATION_CURVE = Table(
    "calibration_curve",
    (
        Column("calibrated", TEXT, "before or after calibration"),
        Column("predicted", NUMBER, "predicted probability"),
        Column("observed", NUMBER, "share with the condition there, by local regression"),
        Column("low", NUMBER, "lower limit, pointwise bootstrap"),
        Column("high", NUMBER, "upper limit, pointwise bootstrap"),
        Column("with_condition", INTEGER, "patients with the condition whose probability is nearest to that place's"),
        Column("without", INTEGER, "patients without it whose probability is nearest"),
    ),
    order=("calibrated", "predicted"),
)
