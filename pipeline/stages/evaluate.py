"""evaluate: the locked test set, once, and external ones → every number of the report, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.imaging.duplicates import met_before, near_copies, read_fingerprints
from pipeline.statistics.arms import comparison_table, matched_thresholds, pretraining_benefit, seed_aucs
from pipeline.statistics.calibration import displayed_probability
from pipeline.statistics.calibrators import Calibrator, calibrator_from_dict
from pipeline.statistics.curves import curve_table
from pipeline.statistics.discrimination import average_precision, roc_auc
from pipeline.statistics.errors import collect_warnings
from pipeline.statistics.gate import (
    Finding,
    assess_discrimination,
    assess_other_target,
    compare_tables,
    of_further_label,
)
from pipeline.statistics.intervals import proportion_ci
from pipeline.statistics.label_fractions import (
    label_fraction_intervals,
    label_fraction_sentence,
    label_fraction_table,
)
from pipeline.statistics.macro import macro_averages
from pipeline.statistics.metrics import at_prevalence, confusion, operating_metrics
from pipeline.statistics.patients import Patients, patient_table, patients_of, refuse_overlap, scores_sha256
from pipeline.statistics.reliability import calibration_summary
from pipeline.statistics.shift import (
    GroupShift,
    Promise,
    assess_image_counts,
    assess_shift,
    group_shift,
    unseen_patients,
)
from pipeline.statistics.subgroups import ATTRIBUTES, UNKNOWN, patient_attributes, subgroup_table
from pipeline.statistics.sweep import threshold_sweep
from pipeline.statistics.threshold import recall_bounds, verify_threshold
from pipeline.store.files import read_json, write_json
from pipeline.store.tables import (
    COMPARISON,
    CURVES,
    FURTHER_LABELS,
    FURTHER_SCORES,
    IMAGES,
    LABEL_FRACTION_SCORES,
    LABEL_FRACTIONS,
    PATIENT_SCORES,
    SCORES,
    SPLIT,
    SUBGROUPS,
    SWEEP,
    read_table,
    write_table,
)

if TYPE_CHECKING:
    from pipeline.config import EvaluateSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog


JUDGED = ("calibration", "test")


def evaluate(settings: EvaluateSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Judge the reported model, its calibrator and its frozen threshold on the test patients, beside every arm.

    Further labels are judged in the same way, on their own thresholds. Their findings warn: the gate is about the main
    label.

    External test sets are judged by the same model, calibrator and threshold, less the patients whom the run has met
    already. Their findings warn: they never decide whether the operating point may be used.

    Leaves metrics.json, subgroups.parquet, comparison.parquet, curves.parquet, patient_scores.parquet,
    findings.json (those of the calibration patients first) and, when arms were also trained with fewer labelled
    patients, label_fractions.parquet in `work`. Raises ValueError when a patient is in two splits, when scores are not
    finite or not complete, or when the arms were not scored on the same patients.
    """
    scores = {name: read_table(inputs.file("score", f"scores_{name}.parquet"), SCORES) for name in JUDGED}
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    split = read_table(inputs.file("split", "split.parquet"), SPLIT)
    _check_partitions(split, scores, images)
    frozen = read_json(inputs.file("calibrate", "threshold.json"))
    calibrator = calibrator_from_dict(read_json(inputs.file("calibrate", "calibrator.json")))
    threshold = _threshold(frozen)
    arm, how = frozen["arm"], frozen["aggregation"]
    calibration = patients_of(scores["calibration"], arm, how)
    arms = {name: patients_of(scores["test"], name, how) for name in sorted(set(scores["test"]["arm"]))}
    if arm not in arms or list(arms[arm].seeds) != frozen["seeds"]:
        raise ValueError(f"the test scores lack seeds of arm {arm} that the threshold was certified for")
    test = arms[arm]
    calibrated, shown = calibrator.predict(test.s), _shown(calibrator, frozen, test.s)

    with collect_warnings() as warned:
        matched = _matched(scores["calibration"], arms, how, frozen) if frozen["certified"] else None
        comparison = comparison_table(arms, seed_aucs(scores["test"], arms, how), arm, settings.level, matched)
        sentence = pretraining_benefit(arms, settings.level)
        fractions = _label_fractions(inputs, scores["test"], how, settings.level)
        metrics: dict[str, Any] = {
            "arm": arm,
            "seeds": list(test.seeds),
            "aggregation": how,
            **_metrics(settings, test, calibrator, frozen, threshold),
            "comparison_sentence": sentence,
            "label_fractions": _fraction_numbers(fractions, settings.level),
        }
        of_test = images[images["image_id"].isin(scores["test"]["image_id"])]
        reference = _Reference(
            settings,
            frozen,
            calibrator,
            calibration,
            images[images["image_id"].isin(scores["calibration"]["image_id"])],
        )
        shift, *sites = _shifts(reference, test, of_test)
        further = _further_labels(settings, inputs, split, images)
        metrics["further_labels"] = {label_id: one.metrics for label_id, one in further.items()}
        metrics["macro"] = _macro(settings, test, threshold, further)
        external = {name: _external(reference, name, images, inputs, work) for name in sorted(inputs.external)}
        metrics["external"] = {name: one.metrics for name, one in external.items()}
        metrics["shift"] = {
            "calibration": _prevalence(calibration, settings.level),
            "groups": [
                group.to_dict() for group in [shift, *sites, *(one.shift for one in external.values() if one.shift)]
            ],
        }
        bins = settings.calibration_bins
        curves = curve_table(arms, arm, expit(test.s), calibrated, bins, settings.level, threshold)
        subgroups = _subgroups(settings, test, of_test, threshold)
    findings = [
        *(Finding(**item) for item in read_json(inputs.file("calibrate", "findings.json"))),
        *_table_findings(inputs, scores["calibration"], calibration, calibrator, frozen),
        *_test_findings(settings, test, calibrator, threshold, metrics),
        *assess_shift(shift, "test", sites),
        *(assess_image_counts(of_test) if how == "max" else []),
        *(finding for label_id, one in further.items() for finding in of_further_label(label_id, one.findings)),
        *(finding for one in external.values() for finding in one.findings),
    ]

    others = [patient_table(name, p, None, None) for name, p in arms.items() if name != arm]
    patient_scores = pd.concat([patient_table(arm, test, shown, threshold), *others], ignore_index=True)

    write_json(work / "metrics.json", metrics)
    write_table(work / "subgroups.parquet", subgroups, SUBGROUPS)
    write_table(work / "comparison.parquet", comparison, COMPARISON)
    write_table(work / "curves.parquet", curves, CURVES)
    if fractions is not None:
        write_table(work / "label_fractions.parquet", fractions, LABEL_FRACTIONS)
    write_table(work / "patient_scores.parquet", patient_scores, PATIENT_SCORES)
    write_json(work / "findings.json", [finding.to_dict() for finding in findings])
    for said in filter(None, (sentence, metrics["label_fractions"]["sentence"])):
        log.info(said)
    for warning in warned:
        log.warn(str(warning))
    for finding in findings:
        if not finding.on.startswith("calibration"):
            where = f" ({finding.on})" if "further label" in finding.on else ""
            (log.info if finding.level == "info" else log.warn)(f"{finding.code}{where}: {finding.message}")
    log.metrics(_headline(metrics, comparison), 0)


