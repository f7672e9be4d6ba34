"""package: the finished model as one folder that predicts without config, labels, key or store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pipeline import __version__
from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.channels import channels_of
from pipeline.imaging.image import Policy
from pipeline.imaging.transforms import Rendering
from pipeline.inference import model_card
from pipeline.inference.decision import Decision, decide
from pipeline.inference.description import describe
from pipeline.inference.ensemble import RECORD, WEIGHTS, Ensemble, member_files
from pipeline.inference.header_remarks import header_values
from pipeline.inference.model_folder import CARD, CONTENT, MEMBERS, SCHEMA, TYPICALITY, seal, write_golden
from pipeline.inference.rule import OperatingPoint, Rule
from pipeline.inference.typicality import Cohort, Reference, TypicalityError, fit
from pipeline.models.finished import Network
from pipeline.models.images import read_images
from pipeline.models.training import prepare
from pipeline.statistics.calibrators import PrevalenceCalibrator, calibrator_from_dict
from pipeline.statistics.errors import NotEnoughData
from pipeline.statistics.probability_band import probability_band
from pipeline.statistics.score_bins import score_bins
from pipeline.store.files import atomic, read_json, sha256_json, write_json
from pipeline.store.results.deployment import Deployment, ToUse
from pipeline.store.results.finding import findings_from
from pipeline.store.results.metrics import Metrics
from pipeline.store.results.threshold import Target, Threshold
from pipeline.store.tables.calibrate import PATIENT_SCORES
from pipeline.store.tables.ingest import IMAGES
from pipeline.store.tables.io import read_table
from pipeline.store.tables.split import SPLIT
from pipeline.store.versions import package_versions, runtime_versions
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.decision import PackageSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

FOLDER = "model"
GOLDEN_IMAGES = 3
IMAGES_AT_ONCE = 64
CPU = torch.device("cpu")
SOURCES = {"calibration": "calibration patients", "pooled": "calibration and test patients together"}
STAGES = ("ingest", "split", "preprocess", "finetune", "score", "calibrate", "evaluate")


def package(settings: PackageSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave `model/`: weights of every seed, model.json, golden arrays with their logits, MODEL_CARD.md, SHA256SUMS.

    No row of it is about a patient. A model whose gate failed is packaged as not usable and without a threshold.
    """
    folder = work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt that was killed
    folder.mkdir()
    threshold = Threshold.from_json(read_json(inputs.file("calibrate", Threshold.FILE)))
    arm, seeds = threshold.arm, threshold.seeds
    for seed in seeds:
        into = folder / MEMBERS / f"seed{seed}"
        into.mkdir(parents=True)
        for name in (RECORD, WEIGHTS):
            shutil.copyfile(inputs.file("finetune", f"{arm}/seed{seed}/{name}"), into / name)
    flips = read_json(inputs.file("score", "summary.json"))["flips"]
    device = prepare(inputs.machine.device, inputs.machine.threads)
    ensemble = Ensemble.load(member_files(folder / MEMBERS), device, flips=flips)
    write_golden(folder, _golden(inputs), ensemble)
    try:
        reference = _typicality(settings, inputs, ensemble.networks)
        reference.save(folder / TYPICALITY)
        log.info(f"typicality: {reference.statement}")
    except TypicalityError as error:
        log.warn(f"typicality is not known of new studies: {error}")
    content = _content(settings, inputs, threshold, flips)
    write_json(folder / CONTENT, content)
    with atomic(folder / CARD) as temporary:
        temporary.write_text(model_card.text(content), "utf-8")
    sha256 = seal(folder)
    write_json(work / "summary.json", {"model_sha256": sha256, "usable": content["rule"]["usable"]})
    usable = "usable" if content["rule"]["usable"] else "not usable"
    log.info(f"model {sha256[:16]}: arm {arm}, {counted(len(seeds), 'seed')}, {usable}")


def _unlabelled(inputs: Inputs) -> dict[str, Any]:
    """Return how many images and patients of data.unlabelled the encoder was pretrained on; nothing without any."""
    if "split@unlabelled" not in inputs.artifacts:
        return {}
    counts = read_json(inputs.file("split@unlabelled", "summary.json"))
    return {"unlabelled": {name: counts[name] for name in ("images", "patients", "left_out")}}


