"""The sweep over thresholds, and the scores of patients."""

from __future__ import annotations

from pipeline.store.tables.io import INTEGER, NUMBER, TEXT, YES_NO, Column, Table

SWEEP = Table(
    "sweep",
    (
        Column("threshold", NUMBER, "logit; refer when the patient's score is at least this"),
        Column(
            "probability", NUMBER, "calibrated probability at that score, at the prevalence that threshold.json states"
        ),
        Column("true_positive", INTEGER, "patients with the condition, referred"),
        Column("false_positive", INTEGER, "patients without the condition, referred"),
        Column("true_negative", INTEGER, "patients without the condition, not referred"),
        Column("false_negative", INTEGER, "patients with the condition, missed"),
        Column("recall", NUMBER, "true positives / all with the condition", optional=True),
        Column("recall_low", NUMBER, "lower Wilson limit", optional=True),
        Column("recall_high", NUMBER, "upper Wilson limit", optional=True),
        Column("missed_share", NUMBER, "false negatives / all with the condition", optional=True),
        Column(
            "certified_recall",
            NUMBER,
            "recall certified with the stated confidence at this threshold",
            optional=True,
        ),
        Column("specificity", NUMBER, "true negatives / all without the condition", optional=True),
        Column("specificity_low", NUMBER, "lower Wilson limit", optional=True),
        Column("specificity_high", NUMBER, "upper Wilson limit", optional=True),
        Column("ppv", NUMBER, "positive predictive value at the prevalence of these patients", optional=True),
        Column("npv", NUMBER, "negative predictive value at the prevalence of these patients", optional=True),
        Column("referral_rate", NUMBER, "share of all patients referred"),
        Column("total_cost", NUMBER, "of screening all and examining the referred, in the currency of the settings"),
        Column("cost_per_found", NUMBER, "total cost / true positives", optional=True),
        Column("operating_point", YES_NO, "the certified operating threshold"),
        Column(
            "band_recall",
            NUMBER,
            "recall certified in all rows at once, so that a row may be picked after looking; missing where too many"
            " are missed",
            optional=True,
        ),
    ),
    order=("threshold",),
)

PATIENT_SCORES = Table(
    "patient_scores",
    (
        Column("patient_id", TEXT, "pseudonym of the patient"),
        Column("arm", TEXT, "model"),
        Column("score", NUMBER, "logit of the patient: mean over seeds, then aggregated over images"),
        Column(
            "probability",
            NUMBER,
            "calibrated probability at the prevalence that threshold.json states; reported arm only",
            optional=True,
        ),
        Column("label", INTEGER, "1 positive, 0 negative"),
        Column("referred", YES_NO, "score at or above the operating threshold; reported arm only", optional=True),
    ),
    order=("arm", "patient_id"),
)