def _threshold(point: Mapping[str, Any]) -> float | None:
    return float.fromhex(point["threshold_hex"]) if point["certified"] else None


def _check_partitions(split: pd.DataFrame, scores: Mapping[str, pd.DataFrame], images: pd.DataFrame) -> None:
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


def _matched(
    scores: pd.DataFrame, arms: Mapping[str, Patients], how: Any, frozen: Mapping[str, Any]
) -> dict[str, float]:
    """Return every arm's threshold at matched sensitivity, from the calibration patients."""
    calibration = {name: patients_of(scores, name, how) for name in arms}
    return matched_thresholds(calibration, frozen["arm"], frozen["misses_allowed"])


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


def _fraction_numbers(fractions: pd.DataFrame | None, level: float) -> dict[str, Any]:
    if fractions is None:
        return {"sentence": "", "intervals": {}}
    sentence, intervals = label_fraction_sentence(fractions, level), label_fraction_intervals(fractions, level)
    return {"sentence": sentence, "intervals": intervals}


def _metrics(
    settings: EvaluateSettings,
    test: Patients,
    calibrator: Calibrator,
    frozen: Mapping[str, Any],
    threshold: float | None,
) -> dict[str, Any]:
    level, seed = settings.level, settings.seed
    counts = None if threshold is None else confusion(test.y, test.s, threshold)
    prevalences = sorted({*settings.prevalences, settings.headline_prevalence})
    rows = [at_prevalence(counts, pi, level=level, seed=seed) for pi in prevalences] if counts else []
    probabilities = {"before": expit(test.s), "after": calibrator.predict(test.s)}
    measures = {
        when: {
            name: interval.to_dict()
            for name, interval in calibration_summary(test.y, p, settings.calibration_bins, level, seed=seed).items()
        }
        for when, p in probabilities.items()
    }
    return {
        **_prevalence(test, level),
        "images": test.images,
        "discrimination": {
            "auc": roc_auc(test.y, test.s, level).to_dict(),
            "average_precision": average_precision(test.y, test.s, level, seed=seed).to_dict(),
        },
        "operating_point": _operating_point(test, frozen, frozen, calibrator, level),
        "other_operating_points": [
            {
                "recall_target": point["recall_target"],
                "operating_point": _operating_point(test, frozen, point, calibrator, level),
            }
            for point in frozen["other_operating_points"]
        ],
        "consequences": [row.to_dict() for row in rows],
        "headline_prevalence": settings.headline_prevalence,
        "calibration": {"bins": settings.calibration_bins, **measures},
    }


