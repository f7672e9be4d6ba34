"""A finished run for the report's tests: artifacts up to score are made up, calibrate and evaluate are real."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipeline.models.arms import finish
from pipeline.models.baseline import HogSpec
from pipeline.models.classifier import Classifier
from pipeline.models.vit import EncoderSpec
from pipeline.orchestration.graph import STAGES
from pipeline.settings.card import Card
from pipeline.settings.decision import CalibrateSettings, EvaluateSettings
from pipeline.settings.where import Machine
from pipeline.stages.calibrate import calibrate
from pipeline.stages.evaluate import evaluate
from pipeline.store.artifacts import Artifact, Inputs, Store
from pipeline.store.files import sha256_bytes, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables import catalogue as tables

SPLITS = {"train": 0.3, "tune": 0.1, "calibration": 0.3, "test": 0.3}
ARMS = {"mae": 2.6, "scratch": 2.0, "linear_probe": 2.2, "hog": 2.1}  # mean shift of positive scores
SEEDS = (1, 2)
SIDE = 48
READS = {stage.name: stage.reads for stage in STAGES}
SETTINGS: dict[str, dict[str, Any]] = {
    "preprocess": {"image_size": [SIDE, SIDE], "spacing_mm": None, "lower_percentile": 0.5, "upper_percentile": 99.5},
    "pretrain": {"encoder": {"patch_size": [8, 8], "width": 192, "depth": 6, "heads": 3}, "mask_ratio": 0.75,
                 "epochs": 40, "batch_size": 64, "seed": 17},
}  # fmt: skip


def card(**changes: Any) -> Card:
    """Return a dataset card; `changes` replace top-level entries."""
    content: dict[str, Any] = {
        "name": "made_up",
        "title": "Made-up chest radiographs",
        "source": "drawn from a random generator",
        "licence": "CC0-1.0",
        "attribution": "nobody",
        "label": {
            "name": "pneumonia",
            "definition": "both readers see a consolidation",
            "reference_standard": "two readers, blinded to the model; a third where they disagree",
            "positive": ["PNEUMONIA"],
            "negative": ["NORMAL"],
        },
        "columns": {"path": "path", "patient_id": "patient"},
        "identifiers": "synthetic",
        "synthetic": "everything",
        "intended_use": {
            "condition": "pneumonia",
            "population": "children aged 1 to 5 with a chest radiograph",
            "user": "a radiologist, or a clinician trained to read chest radiographs",
            "place": "before the first human reading, to put referred studies first",
            "not_for": ["adults", "lateral views", "follow-up of a known pneumonia"],
        },
        "known_traps": [
            "Children with and without pneumonia were imaged in different wards, so that the model may know the ward.",
            "The label was given on the image alone, without the later course of the illness.",
        ],
    }
    return Card.model_validate(content | changes)


def make_run(
    root: Path,
    *,
    patients: int = 1200,
    skill: float = 1.0,
    prevalence: float = 0.4,
    warning: str = "3 of 812 series cannot be read: JPEG 2000 needs the codec pack",
    cards: Card | None = None,
    text: Mapping[str, str] | None = None,
    shares: Mapping[str, float] = SPLITS,
    calibration: CalibrateSettings | None = None,
    evaluation: EvaluateSettings | None = None,
    image: np.ndarray | None = None,
    labelled: Sequence[int] = (),
    further_skill: float = 1.0,
    structures: Sequence[str] = (),
) -> Inputs:
    """Make a run in a store under `root` and return what the report stage is given.

    `skill` scales how far the scores of positive patients are shifted: 0 is a model without skill. `text` replaces
    the site of every image, the quarantine's meaning and the message of a warning by strings of the caller. `image`,
    if given, is added to a number that tells test images apart, and stands for each of them. `labelled` are numbers of
    labelled patients with which arms were trained as well: the fewer, the less they know. Further labels of the card
    are drawn at random, missing for one patient in ten, and known with `further_skill`. `structures` are drawn into the
    masks of positive images, and by arms mae and scratch into theirs, beside and apart from them.
    """
    text = dict(text or {})
    generator = np.random.default_rng(5)
    store, known = Store(root), cards or card()
    images, split = _studies(generator, patients, prevalence, text.get("site"), shares)
    artifacts: dict[str, Artifact] = {}

    def made(stage: str, fill: Callable[[Path], None], warnings: list[str] | None = None, **settings: Any) -> None:
        fill(store.begin(stage, f"{stage:0<16}"))
        artifacts[stage] = store.publish(stage, f"{stage:0<16}", _record(stage, settings, warnings or [], artifacts))

    made("ingest", lambda work: _ingest(work, images, text.get("meaning")), [text.get("warning", warning)])
    further = _further_labels(split, [label.id for label in known.further_labels])
    made("split", lambda work: _split(work, split, further))
    size = (SIDE, SIDE) if image is None else image.shape
    settings = SETTINGS["preprocess"] | {"image_size": list(size)}
    made("preprocess", lambda work: _preprocess(work, split, generator, image, structures), **settings)
    made("pretrain", _pretrain, **SETTINGS["pretrain"])
    made("finetune", lambda work: _finetune(work, size, labelled))
    reference = None if not structures else np.load(artifacts["preprocess"].path / "masks-test-000.npy")

    def scored(work: Path) -> None:
        _score(work, split, generator, skill, labelled, further, further_skill)
        if reference is not None:
            _drawn(work, split, reference)

    made("score", scored)
    for stage, function, settings in (
        ("calibrate", calibrate, calibration or CalibrateSettings(recall_targets=[0.95, 0.9, 0.99])),
        ("evaluate", evaluate, evaluation or EvaluateSettings()),
    ):
        inputs = Inputs(known, Machine(), dict(artifacts), READS[stage])
        log = RunLog(stage, quiet=True)
        function(settings, inputs, store.begin(stage, f"{stage:0<16}"), log)  # ty: the two differ in settings only
        record = _record(stage, settings.model_dump(), log.warnings, artifacts)
        artifacts[stage] = store.publish(stage, f"{stage:0<16}", record)
    return Inputs(known, Machine(), artifacts, READS["report"], kept={"pretrain": "code changed (models.mae)"})


def _record(
    stage: str, settings: dict[str, Any], warnings: list[str], before: Mapping[str, Artifact]
) -> dict[str, Any]:
    return {
        "stage": stage,
        "key": f"{stage:0<16}",
        "settings": settings,
        "inputs": {name: artifact.key for name, artifact in before.items()},
        "sources": {"ingest": {"studies": "5" * 64}, "split": {"labels": "6" * 64}}.get(stage, {}),
        "code": {f"stages.{stage}": "0" * 64},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"torch": "2.10.0", "typst": "0.15.2", "numpy": "2.4.6" if stage != "ingest" else "2.4.5"},
        "device": "cpu",
        "created": "2025-02-03T04:05:06+00:00",
        "seconds": 1.0,
        "warnings": warnings,
        "mlflow_run_id": "none",
    }


def _studies(
    generator: np.random.Generator, patients: int, prevalence: float, site: str | None, shares: Mapping[str, float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the image table and the split table: one or two images per patient."""
    patient = np.array([sha256_bytes(bytes(f"patient {i}", "ascii"))[:32] for i in range(patients)])
    label = (generator.random(patients) < prevalence).astype(int)
    part = generator.choice(list(shares), patients, p=list(shares.values()))
    who = np.repeat(np.arange(patients), generator.integers(1, 3, patients))
    n = len(who)
    images = pd.DataFrame(
        {
            "image_id": [sha256_bytes(bytes(f"image {i}", "ascii"))[:32] for i in range(n)],
            "patient_id": patient[who],
            "study_id": patient[who],
            "series_id": patient[who],
            "pixel_hash": [f"{i:064x}" for i in range(n)],
            "format": "dicom",
            "modality": "DX",
            "site": np.array(["a3f1c2d4", "b7e2f00d", "c90d1e2f"])[who % 3] if site is None else site,
            "view": np.array(["AP", "PA", ""])[generator.choice(3, n, p=[0.6, 0.35, 0.05])],
            "laterality": "",
            "body_part": "CHEST",
            "rows": 1024,
            "columns": 1024,
            "slices": 1,
            "axes": 2,
            "spacing_mm": [[0.2, 0.2]] * n,
            "photometric": "MONOCHROME2",
            "polarity_fixed": False,
            "bits_stored": 12,
            "manufacturer": np.array(["SIEMENS", "GE", "OTHER"])[who % 3],
            "sex": np.array(["F", "M", ""])[who % 7 % 3],
            "age_years": np.where(who % 11 == 0, np.nan, 1 + who % 5),
            "study_day": pd.array([0] * n, "Int64"),
            "quality_flags": "",
        }
    )
    split = pd.DataFrame(
        {
            "image_id": images["image_id"],
            "patient_id": images["patient_id"],
            "label": pd.array(label[who], "Int64"),
            "label_source": "labels.csv:label",
            "split": part[who],
            "unit": images["patient_id"],
            "given": "",
        }
    )
    return images, split


