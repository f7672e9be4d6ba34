"""Is pretraining worth anything to a segmentation? Arms mae and scratch on the hippocampus volumes, by person. JSON.

    python tests/benchmarks/hippocampus_dice.py --data Task04_Hippocampus --patients 20 50 0 --steps 600 --threads 2

`--data` holds images and masks: imagesTr and labelsTr of the Medical Segmentation Decathlon, task 4, or folders called
`images` and `masks`. Persons are those of data_manifests/hippocampus_volume (file numbers 2k - 1 and 2k are one), and
are divided by a hash of their name: a quarter for the test, a tenth to tune, the others to train. All training volumes
are pretrained on, without masks; of them, `--patients` have masks (0: all; smaller sets lie within larger ones), and
every arm takes `--steps` steps, however many have. Values between the percentiles 0.5 and 99.5 of a volume become 0 to
255; volumes are padded to 48 x 64 x 48 voxels of 1 mm, which cuts nothing off. `--mm 2` takes means of 2 x 2 x 2 voxels
and every second voxel of the masks: eight times as fast, and comparable with nothing but itself. Stages pretrain,
finetune and score are those of the pipeline; nothing is chosen by the test patients.

Dice of a structure is by volume, on its voxels without the padding; a person's is the mean over volumes and both
structures. `difference` is mae minus scratch, paired by person, with a 95 % percentile interval of 2,000 bootstrap
draws of persons.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from measuring import machine

from pipeline.models.dice import dice
from pipeline.orchestration.graph import STAGES, call_stage
from pipeline.settings.decision import ScoreSettings
from pipeline.settings.training import FinetuneSettings, PretrainSettings
from pipeline.settings.where import Machine
from pipeline.store.artifacts import Artifact, Inputs, Store
from pipeline.store.files import read_json, write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.preprocess import INDEX

PERSONS = Path(__file__).parents[2] / "data_manifests" / "hippocampus_volume" / "labels.csv"
SIZE = (48, 64, 48)
STRUCTURES = {"1": "anterior", "2": "posterior"}
TEST_SHARE, TUNE_SHARE = 0.25, 0.1
READS = {stage.name: stage.reads for stage in STAGES}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--patients", type=int, nargs="+", default=[20, 50, 0], help="with masks; 0 = all")
    parser.add_argument("--arms", nargs="+", default=["mae", "scratch", "classical"])
    parser.add_argument("--mm", type=int, choices=[1, 2], default=1, help="side of a voxel")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--pretrain-epochs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600, help="of each training, of 8 volumes")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    volumes = read_volumes(options.data, options.mm)
    with tempfile.TemporaryDirectory() as folder:
        store, device = Store(Path(folder)), Machine(device="auto", threads=options.threads)
        print(json.dumps(compared(volumes, options, store, device), indent=1))


def read_volumes(data: Path, mm: int) -> pd.DataFrame:
    """Return a row per volume: file, person, label, split, pixels (1, D, H, W) uint8, mask, and the box in them."""
    images = next(path for path in (data / "imagesTr", data / "images") if path.is_dir())
    masks = next(path for path in (data / "labelsTr", data / "masks") if path.is_dir())
    rows = []
    for row in pd.read_csv(PERSONS).itertuples():
        values = np.asarray(nibabel.load(images / row.path).dataobj, np.float64)  # type: ignore[union-attr]
        mask = np.asarray(nibabel.load(masks / row.path).dataobj).astype(np.uint8)  # type: ignore[union-attr]
        low, high = np.percentile(values, (0.5, 99.5))
        grey = np.round(255 * np.clip((values - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
        before = [(side - own) // 2 for side, own in zip(SIZE, mask.shape, strict=True)]
        around = [(b, side - own - b) for b, side, own in zip(before, SIZE, mask.shape, strict=True)]
        box = tuple(slice(b // mm, -(-(b + own) // mm)) for b, own in zip(before, mask.shape, strict=True))
        blocks = np.pad(grey, around).reshape([n for side in SIZE for n in (side // mm, mm)])
        coarse = np.round(blocks.mean(axis=(1, 3, 5))).astype(np.uint8)
        lot = int.from_bytes(hashlib.sha256(row.patient_id.encode()).digest()[:4], "big") / 2**32
        split = "test" if lot < TEST_SHARE else "tune" if lot < TEST_SHARE + TUNE_SHARE else "train"
        rows.append((row.path, row.patient_id, int(row.label == "large"), split, lot,
                     coarse[None], np.pad(mask, around)[::mm, ::mm, ::mm], box))  # fmt: skip
    return pd.DataFrame(rows, columns=["file", "person", "label", "split", "lot", "pixels", "mask", "box"])


def compared(volumes: pd.DataFrame, options: argparse.Namespace, store: Store, device: Machine) -> dict[str, Any]:
    whole = {"preprocess": preprocessed(volumes, "whole", store)}
    pretrain = PretrainSettings(
        encoder={"patch_size": [8 // options.mm] * 3, "width": 96, "depth": 4, "heads": 3},
        decoder="cross_attention", decoder_width=64, decoder_depth=2, decoder_heads=2, decoded_share=0.34,
        epochs=options.pretrain_epochs, batch_size=16, base_learning_rate=3.2e-2,
        warmup_epochs=options.pretrain_epochs / 10, checkpoint_every_epochs=10,
    )  # fmt: skip
    started = time.perf_counter()
    encoder = made("pretrain", "whole", pretrain, whole, store, device)
    taken = {"pretrain": round(time.perf_counter() - started)}
    found = {}
    for count in options.patients:
        part = with_masks(volumes, count)
        name, images = f"labelled{count or 'all'}", int((part["split"] == "train").sum())
        artifacts = {"pretrain": encoder, "preprocess": preprocessed(part, name, store)}
        epochs = max(1, round(options.steps * 8 / images))
        finetune = FinetuneSettings(
            task="segmentation", arms=options.arms, seeds=options.seeds, epochs=epochs, batch_size=8,
            learning_rate=options.learning_rate, warmup_epochs=epochs / 10, max_steps=options.steps,
            augmentation={"crop_min": 1.0, "rotate_degrees": 7.0}, segmentation={"image_score": "head"},
        )  # fmt: skip
        started = time.perf_counter()
        artifacts["finetune"] = made("finetune", name, finetune, artifacts, store, device)
        artifacts["score"] = made("score", name, ScoreSettings(), artifacts, store, device)
        taken[name] = round(time.perf_counter() - started)
        found[name] = {
            "volumes_with_masks": images,
            **figures(volumes[volumes["split"] == "test"], artifacts["score"], options.arms),
            "encoder_test": encoder_tests(artifacts["finetune"]),
        }
        print(json.dumps({name: found[name]}), flush=True)
    chosen = {key: getattr(options, key) for key in ("mm", "pretrain_epochs", "steps", "learning_rate", "seeds")}
    persons = volumes.groupby("split")["person"].nunique().to_dict()
    return {"machine": machine("cpu"), "chosen": chosen, "persons": persons, "seconds": taken, "found": found}


def with_masks(volumes: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return all volumes but those of training persons after the first `count`; 0 leaves out none."""
    persons = volumes[volumes["split"] == "train"].drop_duplicates("person").sort_values("lot")["person"]
    left_out = persons.iloc[count:] if count else persons.iloc[:0]
    return volumes[~volumes["person"].isin(left_out)]


