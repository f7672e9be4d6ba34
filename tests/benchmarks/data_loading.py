"""How fast images reach the model: our memory-mapped shards beside torch's DataLoader over a PNG file per image.

    python tests/benchmarks/data_loading.py --images 512 --batch 32 --rounds 3 [--device cuda]

Prints JSON: images per second (wall time, median over rounds in which every way takes its turn) and milliseconds of
processor time per image, each epoch over all images in random order, as float32 in [0, 1] on the device. Files are in
the memory of the operating system, so that the disk is not measured. The DataLoader opens files with Pillow or with
MONAI's LoadImage, in this process and with two workers, whose start is part of an epoch and whose processor time is not
counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import Run, by_turns, cpu_seconds, machine, seconds
from monai.transforms import LoadImage
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.models.images import Images
from pipeline.models.training import batches

SHARD = 256


class Files(Dataset):
    """A file per image, opened when asked for; items (1, H, W) float32 in [0, 1]."""

    def __init__(self, paths: list[Path], reader: str) -> None:
        self.paths = paths
        self.monai = LoadImage(image_only=True, reader="PILReader") if reader == "monai" else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        if self.monai is not None:
            # MONAI puts columns first.
            return torch.as_tensor(self.monai(self.paths[number])).T[None].float() / 255
        return torch.from_numpy(np.array(Image.open(self.paths[number])))[None].float() / 255


def write(folder: Path, count: int, side: int) -> tuple[Images, list[Path]]:
    """Write the same smooth, slightly noisy images (PNG compresses them about as it does radiographs) both ways."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 6, side)[:, None] * np.linspace(0, 3, side))
    pixels = 128 + 80 * waves + generator.normal(0, 3, (count, 1, side, side))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image[0]).save(path)
    shards = [f"{start // SHARD}.npy" for start in range(0, count, SHARD)]
    for number, name in enumerate(shards):
        np.save(folder / name, pixels[number * SHARD : (number + 1) * SHARD])
    rows = np.arange(count)
    index = pd.DataFrame({"shard": [f"{row // SHARD}.npy" for row in rows], "row": rows % SHARD})
    return Images(index, {name: np.load(folder / name, mmap_mode="r") for name in shards}), paths


def ours(images: Images, batch: int, device: torch.device) -> float:
    return sum(images.pixels(rows, device)[0, 0, 0, 0].item() for rows in batches(len(images), batch, 1, 0))


def loader(files: Files, batch: int, workers: int, device: torch.device) -> float:
    loaded = DataLoader(files, batch, shuffle=True, num_workers=workers)
    return sum(pixels.to(device)[0, 0, 0, 0].item() for pixels in loaded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=224, help="of the image, pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as name:
        images, paths = write(Path(name), options.images, options.side)
        runs: dict[str, Run] = {"memory_mapped": partial(ours, images, options.batch, device)}
        for reader in ("pillow", "monai"):
            for workers in (0, 2):
                files = Files(paths, reader)
                runs[f"{reader}_{workers}_workers"] = partial(loader, files, options.batch, workers, device)
        wall = by_turns(runs, options.rounds, lambda run: seconds(run, options.device))
        alone = {name: run for name, run in runs.items() if not name.endswith("2_workers")}
        cpu = by_turns(alone, options.rounds, lambda run: cpu_seconds(run, options.device))
    results = {
        "images_per_s": {name: round(options.images / statistics.median(taken), 1) for name, taken in wall.items()},
        "cpu_ms_per_image": {
            name: round(statistics.median(taken) / options.images * 1e3, 3) for name, taken in cpu.items()
        },
    }
    print(json.dumps({"settings": vars(options), "machine": machine(options.device), "results": results}, indent=2))


if __name__ == "__main__":
    main()