def _content(settings: PackageSettings, inputs: Inputs, threshold: Threshold, flips: bool) -> dict[str, Any]:
    """Return the content of model.json."""
    metrics = Metrics.from_json(read_json(inputs.file("evaluate", Metrics.FILE)))
    decision = decide(findings_from(read_json(inputs.file("evaluate", "findings.json"))), threshold, metrics)
    record, card = inputs.record("ingest")["settings"], inputs.card.model_dump()
    channels = channels_of(card)
    rendering = Rendering.from_settings(inputs.record("preprocess")["settings"], [one.name for one in channels])
    summary = read_json(inputs.file("finetune", "summary.json"))
    trained = summary["arms"][threshold.arm]
    deployed = Deployment.from_json(read_json(inputs.file("evaluate", Deployment.FILE)))
    rule = _rule(inputs, "", decision, threshold, card["label"]["name"], deployed)
    return {
        "schema": SCHEMA,
        "title": card["title"],
        "network": {
            "arm": threshold.arm,
            "seeds": list(threshold.seeds),
            "description": trained["description"],
            "parameters_per_network": trained["parameters"],
        },
        "trained_on": {
            "patients": summary["train_patients"],
            "positives": summary["train_positive_patients"],
            "images": summary["train_images"],
            **_unlabelled(inputs),
        },
        "labels": [_label("", card["label"]), *(_label(one["id"], one) for one in card["further_labels"])],
        "rendering": rendering.to_json(),
        "accepts": {
            "policy": Policy.from_settings(record, channels).to_json(),
            "limits": Limits.from_settings(record, card["expected"]).to_json(),
            "min_slices": record["min_slices"],
            "timeout_s": record["timeout_s"],
            "max_memory_mb": record["max_memory_mb"],
        },
        "flips": flips,
        "rule": rule.to_json(),
        "further_rules": {one["id"]: _further(inputs, decision, metrics, one) for one in card["further_labels"]},
        "prevalence": rule.calibrator.prevalence,
        "scope": rule.scope(card["intended_use"]["population"]),
        "test": _test(decision.metrics(metrics)),
        "watch": _watch(inputs, deployed.to_use),
        "population": _population(inputs),
        "not_for": [*card["intended_use"]["not_for"], *settings.not_for],
        "made_by": {
            "keys": {stage: inputs.key(stage) for stage in STAGES},
            "git_commit": inputs.record("evaluate")["git_commit"],
            "versions": {"maescreen": __version__, **runtime_versions(), **package_versions()},
        },
        "threshold_sha256": sha256_json([one.to_json() for one in rule.points]),
        "card": {name: card[name] for name in ("name", "title", "source", "licence", "attribution", "identifiers")}
        | {"intended_use": card["intended_use"], "known_traps": card["known_traps"], "synthetic": card["synthetic"]},
    }


def _label(label_id: str, label: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "definition", "reference_standard")
    return {"id": label_id, **{name: label[name] for name in kept}}


def _rule(
    inputs: Inputs,
    folder: str,
    decision: Decision,
    threshold: Threshold,
    name: str,
    deployed: Deployment,
) -> Rule:
    """Return the rule of one label; `folder` is where `calibrate` left its files.

    The first operating point is the one to use after the test, `deployed`.
    """
    calibrator = calibrator_from_dict(read_json(inputs.file("calibrate", f"{folder}calibrator.json")))
    scores = read_table(inputs.file("calibrate", f"{folder}patient_scores.parquet"), PATIENT_SCORES)
    band = np.empty((0, 0))
    if not isinstance(calibrator, PrevalenceCalibrator):
        with suppress(NotEnoughData):  # then a probability is shown without limits
            band = np.stack(probability_band(scores["label"], scores["score"], calibrator.method))
    allowed = decision.threshold(threshold)
    targets = (allowed, *allowed.other_operating_points)
    certified = [_point(one.threshold, one, one.positives) for one in targets if one.threshold is not None]
    if certified and deployed.to_use is not None:
        threshold_hex, positives = deployed.to_use.threshold_hex, deployed.to_use.positives
        certified[0] = _point(float.fromhex(threshold_hex), allowed, positives, SOURCES[deployed.rule])
    return Rule(threshold.aggregation, calibrator, tuple(certified), decision, band, name)


def _point(threshold: float, certified: Target, positives: int, source: str = SOURCES["calibration"]) -> OperatingPoint:
    return OperatingPoint(threshold, certified.recall_target, certified.confidence, positives, source)


