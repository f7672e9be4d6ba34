"""evaluate: the locked test set, once, and external ones → every number of the report, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.evaluation.deployed import deployed
from pipeline.evaluation.exam import exam_table
from pipeline.evaluation.external_validation import External, Reference, judge_external, shifts
from pipeline.evaluation.headline import headline
from pipeline.evaluation.localisation import Localisation, Masks, judge_masks
from pipeline.evaluation.partitions import check_partitions
from pipeline.evaluation.performance import (
    Frozen,
    findings_of,
    judge,
    make_up,
    matched_arms,
    table_findings,
    to_watch,
)
from pipeline.evaluation.secondary_labels import FurtherLabel, judge_further_label, macro_metrics
from pipeline.evaluation.site_variation import site_variation
from pipeline.imaging.copies.meeting import FINGERPRINTS, Gathered, met
from pipeline.inference.decision import decide
from pipeline.statistics.arms import comparators, comparison_table, pretraining_benefit, seed_aucs
from pipeline.statistics.calibration import displayed_probability
from pipeline.statistics.calibrators import calibrator_from_dict
from pipeline.statistics.curves import curve_table
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.gate import linked_findings, of_further_label
from pipeline.statistics.image_counts import assess_image_numbers, first_images, images_per_patient
from pipeline.statistics.label_fractions import (
    label_fraction_intervals,
    label_fraction_sentence,
    label_fraction_table,
)
from pipeline.statistics.local_regression import calibration_curves
from pipeline.statistics.patients import (
    Patients,
    one_per_unit,
    patient_table,
    patients_of,
    units_of,
)
from pipeline.statistics.shift import assess_image_counts, assess_shift
from pipeline.statistics.subgroups import lowest_groups, patient_attributes, subgroup_table
from pipeline.store.files import read_json, write_json
from pipeline.store.results.deployment import Deployment
from pipeline.store.results.finding import Finding, findings_from, that_fail
from pipeline.store.results.metrics import LabelFractions, Metrics, Readings, Shift
from pipeline.store.results.operating_point import MainPoint
from pipeline.store.results.threshold import Threshold
from pipeline.store.tables.calibrate import PATIENT_SCORES, SWEEP
from pipeline.store.tables.evaluate import CALIBRATION_CURVE, COMPARISON, CURVES, LABEL_FRACTIONS, SUBGROUPS
from pipeline.store.tables.exam import EXAM
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.masks import MASK_GRID, mask_name
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import FURTHER_SCORES, LABEL_FRACTION_SCORES, MARKS, SCORES
from pipeline.store.tables.segmentation import FROC, SEGMENTATION_COMPARISON, SEGMENTATION_PATIENTS
from pipeline.store.tables.split import FURTHER_LABELS, SPLIT
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.decision import EvaluateSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog


JUDGED = ("calibration", "test")
UNLABELLED = "ingest@unlabelled"


def evaluate(settings: EvaluateSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Judge the reported model, its calibrator and its frozen threshold on the test patients, beside every arm.

    Further labels are judged in the same way, on their own thresholds. Their findings warn: the gate is about the main
    label.

    External test sets are judged by the same model, calibrator and threshold, less the patients whom the run has met
    already. Their findings warn: they never decide whether the operating point may be used.

    Patients who are linked, since they share a picture, count as one in every number; patient_scores.parquet has them
    all.

    Where arms draw masks, these and their marks are judged on the test patients, too; see `judge_masks`. That leaves
    segmentation.json, segmentation_patients.parquet, froc.parquet and segmentation_comparison.parquet.

    Leaves metrics.json, subgroups.parquet, comparison.parquet, curves.parquet, patient_scores.parquet, findings.json
    (those of the calibration patients first), deployment.json (the threshold to use from now on, by the rule that
    calibrate recorded; that of each further label in `further/<id>`), between_sites.json where several sites are
    stated, calibration_curve.parquet where patients are enough for it, exam.parquet where the card expects views or
    sides and, when arms were also trained with fewer labelled patients, label_fractions.parquet in `work`. Raises
    ValueError when a patient is in two splits, when scores are not finite or not complete, or when the arms were not
    scored on the same patients.
    """
    scores = {name: read_table(inputs.file("score", f"scores_{name}.parquet"), SCORES) for name in JUDGED}
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    split = read_table(inputs.file("split", "split.parquet"), SPLIT)
    check_partitions(split, scores, images)
    frozen = _frozen(inputs)
    arm, how = frozen.certificate.arm, frozen.certificate.aggregation
    units = units_of(split)
    calibration = one_per_unit(patients_of(scores["calibration"], arm, how), units)
    everyone = {name: patients_of(scores["test"], name, how) for name in sorted(set(scores["test"]["arm"]))}
    arms = {name: one_per_unit(one, units) for name, one in everyone.items()}
    if arm not in arms or arms[arm].seeds != frozen.certificate.seeds:
        raise ValueError(f"the test scores lack seeds of arm {arm} that the threshold was certified for")
    test = arms[arm]
    of_calibration, of_test = (images[images["image_id"].isin(scores[name]["image_id"])] for name in JUDGED)

    with collect_warnings() as warned:
        matched = matched_arms(settings, scores["calibration"], arms, frozen, units)
        comparison = comparison_table(arms, seed_aucs(scores["test"], arms, how), arm, settings.level, matched)
        trained = read_json(inputs.file("finetune", "summary.json"))["arms"]
        sentence = pretraining_benefit(arms, settings.level, comparators(trained))
        fractions = _label_fractions(inputs, scores["test"], how, settings.level)
        counts = {name: images_per_patient(scores[name], arm) for name in JUDGED}
        reference = Reference(settings, frozen, calibration, of_calibration, counts["calibration"])
        given = bool((split.loc[split["split"] == "test", "given"] != "").any())
        shift, *sites = shifts(reference, test, of_test, given=given)
        further = _further_labels(settings, inputs, split, images)
        located = _localisation(settings, inputs, scores["test"], units, arm, log)
        first = first_images(scores["test"], arm) if how == "max" else None
        external = _externals(reference, images, inputs, work)
        elsewhere = [one.shift for one in external.values() if one.shift]
        groups = [shift, *sites, *elsewhere]
        judged = judge(settings, test, frozen, first and one_per_unit(first, units))
        macro = macro_metrics(settings, test, frozen.threshold, further)
        calibrated, bins = frozen.calibrator.predict(test.s), settings.calibration_bins
        at = settings.headline_prevalence
        there = displayed_probability(frozen.calibrator, test.s, at)
        curves = curve_table(arms, arm, expit(test.s), calibrated, bins, settings.level, frozen.threshold, (at, there))
        smooth = calibration_curves(test.y, expit(test.s), calibrated, settings.level, settings.seed)
        subgroups = _subgroups(settings, test, of_test, frozen.threshold)
        trained_at = set(images.loc[images["image_id"].isin(split.loc[split["split"] == "train", "image_id"]), "site"])
        between = site_variation(settings, frozen.threshold, test, of_test, trained_at - {""}, external)
        point = judged.operating_point and MainPoint(
            **vars(judged.operating_point),
            lowest_groups=lowest_groups(subgroups, settings.level),
            watching=to_watch(frozen, judged),
            held_against_certificate=tuple(group.held for group in groups),
        )
    sweep = read_table(inputs.file("calibrate", "sweep.parquet"), SWEEP)
    findings = [
        *_stored_findings(inputs),
        *table_findings(sweep, scores["calibration"], calibration, frozen),
        *findings_of(settings, test, frozen, judged),
        *assess_shift(shift, "test", sites),
        *(assess_image_counts(of_test) if how == "max" else []),
        *(_image_findings(counts) if how == "max" else []),
        *linked_findings(test, "test"),
        *(finding for label_id, one in further.items() for finding in of_further_label(label_id, one.findings)),
        *(finding for one in external.values() for finding in one.findings),
    ]

    others = [patient_table(name, p, None, None) for name, p in everyone.items() if name != arm]
    own = everyone[arm]
    patient_scores = pd.concat(
        [patient_table(arm, own, frozen.shown(own.s), frozen.threshold), *others], ignore_index=True
    )

    metrics = Metrics(
        **vars(replace(judged, operating_point=point)),
        arm=arm,
        arm_title=trained[arm].get("title", arm),
        seeds=test.seeds,
        aggregation=how,
        comparison_sentence=sentence,
        label_fractions=_fraction_numbers(fractions, settings.level),
        further_labels={label_id: one.metrics for label_id, one in further.items()},
        macro=macro,
        external={name: one.metrics for name, one in external.items()},
        shift=Shift(make_up(calibration, settings.level), tuple(group.compared for group in groups)),
        readings=_readings(inputs, frozen, scores["test"], work),
    )
    decision = decide(findings, frozen.certificate, metrics)
    to_use = deployed(settings, decision, frozen, calibration, test, images)
    write_json(work / Metrics.FILE, metrics.to_json())
    write_table(work / "subgroups.parquet", subgroups, SUBGROUPS)
    write_table(work / "comparison.parquet", comparison, COMPARISON)
    if not decision.usable:
        curves = curves[curves["curve"] != "screening_benefit_operating_point"]
    write_table(work / "curves.parquet", curves, CURVES)
    if inputs.card.exam:
        by_image = exam_table(settings, frozen, scores["test"], of_test, units, inputs.card.exam.model_dump())
        write_table(work / "exam.parquet", by_image, EXAM)
    if smooth is not None:
        write_table(work / "calibration_curve.parquet", smooth, CALIBRATION_CURVE)
    if fractions is not None:
        write_table(work / "label_fractions.parquet", fractions, LABEL_FRACTIONS)
    write_table(work / "patient_scores.parquet", patient_scores, PATIENT_SCORES)
    if located is not None:
        write_json(work / "segmentation.json", located.summary)
        write_table(work / "segmentation_patients.parquet", located.patients, SEGMENTATION_PATIENTS)
        write_table(work / "froc.parquet", located.froc, FROC)
        write_table(work / "segmentation_comparison.parquet", located.comparison, SEGMENTATION_COMPARISON)
    write_json(work / "findings.json", [finding.to_dict() for finding in findings])
    if between:
        write_json(work / "between_sites.json", between)
    write_json(work / Deployment.FILE, to_use.to_json())
    for label_id, one in further.items():
        may = decision.of_further_label(that_fail(one.findings))
        folder = work / "further" / label_id
        folder.mkdir(parents=True, exist_ok=True)
        own = deployed(settings, may, one.frozen, one.calibration, one.test)
        write_json(folder / Deployment.FILE, own.to_json())
    for said in filter(None, (sentence, metrics.label_fractions.sentence)):
        log.info(said)
    for warning in warned:
        log.warn(str(warning))
    for finding in findings:
        if not finding.on.startswith("calibration"):
            where = f" ({finding.on})" if "further label" in finding.on else ""
            (log.info if finding.level == "info" else log.warn)(f"{finding.code}{where}: {finding.message}")
    log.metrics(headline(decision.metrics(metrics), comparison), 0)


