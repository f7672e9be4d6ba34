"""Score the labelled images of tune, calibration and test with every trained model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pipeline.inference.ensemble import RECORD, WEIGHTS, Ensemble
from pipeline.models.finished import Finished
from pipeline.models.images import Images, read_images
from pipeline.models.marks import Mark
from pipeline.models.training import prepare
from pipeline.store.files import atomic, read_json, write_json
from pipeline.store.tables.io import INTEGER, read_table, write_table
from pipeline.store.tables.masks import NOT_ANNOTATED
from pipeline.store.tables.score import FURTHER_SCORES, LABEL_FRACTION_SCORES, MARKS, SCORES

if TYPE_CHECKING:
    from pipeline.settings.decision import ScoreSettings
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

SPLITS = ("tune", "calibration", "test")
MASKS, SCRATCH = "predicted_masks", "scratch"


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
    ensembles = _ensembles(settings, inputs, trained, device)
    models = _models(ensembles)
    segmenting = {arm: ensemble for arm, ensemble in ensembles.items() if ensemble.maps}
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
        if segmenting:
            _segment(segmenting, labelled, split, work, log)
        summary["splits"][split] = {
            "images": len(labelled),
            "patients": labelled.index["patient_id"].nunique(),
            "unlabelled_images_not_scored": len(images) - len(labelled),
            "rows": len(read_table(path, SCORES)),
        }
        log.info(f"{split}: {len(labelled)} images, {len(models)} models")
        if finetuned["labelled_patients"] and split == "test" and not inputs.test_only:
            _score_fewer(settings, inputs, finetuned["labelled_patients"], labelled, work, device, log)
    if segmenting:
        summary |= _write_marks(work)
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
        models = _models(_ensembles(settings, inputs, record["arms"], device, f"labelled{count}/"))
        scores = _of_main(_scores(models, images, settings.batch_size, f"test, {count} labelled patients", log))
        frames.append(scores.assign(labelled_patients=int(count)))
    write_table(path, pd.concat(frames, ignore_index=True), LABEL_FRACTION_SCORES)


def _ensembles(
    settings: ScoreSettings, inputs: Inputs, arms: Mapping[str, Any], device: torch.device, folder: str = ""
) -> dict[str, Ensemble]:
    """Return the models of every arm; `folder` is where fine-tuning left the arms."""

    def files(arm: str, seed: str) -> tuple[Path, Path]:
        place = f"{folder}{arm}/seed{seed}"
        return inputs.file("finetune", f"{place}/{RECORD}"), inputs.file("finetune", f"{place}/{WEIGHTS}")

    return {
        arm: Ensemble.load({int(seed): files(arm, seed) for seed in arms[arm]["seeds"]}, device, flips=settings.flips)
        for arm in arms
    }


def _models(ensembles: Mapping[str, Ensemble]) -> dict[tuple[str, int], Finished]:
    """Return every model by arm and seed."""
    return {(arm, seed): model for arm, ensemble in ensembles.items() for seed, model in ensemble.members.items()}


def _scores(
    models: dict[tuple[str, int], Finished], images: Images, batch_size: int, split: str, log: RunLog
) -> pd.DataFrame:
    """Return the columns of tables.FURTHER_SCORES, `label_id` empty for the main label; others may be missing."""
    columns = {name: images.index[name] for name in ("image_id", "patient_id")}
    label_ids = ["", *images.further]
    frames = []
    for (arm, seed), model in log.track(models.items(), f"{split}, model", len(models)):
        parts = [model.logits(images.pixels(rows, torch.device("cpu"))) for rows in images.chunks(batch_size)]
        logits = np.concatenate(parts).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ValueError(f"arm {arm}, seed {seed} gives logits that are not finite on split {split}")
        for at, label_id in enumerate(label_ids):
            own = {"arm": arm, "seed": seed, "logit": logits[:, at], "label": images.targets[:, at]}
            frames.append(pd.DataFrame({**columns, **own, "label_id": label_id}))
    return pd.concat(frames, ignore_index=True)


def _segment(ensembles: Mapping[str, Ensemble], images: Images, split: str, work: Path, log: RunLog) -> None:
    """Leave the masks that each arm finds in the images of a split, beside their arrays row by row, and its marks.

    Rows of images without a label are not scored, and hold NOT_ANNOTATED. A kill costs the shard under way.
    """
    shards = [(arm, shard) for arm in ensembles for shard in sorted(images.arrays)]
    for arm, shard in log.track(shards, f"{split}, masks", len(shards)):
        path, noted = work / MASKS / f"{arm}-{shard}", work / SCRATCH / f"{arm}-{shard}.json"
        if path.is_file() and noted.is_file():
            continue
        array = images.arrays[shard]
        rows = images.index[images.index["shard"] == shard]
        marks, left_out = [], 0
        with atomic(path) as temporary:
            shape = (len(array), *array.shape[2:])
            masks = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            masks[:] = NOT_ANNOTATED
            for image_id, row in zip(rows["image_id"], rows["row"], strict=True):
                found = ensembles[arm].segment(array[row : row + 1], masks[row : row + 1])
                marks += [[arm, image_id, *_cells(mark)] for mark in found.marks[0]]
                left_out += found.left_out
            masks.flush()
            del masks
        write_json(noted, {"marks": marks, "left_out": left_out})


def _cells(mark: Mark) -> list[Any]:
    z, y, x = (None, *mark.peak)[-3:]
    return [mark.structure, mark.mark, mark.score, z, y, x, mark.voxels]


def _write_marks(work: Path) -> dict[str, int]:
    """Write the marks of all arms and splits; return how many there are, and how many more were found."""
    pages = [read_json(path) for path in sorted((work / SCRATCH).glob("*.json"))]
    names = [column.name for column in MARKS.columns]
    table = pd.DataFrame([row for page in pages for row in page["marks"]], columns=names)
    integers = {column.name: "Int64" for column in MARKS.columns if column.type == INTEGER}
    write_table(work / "marks.parquet", table.astype({**integers, "score": np.float64}), MARKS)
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    return {"marks": len(table), "marks_left_out": sum(page["left_out"] for page in pages)}


def _of_main(scores: pd.DataFrame) -> pd.DataFrame:
    own = scores[scores["label_id"] == ""].drop(columns="label_id")
    return own.astype({"label": np.int64})
