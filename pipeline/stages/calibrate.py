"""calibrate: scores of the calibration patients → calibrator, certified threshold, table of operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.statistics.band import joint_confidence
from pipeline.statistics.calibration import choose_calibrator, displayed_probability, fit_calibrator, uncalibrated
from pipeline.statistics.calibrators import Calibrator, PrevalenceCalibrator
from pipeline.statistics.deployment import certified_subgroups
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.gate import Finding, assess_discrimination, assess_other_target, linked_findings
from pipeline.statistics.image_counts import assess_image_numbers, images_per_patient
from pipeline.statistics.patients import (
    Patients,
    one_per_unit,
    patient_table,
    patients_of,
    scores_sha256,
    units_of,
)
from pipeline.statistics.planner import chance_of_confirmation, confirming_positives
from pipeline.statistics.subgroups import patient_attributes
from pipeline.statistics.sweep import sweep_thresholds, threshold_sweep
from pipeline.statistics.threshold import Certificate, certify_threshold, shared_confidence
from pipeline.store.files import read_json, write_json
from pipeline.store.tables.calibrate import PATIENT_SCORES, SWEEP
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.score import FURTHER_SCORES, SCORES
from pipeline.store.tables.split import SPLIT
from pipeline.store.wording import agreeing, counted

if TYPE_CHECKING:
    from pipeline.settings.decision import CalibrateSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog


ADVICE = "to certify something, lower calibrate.recall_targets or add patients"


def calibrate(settings: CalibrateSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Fit the calibrator and certify the threshold of the reported model on patients it was not trained on.

    Leaves calibrator.json, threshold.json, sweep.parquet, patient_scores.parquet and findings.json in `work`, and the
    same of each further label in `further/<id>`; for the main label also subgroups.json. All labels are certified on
    the same patients, so the confidence is shared out over them: that every promise holds at once is as sure as that
    the one of a single label does. Patients who are linked, since they share a picture, count as one.

    Too few positives for a certificate is a result: `certified` false, and the finding `not_certified`. So are too
    few patients for a calibrator: everyone gets the prevalence, and the finding is `not_calibrated`. Scores that
    are not finite or not complete raise ValueError.
    """
    scores = read_table(inputs.file("score", "scores_calibration.parquet"), SCORES)
    further = [read_table(path, FURTHER_SCORES) for path in inputs.files("score", "further_scores_calibration.parquet")]
    by_label = {str(label_id): own for table in further for label_id, own in table.groupby("label_id")}
    trained = read_json(inputs.file("finetune", "summary.json"))
    settings = _counted(settings, inputs, scores, work, log)
    units = units_of(read_table(inputs.file("split", "split.parquet"), SPLIT))
    patients = _calibrate(settings, scores, units, "", 1 + len(by_label), trained, work, log)
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    _certify_subgroups(settings, patients, images, 1 + len(by_label), work)
    # The local prevalence is that of the main label's condition.
    elsewhere = settings.model_copy(update={"local_prevalence": None})
    for label_id, own in by_label.items():
        folder = work / "further" / label_id
        folder.mkdir(parents=True, exist_ok=True)
        _calibrate(elsewhere, own, units, f"further label {label_id}: ", 1 + len(by_label), trained, folder, log)
    positives = int(scores.groupby("patient_id")["label"].max().sum())
    # Numbers of the threshold wait for the test set: what it contradicts must be read nowhere.
    log.metrics({"positives": positives}, 0)


def _counted(
    settings: CalibrateSettings, inputs: Inputs, scores: pd.DataFrame, work: Path, log: RunLog
) -> CalibrateSettings:
    """Return the settings with the models that were calibrated on some of these patients, if they are more than stated.

    Leaves in reading.json what the ledger takes over. Without a ledger the setting is all that is known.
    """
    if inputs.ledger is None:
        return settings
    patients = sorted(set(scores["patient_id"]))
    model = {
        "arm": settings.arm,
        "aggregation": settings.aggregation,
        "seeds": sorted({int(seed) for seed in scores.loc[scores["arm"] == settings.arm, "seed"]}),
        "finetune": inputs.key("finetune"),
    }
    earlier = inputs.ledger.earlier("calibrate", patients, inputs.own_key)
    models = inputs.ledger.distinct(earlier, model)
    write_json(work / "reading.json", {"patients": inputs.ledger.hashed(patients), "setting": model})
    if models > settings.models_compared:
        log.warn(
            f"{models} models have been calibrated on these patients, this one included; each may have been the one to"
            " be chosen, so the confidence is shared out over them"
        )
    return settings.model_copy(update={"models_compared": max(models, settings.models_compared)})