def _readings(inputs: Inputs, frozen: Frozen, scores: pd.DataFrame, work: Path) -> Readings | None:
    """Return how often some of these test patients were read, this time included; None where no ledger is kept.

    `settings` are the distinct ones, of arm, seeds, aggregation, training, targets and threshold to use. Leaves in
    reading.json what the ledger takes over.
    """
    if inputs.ledger is None:
        return None
    patients, certificate = sorted(set(scores["patient_id"])), frozen.certificate
    setting = {
        "arm": certificate.arm,
        "seeds": list(certificate.seeds),
        "aggregation": certificate.aggregation,
        "confidence": certificate.confidence,
        "deploy": certificate.deploy,
        "recall_targets": [one.recall_target for one in (certificate, *certificate.other_operating_points)],
        "finetune": inputs.key("finetune"),
        "split": inputs.key("split"),
    }
    earlier = inputs.ledger.earlier("evaluate", patients, inputs.own_key)
    write_json(work / "reading.json", {"patients": inputs.ledger.hashed(patients), "setting": setting})
    arms = sorted({certificate.arm, *(one.setting["arm"] for one in earlier)})
    return Readings(len(earlier) + 1, inputs.ledger.distinct(earlier, setting), tuple(arms))


def _frozen(inputs: Inputs, folder: str = "") -> Frozen:
    calibrator = calibrator_from_dict(read_json(inputs.file("calibrate", f"{folder}calibrator.json")))
    return Frozen(Threshold.from_json(read_json(inputs.file("calibrate", f"{folder}{Threshold.FILE}"))), calibrator)