def _further(inputs: Inputs, decision: Decision, metrics: Metrics, label: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rule of a further label as JSON: usable where the model is, and nothing speaks against its own."""
    folder = f"further/{label['id']}/"
    threshold = Threshold.from_json(read_json(inputs.file("calibrate", f"{folder}{Threshold.FILE}")))
    own = decision.of_further_label(metrics.further_labels[label["id"]].problems)
    deployed = Deployment.from_json(read_json(inputs.file("evaluate", f"{folder}{Deployment.FILE}")))
    return _rule(inputs, folder, own, threshold, label["name"], deployed).to_json()


def _test(metrics: Metrics) -> dict[str, Any]:
    """Return what the locked test patients showed."""
    point = metrics.operating_point
    rates = ("recall", "specificity", "referral_rate")
    return {
        **{name: getattr(metrics, name) for name in ("patients", "positives", "images")},
        "auc": metrics.discrimination.auc.to_dict(),
        **{name: point and getattr(point, name).to_dict() for name in rates},
        "verification": point and point.verification,
        "threshold_hex": point and point.threshold.hex(),
    }


def _watch(inputs: Inputs, to_use: ToUse | None) -> dict[str, Any]:
    """Return what `monitor` holds new studies against: bins of calibration scores, and what referral to expect.

    The bins are of patients without the condition, whose scores do not depend on how frequent it is.
    """
    scores = read_table(inputs.file("calibrate", "patient_scores.parquet"), PATIENT_SCORES)
    edges, gaps = score_bins(scores.loc[scores["label"] == 0, "score"].to_numpy())
    expected = to_use and {
        "prevalence": to_use.prevalence,
        "expected_recall": to_use.expected_recall,
        "specificity": to_use.specificity.to_dict(),
    }
    return {"scores_without": {"edges": edges.tolist(), "gaps": gaps.tolist()}, "expected": expected}


def _population(inputs: Inputs) -> dict[str, Any]:
    """Return what the training images are, in counts of values of closed lists and bands."""
    split = read_table(inputs.file("split", "split.parquet"), SPLIT)
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)
    own = images[images["image_id"].isin(split.loc[split["split"] == "train", "image_id"])]
    stated = pd.DataFrame([header_values({str(k): v for k, v in row.items()}) for row in own.to_dict("records")])
    counts = {name: stated[name].value_counts().sort_index() for name in sorted(stated.columns)}
    return {
        "patients": int(own["patient_id"].nunique()),
        "images": len(own),
        "stated": {name: {str(value): int(n) for value, n in own.items()} for name, own in counts.items()},
    }


def _typicality(settings: PackageSettings, inputs: Inputs, networks: Sequence[Network]) -> Reference:
    """Return what new studies are compared with, by the first seed's network where there is one.

    Raises TypicalityError when patients are too few.
    """
    network = networks[0] if networks else None

    def cohort(split: str) -> Cohort:
        files = (inputs.files("preprocess", name) for name in (f"index_{split}.*", f"{split}-*"))
        images = read_images(*files).labelled()
        parts = [describe(network, images.pixels(rows, CPU)) for rows in images.chunks(IMAGES_AT_ONCE)]
        vectors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Cohort(vectors, images.index["patient_id"].to_numpy())

    return fit(cohort("train"), cohort("tune"), cohort("calibration"), settings.typicality_rate)


def _golden(inputs: Inputs) -> np.ndarray:
    """Return three arrays to test a copy of the model on: training images that may be published, else phantoms."""
    images = read_images(inputs.files("preprocess", "index_train.*"), inputs.files("preprocess", "train-*"))
    if inputs.card.identifiers == "synthetic":
        return images.raw(np.arange(min(GOLDEN_IMAGES, len(images)))).numpy()
    rng = np.random.default_rng(0)
    *_, height, width = images.shape
    falling = np.linspace(255, 0, height)[:, None] * np.ones(width)
    waves = 127 + 120 * np.sin(np.linspace(0, 9, width))[None] * np.cos(np.linspace(0, 7, height))[:, None]
    grains = rng.uniform(0, 255, (height, width))
    planes = np.stack([falling, waves, grains]).astype(np.uint8)
    count, deep = images.shape[0], len(images.shape) == 4
    each = planes[:, None]
    if count > 1:  # each channel another picture, so that a swap of them would be seen
        each = np.stack(
            [[np.roll(planes[(n - at) % 3], 5 * (n // 3), axis=1) for n in range(count)] for at in range(3)]
        )
    return np.broadcast_to(each[:, :, None] if deep else each, (3, *images.shape)).copy()