def _calibrate(
    settings: CalibrateSettings,
    scores: pd.DataFrame,
    units: pd.Series,
    what: str,
    labels: int,
    trained: Mapping[str, Any],
    work: Path,
    log: RunLog,
) -> Patients:
    """Calibrate and certify one of `labels`, leave its files in `work` and return the patients that it stands on.

    `what` names the label in the log; empty for the main one.
    """
    everyone = patients_of(scores, settings.arm, settings.aggregation)
    patients = one_per_unit(everyone, units)
    with collect_warnings() as warned:
        calibrator, uncalibrated_why = _calibrator(settings, patients)
        points = [_certified(settings, patients, calibrator, target, labels) for target in settings.recall_targets]

    headline, *others = points
    sweep = _sweep(settings, patients, calibrator, points, labels)
    findings = [
        *([] if headline.certificate else [Finding("not_certified", "fail", "calibration", headline.message)]),
        *_calibrator_findings(calibrator, uncalibrated_why),
        *linked_findings(patients, "calibration"),
        *_image_findings(settings, scores),
        *_findings(patients, calibrator, headline.threshold, sweep),
        *(finding for point in others for finding in _other_findings(patients, point)),
    ]
    write_json(work / "calibrator.json", calibrator.to_dict())
    write_json(
        work / "threshold.json",
        {
            **headline.to_dict(),
            "other_operating_points": [point.to_dict() for point in others],
            "local_prevalence": settings.local_prevalence,
            "probability_prevalence": settings.local_prevalence or calibrator.prevalence,
            "costs": _costs(settings),
            "deploy": settings.deploy,
            "subgroup_threshold": settings.subgroup_threshold,
            "subgroup_attributes": list(settings.subgroup_attributes),
            "band_missed_share": settings.band_missed_share,
            "joint_confidence": _joint(points),
            "planning": _planning(headline),
            "linked_patients": patients.linked,
            "arm": settings.arm,
            "seeds": list(patients.seeds),
            "aggregation": settings.aggregation,
            "model_sha256": _model_hashes(trained, settings.arm, patients.seeds),
            "data_sha256": scores_sha256(scores, settings.arm),
            "warnings": [str(warning) for warning in warned],
        },
    )
    write_table(work / "sweep.parquet", sweep, SWEEP)
    table = patient_table(settings.arm, everyone, _shown(settings, calibrator, everyone.s), headline.threshold)
    write_table(work / "patient_scores.parquet", table, PATIENT_SCORES)
    write_json(work / "findings.json", [finding.to_dict() for finding in findings])

    for point in points:
        if point.certificate:  # why there is none is said by a finding
            log.info(what + _certified_in_words(point, settings))
    for warning in warned:
        log.warn(what + str(warning))
    for finding in findings:
        (log.info if finding.level == "info" else log.warn)(f"{what}{finding.code}: {finding.message}")
    if not headline.certificate:
        log.warn(f"{what}{ADVICE}")
    return patients


@dataclass(frozen=True)
class _Point:
    """What came of one recall target: its certificate, or why there is none. `fields` are for JSON."""

    target: float
    certificate: Certificate | None
    message: str
    fields: dict[str, Any]

    @property
    def threshold(self) -> float | None:
        return self.certificate.threshold if self.certificate else None

    def to_dict(self) -> dict[str, Any]:
        advice = "" if self.certificate else ADVICE
        return {"certified": self.certificate is not None, **self.fields, "message": self.message, "advice": advice}


def _certified(
    settings: CalibrateSettings, patients: Patients, calibrator: Calibrator, target: float, labels: int
) -> _Point:
    """Certify one target of one label at the same confidence, whatever the number of targets.

    The operating point is the first target, fixed before any patient was seen. Sharing the confidence out over the
    others would weaken its promise for the sake of rows that stand beside it. So each certificate holds by itself,
    and not all of them at once; the report says so.
    """
    try:
        certificate = certify_threshold(
            patients.y,
            patients.s,
            target,
            settings.confidence,
            patient_id=patients.ids,
            n_models=settings.models_compared,
            n_labels=labels,
        )
    except NotEnoughData as error:
        fields = _uncertified(settings, patients, target, error, labels)
        return _Point(target, None, _refusal(settings, target, error, labels), fields | {"probability": None})
    probability = float(_shown(settings, calibrator, [certificate.threshold])[0])
    return _Point(target, certificate, _promise(certificate), certificate.to_dict() | {"probability": probability})