def figures(test: pd.DataFrame, scored: Artifact, arms: list[str]) -> dict[str, Any]:
    """Return the mean Dice over persons of each arm and structure, and what mae is above scratch."""
    numbers = [int(number) for number in STRUCTURES]
    persons, result = {}, dict[str, Any]()
    for arm in arms:
        masks = np.load(scored.path / "predicted_masks" / f"{arm}-test-000.npy", mmap_mode="r")
        volumes = zip(masks, test["mask"], test["box"], strict=True)
        overlaps = [dice(own[box], mask[box], numbers) for own, mask, box in volumes]
        each = pd.DataFrame(overlaps, columns=list(STRUCTURES.values()), index=test["person"])
        of_person = each.groupby(level=0).mean()
        persons[arm] = of_person.mean(axis=1)
        result[arm] = {"mean": float(persons[arm].mean()), **of_person.mean().to_dict()}
    if {"mae", "scratch"} <= persons.keys():
        gains = (persons["mae"] - persons["scratch"]).to_numpy()
        draws = np.random.default_rng(0).integers(0, len(gains), (2000, len(gains)))
        low, high = np.percentile(gains[draws].mean(axis=1), (2.5, 97.5))
        result["difference"] = {"mean": gains.mean(), "low": low, "high": high, "persons": len(gains)}
    return result


def encoder_tests(finetuned: Artifact) -> dict[str, Any]:
    arms = read_json(finetuned.path / "summary.json")["arms"]
    return {
        arm: {seed: one.get("encoder_test") for seed, one in record["seeds"].items()} for arm, record in arms.items()
    }


def preprocessed(volumes: pd.DataFrame, name: str, store: Store) -> Artifact:
    """Publish volumes and masks as preprocess leaves them; calibration, not looked at, is the tuning split."""
    work = store.begin("preprocess", name)
    for split, own in {
        **dict(list(volumes.groupby("split"))),
        "calibration": volumes[volumes["split"] == "tune"],
    }.items():
        np.save(work / f"{split}-000.npy", np.stack(list(own["pixels"])))
        np.save(work / f"masks-{split}-000.npy", np.stack(list(own["mask"])))
        index = {
            "image_id": own["file"],
            "patient_id": own["person"],
            "label": own["label"].astype("Int64"),
            "shard": f"{split}-000.npy",
            "row": np.arange(len(own)),
            "padding": [[0.0] * 6] * len(own),
        }
        write_table(work / f"index_{split}.parquet", pd.DataFrame(index), INDEX)
    write_table(work / "index_pretrain.parquet", read_table(work / "index_tune.parquet", INDEX)[:0], INDEX)
    size = list(volumes["mask"].iloc[0].shape)
    write_json(work / "summary.json", {"image_size": size, "masks": {"structures": STRUCTURES}})
    return store.publish("preprocess", name, {})


def made(
    stage: str, key: str, settings: Any, artifacts: Mapping[str, Artifact], store: Store, device: Machine
) -> Artifact:
    needed = {name: artifacts[name] for name in READS[stage] if name in artifacts}
    inputs = Inputs(None, device, needed, READS[stage])  # type: ignore[arg-type]
    call_stage(stage, settings, inputs, store.begin(stage, key), RunLog(stage))
    return store.publish(stage, key, {})


if __name__ == "__main__":
    main()
