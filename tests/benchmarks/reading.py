"""How fast files are read, beside MONAI's LoadImage and Resize on the same files in the same run. By hand:

    OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/reading.py [--rounds 7]

Prints JSON: CPU milliseconds per file on one core (median over rounds, each round reading every kind once, MONAI and
this pipeline by turns), and ratios. `ingest` is the whole verdict on a file: bytes, SHA-256, header, pixels, display
values, quality, fingerprints. `preprocess` is bytes, SHA-256, pixels and the array of 224 x 224. `header` is a slice of
a CT series, whose pixels ingest does not decode one by one. MONAI has no decoder for JPEG Lossless unless
pylibjpeg-libjpeg (GPL) is installed by hand; without it, it uses the one that this pipeline registers.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensity
from PIL import Image as pillow
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1

sys.path.insert(0, str(Path(__file__).parents[1]))

from imaging.files import make_dataset, to_bytes
from imaging.phantom import AXIAL, CT

from pipeline.imaging.archive.examination import Rules, examine
from pipeline.imaging.archive.quality import Limits
from pipeline.imaging.archive.sources import Source, read_bytes
from pipeline.imaging.image import Image, Policy
from pipeline.imaging.pseudonyms import path_pseudonym
from pipeline.imaging.read import load_image, read_image
from pipeline.imaging.transforms import Rendering, render
from pipeline.store.files import sha256_bytes

SIDE, SMALL_SIDE = 2000, 224
POLICY = Policy(max_file_bytes=1 << 30, max_pixel_bytes=1 << 30)
RULES = Rules(POLICY, Limits(), b"k" * 32)
HOW = Rendering((SMALL_SIDE, SMALL_SIDE), None, 0.5, 99.5)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 3500}


def radiograph(side: int) -> np.ndarray:
    """Return 12-bit values (side, side) with the smoothness and noise of a radiograph."""
    y, x = np.mgrid[:side, :side] / side
    smooth = 2000 + 900 * np.sin(5 * x) * np.cos(4 * y) + 500 * np.sin(40 * x * y)
    return (smooth + np.random.default_rng(0).normal(0, 20, smooth.shape)).clip(0, 4095).astype(np.uint16)


def compressed(pixels: np.ndarray, frame: bytes, syntax: str) -> bytes:
    dataset = make_dataset(pixels, TransferSyntaxUID=syntax, **WINDOW)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


def write_files(folder: Path) -> dict[str, Path]:
    """Write one file of each kind."""
    large, small = radiograph(SIDE), (radiograph(SMALL_SIDE) // 16).astype(np.uint8)
    stream = io.BytesIO()
    pillow.fromarray(small).save(stream, "JPEG", quality=90)
    contents = {
        "uncompressed": to_bytes(make_dataset(large, **WINDOW)),
        "jpeg_lossless": compressed(large, imagecodecs.ljpeg_encode(large, bitspersample=12), JPEGLosslessSV1),
        "jpeg_2000": compressed(
            large,
            imagecodecs.jpeg2k_encode(large, level=0, reversible=True, codecformat="j2k", bitspersample=12),
            JPEG2000Lossless,
        ),
        "jpeg_224": compressed(small, stream.getvalue(), JPEGBaseline8Bit),
    }
    for name, content in contents.items():
        (folder / f"{name}.dcm").write_bytes(content)
    return {name: folder / f"{name}.dcm" for name in contents}


def ingest(path: Path) -> None:
    found = examine(Source(path.name, str(path)), RULES)
    assert found.row is not None, found.refusal


def preprocess(path: Path, pixel_hash: str) -> None:
    data = read_bytes(Source(path.name, str(path)), POLICY.max_file_bytes)
    sha256_bytes(data)
    path_pseudonym(RULES.secret, path.name)
    render(load_image([data], 2, pixel_hash, POLICY), HOW)


def cpu_ms(work: Callable[[], object], repeats: int = 1) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    load = [
        LoadImage(image_only=True, reader="PydicomReader"),
        EnsureChannelFirst(channel_dim="no_channel"),
        ScaleIntensity(),
    ]
    sharp, smooth = (Compose([*load, Resize((SMALL_SIDE, SMALL_SIDE), anti_aliasing=aa)]) for aa in (False, True))
    with tempfile.TemporaryDirectory() as name:
        files = write_files(Path(name))
        hashes = {}
        for kind, path in files.items():
            image = read_image(path.read_bytes(), POLICY)
            assert isinstance(image, Image)
            hashes[kind] = image.pixel_hash()
        bare = {
            "jpeg_2000": imagecodecs.jpeg2k_encode(
                radiograph(SIDE), level=0, reversible=True, codecformat="j2k", bitspersample=12
            )
        }
        work: dict[str, dict[str, Callable[[], object]]] = {
            kind: {
                "monai": lambda path=path: smooth(path),
                "monai_without_antialiasing": lambda path=path: sharp(path),
                "ingest": lambda path=path: ingest(path),
                "preprocess": lambda path=path, kind=kind: preprocess(path, hashes[kind]),
            }
            for kind, path in files.items()
        }
        from openjpeg import decode

        work["jpeg_2000"]["bare_decoder"] = lambda: decode(bare["jpeg_2000"])
        ct = Path(name) / "slice.dcm"
        ct.write_bytes(ct_slice())
        work["header"] = {"ingest": lambda: examine(Source(ct.name, str(ct)), RULES)}
        taken: dict[str, dict[str, list[float]]] = {kind: {what: [] for what in each} for kind, each in work.items()}
        for _ in range(rounds + 1):
            for kind, each in work.items():
                for what, run in each.items():
                    repeats = 50 if kind == "header" or (kind == "jpeg_224" and "monai" not in what) else 1
                    taken[kind][what].append(cpu_ms(run, repeats))
    ms = {kind: {what: statistics.median(values[1:]) for what, values in each.items()} for kind, each in taken.items()}
    print(json.dumps({"cpu_ms_per_file": ms, "files_per_s_per_core": rates(ms), "ratios": ratios(ms)}, indent=1))


def ct_slice() -> bytes:
    plane = AXIAL.planes()[0]
    pixels = np.random.default_rng(0).integers(0, 4096, (512, 512)).astype(np.uint16)
    return to_bytes(
        make_dataset(
            pixels,
            SOPClassUID=CT,
            Modality="CT",
            StudyInstanceUID="2.25.2",
            SeriesInstanceUID="2.25.3",
            ImagePositionPatient=[*plane.position_mm],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.7, 0.7],
            **{f"{who}Name": "A^B" for who in ("Patient", "Institution")},
        )
    )


def rates(ms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {kind: {what: round(1e3 / value, 1) for what, value in each.items()} for kind, each in ms.items()}


def ratios(ms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return how many times as fast as MONAI each pass is, and both together; for JPEG 2000, beside its decoder."""
    found = {}
    for kind, each in ms.items():
        if "monai" in each:
            both = each["ingest"] + each["preprocess"]
            found[kind] = {what: round(each["monai"] / each[what], 2) for what in ("ingest", "preprocess")}
            found[kind]["both"] = round(each["monai"] / both, 2)
        if "bare_decoder" in each:
            found[kind] |= {
                f"{what}_over_bare_decoder": round(each[what] / each["bare_decoder"], 2)
                for what in ("ingest", "preprocess")
            }
    return found


if __name__ == "__main__":
    main()
