"""Score the labelled images of tune, calibration and test with every trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pipeline.inference.ensemble import RECORD, WEIGHTS, Ensemble, Model
from pipeline.models.images import Images, read_images
from pipeline.models.training import prepare
from pipeline.store.files import read_json, write_json
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.score import FURTHER_SCORES, LABEL_FRACTION_SCORES, SCORES

if TYPE_CHECKING:
    from pipeline.settings.decision import ScoreSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

SPLITS = ("tune", "calibration", "test")


def score(settings: ScoreSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave the logits of every arm and seed in one table per split; images without a label are counted, not scored.

    Logits of further labels go to a table of their own, of the images that have them; an external test set has none.
    Models of fewer labelled patients are scored on test alone, in a table of their own, if there are any. An external
    test set has the split `test` alone.

    Raises WeightsError when a model's weights are not those that training recorded, ImagesError when a split has no
    image.
    """
    device = prepare(inputs.machine.device, inputs.machine.threads)
    finetuned = read_json(inputs.file("finetune", "summary.json"))
    trained = finetuned["arms"]
    models = _models(settings, inputs, trained, device)
    summary: dict[str, Any] = {"splits": {}, "flips": settings.flips}
    for split in ("test",) if inputs.test_only else SPLITS:
        names = (f"index_{split}.parquet", f"{split}-*.npy", f"further_labels_{split}.parquet")
        images = read_images(*(inputs.files("preprocess", name) for name in names))
        labelled, path = images.labelled(), work / f"scores_{split}.parquet"
        # Tables are written whole or not at all, this one last: if it is there, so is all that belongs to it.
        if not path.is_file():
            scores = _scores(models, labelled, settings.batch_size, split, log)
            if len(labelled.further):
                further = scores[scores["label_id"] != ""].dropna(subset="label")
                write_table(work / f"further_{path.name}", further.astype({"label": np.int64}), FURTHER_SCORES)
            write_table(path, _of_main(scores), SCORES)
        summary["splits"][split] = {
            "images": len(labelled),
            "patients": labelled.index["patient_id"].nunique(),
            "unlabelled_images_not_scored": len(images) - len(labelled),
            "rows": len(read_table(path, SCORES)),
        }
        log.info(f"{split}: {len(labelled)} images, {len(models)} models")
        if finetuned["labelled_patients"] and split == "test" and not inputs.test_only:
            _score_fewer(settings, inputs, finetuned["labelled_patients"], labelled, work, device, log)
    summary["arms"] = {
        arm: {seed: record["model_sha256"] for seed, record in trained[arm]["seeds"].items()} for arm in trained
    }
    write_json(work / "summary.json", summary)


def _score_fewer(
    settings: ScoreSettings,
    inputs: Inputs,
    fewer: Mapping[str, Any],
    images: Images,
    work: Path,
    device: torch.device,
    log: RunLog,
) -> None:
    """Leave the logits of the models of fewer labelled patients; `fewer` is what fine-tuning recorded of them."""
    path = work / "label_fractions_test.parquet"
    if path.is_file():
        return
    frames = []
    for count, record in fewer.items():
        models = _models(settings, inputs, record["arms"], device, f"labelled{count}/")
        scores = _of_main(_scores(models, images, settings.batch_size, f"test, {count} labelled patients", log))
        frames.append(scores.assign(labelled_patients=int(count)))
    write_table(path, pd.concat(frames, ignore_index=True), LABEL_FRACTION_SCORES)


def _models(
    settings: ScoreSettings, inputs: Inputs, arms: Mapping[str, Any], device: torch.device, folder: str = ""
) -> dict[tuple[str, int], Model]:
    """Return every model by arm and seed; `folder` is where fine-tuning left the arms."""

    def files(arm: str, seed: str) -> tuple[Path, Path]:
        place = f"{folder}{arm}/seed{seed}"
        return inputs.file("finetune", f"{place}/{RECORD}"), inputs.file("finetune", f"{place}/{WEIGHTS}")

    ensembles = {
        arm: Ensemble.load({int(seed): files(arm, seed) for seed in arms[arm]["seeds"]}, device, flips=settings.flips)
        for arm in arms
    }
    return {(arm, seed): model for arm, ensemble in ensembles.items() for seed, model in ensemble.models.items()}


def _scores(
    models: dict[tuple[str, int], Model], images: Images, batch_size: int, split: str, log: RunLog
) -> pd.DataFrame:
    """Return the columns of tables.FURTHER_SCORES, `label_id` empty for the main label; others may be missing."""
    columns = {name: images.index[name] for name in ("image_id", "patient_id")}
    label_ids = ["", *images.further]
    frames = []
    for (arm, seed), model in log.track(models.items(), f"{split}, model", len(models)):
        parts = [model(images.pixels(rows, torch.device("cpu"))) for rows in images.chunks(batch_size)]
        logits = np.concatenate(parts).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ValueError(f"arm {arm}, seed {seed} gives logits that are not finite on split {split}")
        for at, label_id in enumerate(label_ids):
            own = {"arm": arm, "seed": seed, "logit": logits[:, at], "label": images.targets[:, at]}
            frames.append(pd.DataFrame({**columns, **own, "label_id": label_id}))
    return pd.concat(frames, ignore_index=True)


def _of_main(scores: pd.DataFrame) -> pd.DataFrame:
    own = scores[scores["label_id"] == ""].drop(columns="label_id")
    return own.astype({"label": np.int64})