def _prevalence(patients: Patients, level: float) -> dict[str, Any]:
    n, positives = len(patients.y), int(patients.y.sum())
    return {"patients": n, "positives": positives, "prevalence": proportion_ci(positives, n, level).to_dict()}


def _shown(calibrator: Calibrator, frozen: Mapping[str, Any], scores: Any) -> np.ndarray:
    return displayed_probability(calibrator, scores, frozen["local_prevalence"])


def _operating_point(
    test: Patients,
    frozen: Mapping[str, Any],
    point: Mapping[str, Any],
    calibrator: Calibrator,
    level: float,
) -> dict[str, Any] | None:
    """Return what the threshold of one target does on the test patients; None when none was certified."""
    threshold = _threshold(point)
    if threshold is None:
        return None
    counts = confusion(test.y, test.s, threshold)
    target, confidence = point["recall_target"], point["confidence"]
    verified = {"verification": None, "recall_lower_one_sided": None, "recall_upper_one_sided": None}
    if counts.positives:
        lower, upper = recall_bounds(counts.tp, counts.positives, confidence)
        verified = {
            "verification": verify_threshold(test.y, test.s, threshold, target, confidence),
            "recall_lower_one_sided": lower,
            "recall_upper_one_sided": upper,
        }
    return {
        "threshold": threshold,
        "probability": float(_shown(calibrator, frozen, [threshold])[0]),
        "probability_prevalence": frozen["probability_prevalence"],
        "counts": counts.to_dict(),
        **{name: interval.to_dict() for name, interval in operating_metrics(counts, level).items()},
        **verified,
    }


