"""Augmentation beside MONAI's per-sample dictionary transforms of the same kind, in the same run. Prints JSON.

    python tests/benchmarks/augmentation.py --rounds 3 [--device cuda]

Milliseconds per image, median over rounds in which both take their turn: of processor time (all threads of the process
together; those that wait sleep, lest waiting counts as work), which is the measure, and of wall time. Ratios are taken
inside the round. `defaults` is what fine-tuning does unless told otherwise: crop, rotation, contrast and brightness.
`everything` adds flip, shear, scale, translation and gamma, rotation in every plane for volumes, and noise, blur and
cutout for half of the images, here and there. Ours takes a batch at once, MONAI image by image, as in a data loader.
With --device cuda ours works on the GPU, on images that are there already, and MONAI on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import numpy as np
import torch
from measuring import by_turns, machine, synchronise
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandCoarseDropoutd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    Resized,
)

from pipeline.models.augmentation import Augmentation

KEYS = ["image"]
CASES = {"image_224x224": ((224, 224), 32), "volume_96x96x96": ((96, 96, 96), 2)}
CROP, DEGREES, AMOUNT, GAMMA, NOISE, BLUR, CUTOUT = 0.8, 7.0, 0.1, 0.3, 0.05, 1.5, 0.3


def ours(kind: str, axes: int) -> Augmentation:
    defaults = {"crop_min": CROP, "rotate_degrees": DEGREES, "contrast": AMOUNT, "brightness": AMOUNT}
    if kind == "defaults":
        return Augmentation(**defaults)
    return Augmentation(
        **defaults, tilt_degrees=DEGREES if axes == 3 else 0.0, shear=AMOUNT, scale=AMOUNT, translate=AMOUNT,
        flips=["horizontal"], gamma=GAMMA, noise=NOISE, blur_pixels=BLUR, cutout=CUTOUT,
    )  # fmt: skip


def monais(kind: str, size: tuple[int, ...]) -> Compose:
    axes, radians = len(size), float(np.radians(DEGREES))
    crop = [
        RandSpatialCropd(KEYS, [round(side * CROP ** (1 / axes)) for side in size], random_size=True),
        Resized(KEYS, size, mode="bilinear" if axes == 2 else "trilinear"),
    ]
    values = [RandScaleIntensityd(KEYS, AMOUNT, prob=1), RandShiftIntensityd(KEYS, AMOUNT, prob=1)]
    if kind == "defaults":
        return Compose([*crop, RandRotated(KEYS, radians, prob=1, padding_mode="zeros"), *values])
    affine = RandAffined(
        KEYS, prob=1, rotate_range=[radians] * (1 if axes == 2 else 3), shear_range=[AMOUNT] * (axes * (axes - 1)),
        translate_range=[AMOUNT * side for side in size], scale_range=[AMOUNT] * axes, padding_mode="zeros",
    )  # fmt: skip
    sigmas = [(0.001, BLUR)] * 3
    return Compose([
        *crop, affine, RandFlipd(KEYS, 0.5, spatial_axis=axes - 1), RandGaussianSmoothd(KEYS, *sigmas, prob=0.5),
        RandAdjustContrastd(KEYS, prob=1, gamma=(1 - GAMMA, 1 + GAMMA)), *values,
        RandGaussianNoised(KEYS, prob=0.5, std=NOISE),
        RandCoarseDropoutd(KEYS, 1, 1, max_spatial_size=[int(CUTOUT * s) for s in size], fill_value=0, prob=0.5),
    ])  # fmt: skip


def compare(kind: str, size: tuple[int, ...], count: int, rounds: int, device: str) -> dict:
    images, numbers = torch.rand(count, 1, *size), np.arange(count)
    there, augment, transform = images.to(device), ours(kind, len(size)), monais(kind, size).set_random_state(0)
    walls: dict[str, list[float]] = {"ours": [], "monai": []}

    def timed(run: Callable[[], object]) -> float:
        synchronise(device)
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        synchronise(device)
        walls["ours" if run is runs["ours"] else "monai"].append((time.perf_counter() - wall) / count * 1e3)
        return (time.process_time() - cpu) / count * 1e3

    epochs = itertools.count()
    runs = {
        "ours": lambda: augment(there, 1, next(epochs), numbers),
        "monai": lambda: [transform({"image": image}) for image in images],
    }
    taken = by_turns(runs, rounds, timed)
    return {
        "cpu_ms_per_image": {name: round(statistics.median(values), 3) for name, values in taken.items()},
        "wall_ms_per_image": {name: round(statistics.median(values), 3) for name, values in walls.items()},
        "monai_cpu_over_ours": round(
            statistics.median(theirs / mine for mine, theirs in zip(taken["ours"], taken["monai"], strict=True)), 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="monai")
    results: dict[str, dict] = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, (size, count) in CASES.items():
            for kind in ("defaults", "everything"):
                results.setdefault(f"{name}_{kind}", {})[f"threads_{threads}"] = compare(
                    kind, size, count, options.rounds, options.device
                )
    print(json.dumps({"settings": vars(options), "machine": machine(options.device), "results": results}, indent=2))


if __name__ == "__main__":
    main()
