"""Further labels: other questions about the same images, each with a threshold and a promise of its own."""

from __future__ import annotations

from pipeline.reporting.document import Block, Box, Paragraph, Section, Table
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count, number, percent, plain_percent, probability, short
from pipeline.reporting.sections.operating import WITHHELD
from pipeline.reporting.sections.readings import verdict_of
from pipeline.store.results.deployment import ToUse
from pipeline.store.results.interval import Interval
from pipeline.store.results.metrics import GroupMetrics
from pipeline.store.results.operating_point import OperatingPoint
from pipeline.store.results.threshold import AtThreshold
from pipeline.store.wording import counted

NOTHING = "—"


def further_labels(e: Evidence) -> Section | None:
    """Return every label beside the main one, their mean, certificates and calibration; None without further labels."""
    if not e.further:
        return None
    name, t = e.card["label"]["name"], e.threshold
    labels = count(1 + len(e.further))
    said = Paragraph(
        f"The same model answers other questions about the same images, each one a yes or no of its own. Page one and "
        f"the gate are about {name} alone. A patient whose image lacks a label is left out of that label's numbers."
    )
    models = "" if t.models_compared == 1 else f" and {counted(t.models_compared, 'model')} compared"
    confidence = plain_percent(t.confidence)
    shared = Paragraph(
        f"The confidence of {confidence} is shared out over {labels} labels{models}: each threshold is certified with "
        f"{percent(t.confidence_used, 2)}, so that with {confidence} confidence "
        "all their promises hold at once. Whether a promise held on the test patients is judged label by label."
    )
    stops: list[Block] = [
        Box(
            "caution",
            f"No usable threshold for {e.further_name(label_id)}",
            [one.in_words for one in problems],
        )
        for label_id in e.further
        if (problems := e.metrics.further_labels[label_id].problems)
    ]
    withheld: list[Block] = [] if e.point is not None else [Paragraph(WITHHELD)]
    return Section(
        "further_labels",
        "Further labels",
        [said, shared, *withheld, *stops, _results(e), *_deployed(e)],
        [_certificates(e), *_to_use(e), _calibration(e), _definitions(e)],
    )


def _labels(e: Evidence) -> dict[str, GroupMetrics]:
    """Return the test results of each label by its name, the main one first."""
    further = {e.further_name(label_id): e.metrics.further_labels[label_id] for label_id in e.further}
    return {f"{e.card['label']['name']} (main)": e.metrics, **further}


def _points(e: Evidence) -> list[OperatingPoint | None]:
    return [e.point, *(e.further_point(label_id) for label_id in e.further)]


def _results(e: Evidence) -> Table:
    rates = {"recall": "Sensitivity, %", "specificity": "Specificity, %", "ppv": "PPV, %", "npv": "NPV, %",
             "referral_rate": "Referred, %"}  # fmt: skip
    rows = [
        [
            name,
            count(its.patients),
            count(its.positives),
            short(its.discrimination.auc),
            *(_percent(getattr(point, rate, None)) for rate in rates),
            NOTHING if point is None else verdict_of(e, point),
        ]
        for (name, its), point in zip(_labels(e).items(), _points(e), strict=True)
    ]
    if macro := e.macro:
        means = [short(macro.auc), _percent(macro.recall), _percent(macro.specificity)]
        rows.append([f"Mean of all {count(macro.labels)} (macro)", NOTHING, NOTHING, *means, *[NOTHING] * 4])
    level = plain_percent(e.metrics.discrimination.auc.level)
    caption = (
        f"Each label on the test patients who have it, with {level} intervals. PPV, NPV: "
        "predictive values at the share of these patients. In the mean every label counts the same; its limits come "
        "from drawing patients anew with all their labels, and it has no sensitivity or specificity unless every label "
        "has a usable threshold"
    )
    return Table("further_labels", caption, ["Label", "Patients", "With it", "AUC", *rates.values(), "Promise"], rows)


