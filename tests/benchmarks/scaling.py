"""How time and memory of a pretraining step grow with image size and batch, for both decoders. Prints JSON.

    python tests/benchmarks/scaling.py
    python tests/benchmarks/scaling.py --device cuda --size base --rounds 5

Each combination runs in a process of its own: median and fastest wall time of a step, images per second, and peak
memory over what the process held before the model was built. A combination whose step would take longer than
--longest-step-s, at the time per patch of the one before it, or that runs out of memory on the GPU, is null.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from measuring import elsewhere, machine, peak_mib, seconds
from pretraining_step import PRECISIONS, our_step

from pipeline.settings.training import ENCODER_SIZES


def step(options: argparse.Namespace) -> dict[str, float] | None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        run, memory = peak_mib(lambda: our_step(options, options.kind), options.device)
    except torch.cuda.OutOfMemoryError:
        return None
    taken = [seconds(run, options.device) for _ in range(options.rounds)]
    median = statistics.median(taken)
    return {
        "step_s": median,
        "fastest_step_s": min(taken),
        "images_per_s": options.batch / median,
        "peak_memory_mib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(ENCODER_SIZES), default="tiny")
    parser.add_argument("--images", type=int, nargs="+", default=[112, 224, 448], help="sides, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--patch", type=int, default=16, help="side of a patch, pixels")
    parser.add_argument("--decoder-width", type=int, default=256)
    parser.add_argument("--decoder-depth", type=int, default=4)
    parser.add_argument("--decoder-heads", type=int, default=8)
    parser.add_argument("--decoded-share", type=float, default=1 / 3, help="of masked patches, cross_attention only")
    parser.add_argument("--longest-step-s", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="of the forward pass")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the model")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for kind in ("self_attention", "cross_attention"):
        per_patch_s = 0.0
        for image in options.images:
            for batch in options.batches:
                patches = batch * (image // options.patch) ** 2
                asked = argparse.Namespace(**vars(options), kind=kind, image=image, batch=batch)
                found = elsewhere(step, asked) if patches * per_patch_s <= options.longest_step_s else None
                if found is not None:
                    per_patch_s = found["step_s"] / patches
                results.setdefault(kind, {})[f"image_{image}_batch_{batch}"] = found
    # Last, since a forked process cannot use a GPU that this one has opened.
    torch.set_num_threads(options.threads)
    print(json.dumps({"settings": vars(options), "machine": machine(options.device), "results": results}, indent=2))


if __name__ == "__main__":
    main()
