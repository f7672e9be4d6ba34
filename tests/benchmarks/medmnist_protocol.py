"""The official MedMNIST protocol on a .npz file: given train, validation and test images, no patients. Prints JSON.

    python tests/benchmarks/medmnist_protocol.py pneumoniamnist.npz [--arms mae hog] [--seeds 1 2 3] [--threads 2]

As the protocol has it (Yang J, et al. MedMNIST v2. Scientific Data 2023;10:41): models are fitted to `train`, `val`
alone tunes (here: the regularisation of logistic arms; networks keep their last epoch), `test` is read once; AUC, and
accuracy at a probability of 0.5, of each seed by itself with 95 % intervals over the test images (DeLong's on the logit
scale, Wilson's), then mean and standard deviation over the seeds, which say nothing of those. The stages
pretrain, finetune and score are those of the pipeline, at the images' own size, with the network that `maescreen
init` would take for it. Only labels of two classes; colour is reduced to its luminance.

What the protocol does not ask, and the pipeline would: whether one picture or one patient is in several of the splits
(in PneumoniaMNIST some are). Copies are left in, since the published figures have them; they flatter all alike.

`published` are figures of MedMNIST's authors for the test set of the file's name, without intervals; none where the
name is neither pneumoniamnist nor breastmnist, or with --held-out. Whether a file's images are the official ones is
not looked at.
A file without test images is refused, unless --held-out divides `train` by lot to make some: figures of such a run show
that the script works, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import machine

from pipeline.commands.ladder import PICTURES, pretrain_settings
from pipeline.models.arm_registry import ARMS
from pipeline.orchestration.graph import STAGES, call_stage
from pipeline.settings.decision import ScoreSettings
from pipeline.settings.training import FinetuneSettings
from pipeline.settings.where import Machine
from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.intervals import proportion_ci
from pipeline.store.artifacts import Artifact, Inputs, Store
from pipeline.store.files import write_json
from pipeline.store.runlog import RunLog
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.score import SCORES

# AUC and accuracy on the official test images of 28 pixels, or of 224, as Yang et al. 2023 give them.
PUBLISHED = {
    "pneumoniamnist": {
        "ResNet-18 (28)": (0.944, 0.854),
        "ResNet-50 (224)": (0.962, 0.884),
        "auto-sklearn": (0.942, 0.855),
        "AutoKeras": (0.947, 0.878),
        "Google AutoML Vision": (0.991, 0.946),
    },
    "breastmnist": {
        "ResNet-18 (28)": (0.901, 0.863),
        "ResNet-50 (28)": (0.857, 0.812),
        "auto-sklearn": (0.836, 0.803),
        "AutoKeras": (0.871, 0.831),
        "Google AutoML Vision": (0.919, 0.861),
    },
}
SPLITS = {"train": "train", "val": "tune", "test": "test"}
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
HELD_OUT = 5  # one of so many
READS = {stage.name: stage.reads for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--arms", nargs="+", default=["mae", "scratch", "linear_probe", "hog"], choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--pretrain-epochs", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--held-out", action="store_true")
    arguments = parser.parse_args()
    parts = read_parts(arguments.file, arguments.held_out)
    device = Machine(device=arguments.device, threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found, taken = run(parts, arguments, Store(Path(folder)), device)
    print(json.dumps({
        "file": arguments.file.name,
        "images": {name: len(labels) for name, (_, labels) in parts.items()},
        "test_images": "held out of train" if arguments.held_out else "the file's",
        "machine": machine("cpu" if arguments.device == "cpu" else _device()),
        "seconds": taken,
        "arms": found,
        "published": {} if arguments.held_out else published(arguments.file),
    }, indent=1))  # fmt: skip


def published(path: Path) -> dict[str, dict[str, float]]:
    """Return the published AUC and accuracy by model, of the set that the file is named for."""
    found = PUBLISHED.get(path.stem.lower(), {})
    return {model: {"auc": a, "accuracy": b} for model, (a, b) in found.items()}


def read_parts(path: Path, held_out: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images (N, 1, H, W) uint8 and labels (N,) by MedMNIST's names of the splits. Raises SystemExit."""
    with np.load(path, allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    parts = {
        name: (_grey(held[f"{name}_images"]), held[f"{name}_labels"].reshape(len(held[f"{name}_images"]), -1))
        for name in SPLITS
        if f"{name}_images" in held
    }
    if missing := [name for name in ("train", "val") if name not in parts]:
        raise SystemExit(f"{path.name} has no images of {' and '.join(missing)}; the protocol needs the given splits")
    if any(labels.shape[1] != 1 or not {*np.unique(labels)} <= {0, 1} for _, labels in parts.values()):
        raise SystemExit(f"{path.name} has labels of more than two classes, or several labels; this takes 0 and 1")
    if ("test" in parts) == held_out:
        raise SystemExit(
            f"{path.name} has {'' if held_out else 'no '}test images; {'leave out' if held_out else 'see'} --held-out"
        )
    found = {name: (images, labels[:, 0].astype(int)) for name, (images, labels) in parts.items()}
    if held_out:
        images, labels = found["train"]
        lot = np.random.default_rng(0).permutation(len(labels)) % HELD_OUT == 0
        found |= {"train": (images[~lot], labels[~lot]), "test": (images[lot], labels[lot])}
    return found


def _grey(images: np.ndarray) -> np.ndarray:
    grey = images if images.ndim == 3 else np.round(images @ LUMINANCE)
    return grey[:, None].astype(np.uint8)


def run(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]], arguments: argparse.Namespace, store: Store, device: Machine
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the figures by arm, and the seconds by stage."""
    artifacts = {"preprocess": _preprocessed(parts, store)}
    side = parts["train"][0].shape[-1]
    sizes = (one for one in PICTURES if not one.gpu)
    nearest = min(sizes, key=lambda one: abs(one.image_size[0] - side))
    rung = replace(nearest, image_size=(side, side))
    settings = {
        "pretrain": pretrain_settings(rung, arguments.pretrain_epochs, 64),
        "finetune": FinetuneSettings(
            arms=arguments.arms, seeds=arguments.seeds, epochs=arguments.epochs, learning_rate=rung.finetune_peak,
            warmup_epochs=3.0, hog_image_size=[side, side],
        ),
        "score": ScoreSettings(),
    }  # fmt: skip
    if not any(ARMS[arm].needs_encoder for arm in arguments.arms):
        del settings["pretrain"]
    taken = {}
    for stage, own in settings.items():
        started = time.perf_counter()
        artifacts[stage] = _made(stage, own, artifacts, store, device)
        taken[stage] = round(time.perf_counter() - started, 1)
    scores = read_table(artifacts["score"].path / "scores_test.parquet", SCORES)
    return {str(arm): _figures(of_arm) for arm, of_arm in scores.groupby("arm")}, taken


def _figures(scores: pd.DataFrame) -> dict[str, Any]:
    """Return AUC and accuracy of each seed, and mean and standard deviation over seeds."""
    seeds = [{"seed": int(str(seed))} | _of_one(own) for seed, own in scores.groupby("seed")]
    spread = {
        f"{name}_{what}": of([one[name] for one in seeds])
        for name in ("auc", "accuracy")
        for what, of in (("mean", statistics.fmean), ("sd", statistics.stdev if len(seeds) > 1 else lambda _: None))
    }
    return spread | {"seeds": seeds}


def _of_one(scores: pd.DataFrame) -> dict[str, Any]:
    labels, logits = scores["label"].to_numpy(), scores["logit"].to_numpy()
    ranked, right = roc_auc(labels, logits), int(((logits > 0) == (labels == 1)).sum())
    correct = proportion_ci(right, len(labels))
    return {
        "auc": ranked.value, "auc_95": [ranked.low, ranked.high],
        "accuracy": right / len(labels), "accuracy_95": [correct.low, correct.high],
    }  # fmt: skip


def _preprocessed(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], store: Store) -> Artifact:
    """Publish the given splits as preprocess would leave them; calibration, not looked at, is the tuning one."""
    work = store.begin("preprocess", "given")
    named = {SPLITS[name]: part for name, part in parts.items()}
    for split, (images, labels) in {**named, "calibration": named["tune"]}.items():
        np.save(work / f"{split}-000.npy", images)
        names = [f"{split}-{n}" for n in range(len(labels))]
        index = {
            "image_id": names,
            "patient_id": names,
            "label": pd.array(labels, dtype="Int64"),
            "shard": f"{split}-000.npy",
            "row": np.arange(len(labels)),
            "padding": [[0.0] * 4] * len(labels),
        }
        write_table(work / f"index_{split}.parquet", pd.DataFrame(index), INDEX)
    write_table(work / "index_pretrain.parquet", pd.DataFrame(index)[:0], INDEX)
    write_json(work / "summary.json", {"image_size": list(parts["train"][0].shape[2:])})
    return store.publish("preprocess", "given", {})


def _made(stage: str, settings: Any, artifacts: Mapping[str, Artifact], store: Store, device: Machine) -> Artifact:
    needed = {name: artifacts[name] for name in READS[stage] if name in artifacts}
    inputs = Inputs(None, device, needed, READS[stage])  # type: ignore[arg-type]
    call_stage(stage, settings, inputs, store.begin(stage, "given"), RunLog(stage))
    return store.publish(stage, "given", {})


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