def _calibrator(settings: CalibrateSettings, patients: Patients) -> tuple[Calibrator, str]:
    """Return the calibrator, and why there is none but the prevalence when patients are too few."""
    auto = settings.calibrator == "auto"
    method = choose_calibrator(patients.y, patients.s) if auto else settings.calibrator
    try:
        return fit_calibrator(patients.y, patients.s, method), ""
    except NotEnoughData as error:
        return uncalibrated(patients.y), str(error)


def _shown(settings: CalibrateSettings, calibrator: Calibrator, scores: Any) -> np.ndarray:
    return displayed_probability(calibrator, scores, settings.local_prevalence)


def _refusal(settings: CalibrateSettings, target: float, error: NotEnoughData, labels: int) -> str:
    shared, over = "", _shared_over(settings.models_compared, labels)
    if over:
        used = shared_confidence(settings.confidence, settings.models_compared, labels)
        shared = f" ({100 * used:.4g} % for each of the {over})"
    there = f"there {agreeing(error.positives, 'is', 'are')} {error.positives}"
    return (
        f"recall {target:g} with {100 * settings.confidence:g} % confidence{shared} needs at least"
        f" {error.needed} positive patients in the calibration split; {there}"
        f" (at most {error.certifiable_recall:.3f} can be certified)."
    )


def _shared_over(models: int, labels: int) -> str:
    """Return in words what the confidence is shared out over; nothing when it is not."""
    parts = [f"{models} models compared"] * (models > 1) + [f"{labels} labels certified"] * (labels > 1)
    return " and the ".join(parts)


def _uncertified(
    settings: CalibrateSettings, patients: Patients, target: float, error: NotEnoughData, labels: int
) -> dict[str, Any]:
    """Return the fields of a certificate, with nothing where a threshold would be needed."""
    nothing = ("threshold", "threshold_hex", "misses_allowed", "misses_seen", "certified_recall")
    return {
        **dict.fromkeys((*nothing, "recall", "specificity", "referral_rate")),
        "recall_target": target,
        "confidence": settings.confidence,
        "confidence_used": shared_confidence(settings.confidence, settings.models_compared, labels),
        "models_compared": settings.models_compared,
        "labels_certified": labels,
        "positives": error.positives,
        "negatives": len(patients.y) - error.positives,
        "certifiable_recall": error.certifiable_recall,
        "positives_needed": error.needed,
    }


def _certified_in_words(point: _Point, settings: CalibrateSettings) -> str:
    return (
        f"recall {point.target:g} is certified with {100 * settings.confidence:g} % confidence; the threshold is shown "
        "once the test patients have not spoken against it"
    )


def _promise(c: Certificate) -> str:
    over = _shared_over(c.models_compared, c.labels_certified)
    shared = f", shared out over {over}," if over else ""
    return (
        f"with {100 * c.confidence:g} % confidence{shared} at least {c.recall_target:.1%} of patients with the"
        f" condition who are like the {counted(c.positives, 'positive calibration patient')} are referred:"
        f" {c.misses_seen} of these {agreeing(c.misses_seen, 'was', 'were')} missed, {c.misses_allowed}"
        f" {agreeing(c.misses_allowed, 'was', 'were')} allowed"
    )


def _joint(points: Sequence[_Point]) -> float | None:
    """Return how surely all certified targets hold at once, by the exact joint law; None without any."""
    made = [point.certificate for point in points if point.certificate]
    if not made:
        return None
    return joint_confidence(
        made[0].positives, [one.misses_allowed for one in made], [one.recall_target for one in made]
    )


def _planning(point: _Point) -> dict[str, Any] | None:
    """Return how likely other patients are to confirm the first target, and how many it takes; None without it."""
    c = point.certificate
    if c is None:
        return None
    asked = c.positives, c.misses_allowed
    needed = {
        f"test_positives_for_{chance:g}": confirming_positives(chance, *asked, c.recall_target, c.confidence)
        for chance in (0.8, 0.9)
    }
    equal = chance_of_confirmation(*asked, c.positives, c.recall_target, c.confidence)
    return {"chance_with_as_many_test_positives": equal, **needed}


