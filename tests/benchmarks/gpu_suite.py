"""What a GPU makes of this pipeline, piece by piece, in at most 25 minutes a call:

    python tests/benchmarks/gpu_suite.py --out FOLDER [--data DIR]
    python tests/benchmarks/gpu_suite.py --out FOLDER --cpu --tiny      a look on a CPU, that the script runs

Each piece runs in a process of its own and leaves FOLDER/<piece>.json, whole or not at all; the same command goes on
with those that are missing, and FOLDER/gpu_suite.json has all that are there. A piece that fails is recorded with its
last line and tried again by the next call. Pieces:

- `peak`: the fastest product of square matrices on the spot, fp32 (TF32 off) and bf16: what shares are shares of;
- `step-<who>-<precision>`: a pretraining step of MONAI's autoencoder, MONAI's with fused kernels, Hugging Face's where
  transformers is installed, and ours with either decoder: ViT-S/16 at 224 pixels, batches 16 to 512, median time,
  images per second, memory, share of the peak; `-compiled` with torch.compile, ours alone, at one batch;
- `inference-<size>-<precision>`: images per second of the classifier, batches 1 to 256;
- `chest_xray`: with --data, configs/chest_xray.yaml to its end (studies and labels.csv in DIR), and every figure of its
  report. It goes on where it was when it takes longer than what is left of the 25 minutes.

Without a GPU it says so and leaves with code 2; with pieces missing, with code 75. Figures of a busy GPU are no
measurement: other processes on it are counted at the start, where the driver tells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measuring import machine, seconds
from pretraining_step import NAMES, PRECISIONS, build, matmul_flops_per_s, step_flops

from pipeline.models.classifier import Classifier
from pipeline.models.training import autocast
from pipeline.models.vit import EncoderSpec
from pipeline.settings.training import ENCODER_SIZES
from pipeline.store.files import write_json

NO_GPU, UNFINISHED = 2, 75
ROOT = Path(__file__).parents[2]
COUNTED_BATCH = 16  # products grow with the batch in proportion, so that they are counted once
OURS = ("self_attention", "cross_attention")
LEAST_LEFT_S = 60.0


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options; those that pieces share are set by --tiny or are those of a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder of the chest radiographs, with labels.csv")
    parser.add_argument("--minutes", type=float, default=25.0, help="of this call; what is left is for the next one")
    parser.add_argument("--cpu", action="store_true", help="on a CPU; figures of it are none of a GPU")
    parser.add_argument("--tiny", action="store_true", help="small networks, images and batches")
    parser.add_argument("--pieces", nargs="+", help="these alone")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.device = "cpu" if options.cpu else "cuda"
    options.size, options.image, options.patch = ("tiny", 32, 16) if options.tiny else ("small", 224, 16)
    options.batches = [2, 4] if options.tiny else [16, 32, 64, 128, 256, 512]
    options.judged = [1, 4] if options.tiny else [1, 32, 256]
    options.compiled_batch = 2 if options.tiny else 128
    options.rounds = 1 if options.tiny else 7
    options.decoder_width, options.decoder_depth, options.decoder_heads = (32, 1, 2) if options.tiny else (512, 8, 16)
    options.decoded_share = 1 / 3
    return options


def names(options: argparse.Namespace) -> list[str]:
    """Return the pieces in order: what is cheap and tells most comes first. Without a compiler nothing is compiled."""
    steps = [f"step-{who}-{precision}" for precision in PRECISIONS for who in NAMES]
    judged = [f"inference-{size}-{precision}" for size in _sizes(options) for precision in PRECISIONS]
    compiled = [] if options.tiny else [f"step-{who}-{precision}-compiled" for who in OURS for precision in PRECISIONS]
    return ["peak", *steps, *judged, *compiled, *(["chest_xray"] if options.data else [])]


def _sizes(options: argparse.Namespace) -> tuple[str, ...]:
    return ("tiny",) if options.tiny else ("small", "base")


# ---------------------------------------------------------------- pieces


def peak(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fastest matrix product of each precision, operations per second."""
    return {precision: matmul_flops_per_s(options.device, precision) for precision in PRECISIONS}


def pretraining_step(options: argparse.Namespace, who: str, precision: str, compiled: bool) -> dict[str, Any]:
    """Return time, memory and share of the peak of a step by batch; null for a batch that does not fit into memory.

    A model of others that cannot take a step is no fault of the suite: MONAI 1.6's autoencoder does not under autocast.
    """
    options.precision, options.compile, options.batch = precision, False, min(COUNTED_BATCH, options.batches[0])
    try:
        flops_per_image = step_flops(build(who, options)) / options.batch
    except RuntimeError as error:
        if who in OURS or isinstance(error, torch.OutOfMemoryError):
            raise
        return {"does_not_run": str(error).splitlines()[0]}
    fastest = matmul_flops_per_s(options.device, precision)
    options.compile = compiled
    found: dict[str, Any] = {}
    for batch in [options.compiled_batch] if compiled else options.batches:
        options.batch = batch
        try:
            taken, memory = _timed(lambda: build(who, options), options)
        except torch.OutOfMemoryError:
            found[f"batch_{batch}"] = None
            continue
        found[f"batch_{batch}"] = {
            "step_s": taken,
            "images_per_s": batch / taken,
            "share_of_peak": flops_per_image * batch / taken / fastest,
            "peak_memory_mib": memory,
        }
    return {"gflop_per_image": flops_per_image / 1e9, "peak_flops_per_s": fastest, **found}