def _ingest(work: Path, images: pd.DataFrame, meaning: str | None) -> None:
    reasons = {
        "burned_in_annotation": meaning or "the header says that text is burned into the pixels",
        "no_pixels": "the file holds no image",
        "duplicate": "the same pixels came in another file of the same patient",
        "damaged": "the pixels cannot be decoded",
    }
    counts = {"burned_in_annotation": 4, "no_pixels": 2, "duplicate": 3, "damaged": 0}
    gone = sum(counts.values())
    quarantine = pd.DataFrame(
        {
            "source_id": [f"gone{i}" for i in range(gone)],
            "sha256": [f"{i:064x}" for i in range(gone)],
            "reason": [reason for reason, n in counts.items() for _ in range(n)],
            "detail": "",
        }
    )
    tables.write_table(work / "images.parquet", images, tables.IMAGES)
    tables.write_table(work / "quarantine.parquet", quarantine, tables.QUARANTINE)
    summary = {
        "received": len(images) + gone, "accepted": len(images), "quarantined": counts, "reasons": reasons,
        "patients": images["patient_id"].nunique(), "studies": images["study_id"].nunique(),
        "flags": {"clipped": 7, "aspect": 0}, "flag_meanings": {"clipped": "much at one value"},
        "duplicates": {"same_pixels": 3, "near_duplicates": 2}, "key_fingerprint": "f" * 16,
    }  # fmt: skip
    write_json(work / "summary.json", summary)