def _certify_subgroups(
    settings: CalibrateSettings, patients: Patients, images: pd.DataFrame, labels: int, work: Path
) -> None:
    """Leave the certificates by subgroup of the first target in subgroups.json; an empty list where none was asked."""
    found = certified_subgroups(
        patients,
        patient_attributes(images[images["patient_id"].isin(patients.ids)]),
        settings.subgroup_attributes,
        settings.recall_targets[0],
        settings.confidence,
        settings.models_compared * labels,
        read_json(work / "threshold.json")["threshold"],
    )
    write_json(work / "subgroups.json", found)


def _image_findings(settings: CalibrateSettings, scores: pd.DataFrame) -> list[Finding]:
    if settings.aggregation != "max":
        return []
    counts = images_per_patient(scores, settings.arm)
    without = {"those without it": counts[counts["label"] == 0]}
    return assess_image_numbers(counts, without, "calibration")


def _model_hashes(trained: Mapping[str, Any], arm: str, seeds: tuple[int, ...]) -> dict[str, str]:
    models = trained["arms"].get(arm, {}).get("seeds", {})
    if sorted(models) != sorted(map(str, seeds)):
        raise ValueError(
            f"arm {arm} was trained with seeds {', '.join(sorted(models)) or 'none'} but scored with"
            f" {', '.join(map(str, seeds))}; rebuild with --rebuild score"
        )
    return {seed: models[seed]["model_sha256"] for seed in sorted(models, key=int)}


def _costs(settings: CalibrateSettings) -> dict[str, float]:
    return {"cost_per_person": settings.cost_per_person, "cost_per_referral": settings.cost_per_referral}


def _sweep(
    settings: CalibrateSettings, patients: Patients, calibrator: Calibrator, points: Sequence[_Point], labels: int
) -> pd.DataFrame:
    confidence = shared_confidence(settings.confidence, settings.models_compared, labels)
    certified = [point.threshold for point in points if point.threshold is not None]
    thresholds = sweep_thresholds(patients.y, patients.s, certified)
    band = settings.band_missed_share
    sweep = threshold_sweep(
        patients.y, patients.s, thresholds, confidence=confidence, band_missed_share=band, **_costs(settings)
    )
    probability = _shown(settings, calibrator, sweep["threshold"])
    return sweep.assign(probability=probability, operating_point=sweep["threshold"].isin([points[0].threshold]))


def _calibrator_findings(calibrator: Calibrator, uncalibrated_why: str) -> list[Finding]:
    if not isinstance(calibrator, PrevalenceCalibrator):
        return []
    everyone = "every patient gets the prevalence as probability"
    if calibrator.reason == "not_calibrated":
        return [Finding("not_calibrated", "fail", "calibration", f"{uncalibrated_why}; {everyone}")]
    if calibrator.reason == "temperature_collapsed":
        # The scores may be good, and so may be the threshold on them: only the choice of calibrator was wrong.
        off = f"no temperature fits scores that are off by a constant: {everyone}; set calibrate.calibrator=logistic"
        return [Finding("temperature_collapsed", "warn", "calibration", off)]
    flat = f"scores do not rise with the condition: {everyone}"
    return [Finding("calibration_reversed", "fail", "calibration", flat)]


def _findings(
    patients: Patients,
    calibrator: Calibrator,
    threshold: float | None,
    sweep: pd.DataFrame,
) -> list[Finding]:
    findings = []
    if patients.conflicts:
        have = agreeing(patients.conflicts, "has", "have")
        mixed = f"{counted(patients.conflicts, 'patient')} {have} images of both labels; each counts as positive"
        findings.append(Finding("conflicting_labels", "info", "calibration", mixed))
    return findings + assess_discrimination(
        patients.y,
        patients.s,
        calibrator.predict(patients.s),
        threshold,
        raw=expit(patients.s),
        sweep=sweep,
        on="calibration",
    )


def _other_findings(patients: Patients, point: _Point) -> list[Finding]:
    if point.threshold is None:
        return [Finding("other_not_certified", "info", "calibration", point.message)]
    return assess_other_target(patients.y, patients.s, point.threshold, point.target)