def inference(options: argparse.Namespace, size: str, precision: str) -> dict[str, Any]:
    """Return images per second of the classifier by batch."""
    sides, patches = (options.image,) * 2, (options.patch,) * 2
    spec = EncoderSpec(sides, patches, 1, **ENCODER_SIZES[size], pixel_mean=(0.5,), pixel_std=(0.25,))
    model = Classifier(spec, "norm_linear").to(options.device).eval()
    found = {}
    for batch in options.judged:
        pixels = torch.rand(batch, 1, *sides, device=options.device)

        @torch.no_grad()
        def run(pixels: torch.Tensor = pixels) -> torch.Tensor:
            with autocast(torch.device(options.device), PRECISIONS[precision]):
                return model(pixels)

        taken, memory = _timed(lambda run=run: run, options)
        found[f"batch_{batch}"] = {"images_per_s": batch / taken, "peak_memory_mib": memory}
    return found


def _timed(make: Callable[[], Callable[[], object]], options: argparse.Namespace) -> tuple[float, float | None]:
    """Return the median time of a run after two to get warm, and its peak memory in MiB, which only a GPU tells."""
    gpu = options.device == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    run = make()
    for _ in range(2):
        run()
    taken = statistics.median(seconds(run, options.device) for _ in range(options.rounds))
    return taken, (torch.cuda.max_memory_allocated() - before) / 2**20 if gpu else None


def chest_xray(options: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """Run configs/chest_xray.yaml for so long, and return its report's figures. Exits when it is not at its end."""
    out = options.out.resolve()
    overrides = [
        f"data.studies=[{json.dumps(str(options.data.resolve()))}]",
        f"data.labels={options.data.resolve() / 'labels.csv'}",
        f"data.key_file={out / 'chest_xray.key'}",
        f"store={out / 'store'}",
        f"reports={out / 'reports'}",
        f"machine.device={options.device}",
        f"machine.max_minutes={minutes:.2f}",
    ]
    started = time.monotonic()
    command = [sys.executable, "-m", "pipeline.cli", "run", str(ROOT / "configs" / "chest_xray.yaml"), *overrides]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"code {done.returncode}")
    (report,) = {path.parent for path in (out / "store" / "report").glob("*/report.json")}
    answer = {"seconds_of_this_call": round(time.monotonic() - started, 1), "run": json.loads(done.stdout)}
    return answer | {"report": json.loads((report / "report.json").read_text("utf-8"))}


def result(piece: str, options: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """Return what a piece measures."""
    kind, *parts = piece.split("-")
    if kind == "peak":
        return peak(options)
    if kind == "step":
        return pretraining_step(options, parts[0], parts[1], parts[2:] == ["compiled"])
    if kind == "inference":
        return inference(options, *parts)
    return chest_xray(options, minutes)


# ---------------------------------------------------------------- one after the other


def run_pieces(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Run the pieces that are not there yet, each in a process of its own; return those that are missing then."""
    ends = time.monotonic() + 60 * options.minutes
    chosen = names(options)
    if unknown := set(options.pieces or ()) - set(chosen):
        raise SystemExit(f"there is no piece {', '.join(sorted(unknown))}; there are {', '.join(chosen)}")
    missing = []
    for piece in [one for one in chosen if one in (options.pieces or chosen)]:
        if (options.out / f"{piece}.json").is_file():
            continue
        left_s = ends - time.monotonic()
        if left_s < min(LEAST_LEFT_S, 60 * options.minutes):
            missing.append(piece)
            continue
        print(f"{piece} …", file=sys.stderr, flush=True)
        # What it has of the time is told in words, since chest_xray has to stop in time to be gone on with.
        command = [sys.executable, __file__, *words, "--piece", piece, "--minutes", f"{left_s / 60:.3f}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left_s + LEAST_LEFT_S, check=False)
            failed = (done.stderr.strip().splitlines() or ["it said nothing"])[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            failed = "it took longer than the time that was left"
        if failed:
            write_json(options.out / f"{piece}.failed.json", {"last_line": failed})
            print(f"{piece}: {failed}", file=sys.stderr, flush=True)
            missing.append(piece)
        else:
            (options.out / f"{piece}.failed.json").unlink(missing_ok=True)
    return missing


def collect(options: argparse.Namespace, missing: Sequence[str]) -> dict[str, Any]:
    """Write all pieces that are there as one file, and return it."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(options.out.glob("*.json"))
             if path.stem in names(options)}  # fmt: skip
    failed = {path.name.removesuffix(".failed.json"): json.loads(path.read_text("utf-8"))["last_line"]
              for path in sorted(options.out.glob("*.failed.json"))}  # fmt: skip
    content = {"machine": machine(options.device), "tiny": options.tiny, "pieces": found, "failed": failed}
    content["missing"] = list(missing)
    write_json(options.out / "gpu_suite.json", content)
    return content


def busy() -> str:
    """Return a remark on other processes on the GPU, where the driver tells of any."""
    try:
        found = [
            one for one in torch.cuda.list_gpu_processes().splitlines() if "process" in one and "no proc" not in one
        ]
    except Exception as error:
        return f"whether others use the GPU is not known ({type(error).__name__})"
    own = [one for one in found if str(os.getpid()) not in one]
    return f"{len(own)} other processes use the GPU: these figures are no measurement" if own else ""


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing; return the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    options = arguments(words)
    if not options.cpu and not torch.cuda.is_available():
        print("torch finds no GPU: nothing was measured; --cpu --tiny shows that the script runs", file=sys.stderr)
        return NO_GPU
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if options.piece:
        torch.manual_seed(0)
        write_json(options.out / f"{options.piece}.json", result(options.piece, options, options.minutes))
        return 0
    if not options.cpu and (remark := busy()):
        print(remark, file=sys.stderr)
    missing = run_pieces(options, words)
    print(json.dumps(collect(options, missing), indent=1))
    if missing:
        print(f"missing: {', '.join(missing)}; the same command goes on", file=sys.stderr)
    return UNFINISHED if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