def _stored_findings(inputs: Inputs, folder: str = "") -> list[Finding]:
    return findings_from(read_json(inputs.file("calibrate", f"{folder}findings.json")))


def _image_findings(counts: Mapping[str, pd.DataFrame]) -> list[Finding]:
    with_it = counts["test"][counts["test"]["label"] == 1]
    return assess_image_numbers(counts["calibration"], {"test patients with it": with_it}, "test")


def _label_fractions(inputs: Inputs, scores: pd.DataFrame, how: Any, level: float) -> pd.DataFrame | None:
    """Return the table of every arm with fewer and with all labelled patients; None when none had fewer."""
    found = inputs.files("score", "label_fractions_test.parquet")
    if not found:
        return None
    trained = read_json(inputs.file("finetune", "summary.json"))
    everyone = trained["train_patients"]
    positives = {int(count): record["positive_patients"] for count, record in trained["labelled_patients"].items()}
    fewer = read_table(found[0], LABEL_FRACTION_SCORES)
    every = pd.concat([fewer, scores.assign(labelled_patients=everyone)], ignore_index=True)
    return label_fraction_table(every, {**positives, everyone: trained["train_positive_patients"]}, how, level)


def _fraction_numbers(fractions: pd.DataFrame | None, level: float) -> LabelFractions:
    if fractions is None:
        return LabelFractions("", {})
    return LabelFractions(label_fraction_sentence(fractions, level), label_fraction_intervals(fractions, level))