def _pooled(e: Evidence) -> dict[str, ToUse]:
    """Return the thresholds to use by label, the main one first, where they are certified on test patients as well."""
    made = {f"{e.card['label']['name']} (main)": e.deployment if e.point is not None else None}
    made |= {e.further_name(label_id): e.further_deployment(label_id) for label_id in e.further}
    return {name: d.to_use for name, d in made.items() if d is not None and d.to_use is not None and d.rule == "pooled"}


def _deployed(e: Evidence) -> list[Block]:
    if not _pooled(e):
        return []
    confidence = plain_percent(e.threshold.confidence)
    said = (
        "The threshold to use of each label that has one is certified anew on its calibration and test patients "
        f"together, with the confidence shared out as before: {confidence} sure of all these promises at once. What "
        "test patients say of a promise is about the threshold that they did not certify; the appendix has both."
    )
    return [Paragraph(said)]


def _to_use(e: Evidence) -> list[Block]:
    """Return the table of the thresholds to use; none where they are those of the calibration patients."""
    if not (pooled := _pooled(e)):
        return []
    rows = [
        [
            name,
            count(d.positives),
            count(d.misses_allowed),
            number(100 * d.certified_recall, 1),
            number(d.threshold, 2),
            f"{short(d.specificity, 100)} (n = {count(d.negatives)})",
        ]
        for name, d in pooled.items()
    ]
    columns = ["Label", "With it", "Misses allowed", "Certified, %", "Score", "Specificity, %"]
    level = plain_percent(next(iter(pooled.values())).specificity.level)
    caption = (
        f"The thresholds to use, certified on calibration and test patients: at least "
        f"{plain_percent(e.threshold.recall_target)} found, each with {percent(e.threshold.confidence_used, 2)} "
        f"confidence. Specificity of all patients without the label whom the model had not seen, with {level} intervals"
    )
    return [Table("further_deployment", caption, columns, rows)]


def _certificates(e: Evidence) -> Table:
    thresholds = [e.threshold, *(e.further_thresholds[label_id] for label_id in e.further)]
    rows = [
        [
            name,
            *map(count, (t.positives, t.negatives, t.positives_needed)),
            *(_certificate(t.at) if point and t.at else [NOTHING] * 4),
        ]
        for name, t, point in zip(_labels(e), thresholds, _points(e), strict=True)
    ]
    columns = ["Label", "With it", "Without", "Needed with it", "Misses allowed / seen", "Certified, %", "Score",
               "Probability"]  # fmt: skip
    t = e.threshold
    caption = (
        f"Certificates from the calibration patients: at least {plain_percent(t.recall_target)} found, each with "
        f"{percent(t.confidence_used, 2)} confidence"
    )
    return Table("further_certificates", caption, columns, rows)


def _certificate(at: AtThreshold) -> list[str]:
    misses = f"{count(at.misses_allowed)} / {count(at.misses_seen)}"
    return [misses, number(100 * at.certified_recall, 1), number(at.threshold, 2), probability(at.probability)]


def _calibration(e: Evidence) -> Table:
    measures = {"slope": "Slope (ideal 1)", "intercept": "Intercept (ideal 0)", "ece": "Expected calibration error",
                "brier": "Brier score", "brier_skill": "Brier skill"}  # fmt: skip
    rows = [
        [name, *(short(getattr(its.calibration.after, measure)) for measure in measures)]
        for name, its in _labels(e).items()
    ]
    caption = "Probabilities of each label after its own calibration, test patients"
    return Table("further_calibration", caption, ["Label", *measures.values()], rows)


def _definitions(e: Evidence) -> Table:
    labels = [e.card["label"], *e.card["further_labels"]]
    rows = [
        [
            *(label[part] for part in ("name", "definition", "reference_standard")),
            *(", ".join(label[part]) for part in ("positive", "negative")),
        ]
        for label in labels
    ]
    columns = ["Label", "A patient is positive when", "Who decided, and how", "Positive", "Negative"]
    return Table("further_definitions", "What each label means, as stated in the dataset card", columns, rows)


def _percent(i: Interval | None) -> str:
    return NOTHING if i is None else short(i, 100)
