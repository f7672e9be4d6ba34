"""How much AUC each arm loses on changed test images: python tests/benchmarks/robustness.py STORE/score/KEY

RUN is the folder of an artifact of stage score, or of a later one, in its store. Its models judge the test images as
they are, and after each change of corruptions.py; the loss is the AUC before minus the AUC after, of the same patients,
with a percentile interval by a paired bootstrap over patients (positives and negatives apart). The worst loss of an arm
is taken anew in each resample, so that its interval knows that it is the largest of several; it leans upwards.

This reads the test images again, which no stage does: a benchmark of finished models. Nothing may be chosen by it that
is then reported on the same patients, and the ledger does not know of it.

Prints a table on stderr and JSON on stdout. `--default` is the arm whose worst loss is to be at most half of HOG's;
unless given, the first arm of finetune.arms. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.corruptions import CORRUPTIONS, corrupted

from pipeline.inference.ensemble import Ensemble, member_files
from pipeline.models.images import Images, read_images
from pipeline.statistics.discrimination import auc_value
from pipeline.statistics.patients import aggregate_by_patient
from pipeline.store.artifacts import Artifact, Store

RESAMPLES, LEVEL = 1000, 0.95
AS_IS = "as it is"
Scores = Mapping[str, np.ndarray]  # by change, a score for each patient


def upstream(artifact: Artifact, store: Store) -> dict[str, Artifact]:
    """Return an artifact and all that it rests on, by stage, external test sets left out."""
    found = {artifact.stage: artifact}
    for name, key in artifact.record["inputs"].items():
        one = None if "@" in name else store.find(name, key)
        found |= upstream(one, store) if one is not None else {}
    return found


def artifacts_of(run: Path) -> dict[str, Artifact]:
    """Return the artifacts that a run's folder names. Exits, saying what is missing."""
    if not (run / "artifact.json").is_file():
        raise SystemExit(f"{run} is no folder of an artifact; give STORE/score/KEY of a finished run")
    store = Store(run.parents[1])
    found = upstream(Artifact(run.parent.name, run.name, run), store)
    if missing := {"finetune", "preprocess"} - set(found):
        raise SystemExit(f"{run} does not rest on {' and '.join(sorted(missing))}; give an artifact of score or later")
    return found


def test_images(preprocess: Path) -> Images:
    """Return the labelled test images."""
    return read_images([preprocess / "index_test.parquet"], sorted(preprocess.glob("test-*.npy"))).labelled()


def judged(
    models: Mapping[str, Ensemble], images: Images, how: str
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Return the patients' labels (P,), and their scores by arm and change, each (P,)."""
    pixels = images.raw(np.arange(len(images))).numpy()
    found: dict[str, dict[str, np.ndarray]] = {arm: {} for arm in models}
    labels = np.empty(0)
    for change in (AS_IS, *CORRUPTIONS):
        changed = pixels if change == AS_IS else corrupted(pixels, change)
        for arm, ensemble in models.items():
            logits = ensemble.logits(changed)[:, 0]
            labels, found[arm][change], _ = aggregate_by_patient(images.labels, logits, images.index["patient_id"], how)
    return labels, found


def resampled(labels: np.ndarray, resamples: int, seed: int = 0) -> list[np.ndarray]:
    """Return rows of patients, drawn again and again, as many of either class as there are."""
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == value) for value in (0, 1)]
    return [np.concatenate([own[generator.integers(0, len(own), len(own))] for own in classes])
            for _ in range(resamples)]  # fmt: skip


def losses(labels: np.ndarray, scores: Scores, draws: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return by change the loss of AUC: of the patients first, then of each resample, (1 + resamples,)."""
    rows = [np.arange(len(labels)), *draws]
    before = np.array([auc_value(labels[own], scores[AS_IS][own]) for own in rows])
    return {change: before - np.array([auc_value(labels[own], after[own]) for own in rows])
            for change, after in scores.items() if change != AS_IS}  # fmt: skip


def interval(values: np.ndarray) -> dict[str, float]:
    """Return the first value, and the percentile interval of the others."""
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {name: round(float(value), 4) for name, value in (("value", values[0]), ("low", low), ("high", high))}


def robustness(
    labels: np.ndarray, scores: Mapping[str, Scores], default: str, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return the AUC, the loss by change and the worst loss of each arm, and whether the default's is half of HOG's."""
    draws = resampled(labels, resamples)
    of_arm = {arm: losses(labels, own, draws) for arm, own in scores.items()}
    worst = {arm: np.max(list(own.values()), axis=0) for arm, own in of_arm.items()}
    found: dict[str, Any] = {"patients": len(labels), "positive_patients": int(labels.sum()), "arms": {}}
    for arm, own in of_arm.items():
        found["arms"][arm] = {
            "auc": round(auc_value(labels, scores[arm][AS_IS]), 4),
            "loss": {change: interval(values) for change, values in own.items()},
            "worst_loss": interval(worst[arm]),
            "worst_change": max(own, key=lambda change: own[change][0]),
        }
    if default in worst and "hog" in worst and default != "hog":
        beyond = worst[default] - worst["hog"] / 2
        found["goal"] = {
            "said": f"the worst loss of {default} is at most half of that of hog",
            "reached": bool(beyond[0] <= 0),
            "worst_loss_minus_half_of_hogs": interval(beyond),
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the losses as text, a line for each arm."""
    changes = list(CORRUPTIONS)
    lines = [f"{found['patients']} test patients, {found['positive_patients']} with the condition; loss of AUC"]
    lines.append(f"{'arm':<16}{'AUC':>7}" + "".join(f"{change:>26}" for change in (*changes, "worst")))
    for arm, own in found["arms"].items():
        cells = [*(own["loss"][change] for change in changes), own["worst_loss"]]
        texts = [f"{c['value']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f})" for c in cells]
        lines.append(f"{arm:<16}{own['auc']:>7.3f}" + "".join(f"{text:>26}" for text in texts))
    if goal := found.get("goal"):
        over = goal["worst_loss_minus_half_of_hogs"]
        met = "reached" if goal["reached"] else "not reached"
        lines.append(
            f"{goal['said']}: {met}; over it by {over['value']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f})"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of an artifact of score, or of a later stage")
    parser.add_argument("--default", help="arm that is to be robust")
    parser.add_argument("--arms", nargs="+", help="these alone; all that were trained unless given")
    parser.add_argument("--aggregation", choices=["max", "mean"], default="max", help="from images to patients")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    options = parser.parse_args()
    found = artifacts_of(options.run.resolve())
    finetune = found["finetune"]
    trained = list(json.loads((finetune.path / "summary.json").read_text())["arms"])
    arms = options.arms or trained
    if unknown := [arm for arm in arms if arm not in trained]:
        raise SystemExit(f"this run has no arm {', '.join(unknown)}; it has {', '.join(trained)}")
    device = torch.device("cpu")
    models = {arm: Ensemble.load(member_files(finetune.path / arm), device) for arm in arms}
    images = test_images(found["preprocess"].path)
    labels, scores = judged(models, images, options.aggregation)
    result = robustness(labels, scores, options.default or arms[0], options.resamples)
    result = {"finetune": finetune.key, "images": len(images), "level": LEVEL, "resamples": options.resamples} | result
    print(table(result), file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
