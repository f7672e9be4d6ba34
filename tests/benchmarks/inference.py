"""Images per second of the classifier, by size, batch and precision. Prints JSON.

    python tests/benchmarks/inference.py
    python tests/benchmarks/inference.py --device cuda --sizes tiny small base large --batches 1 32 256 --rounds 10

Median wall time over rounds, pixels on the device already, weights random. bf16 is measured where the pipeline uses it:
on a GPU that has it.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from measuring import Run, by_turns, machine, seconds

from pipeline.models.classifier import Classifier
from pipeline.models.training import autocast, usable_precision
from pipeline.models.vit import EncoderSpec
from pipeline.settings.training import ENCODER_SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(ENCODER_SIZES), default=["tiny", "small", "base"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--image", type=int, default=224, help="side of the image, pixels")
    parser.add_argument("--patch", type=int, default=16, help="side of a patch, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    half = usable_precision("bf16", device, lambda message: None)
    precisions = {"fp32": torch.float32} | ({"bf16": half} if half != torch.float32 else {})
    results: dict[str, dict] = {}
    for size in options.sizes:
        torch.manual_seed(0)
        sides, patches = (options.image,) * 2, (options.patch,) * 2
        spec = EncoderSpec(sides, patches, 1, **ENCODER_SIZES[size], pixel_mean=(0.5,), pixel_std=(0.25,))
        model = Classifier(spec, "norm_linear").to(device).eval()
        for batch in options.batches:
            pixels = torch.rand(batch, 1, *sides, device=device)
            runs = {name: forward(model, pixels, device, dtype) for name, dtype in precisions.items()}
            for name, taken in by_turns(runs, options.rounds, lambda run: seconds(run, options.device)).items():
                rate = round(batch / statistics.median(taken), 1)
                results.setdefault(size, {}).setdefault(name, {})[f"batch_{batch}"] = rate
    found = {"settings": vars(options), "machine": machine(options.device), "images_per_s": results}
    print(json.dumps(found, indent=2))


def forward(model: Classifier, pixels: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Run:
    @torch.no_grad()
    def run() -> torch.Tensor:
        with autocast(device, dtype):
            return model(pixels)

    return run


if __name__ == "__main__":
    main()