def _subgroups(
    settings: EvaluateSettings, test: Patients, images: pd.DataFrame, threshold: float | None
) -> pd.DataFrame:
    patients = pd.DataFrame({"label": test.y, "score": test.s}, index=test.ids).join(patient_attributes(images))
    return subgroup_table(patients, ATTRIBUTES, threshold, settings.min_subgroup_positives, settings.level)


def _table_findings(
    inputs: Inputs,
    scores: pd.DataFrame,
    calibration: Patients,
    calibrator: Calibrator,
    frozen: Mapping[str, Any],
    folder: str = "",
) -> list[Finding]:
    """Compare the stored sweep with the one that the calibration scores give now."""
    stored = read_table(inputs.file("calibrate", f"{folder}sweep.parquet"), SWEEP)
    again = threshold_sweep(
        calibration.y, calibration.s, stored["threshold"], confidence=frozen["confidence_used"], **frozen["costs"]
    ).assign(probability=_shown(calibrator, frozen, stored["threshold"]))
    findings = compare_tables(stored, again)
    if scores_sha256(scores, frozen["arm"]) != frozen["data_sha256"]:
        other = "the calibration scores are not those that the threshold was certified on (SHA-256 differs)"
        findings.append(Finding("table_inconsistent", "fail", "calibration", other))
    return findings


def _test_findings(
    settings: EvaluateSettings,
    test: Patients,
    calibrator: Calibrator,
    threshold: float | None,
    metrics: Mapping[str, Any],
    on: str = "test",
) -> list[Finding]:
    findings = assess_discrimination(
        test.y,
        test.s,
        calibrator.predict(test.s),
        threshold,
        raw=expit(test.s),
        on=on,
        level=settings.level,
    )
    point = metrics["operating_point"]
    if point and point["verification"] == "contradicted":
        found = f"{point['counts']['tp']} of {metrics['positives']} patients with the condition were referred"
        message = f"the certified recall did not hold on these patients: {found}"
        findings.append(Finding("recall_contradicted", "warn", on, message))
    return findings + [
        finding for other in metrics["other_operating_points"] for finding in _other_findings(settings, test, other, on)
    ]


def _other_findings(settings: EvaluateSettings, test: Patients, other: Mapping[str, Any], on: str) -> list[Finding]:
    point, target = other["operating_point"], other["recall_target"]
    if point is None:
        return []
    findings = assess_other_target(test.y, test.s, point["threshold"], target, on=on, level=settings.level)
    if point["verification"] == "contradicted":
        message = f"the recall certified at the further target of {100 * target:.6g} % did not hold on these patients"
        findings.append(Finding("other_recall_contradicted", "info", on, message))
    return findings


# ---------------------------------------------------------------- further labels


@dataclass(frozen=True)
class _Further:
    """What came of a further label on the test patients that have it."""

    test: Patients
    threshold: float | None
    metrics: dict[str, Any]
    findings: list[Finding]


def _further_labels(
    settings: EvaluateSettings, inputs: Inputs, split: pd.DataFrame, images: pd.DataFrame
) -> dict[str, _Further]:
    """Judge each further label with its own frozen threshold; nothing when there are none."""
    if not (found := inputs.files("split", "further_labels.parquet")):
        return {}
    scores = {name: read_table(inputs.file("score", f"further_scores_{name}.parquet"), FURTHER_SCORES)
              for name in JUDGED}  # fmt: skip
    judged = {}
    for label_id, known in read_table(found[0], FURTHER_LABELS).groupby("label_id"):
        own = {name: rows[rows["label_id"] == label_id] for name, rows in scores.items()}
        _check_partitions(split.drop(columns="label").merge(known, on="image_id"), own, images)
        judged[str(label_id)] = _further_label(settings, inputs, str(label_id), own)
    return judged