def _further_labels(split: pd.DataFrame, label_ids: Sequence[str]) -> pd.DataFrame:
    own = np.random.default_rng(7)
    people = split["patient_id"].unique()
    parts = [
        pd.DataFrame({"image_id": split["image_id"], "label_id": label_id, "label": split["patient_id"].map(known)})
        for label_id in label_ids
        for known in [pd.Series(own.choice([0, 1, np.nan], len(people), p=[0.5, 0.4, 0.1]), people)]
    ]
    return pd.concat(parts, ignore_index=True).astype({"label": "Int64"}) if parts else pd.DataFrame()


def _split(work: Path, split: pd.DataFrame, further: pd.DataFrame) -> None:
    if not further.empty:
        tables.write_table(work / "further_labels.parquet", further, tables.FURTHER_LABELS)
    tables.write_table(work / "split.parquet", split, tables.SPLIT)
    splits = {}
    for name in SPLITS:
        own = split[split["split"] == name]
        positive = own[own["label"] == 1]
        splits[name] = {
            "patients": own["patient_id"].nunique(),
            "images": len(own),
            "positive_patients": positive["patient_id"].nunique(),
            "positive_images": len(positive),
        }
    checks = {"patients_shared_between_splits": 0, "labels_without_images": 2, "images_without_labels": 0,
              "conflicting_patients": 0, "linked_patients": 5}  # fmt: skip
    write_json(work / "summary.json", {"splits": splits, **checks, "fractions": SPLITS, "seed": 17})


