"""Peak memory and time of segmenting one large volume by windows. Prints JSON.

    python tests/benchmarks/segmentation_memory.py --size 400 512 512 --window 64 128 128 --threads 2

A network with random weights (a tiny transformer with the decoder, one structure) segments a volume of uint8 noise that
lies in a memory map, and its mask is written into another. `peak_rss_gib` is all that the process ever held, libraries
and the pages of both memory maps included; `over_start_gib` what came on top of the imported libraries. Marks are
found, too; random weights leave few pixels above their threshold, which is set to 0.9 here, as a trained network does.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import machine

from pipeline.inference.segmentation import segment
from pipeline.models.segmenter import SegmentationSpec, Segmenter, finished
from pipeline.models.vit import EncoderSpec

KIB_PER_GIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[400, 512, 512], help="voxels, slowest axis first")
    parser.add_argument("--window", type=int, nargs=3, default=[64, 128, 128])
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = EncoderSpec(tuple(options.window), (options.patch,) * 3, 1, 96, 4, 3, (0.5,), (0.25,))
    model = Segmenter(spec, SegmentationSpec({1: "lesion"}, "lesion", 32, options.overlap, 0.9, 20)).eval()
    start = _peak_gib()
    with tempfile.TemporaryDirectory() as folder:
        volume = _mapped(Path(folder) / "volume.npy", (1, 1, *options.size))
        generator = np.random.default_rng(0)
        for plane in range(options.size[0]):
            volume[0, 0, plane] = generator.integers(0, 256, options.size[1:], dtype=np.uint8)
        volume.flush()
        mask = _mapped(Path(folder) / "mask.npy", (1, *options.size))
        started = time.perf_counter()
        found = segment([finished(model).maps], volume, mask)
        seconds = time.perf_counter() - started
    print(json.dumps({
        "size": options.size, "window": options.window, "overlap": options.overlap, "threads": options.threads,
        "peak_rss_gib": round(_peak_gib(), 2), "over_start_gib": round(_peak_gib() - start, 2),
        "seconds": round(seconds), "marks": len(found.marks[0]), "machine": machine("cpu"),
    }, indent=1))  # fmt: skip


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB


if __name__ == "__main__":
    main()
