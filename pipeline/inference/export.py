"""A packaged model handed on: a checked copy of its folder, and with it an ONNX graph that was compared with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.imaging.image import About, Image
from pipeline.imaging.transforms import Rendering, render, windows_of
from pipeline.inference.model import Model
from pipeline.inference.model_folder import GOLDEN, verified
from pipeline.store.files import sha256_file, write_json

MODEL, GRAPH, NOTE = "model", "model.onnx", "onnx.json"
SCHEMA = "onnx/1"
TOLERANCE = 1e-4  # of a logit
BITS = 12
NO_INT8 = (
    "--int8 is not built: a graph in whole numbers gives other scores, so that threshold and certificate would have to "
    "be made anew on its own scores of the calibration patients, which a packaged model does not hold"
)
NO_ONNX = "--onnx needs the packages onnx and onnxruntime: pip install 'maescreen[onnx]'"
MEANINGS = {
    "pixels": "float32 (H, W), in colour (3, H, W), (D, H, W), or (C, D, H, W) where rendering.channel_names lists "
    "channels: one image after the display chain (rescaled, windowed by the header, polarity mended, padding filled), "
    "of any size; uint16 pixels with slope and intercept become slope * value + intercept first; channels on one grid, "
    "zeros where one is missing",
    "low": "float64, (C,) with channels: lowest value shown: the rendering's window, else the image's lower percentile "
    "(rendering in model.json); 0 of a missing channel",
    "high": "float64, (C,) with channels: highest value shown, likewise",
    "spacing_mm": "float64, one per axis, slowest first; ones where the image does not say and rendering.spacing_mm "
    "is missing",
    "array": "uint8 (C, ...): what the networks see",
    "logits": "float64, one per label, that of the main label first: the mean over the networks",
}


class ExportError(ValueError):
    """The model cannot be exported; the message says why and what to do."""


def export(folder: Path, out: Path, *, onnx: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Copy a model to `out/model` and check the copy; with `onnx` write `out/model.onnx` and `out/onnx.json` as well.

    All or nothing: `out` is new or empty before, and complete after. Returns hash and files, and what the graph was
    compared on. Raises ModelError when the model is not as packaged, ExportError when `out` is not empty, a package is
    missing, or the graph's scores differ by more than TOLERANCE.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is not empty; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        work = Path(scratch) / "export"
        _, sha256 = verified(folder)
        shutil.copytree(folder, work / MODEL)
        if verified(work / MODEL)[1] != sha256:
            raise ExportError("the model was changed while it was copied; try again")
        compared = _export_graph(work, say) if onnx else None
        if out.is_dir():
            out.rmdir()
        os.rename(work, out)
    files = [MODEL, *([GRAPH, NOTE] if onnx else [])]
    return {"model_sha256": sha256, "files": [str(out / name) for name in files], "compared": compared}


def _export_graph(work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ExportError(NO_ONNX) from None
    from pipeline.inference.onnx_graph import OPSET, build

    model = Model.load(work / MODEL, device="cpu", say=say)
    if model.ensemble.maps:
        raise ExportError("a model that segments is not made of the ONNX operators known here; export without --onnx")
    if (weighted := model.ensemble.weighted) is None:
        network = model.content["network"]
        raise ExportError(
            f"arm {network['arm']} is not made of ONNX operators: {network['description']}; export without --onnx"
        )
    notes = {
        "model_sha256": model.sha256,
        "labels": ", ".join(label["name"] for label in model.content["labels"]),
        "notice": "research use only; threshold, certificate and what it is not for are in model.json",
    }
    graph = build(weighted, model.rendering, model.content["flips"], notes)
    onnx.checker.check_model(graph)
    onnx.save_model(graph, str(work / GRAPH))
    compared = compare(work / GRAPH, model)
    if not compared["largest_difference"] <= TOLERANCE:
        raise ExportError(
            f"the graph's scores differ by {compared['largest_difference']:.2g} from the model's, {TOLERANCE:g} is "
            f"allowed, on {compared['golden']} golden and {compared['drawn']} drawn images: not exported"
        )
    write_json(
        work / NOTE,
        {
            "schema": SCHEMA,
            "model_sha256": model.sha256,
            "onnx_sha256": sha256_file(work / GRAPH),
            "opset": OPSET,
            "meaning": MEANINGS,
            "compared": {**compared, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        },
    )
    return compared


def compare(graph: Path, model: Model) -> dict[str, Any]:
    """Return how far the graph's logits are from the model's, on its golden arrays and on drawn images of other sizes.

    Golden arrays are given as pixels between 0 and 255, which need no resizing; drawn ones are wider, higher, smaller,
    and larger than what the networks see.
    """
    arrays = np.load(model.folder / GOLDEN / "arrays.npy", allow_pickle=False)
    spacing = model.rendering.spacing_mm or (1.0,) * len(model.rendering.image_size)
    session = open_graph(graph)
    several = len(model.rendering.channel_names)
    lowest, highest = (np.full(several, end) if several else end for end in (0.0, FULL))
    given = [array if len(array) > 1 else array[0] for array in arrays]
    golden = [run_graph(session, pixels, lowest, highest, spacing)[1] for pixels in given]
    differences = [np.abs(np.stack(golden) - model.ensemble.logits(arrays)).max()]
    other_bytes, drawn = 0, drawings(model.rendering)
    for image in drawn:
        windows = windows_of(image, model.rendering)
        low, high = np.array(windows if several else windows[0]).T
        pixels = image.channels if len(image.channels) > 1 else image.pixels
        array, logits = run_graph(session, pixels, low, high, image.spacing_mm or spacing)
        wanted = render(image, model.rendering).pixels
        other_bytes += int((array != wanted).sum())
        differences.append(np.abs(logits - model.ensemble.logits(wanted[None])[0]).max())
    return {
        "largest_difference": float(max(differences)),
        "golden": len(arrays),
        "drawn": len(drawn),
        "pixels_that_differ": other_bytes,
    }


FULL = 255.0


def drawings(how: Rendering) -> list[Image]:
    """Return drawn images of nobody, of whole-numbered pixels: wider, higher, smaller and larger than the array."""
    rng = np.random.default_rng(0)
    images = []
    for factors in ((1.7, 1.3), (1.3, 2.1), (0.6, 0.7), (3.0, 3.0)):
        sides = [max(2, round(side * factors[n % 2])) for n, side in enumerate(how.image_size)]
        waves = [np.sin(np.linspace(0, 5 + n, side)) for n, side in enumerate(sides)]
        picture = waves[0]
        for wave in waves[1:]:
            picture = picture[..., None] * wave
        grains = rng.normal(0, 0.05, picture.shape)
        top = (how.window or (0, (1 << BITS) - 1))[1]
        bottom = (how.window or (0, 0))[0]
        values = bottom + (top - bottom) * np.clip((picture + 1) / 2 + grains, 0, 1)
        pixels, about = np.round(values).astype(np.float32), About("drawn", BITS)
        image = Image(pixels, about, spacing_mm=how.spacing_mm)
        looks = [pixels, pixels[::-1], top - pixels[:, ::-1]]
        if how.channel_names:
            joined = np.stack([looks[n % 3] / (1 + n // 3) for n in range(how.channel_count)])
            image = replace(image, pixels=joined[0], joined=joined)
        elif how.channel_count > 1:
            image = replace(image, colour=np.stack(looks))
        images.append(image)
    return images


def open_graph(path: Path) -> Any:
    """Return an ONNX Runtime session of a graph, on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(
    session: Any, pixels: np.ndarray, low: np.ndarray | float, high: np.ndarray | float, spacing_mm: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the array (C, ...) uint8 and the logits (L,) float64 of one image."""
    given = {
        "pixels": pixels.astype(np.float32),
        "low": np.asarray(low, np.float64),
        "high": np.asarray(high, np.float64),
        "spacing_mm": np.array(spacing_mm, np.float64),
    }
    array, logits = session.run(["array", "logits"], {name: np.asarray(value) for name, value in given.items()})
    return array, logits