def _further_label(
    settings: EvaluateSettings, inputs: Inputs, label_id: str, scores: Mapping[str, pd.DataFrame]
) -> _Further:
    """Judge one further label; its `problems` are what would close the gate, were it the main label."""
    folder = f"further/{label_id}/"
    frozen = read_json(inputs.file("calibrate", f"{folder}threshold.json"))
    calibrator = calibrator_from_dict(read_json(inputs.file("calibrate", f"{folder}calibrator.json")))
    threshold = _threshold(frozen)
    calibration, test = (patients_of(scores[name], frozen["arm"], frozen["aggregation"]) for name in JUDGED)
    metrics = _metrics(settings, test, calibrator, frozen, threshold)
    findings = [
        *(Finding(**item) for item in read_json(inputs.file("calibrate", f"{folder}findings.json"))),
        *_table_findings(inputs, scores["calibration"], calibration, calibrator, frozen, folder),
        *_test_findings(settings, test, calibrator, threshold, metrics),
    ]
    metrics["problems"] = [one.to_dict() for one in findings if one.level == "fail"]
    return _Further(test, threshold, metrics, findings)


def _macro(
    settings: EvaluateSettings, test: Patients, threshold: float | None, further: Mapping[str, _Further]
) -> dict[str, Any] | None:
    """Return the means over the main label and all further ones; None when there are none."""
    if not further:
        return None
    thresholds = [threshold, *(one.threshold for one in further.values())]
    patients = [test, *(one.test for one in further.values())]
    means = macro_averages(patients, thresholds, settings.level, seed=settings.seed)
    return {"labels": len(patients), **{name: mean and mean.to_dict() for name, mean in means.items()}}


# ---------------------------------------------------------------- other patients


@dataclass(frozen=True)
class _Reference:
    """What was frozen on the calibration patients, and who these are."""

    settings: EvaluateSettings
    frozen: Mapping[str, Any]
    calibrator: Calibrator
    patients: Patients
    images: pd.DataFrame

    def shift(self, group: str, members: Patients, unseen: set[str]) -> GroupShift:
        """Return how a group of patients differs from the calibration patients; `unseen` are those of other sites."""
        return group_shift(
            group,
            self.patients,
            members,
            self.calibrator.predict(members.s),
            Promise(_threshold(self.frozen), self.frozen["recall_target"], self.frozen["confidence"]),
            unseen=len(unseen.intersection(members.ids)),
            level=self.settings.level,
            min_positives=self.settings.min_subgroup_positives,
        )


def _shifts(reference: _Reference, test: Patients, images: pd.DataFrame) -> list[GroupShift]:
    """Return the shift of the test patients and, when they come from several, of each site that is stated."""
    unseen = unseen_patients(reference.images, images)
    site = patient_attributes(images)["site"].loc[test.ids].to_numpy()
    sites = [name for name in sorted(set(site)) if name != UNKNOWN] if len(set(site)) > 1 else []
    members = {f"site {name[:12]}": _those(test, site == name) for name in sites}
    return [reference.shift(name, some, unseen) for name, some in {"test": test, **members}.items()]


def _those(patients: Patients, chosen: np.ndarray) -> Patients:
    return replace(patients, ids=patients.ids[chosen], y=patients.y[chosen], s=patients.s[chosen])


@dataclass(frozen=True)
class _External:
    """What came of an external test set; no shift when nobody in it is new."""

    metrics: dict[str, Any]
    shift: GroupShift | None
    findings: list[Finding]