def _preprocess(
    work: Path,
    split: pd.DataFrame,
    generator: np.random.Generator,
    image: np.ndarray | None,
    structures: Sequence[str],
) -> None:
    own = split[split["split"] == "test"].sort_values("image_id")
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    lung = 200 * np.exp(-((np.hypot(x, y) - 0.6) ** 2) / 0.08)
    pixels = np.clip(lung + generator.normal(30, 12, (len(own), 1, SIDE, SIDE)), 0, 255).astype(np.uint8)
    if image is not None:
        pixels = (np.arange(len(own)) % 200).astype(np.uint8).reshape(-1, *[1] * (1 + image.ndim)) + image
    np.save(work / "test-000.npy", pixels)
    index = own[["image_id", "patient_id", "label"]].assign(
        shard="test-000.npy", row=np.arange(len(own)), padding=[[0.0] * 4] * len(own)
    )
    tables.write_table(work / "index_test.parquet", index, tables.INDEX)
    summary: dict[str, Any] = {"image_size": [SIDE, SIDE], "channels": 1, "dtype": "uint8"}
    if structures:
        summary["masks"] = {"structures": {str(n): name for n, name in enumerate(structures, 1)}}
        size = pixels.shape[2:]
        masks = np.zeros((len(own), *size), np.uint8)
        for at in np.flatnonzero(own["label"] == 1):
            for number in range(1, len(structures) + 1):
                masks[at][_disc(size, 100 * at + number, 4)] = number
        np.save(work / "masks-test-000.npy", masks)
        spacing = dict.fromkeys([f"spacing_{axis}_mm" for axis in "zyx"[-len(size) :]], 0.8)
        unknown = {} if len(size) == 3 else {"spacing_z_mm": np.nan}
        grid = pd.DataFrame({"image_id": own["image_id"], **unknown, **spacing})
        tables.write_table(work / "mask_grid.parquet", grid, tables.MASK_GRID)
    write_json(work / "summary.json", summary)


def _disc(size: Sequence[int], seed: int, radius: int) -> np.ndarray:
    """Return a disc, or ball, somewhere in an array."""
    centre = np.random.default_rng(seed).integers(radius, np.array(size) - radius)
    return sum((axis - at) ** 2 for axis, at in zip(np.indices(size), centre, strict=True)) <= radius**2


def _drawn(work: Path, split: pd.DataFrame, reference: np.ndarray) -> None:
    """Write what arms drew: the reference moved a little, sometimes nothing, sometimes a disc where none is."""
    ids = sorted(split.loc[split["split"] == "test", "image_id"])
    generator, rows = np.random.default_rng(3), []
    (work / "predicted_masks").mkdir()
    for arm, skill in (("mae", 0.9), ("scratch", 0.7)):
        masks = np.zeros_like(reference)
        for at, name in enumerate(ids):
            moved = np.roll(reference[at], generator.integers(-2, 3), -1)
            for number in range(1, int(reference.max()) + 1):
                there = (moved == number) & (generator.random() < skill)
                invented = _disc(there.shape, 7 * at + number, 2) if generator.random() < 0.1 else np.zeros_like(there)
                for area, low in ((there, 0.5), (invented & ~there, 0.1)):
                    if area.any():
                        masks[at][area] = number
                        peak = [int(np.median(axis)) for axis in np.nonzero(area)]
                        score = low + 0.5 * generator.random()
                        rows.append([arm, name, number, len(rows), score, *[None] * (3 - len(peak)), *peak, area.sum()])
        np.save(work / "predicted_masks" / f"{arm}-test-000.npy", masks)
    marks = pd.DataFrame(rows, columns=[column.name for column in tables.MARKS.columns])
    tables.write_table(work / "marks.parquet", marks.astype({"z": "Int64"}), tables.MARKS)


def _pretrain(work: Path) -> None:
    epochs = range(1, 41)
    history = [
        {"epoch": i, "learning_rate": 1e-4, "train_loss": 0.3 + 0.7 / i, "held_out_loss": 0.35 + 0.66 / i}
        for i in epochs
    ]
    write_json(work / "history.json", history)
    write_json(work / "model.json", {"parameters": 2_690_000, "sha256": "e" * 64})
    images = {"training_images": 500, "training_patients": 340, "held_out_images": 40, "held_out_patients": 20}
    write_json(work / "summary.json", images)
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.arange(240, dtype=np.uint8), (180, 1))).save(stream, format="png")
    (work / "reconstructions.png").write_bytes(stream.getvalue())


