"""Is pretraining worth anything to a segmentation? Arms mae and scratch on the hippocampus volumes, by person. JSON.

    python tests/benchmarks/hippocampus_dice.py --data Task04_Hippocampus --out FOLDER --patients 20 50 0 --steps 800

`--data` holds images and masks: imagesTr and labelsTr of the Medical Segmentation Decathlon, task 4, or folders called
`images` and `masks`. Persons are those of data_manifests/hippocampus_volume (file numbers 2k - 1 and 2k are one), and
are divided by a hash of their name: a quarter for the test, a twentieth to tune, the others to train. All training
volumes are pretrained on, without masks; of them, `--patients` have masks (0: all; smaller sets lie within larger
ones), and every arm takes `--steps` steps, however many have. Values between the percentiles 0.5 and 99.5 of a volume
become 0 to 255; volumes are padded or cut about their middle to 40 x 56 x 40 voxels of 1 mm, which cuts off no voxel of
any mask. `--mm 2` takes means of 2 x 2 x 2 voxels and every second voxel of the masks: eight times as fast, and
comparable with nothing but itself. Stages pretrain, finetune and score are those of the pipeline; nothing is chosen by
the test patients.

Dice of a structure is by volume, on its voxels without the padding; a person's is the mean over volumes and both
structures. `difference` is mae minus scratch, paired by person. Intervals are 95 % percentile intervals of 2,000
bootstrap draws of persons. What is finished is kept in `--out`, and the same command goes on from there; a file
`labelled20.json` and so on is left for each number of persons.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
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
SIZE = (40, 56, 40)
STRUCTURES = {"1": "anterior", "2": "posterior"}
CHOSEN = ("mm", "patch", "decoder_width", "batch", "pretrain_epochs", "steps", "learning_rate", "seeds")
TEST_SHARE, TUNE_SHARE = 0.25, 0.05
READS = {stage.name: stage.reads for stage in STAGES}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is finished")
    parser.add_argument("--patients", type=int, nargs="+", default=[20, 50, 0], help="with masks; 0 = all")
    parser.add_argument("--arms", nargs="+", default=["mae", "scratch"])
    parser.add_argument("--mm", type=int, choices=[1, 2], default=1, help="side of a voxel")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--pretrain-epochs", type=int, default=100)
    parser.add_argument("--patch", type=int, default=4, help="side of a patch in mm")
    parser.add_argument("--decoder-width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1, help="volumes of a step")
    parser.add_argument("--steps", type=int, default=800, help="of each training")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    volumes = read_volumes(options.data, options.mm)
    device = Machine(device="auto", threads=options.threads)
    print(json.dumps(compared(volumes, options, Store(options.out), device), indent=1))


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
        cut, around = middle(mask.shape)
        box = tuple(slice(b // mm, -(-(side - a) // mm)) for side, (b, a) in zip(SIZE, around, strict=True))
        grey, mask = np.pad(grey[cut], around), np.pad(mask[cut], around)
        blocks = grey.reshape([n for side in SIZE for n in (side // mm, mm)])
        coarse = np.round(blocks.mean(axis=(1, 3, 5))).astype(np.uint8)
        lot = int.from_bytes(hashlib.sha256(row.patient_id.encode()).digest()[:4], "big") / 2**32
        split = "test" if lot < TEST_SHARE else "tune" if lot < TEST_SHARE + TUNE_SHARE else "train"
        rows.append((row.path, row.patient_id, int(row.label == "large"), split, lot,
                     coarse[None], mask[::mm, ::mm, ::mm], box))  # fmt: skip
    return pd.DataFrame(rows, columns=["file", "person", "label", "split", "lot", "pixels", "mask", "box"])


def middle(sides: Sequence[int]) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Return what of a volume with these sides is kept of each axis, and the padding that makes it SIZE."""
    room = [(size - side) // 2 for size, side in zip(SIZE, sides, strict=True)]
    kept = [min(size, side) for size, side in zip(SIZE, sides, strict=True)]
    before = [max(0, one) for one in room]
    after = [size - own - one for size, own, one in zip(SIZE, kept, before, strict=True)]
    cut = tuple(slice(max(0, -one), max(0, -one) + own) for one, own in zip(room, kept, strict=True))
    return cut, list(zip(before, after, strict=True))


def compared(volumes: pd.DataFrame, options: argparse.Namespace, store: Store, device: Machine) -> dict[str, Any]:
    whole = {"preprocess": preprocessed(volumes, "whole", store)}
    pretrain = PretrainSettings(
        encoder={"patch_size": [options.patch // options.mm] * 3, "width": 96, "depth": 4, "heads": 3},
        decoder="cross_attention", decoder_width=64, decoder_depth=2, decoder_heads=2, decoded_share=0.34,
        epochs=options.pretrain_epochs, batch_size=16, base_learning_rate=3.2e-2,
        warmup_epochs=options.pretrain_epochs / 10, checkpoint_every_epochs=10,
    )  # fmt: skip
    encoder = made("pretrain", "whole", pretrain, whole, store, device)
    print(json.dumps({"pretrain_seconds": seconds_of(encoder)}), flush=True)
    found = {}
    for count in options.patients:
        part = with_masks(volumes, count)
        name = f"labelled{count or 'all'}"
        artifacts = {"pretrain": encoder, "preprocess": preprocessed(part, name, store)}
        # The last epoch may be cut short, so that all take the same number of steps.
        epochs = math.ceil(options.steps * options.batch / (part["split"] == "train").sum())
        finetune = FinetuneSettings(
            task="segmentation", arms=options.arms, seeds=options.seeds, epochs=epochs, batch_size=options.batch,
            learning_rate=options.learning_rate, warmup_epochs=epochs / 10, max_steps=options.steps,
            augmentation={"crop_min": 1.0, "rotate_degrees": 7.0},
            segmentation={"image_score": "lesion", "decoder_width": options.decoder_width},
        )  # fmt: skip
        artifacts["finetune"] = made("finetune", name, finetune, artifacts, store, device)
        artifacts["score"] = made("score", name, ScoreSettings(), artifacts, store, device)
        found[name] = {
            "volumes_with_masks": int(part.loc[part["split"] == "train", "file"].nunique()),
            **figures(volumes[volumes["split"] == "test"], artifacts["score"], options.arms),
            "encoder_test": encoder_tests(artifacts["finetune"]),
            "seconds": {stage: seconds_of(artifacts[stage]) for stage in ("finetune", "score")},
        }
        write_json(options.out / f"{name}.json", found[name])
        print(json.dumps({name: found[name]}), flush=True)
    chosen = {key: getattr(options, key) for key in CHOSEN}
    persons = volumes.groupby("split")["person"].nunique().to_dict()
    return {"machine": machine("cpu"), "chosen": chosen, "persons": persons, "found": found}


def with_masks(volumes: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return all volumes but those of training persons after the first `count`; 0 leaves out none.

    Fewer volumes come several times, so that an epoch, after which the tuning volumes are looked at, is about as long.
    """
    train = volumes[volumes["split"] == "train"]
    persons = train.drop_duplicates("person").sort_values("lot")["person"]
    kept = train[train["person"].isin(persons.iloc[:count])] if count else train
    return pd.concat([volumes[volumes["split"] != "train"], *[kept] * (len(train) // len(kept))])


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
        both = {"both": persons[arm], **{name: of_person[name] for name in of_person}}
        result[arm] = {name: mean_of(values.to_numpy()) for name, values in both.items()}
    if {"mae", "scratch"} <= persons.keys():
        result["difference"] = mean_of((persons["mae"] - persons["scratch"]).to_numpy())
    return result


def mean_of(values: np.ndarray) -> dict[str, float]:
    """Return the mean over persons with its interval."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return {"mean": values.mean(), "low": low, "high": high, "persons": len(values)}


def encoder_tests(finetuned: Artifact) -> dict[str, Any]:
    arms = read_json(finetuned.path / "summary.json")["arms"]
    return {
        arm: {seed: one.get("encoder_test") for seed, one in record["seeds"].items()} for arm, record in arms.items()
    }


def preprocessed(volumes: pd.DataFrame, name: str, store: Store) -> Artifact:
    """Publish volumes and masks as preprocess leaves them; calibration, not looked at, is two tuning volumes."""
    if (done := store.find("preprocess", name)) is not None:
        return done
    work = store.begin("preprocess", name)
    for split, own in {
        **dict(list(volumes.groupby("split"))),
        "calibration": volumes[volumes["split"] == "tune"][:2],
    }.items():
        np.save(work / f"{split}-000.npy", np.stack(list(own["pixels"])))
        np.save(work / f"masks-{split}-000.npy", np.stack(list(own["mask"])))
        index = {
            "image_id": own["file"] + own.groupby("file").cumcount().map("-{}".format),
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
    if (done := store.find(stage, key)) is not None:
        return done
    needed = {name: artifacts[name] for name in READS[stage] if name in artifacts}
    inputs = Inputs(None, device, needed, READS[stage])  # type: ignore[arg-type]
    started = time.perf_counter()
    call_stage(stage, settings, inputs, store.begin(stage, key), RunLog(stage))
    return store.publish(stage, key, {"seconds": round(time.perf_counter() - started)})


def seconds_of(artifact: Artifact) -> int:
    return artifact.record["seconds"]


if __name__ == "__main__":
    main()