def _external(reference: _Reference, name: str, known: pd.DataFrame, inputs: Inputs, work: Path) -> _External:
    """Judge what was frozen on an external test set. `known` has the images of the run, whatever they were used for.

    Findings that would close the gate on the test patients warn here: the certificate never spoke of this set.
    """
    settings, frozen, calibrator = reference.settings, reference.frozen, reference.calibrator
    on = f"external set {name}"
    scores = read_table(inputs.file(f"score@{name}", "scores_test.parquet"), SCORES)
    images = read_table(inputs.file(f"ingest@{name}", "images.parquet"), IMAGES)
    split = read_table(inputs.file(f"split@{name}", "split.parquet"), SPLIT)
    _check_partitions(split, {"test": scores}, images)
    met = _met_before(known, images[images["image_id"].isin(split["image_id"])], name, inputs, work)
    again = set(split.loc[split["unit"].isin(split.loc[split["image_id"].isin(met.index), "unit"]), "patient_id"])
    excluded = {
        "patients": scores.loc[scores["patient_id"].isin(again), "patient_id"].nunique(),
        "images": {why: int(count) for why, count in met.value_counts().sort_index().items()},
    }
    findings = _overlap_findings(excluded, scores["patient_id"].nunique(), on)
    left = scores[~scores["patient_id"].isin(again)]
    if left.empty:
        return _External({"group": on, "patients": 0, "excluded": excluded}, None, findings)
    members = patients_of(left, frozen["arm"], frozen["aggregation"])
    threshold = _threshold(frozen)
    metrics = {"group": on, "excluded": excluded, **_metrics(settings, members, calibrator, frozen, threshold)}
    elsewhere = unseen_patients(reference.images, images, elsewhere=True)
    shift = reference.shift(on, members, elsewhere)
    found = [
        *_test_findings(settings, members, calibrator, threshold, metrics, on),
        *assess_shift(shift, on),
    ]
    findings += [replace(one, level="warn") if one.level == "fail" else one for one in found]
    return _External(metrics, shift, findings)


def _met_before(known: pd.DataFrame, images: pd.DataFrame, name: str, inputs: Inputs, work: Path) -> pd.Series:
    """Return why external images are not new to the run, by image_id; nearly the same ones only where ingest looked."""
    met = met_before(known, images)
    new = images.loc[~images["image_id"].isin(met.index), "image_id"]
    if new.empty or not inputs.record("ingest")["settings"]["near_duplicates"]:
        return met
    tables, scratch = ("examined.parquet", "assembled.parquet"), [work / f".small{n}.tmp" for n in (1, 2)]
    prints = [
        read_fingerprints([inputs.file(step, table) for table in tables], ids, small)
        for step, ids, small in zip(("ingest", f"ingest@{name}"), (known["image_id"], new), scratch, strict=True)
    ]
    near = new[near_copies(*prints)]
    for path in scratch:
        path.unlink()
    return pd.concat([met, pd.Series("nearly the same image", index=near)])


def _overlap_findings(excluded: Mapping[str, Any], patients: int, on: str) -> list[Finding]:
    if not excluded["images"]:
        return []
    reasons = ", ".join(f"{count} images: {why}" for why, count in excluded["images"].items())
    message = f"{excluded['patients']} of {patients} patients occur in this run already and were left out ({reasons})"
    if "same patient" in excluded["images"]:
        message += "; where both places number their patients alike, these may be others"
    return [Finding("external_overlap", "warn", on, message)]


def _headline(metrics: Mapping[str, Any], comparison: pd.DataFrame) -> dict[str, float]:
    points = {"": metrics["operating_point"] or {}} | {
        f"_at_{other['recall_target']:g}": other["operating_point"] or {} for other in metrics["other_operating_points"]
    }
    rates = ("recall", "specificity", "ppv", "npv", "referral_rate")
    intervals = {
        "test_auc": metrics["discrimination"]["auc"],
        "test_average_precision": metrics["discrimination"]["average_precision"],
        "test_brier": metrics["calibration"]["after"]["brier"],
        "test_ece": metrics["calibration"]["after"]["ece"],
        **{f"test_{name}{at}": point[name] for at, point in points.items() if point for name in rates},
        **{f"test_{name}": value for name, value in metrics["label_fractions"]["intervals"].items()},
    }
    values = {f"auc_{arm}": float(auc) for arm, auc in zip(comparison["arm"], comparison["auc"], strict=True)}
    for name, interval in intervals.items():
        values |= {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    # A tracker has no word for a number that does not exist.
    return {name: value for name, value in values.items() if value == value}