def _localisation(
    settings: EvaluateSettings, inputs: Inputs, scores: pd.DataFrame, units: pd.Series, reported: str, log: RunLog
) -> Localisation | None:
    """Judge the masks that arms drew in the scored test images; None where none drew any, or nothing is annotated.

    Of patients who are linked, the first by pseudonym counts.
    """
    if not (marks := inputs.files("score", "marks.parquet")):
        return None
    index = read_table(inputs.file("preprocess", "index_test.parquet"), INDEX)
    index = index[index["image_id"].isin(scores["image_id"])]
    ids = pd.Series(sorted(set(index["patient_id"])))
    linked = ids[ids.map(units).duplicated()]
    index = index[~index["patient_id"].isin(linked)].reset_index(drop=True)
    grid = read_table(inputs.file("preprocess", "mask_grid.parquet"), MASK_GRID).set_index("image_id")
    shards = sorted(set(index["shard"]))
    reference = {shard: _array(inputs.file("preprocess", mask_name(shard))) for shard in shards}
    axes = next(iter(reference.values())).ndim - 1
    names = read_json(inputs.file("preprocess", "summary.json"))["masks"]["structures"]
    predicted = {
        arm: {shard: _array(found[0]) for shard in shards if (found := inputs.files("score", _predicted(arm, shard)))}
        for arm in sorted(set(scores["arm"]))
    }
    masks = Masks(
        index=index,
        spacing_mm={name: _known(row[-axes:]) for name, row in zip(grid.index, grid.to_numpy(float), strict=True)},
        structures={int(number): name for number, name in names.items()},
        reference=reference,
        predicted={arm: of_arm for arm, of_arm in predicted.items() if of_arm},
        marks=read_table(marks[0], MARKS),
    )
    located = judge_masks(masks, reported, settings.surface_tolerance_mm, settings.level, settings.seed)
    if located is None:
        log.warn("no test image has an annotated mask: where the finding lies cannot be judged")
    elif len(linked):
        log.info(f"masks of {counted(len(linked), 'test patient')} linked to another are not counted")
    return located


