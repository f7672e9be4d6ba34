"""What changes of settings are worth on a small set: python tests/benchmarks/small_sets.py CONFIG

CONFIG is what `maescreen init` wrote. Each change of a fixed list, one at a time, is run up to stage score in the
config's own store, so that what a change leaves alone is reused, and judged by the patients of `tune` and
`calibration` together, who trained nothing: AUC, and the paired difference from the settings as they are (DeLong).
The stage scores the test images, too, and nobody looks at them here. Two rows change nothing but seeds: what they
differ by is what chance in training makes of the same settings, which intervals over patients do not know.

Whoever chooses settings by this has used the patients of `calibration`: certify on others.

The last rows change what no setting does: `variants.py` runs in the place of `maescreen`.

`--start FILE` adds a row that pretrains from that encoder, of other images; `--flips horizontal vertical`, which the
card has to allow, one with mirrored training images and one that takes the mean over mirror images, too. `--only
NAME…` takes some of the fixed rows, none of them where no name follows.
Prints a line per change on stderr as it ends and JSON on stdout. Minutes per change on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from measuring import processor_seconds_of_children
from variants import VARIANTS

from pipeline.statistics.compare import delong_test
from pipeline.statistics.discrimination import roc_auc
from pipeline.statistics.patients import Patients, patients_of
from pipeline.store.tables.io import read_table
from pipeline.store.tables.score import SCORES

AS_PROPOSED = "as proposed"
CHANGES = {
    AS_PROPOSED: (),
    "other seeds of fine-tuning": ("finetune.seeds=[11, 12]",),
    "another seed of pretraining": ("pretrain.seed=18",),
    "mask ratio 0.6": ("pretrain.mask_ratio=0.6",),
    "mask ratio 0.9": ("pretrain.mask_ratio=0.9",),
    "masks in blocks": ("pretrain.mask=block",),
    "no pretraining to speak of": ("pretrain.max_steps=1",),
    "EMA of 0.99": ("finetune.ema_decay=0.99",),
    "mixup of 0.2": ("finetune.mixup=0.2",),
    "attention pooling": ("finetune.pooling=attention",),
    "96 pixels": ("preprocess.image_size=[96, 96]",),
    "128 pixels": ("preprocess.image_size=[128, 128]",),
    "patches of 4 pixels": ("pretrain.encoder.patch_size=[4, 4]",),
    **dict.fromkeys(VARIANTS, ()),
}
JUDGED_BY = ("tune", "calibration")


def chosen(options: argparse.Namespace) -> dict[str, Sequence[str]]:
    """Return the overrides of each row by its name, the settings as they are first."""
    fixed = list(CHANGES) if options.only is None else [AS_PROPOSED, *options.only]
    rows: dict[str, Sequence[str]] = {name: overrides for name, overrides in CHANGES.items() if name in fixed}
    if options.start:
        rows["start from other images"] = (
            "pretrain.start=imported",
            f"data.imported_weights={options.start.resolve()}",
        )
    if options.flips:
        mirrored = f"finetune.augmentation.flips=[{', '.join(options.flips)}]"
        rows |= {
            "mirrored images": (mirrored,),
            "mirrored, and mean over mirror images": (mirrored, "score.flips=true"),
        }
    return rows


def program(name: str) -> list[str]:
    """Return the command whose arguments are those of maescreen, and which runs the row of that name."""
    if name in VARIANTS:
        return [sys.executable, str(Path(__file__).with_name("variants.py")), name]
    return [sys.executable, "-m", "pipeline.cli"]


def run(name: str, config: Path, overrides: Sequence[str], arm: str, threads: int) -> Path:
    """Run up to score; return the folder of its artifact. Exits with what the command said if it fails."""
    settings = [f"finetune.arms=[{arm}]", f"calibrate.arm={arm}", f"machine.threads={threads}", *overrides]
    command = [*program(name), "run", str(config), *settings, "--until", "score", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return Path(json.loads(done.stdout)["artifacts"]["score"])


def judged(score: Path, arm: str) -> Patients:
    """Return the patients of tune and calibration, images aggregated by their most suspicious one."""
    tables = [read_table(score / f"scores_{split}.parquet", SCORES) for split in JUDGED_BY]
    return patients_of(pd.concat(tables, ignore_index=True), arm, "max")


def compared(changed: Patients, base: Patients) -> dict[str, Any]:
    """Return the AUC with the change, and its difference from the base's, with their 95 % limits."""
    assert list(changed.ids) == list(base.ids)
    auc, difference = roc_auc(base.y, changed.s), delong_test(base.y, changed.s, base.s)
    found = {"auc": auc.value, "auc_low": auc.low, "auc_high": auc.high}
    found |= {"difference": difference.diff, "low": difference.low, "high": difference.high}
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--arm", default="mae")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, help="encoder.safetensors of other images")
    parser.add_argument("--flips", nargs="*", default=[], help="axes that may be mirrored")
    parser.add_argument("--only", nargs="*", choices=list(CHANGES), help="some of the changes")
    options = parser.parse_args()
    base: Patients | None = None
    result: dict[str, Any] = {"arm": options.arm, "changes": {}}
    for name, overrides in chosen(options).items():
        begun, before = time.perf_counter(), processor_seconds_of_children()
        patients = judged(run(name, options.config, overrides, options.arm, options.threads), options.arm)
        base = base or patients
        row = compared(patients, base)
        row |= {
            "wall_s": round(time.perf_counter() - begun),
            "processor_s": round(processor_seconds_of_children() - before),
        }
        result |= {"patients": len(base.y), "positive_patients": int(base.y.sum())}
        result["changes"][name] = row
        print(f"{name}: {row}", file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
