"""False links and recall of the search for near copies, on pictures that are all alike.

    python tests/benchmarks/near_copies.py                         2,000 generated discs, a person each
    python tests/benchmarks/near_copies.py DIR LABELS.csv PATIENT  pictures under DIR; LABELS.csv has the columns path
                                                                   and PATIENT

Prints the links between different people per 1,000 people, the largest group that they make, the time, and the share
of planted copies found, by what was done to them. Files with the same bytes are true copies, and are not counted.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.imaging.copies.fingerprints import fingerprint, links

PLANTED = 150


def disc(seed: int, side: int = 160) -> np.ndarray:
    """Return a bright disc on black with shades, an optic disc and vessels of its own, uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    picture = 0.6 + 0.06 * generator.normal() - 0.25 * (x**2 + y**2)
    waves = [np.cos(np.pi * n * (np.linspace(0, 1, side) + generator.uniform(0, 2))) / (n + 1) for n in range(12)]
    picture += 0.12 * sum(generator.normal() * np.outer(waves[n], waves[m]) for n in range(6) for m in range(6, 12))
    nerve = generator.choice([-0.45, 0.45]) + generator.normal(0, 0.04), generator.normal(0, 0.05)
    picture += 0.3 * np.exp(-((x - nerve[0]) ** 2 + (y - nerve[1]) ** 2) / 0.02)
    along = np.linspace(0, 1.2, side)
    for _ in range(8):
        angle = generator.uniform(0, 2 * np.pi) + generator.normal(0, 0.6) * along
        rows, columns = nerve[1] + along * np.sin(angle), nerve[0] + along * np.cos(angle)
        places = ((np.stack([rows, columns]) + 1) * side / 2).astype(int).clip(0, side - 2)
        picture[places[0], places[1]] -= 0.1
    picture = (picture + generator.normal(0, 0.01, picture.shape)) * (x**2 + y**2 < 0.92)
    return (255 * picture.clip(0, 1)).astype(np.uint8)


def _jpeg(picture: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))


def _cropped(picture: np.ndarray, share: float) -> np.ndarray:
    rows, columns = (max(1, round(side * share / 2)) for side in picture.shape)
    return picture[rows:-rows, columns:-columns]


CHANGES = {
    "shifted by 1 pixel": lambda p: np.pad(p, ((1, 0), (1, 0)), mode="edge")[:-1, :-1],
    "brightened": lambda p: np.clip(p.astype(float) + 25, 0, 255),
    "noise 2 %": lambda p: p + np.random.default_rng(1).normal(0, 5, p.shape),
    "JPEG quality 50": _jpeg,
    "mirrored": lambda p: p[:, ::-1],
    "inverted": lambda p: 255 - p,
    "cropped by 2 %": lambda p: _cropped(p, 0.02),
    "half the size": lambda p: np.asarray(Image.fromarray(p).reduce(2)),
    "turned by 1 degree": lambda p: np.asarray(Image.fromarray(p).rotate(1, Image.Resampling.BILINEAR)),
    "equalised": lambda p: np.asarray(ImageOps.equalize(Image.fromarray(p))),
}


def search(pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return the pairs found."""
    prints = [fingerprint(np.asarray(picture, np.float32)) for picture in pictures]
    hashes = [
        np.stack([np.frombuffer(getattr(one, kind), np.uint8) for one in prints])
        for kind in ("perceptual", "mirrored", "gradient")
    ]
    small = np.stack([np.frombuffer(one.small, np.uint8) for one in prints])
    return [(link.first, link.second) for link in links(*hashes, lambda start, stop: small[start:stop])]


def read(folder: Path, table: Path, column: str) -> tuple[list[np.ndarray], list[str]]:
    """Return the pictures that the table names, in grey, and their people."""
    rows = pd.read_csv(table, dtype=str)
    return [np.asarray(Image.open(folder / path).convert("L")) for path in rows["path"]], rows[column].tolist()


def main() -> None:
    """Search once for false links, and once for copies planted among the pictures."""
    if len(sys.argv) == 4:
        pictures, people = read(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    else:
        pictures, people = [disc(seed) for seed in range(2000)], [str(seed) for seed in range(2000)]
    person, names = pd.factorize(pd.Series(people))
    began = time.perf_counter()
    found = search(pictures)
    seconds = time.perf_counter() - began
    across = [(person[a], person[b]) for a, b in found
              if person[a] != person[b] and not np.array_equal(pictures[a], pictures[b])]  # fmt: skip
    pairs = np.array(across, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(across)), tuple(pairs)), shape=(len(names),) * 2)
    largest = np.bincount(connected_components(graph, directed=False)[1]).max()
    print(f"{len(pictures)} pictures of {len(names)} people, {seconds:.1f} s with fingerprints")
    per_1000 = 1000 * len(across) / len(names)
    print(f"links between different people: {per_1000:.1f} per 1,000 people; largest group {largest}")
    chosen = np.random.default_rng(0).choice(len(pictures), min(PLANTED, len(pictures)), replace=False)
    for name, change in CHANGES.items():
        copies = [np.clip(np.asarray(change(pictures[at])), 0, 255).astype(np.uint8) for at in chosen]
        linked = set(search([*pictures, *copies]))
        share = np.mean([(int(at), len(pictures) + place) in linked for place, at in enumerate(chosen)])
        print(f"{name:<20} {share:6.1%} found")


if __name__ == "__main__":
    main()