def _array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _predicted(arm: str, shard: str) -> str:
    return f"predicted_masks/{arm}-{shard}"


def _known(spacing_mm: np.ndarray) -> tuple[float, ...] | None:
    return tuple(spacing_mm.tolist()) if np.isfinite(spacing_mm).all() else None


def _subgroups(
    settings: EvaluateSettings, test: Patients, images: pd.DataFrame, threshold: float | None
) -> pd.DataFrame:
    attributes = patient_attributes(images)
    patients = pd.DataFrame({"label": test.y, "score": test.s}, index=test.ids).join(attributes)
    names = list(map(str, attributes))
    return subgroup_table(patients, names, threshold, settings.min_subgroup_positives, settings.level)


def _further_labels(
    settings: EvaluateSettings, inputs: Inputs, split: pd.DataFrame, images: pd.DataFrame
) -> dict[str, FurtherLabel]:
    """Judge each further label with its own frozen threshold; nothing when there are none."""
    if not (found := inputs.files("split", "further_labels.parquet")):
        return {}
    scores = {name: read_table(inputs.file("score", f"further_scores_{name}.parquet"), FURTHER_SCORES)
              for name in JUDGED}  # fmt: skip
    judged = {}
    for label_id, known in read_table(found[0], FURTHER_LABELS).groupby("label_id"):
        own = {name: rows[rows["label_id"] == label_id] for name, rows in scores.items()}
        check_partitions(split.drop(columns="label").merge(known, on="image_id"), own, images)
        folder = f"further/{label_id}/"
        sweep = read_table(inputs.file("calibrate", f"{folder}sweep.parquet"), SWEEP)
        stored = _stored_findings(inputs, folder)
        frozen = _frozen(inputs, folder)
        judged[str(label_id)] = judge_further_label(settings, frozen, own, sweep, stored, units_of(split))
    return judged


def _met_so_far(images: pd.DataFrame, inputs: Inputs) -> Gathered:
    """Return the images that the run has met, whatever they were used for: its own, and those pretrained on besides."""
    if UNLABELLED not in inputs.artifacts:
        return Gathered(images, _fingerprints("ingest", inputs))
    chosen = read_table(inputs.file("split@unlabelled", "split.parquet"), SPLIT)["image_id"]
    more = read_table(inputs.file(UNLABELLED, "images.parquet"), IMAGES)
    compared = ["image_id", "patient_id", "pixel_hash"]
    everything = pd.concat([images[compared], more.loc[more["image_id"].isin(chosen), compared]], ignore_index=True)
    return Gathered(everything, [*_fingerprints("ingest", inputs), *_fingerprints(UNLABELLED, inputs)])


def _fingerprints(step: str, inputs: Inputs) -> list[Path]:
    if not inputs.record("ingest")["settings"]["near_duplicates"]:
        return []
    return [inputs.file(step, table) for table in FINGERPRINTS]


def _externals(reference: Reference, images: pd.DataFrame, inputs: Inputs, work: Path) -> dict[str, External]:
    """Judge what was frozen on each external set; `images` are those of the run."""
    known = _met_so_far(images, inputs) if inputs.external else Gathered(images, ())
    return {name: _external(reference, name, known, inputs, work) for name in sorted(inputs.external)}


def _external(reference: Reference, name: str, known: Gathered, inputs: Inputs, work: Path) -> External:
    """Judge what was frozen on an external set, less those whom the run has met."""
    scores = read_table(inputs.file(f"score@{name}", "scores_test.parquet"), SCORES)
    images = read_table(inputs.file(f"ingest@{name}", "images.parquet"), IMAGES)
    split = read_table(inputs.file(f"split@{name}", "split.parquet"), SPLIT)
    check_partitions(split, {"test": scores}, images)
    others = Gathered(images[images["image_id"].isin(split["image_id"])], _fingerprints(f"ingest@{name}", inputs))
    again = met(known, others, work / ".small.tmp")
    return judge_external(reference, f"external set {name}", scores, images, split, again)
