"""Peak memory and time of one pretraining and one fine-tuning step on volumes. Prints JSON.

    python tests/benchmarks/volume_memory.py --side 96 --patch 16 8 --size small --batch 4 --threads 2

Each step runs in a process of its own. `peak_rss_gib` is all that this process ever held, libraries included;
`over_start_gib` what came on top of the imported libraries. Two steps are taken, since the optimiser's moments exist
from the first step on; `step_s` is the second. Pretraining: mask ratio 0.75, decoder 256 × 4 with 8 heads, all masked
patches decoded; fine-tuning sees every patch and trains every layer, with drop path. Both augment as training does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.models.augmentation import Augmentation
from pipeline.models.classifier import Classifier, branch_scales
from pipeline.models.decoders import DecoderSpec
from pipeline.models.mae import MaskedAutoencoder
from pipeline.models.masking import make_mask
from pipeline.models.training import adamw, parameter_groups
from pipeline.models.vit import EncoderSpec
from pipeline.settings.training import ENCODER_SIZES

DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 256, 4, 8
MASK_RATIO, DROP_PATH, RATE, WEIGHT_DECAY, BETAS = 0.75, 0.1, 1e-4, 0.05, (0.9, 0.95)
KIB_PER_GIB = 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96, help="of the cube, voxels")
    parser.add_argument("--patch", type=int, nargs="+", default=[16, 8], help="side of a patch, voxels")
    parser.add_argument("--size", choices=list(ENCODER_SIZES), default="small")
    parser.add_argument("--decoder", choices=["self_attention", "cross_attention"], default="self_attention")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def pretraining(options: argparse.Namespace, spec: EncoderSpec) -> tuple[torch.nn.Module, Callable]:
    decoder = DecoderSpec(DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS, options.decoder)
    model = MaskedAutoencoder(spec, decoder, normalise_targets=True)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        mask = make_mask("random", torch.rand(len(pixels), spec.tokens), spec.grid, MASK_RATIO)
        return model(pixels, mask)

    return model, loss


def finetuning(options: argparse.Namespace, spec: EncoderSpec) -> tuple[torch.nn.Module, Callable]:
    model = Classifier(spec, "norm_linear")

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        scales = branch_scales(torch.rand(len(pixels), 2 * spec.depth), DROP_PATH, spec.depth)
        return F.binary_cross_entropy_with_logits(model(pixels, scales), torch.arange(len(pixels)) % 2.0)

    return model, loss


TASKS = {"pretraining": pretraining, "finetuning": finetuning}


def measure(options: argparse.Namespace, task: str, patch: int) -> dict:
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    start = _peak_gib()
    shape = ENCODER_SIZES[options.size]
    spec = EncoderSpec((options.side,) * 3, (patch,) * 3, 1, **shape, pixel_mean=(0.5,), pixel_std=(0.25,))
    model, loss = TASKS[task](options, spec)
    optimiser = adamw(parameter_groups(model, WEIGHT_DECAY), BETAS)
    for group in optimiser.param_groups:
        group["lr"] = RATE
    augment = Augmentation(crop_min=0.5, rotate_degrees=7.0, intensity=0.1)
    stored = torch.rand(options.batch, 1, *spec.image_size)
    for step in range(2):
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        loss(augment(stored, 0, step, np.arange(options.batch))).backward()
        optimiser.step()
        seconds = time.perf_counter() - began
    peak = _peak_gib()
    return {
        "task": task,
        "patch": patch,
        "patches": spec.tokens,
        "step_s": round(seconds, 2),
        "peak_rss_gib": round(peak, 2),
        "over_start_gib": round(peak - start, 2),
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB


def main() -> None:
    options = arguments()
    results = []
    for task, patch in itertools.product(TASKS, options.patch):
        # Spawned, so that no memory is inherited and the peak is this task's alone.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(measure, (options, task, patch)))
    print(json.dumps({"settings": vars(options), "torch": torch.__version__, "results": results}, indent=2))


if __name__ == "__main__":
    main()
