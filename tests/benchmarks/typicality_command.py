"""Who is flagged as not typical by the commands themselves: `run` and `predict` over 20 splits. Prints JSON.

    python tests/benchmarks/typicality_command.py CHEST WORK                about an hour of two busy cores
    python tests/benchmarks/typicality_command.py CHEST WORK --splits 2     a look

CHEST is the folder chest_xray_pneumonia with labels.csv, WORK an empty folder for stores and results. `--patients` of
them are split anew by `maescreen run --until package` with each split.seed; each split trains, calibrates and packages
a small residual network (arm `cnn`, which needs no pretraining, so that no encoder has seen test patients).
`maescreen predict` then judges the image files of its test patients, one study per patient; the flagged are counted.

The reference is a binomial count with the stated rate; counts of one split also vary with the calibration patients
drawn, so that they are beta-binomial around the kept rate.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import betabinom, binom

from pipeline.imaging.pseudonyms import load_key, patient_pseudonym

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/chest_xray_cpu.yaml"
CARD = ROOT / "data_manifests/chest_xray_pneumonia/card.yaml"
FRACTIONS = {"train": 0.2, "tune": 0.1, "calibration": 0.35, "test": 0.35}


def main() -> None:
    """Measure and print, a line per split and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chest", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--patients", type=int, default=900)
    parser.add_argument("--epochs", type=int, default=4, help="of training")
    parser.add_argument("--rate", type=float, default=0.01)
    options = parser.parse_args()
    table = pd.read_csv(options.chest / "labels.csv", dtype=str)
    names = np.random.default_rng(0).permutation(np.unique(table["patient_id"]))
    chosen = take(table, names[: options.patients], options.work / "splits")
    rows = []
    for seed in range(options.splits):
        rows.append(of_split(chosen, seed, options))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(summed(rows, options.rate), indent=1))


def take(table: pd.DataFrame, patients: np.ndarray, folder: Path) -> Path:
    """Write the label table of some patients; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    table[table["patient_id"].isin(patients)].to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def settings(labels: Path, options: argparse.Namespace) -> list[str]:
    """Return the overrides that all runs share; the images that the table does not name are left out."""
    paths = pd.read_csv(labels)["path"].tolist()
    return [
        f"data.studies=[{options.chest}]",
        f"data.labels={labels}",
        f"data.card={CARD}",
        f"data.key_file={options.work / 'key'}",
        f"data.include={json.dumps(paths)}",
        f"store={labels.parent / 'store'}",
        f"reports={labels.parent / 'reports'}",
        "machine.threads=1",
        "ingest.near_duplicates=false",
    ]


def maescreen(*words: str) -> str:
    """Run a command and return what it said; one that fails ends this."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], env=environment, capture_output=True, text=True
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{words[:2]}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def of_split(labels: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one split to its package, judge its test patients' files, and count."""
    overrides = [
        *settings(labels, options),
        f"split.seed={seed}",
        f"split.fractions={json.dumps(FRACTIONS)}",
        "finetune.arms=[cnn]",
        "finetune.cnn.depth=10",
        "finetune.cnn.width=8",
        "finetune.seeds=[1]",
        f"finetune.epochs={options.epochs}",
        "finetune.warmup_epochs=1",
        "finetune.labelled_patients=[]",
        "calibrate.arm=cnn",
        "calibrate.recall_targets=[0.9]",
        f"package.typicality_rate={options.rate}",
    ]
    said = maescreen("run", str(CONFIG), *overrides, "--until", "package")
    keys = dict(re.findall(r"^(\w+) +([0-9a-f]{16}) ", said, re.MULTILINE))
    store = labels.parent / "store"
    split = pd.read_parquet(store / "split" / keys["split"] / "split.parquet")
    model = store / "package" / keys["package"] / "model"
    out = labels.parent / f"results_{seed}"
    studies = copied(split, labels, options, out.with_name(f"studies_{seed}"))
    named = out.with_name(f"studies_{seed}.csv")
    studies.to_csv(named, index=False)
    files = str(out.with_name(f"studies_{seed}"))
    maescreen("predict", str(model), files, "--out", str(out), "--table", str(named), "--no-pages", "--threads", "1")
    rows = pd.DataFrame(json.loads((out / "results.json").read_text())["results"])
    counts = split.groupby("split")["patient_id"].nunique()
    assert len(rows) == studies["study"].nunique() == counts["test"]
    return {
        "seed": seed,
        "calibration": int(counts["calibration"]),
        "test": len(rows),
        "judged": int(rows["typical"].notna().sum()),
        "flagged": int((rows["typical"] == False).sum()),  # noqa: E712 -- missing where it was not judged
    }


def copied(split: pd.DataFrame, labels: Path, options: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Copy all files of the test patients; return `path` and `study`, which is the patient."""
    secret = load_key(options.work / "key", identifiers="real")
    table = pd.read_csv(labels, dtype=str)
    pseudonyms = table["patient_id"].map(lambda name: patient_pseudonym(secret, name))
    own = table[pseudonyms.isin(split.loc[split["split"] == "test", "patient_id"])]
    for path in own["path"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.chest / path, folder / path)
    return pd.DataFrame({"path": own["path"], "study": own["patient_id"]})


def summed(rows: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Return the counts of all splits beside the limits within which 99 in 100 of them lie by chance."""
    flagged, judged = [row["flagged"] for row in rows], [row["judged"] for row in rows]
    limits = [binom.interval(0.99, number, rate) for number in judged]
    ranks = [int(rate * (row["calibration"] + 1)) for row in rows]
    both = [
        betabinom.interval(0.99, number, rank, row["calibration"] + 1 - rank)
        for number, rank, row in zip(judged, ranks, rows, strict=True)
    ]
    return {
        "stated rate": rate,
        "flagged": f"{sum(flagged)} of {sum(judged)}: {sum(flagged) / sum(judged):.4f}",
        "in each split": flagged,
        "test patients in each split": judged,
        "splits inside the exact 99 % binomial interval": inside(flagged, limits),
        "splits inside the 99 % beta-binomial interval": inside(flagged, both),
        "splits not above the binomial interval": inside(flagged, [(0.0, high) for _, high in limits]),
    }


def inside(counts: list[int], limits: list[tuple[float, float]]) -> int:
    """Return how many counts lie between their limits."""
    return int(sum(low <= count <= high for count, (low, high) in zip(counts, limits, strict=True)))


if __name__ == "__main__":
    main()
