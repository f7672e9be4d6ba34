"""calibrate: scores of the calibration patients → calibrator, certified threshold, table of operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.evaluation.certification import certify, joint, planning
from pipeline.statistics.calibration import choose_calibrator, displayed_probability, fit_calibrator, uncalibrated
from pipeline.statistics.calibrators import Calibrator, PrevalenceCalibrator
from pipeline.statistics.deployment import certified_subgroups
from pipeline.statistics.errors import NotEnoughData, collect_warnings
from pipeline.statistics.gate import assess_discrimination, assess_other_target, linked_findings
from pipeline.statistics.image_counts import assess_image_numbers, images_per_patient
from pipeline.statistics.patients import (
    Patients,
    one_per_unit,
    patient_table,
    patients_of,
    scores_sha256,
    units_of,
)
from pipeline.statistics.subgroups import patient_attributes
from pipeline.statistics.sweep import sweep_thresholds, threshold_sweep
from pipeline.store.files import read_json, write_json
from pipeline.store.results.finding import Finding
from pipeline.store.results.threshold import Costs, Target, Threshold
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
    patients, threshold = _calibrate(settings, scores, units, "", 1 + len(by_label), trained, work, log)
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    _certify_subgroups(patients, threshold, images, work)
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
) -> tuple[Patients, Threshold]:
    """Calibrate and certify one of `labels`, leave its files in `work`; return the patients and what was promised.

    `what` names the label in the log; empty for the main one.
    """
    everyone = patients_of(scores, settings.arm, settings.aggregation)
    patients = one_per_unit(everyone, units)
    with collect_warnings() as warned:
        calibrator, uncalibrated_why = _calibrator(settings, patients)
        targets = [certify(settings, patients, calibrator, wanted, labels) for wanted in settings.recall_targets]

    headline, *others = targets
    sweep = _sweep(settings, patients, calibrator, targets)
    findings = [
        *([] if headline.certified else [Finding("not_certified", "fail", "calibration", headline.message)]),
        *_calibrator_findings(calibrator, uncalibrated_why),
        *linked_findings(patients, "calibration"),
        *_image_findings(settings, scores),
        *_findings(patients, calibrator, headline.threshold, sweep),
        *(finding for target in others for finding in _other_findings(patients, target)),
    ]
    write_json(work / "calibrator.json", calibrator.to_dict())
    threshold = Threshold(
        **vars(headline),
        other_operating_points=tuple(others),
        local_prevalence=settings.local_prevalence,
        probability_prevalence=settings.local_prevalence or calibrator.prevalence,
        costs=Costs(settings.cost_per_person, settings.cost_per_referral),
        deploy=settings.deploy,
        subgroup_threshold=settings.subgroup_threshold,
        subgroup_attributes=tuple(settings.subgroup_attributes),
        band_missed_share=settings.band_missed_share,
        joint_confidence=joint(targets),
        planning=planning(headline),
        linked_patients=patients.linked,
        arm=settings.arm,
        seeds=patients.seeds,
        aggregation=settings.aggregation,
        model_sha256=_model_hashes(trained, settings.arm, patients.seeds),
        data_sha256=scores_sha256(scores, settings.arm),
        warnings=tuple(str(warning) for warning in warned),
    )
    write_json(work / Threshold.FILE, threshold.to_json())
    write_table(work / "sweep.parquet", sweep, SWEEP)
    table = patient_table(settings.arm, everyone, _shown(settings, calibrator, everyone.s), headline.threshold)
    write_table(work / "patient_scores.parquet", table, PATIENT_SCORES)
    write_json(work / "findings.json", [finding.to_dict() for finding in findings])

    for target in targets:
        if target.certified:  # why it is not is said by a finding
            log.info(what + _certified_in_words(target))
    for warning in warned:
        log.warn(what + str(warning))
    for finding in findings:
        (log.info if finding.level == "info" else log.warn)(f"{what}{finding.code}: {finding.message}")
    if not headline.certified:
        log.warn(f"{what}{headline.advice}")
    return patients, threshold


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


def _certified_in_words(target: Target) -> str:
    return (
        f"recall {target.recall_target:g} is certified with {100 * target.confidence:g} % confidence; the threshold is "
        "shown once the test patients have not spoken against it"
    )


def _certify_subgroups(patients: Patients, threshold: Threshold, images: pd.DataFrame, work: Path) -> None:
    """Leave the certificates by subgroup of the first target in subgroups.json; an empty list where none was asked."""
    found = certified_subgroups(
        patients,
        patient_attributes(images[images["patient_id"].isin(patients.ids)]),
        threshold.subgroup_attributes,
        threshold.recall_target,
        threshold.confidence,
        threshold.models_compared * threshold.labels_certified,
        threshold.threshold,
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


def _sweep(
    settings: CalibrateSettings, patients: Patients, calibrator: Calibrator, targets: Sequence[Target]
) -> pd.DataFrame:
    confidence = targets[0].confidence_used
    certified = [target.threshold for target in targets if target.threshold is not None]
    thresholds = sweep_thresholds(patients.y, patients.s, certified)
    band = settings.band_missed_share
    costs = {"cost_per_person": settings.cost_per_person, "cost_per_referral": settings.cost_per_referral}
    sweep = threshold_sweep(patients.y, patients.s, thresholds, confidence=confidence, band_missed_share=band, **costs)
    probability = _shown(settings, calibrator, sweep["threshold"])
    return sweep.assign(probability=probability, operating_point=sweep["threshold"].isin([targets[0].threshold]))


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


def _other_findings(patients: Patients, target: Target) -> list[Finding]:
    if target.threshold is None:
        return [Finding("other_not_certified", "info", "calibration", target.message)]
    return assess_other_target(patients.y, patients.s, target.threshold, target.recall_target)