def _finetune(work: Path, image_size: tuple[int, ...], labelled: Sequence[int]) -> None:
    _models(work, image_size)

    def seeds(arm: str) -> dict[str, Any]:
        whole = {"mae": 75, "linear_probe": 75, "scratch": 0, "hog": 0}[arm]
        return {
            str(seed): {
                "tune_auc": 0.9 + seed / 100, "best_epoch": None if arm == "hog" else 50,
                "model_sha256": f"{list(ARMS).index(arm)}{seed}" * 32,
                "encoder_tensors_loaded": whole, "encoder_tensors": 0 if arm == "hog" else 75,
            }
            for seed in SEEDS
        }  # fmt: skip

    trained = {arm: 193 if arm == "linear_probe" else 2_690_193 for arm in ARMS}
    arms = {
        arm: {
            "description": f"what {arm} is",
            "selection": "weights after the last epoch",
            "parameters": 2_690_193,
            "trainable_parameters": trained[arm],
            "epochs": 0 if arm == "hog" else 50,
            "seeds": seeds(arm),
        }
        for arm in ARMS
    }
    fewer = {str(count): {"positive_patients": round(0.4 * count)} for count in labelled}
    counts = {"train_patients": 360, "train_positive_patients": 144, "train_images": 540, "tune_patients": 120}
    write_json(work / "summary.json", {"arms": arms, "labelled_patients": fewer, **counts})


def _models(work: Path, image_size: tuple[int, ...]) -> None:
    """Write each arm's files, with weights that were never trained."""
    spec = EncoderSpec(image_size, (8,) * len(image_size), 1, 32, 2, 2, (0.5,), (0.25,))
    for arm, seed in ((arm, seed) for arm in ARMS for seed in SEEDS):
        folder = work / arm / f"seed{seed}"
        if arm == "hog":
            hog, tensors = HogSpec((16, 16)), {"weight": torch.zeros(4), "bias": torch.zeros(1), "mean": torch.zeros(4)}
            tensors["scale"] = torch.ones(4)
            finish(folder, arm, tensors, [], {"hog": hog.to_json()}, {})
        else:
            torch.manual_seed(seed)
            model = Classifier(spec, "linear")
            finish(folder, arm, model.state_dict(), [], {"spec": spec.to_json(), "head": "linear"}, {})


def _score(
    work: Path,
    split: pd.DataFrame,
    generator: np.random.Generator,
    skill: float,
    labelled: Sequence[int],
    further: pd.DataFrame,
    further_skill: float,
) -> None:
    for name in ("tune", "calibration", "test") if not further.empty else ():
        known = split[split["split"] == name].drop(columns="label").merge(further.dropna(), on="image_id")
        parts = [
            _logits(own, np.random.default_rng(11), further_skill).assign(label_id=label_id)
            for label_id, own in known.groupby("label_id")
        ]
        tables.write_table(work / f"further_scores_{name}.parquet", pd.concat(parts), tables.FURTHER_SCORES)
    for name in ("tune", "calibration", "test"):
        own = split[split["split"] == name]
        tables.write_table(work / f"scores_{name}.parquet", _logits(own, generator, skill), tables.SCORES)
    if labelled:
        test = split[split["split"] == "test"]
        fewer = [
            _logits(test, generator, skill * (1 - 5 / count)).assign(labelled_patients=count) for count in labelled
        ]
        tables.write_table(work / "label_fractions_test.parquet", pd.concat(fewer), tables.LABEL_FRACTION_SCORES)
    write_json(work / "summary.json", {})


def _logits(own: pd.DataFrame, generator: np.random.Generator, skill: float) -> pd.DataFrame:
    """Return the scores of every arm and seed; part of each score is the image's, shared by all."""
    shared = generator.normal(0, 1, len(own))
    rows = [
        pd.DataFrame(
            {
                "image_id": own["image_id"],
                "patient_id": own["patient_id"],
                "arm": arm,
                "seed": seed,
                "logit": (
                    skill * shift * own["label"].astype(float) + 0.8 * shared + generator.normal(-1, 0.6, len(own))
                ),
                "label": own["label"].astype("int64"),
            }
        )
        for arm, shift in ARMS.items()
        for seed in SEEDS
    ]
    return pd.concat(rows, ignore_index=True)
