"""Who is flagged as not typical: held-out patients over 20 splits, and images of other kinds. Prints JSON.

    python tests/benchmarks/typicality.py DATA                            about 15 minutes of one core
    python tests/benchmarks/typicality.py DATA --patients 800 --epochs 1  a look, with fewer chest patients

DATA is a folder with chest_xray_pneumonia, skin_lesions, fundus_retinopathy, fundus_vessels, hippocampus_nifti,
ct_with_segmentation, brain_mr_sequences and pneumoniamnist_train_val.npz; those that are missing are left out, the
first is needed. Half of the patients train a small network (ViT, width 96, 4 blocks, 64 x 64 pixels) and the
reference; the other half is split 20 times into tuning, calibration and test patients. Everything is read and rendered
as the pipeline does it, colour as luminance. Shares are means over the splits, with the smallest in brackets.

The statistics were chosen on chest radiographs against these very images, and how they are put on one scale with a look
at skin lesions and volumes as the base, too. Only the shares of held-out patients owe nothing to that.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
import torch
from pydicom.data import get_testdata_files
from scipy.ndimage import gaussian_filter
from scipy.stats import betabinom, binom
from sklearn.metrics import roc_auc_score

from pipeline.imaging.image import About, Image, Policy
from pipeline.imaging.quarantine import Refused
from pipeline.imaging.read import read_image
from pipeline.imaging.transforms import Rendering, render
from pipeline.inference.description import describe
from pipeline.inference.typicality import Cohort, Reference, fit
from pipeline.models.classifier import Classifier
from pipeline.models.vit import EncoderSpec

SIDE = 64
SPLITS = 20
CHANGED = 300  # held-out images that are inverted, turned and so on
ANYTHING = Policy(
    max_file_bytes=1 << 30,
    max_pixel_bytes=1 << 31,
    accept_burned_in=True,
    accept_secondary_capture=True,
    accept_colour=True,
    assemble_slices=False,
    accept_any_kind=True,
    accept_for_processing=True,
    accept_unclear_orientation=True,
    min_side=1,
)
Vectors = dict[str, np.ndarray]


# ---------------------------------------------------------------- images


def rendered(images: Sequence[Image], size: tuple[int, ...]) -> list[np.ndarray]:
    """Return arrays (1, *size), uint8."""
    return [render(image, Rendering(size, None, 0.5, 99.5)).pixels for image in images]


def planes(image: Image) -> list[Image]:
    """Return a picture as it is, a volume as the middle plane across each axis."""
    if image.pixels.ndim == 2:
        return [image]
    spacing_mm, found = image.spacing_mm or (1.0, 1.0, 1.0), []
    for axis in range(3):
        plane = np.take(image.pixels, image.pixels.shape[axis] // 2, axis=axis)
        kept = tuple(one for place, one in enumerate(spacing_mm) if place != axis)
        found.append(replace(image, pixels=np.ascontiguousarray(plane), valid=None, spacing_mm=kept))
    return found


def opened(paths: Sequence[Path]) -> list[Image]:
    """Return the images among these files; what cannot be read as one is left out."""
    found = []
    for path in paths:
        try:
            image = read_image(path.read_bytes(), ANYTHING)
        except Refused:
            continue
        if isinstance(image, Image):
            found.append(image)
    return found


def spread_out(paths: Sequence[Path]) -> Sequence[Path]:
    """Return about 400 of the files, or all."""
    return paths[:: math.ceil(len(paths) / 400)]


def pictures(paths: Sequence[Path]) -> np.ndarray:
    """Return (N, 1, 64, 64) float32 in [0, 1]."""
    return stacked([array for image in opened(paths) for array in rendered(planes(image), (SIDE, SIDE))])


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return stored arrays as float32 in [0, 1]."""
    return np.stack(arrays).astype(np.float32) / 255


def other_kinds(data: Path) -> dict[str, np.ndarray]:
    """Return images of other kinds, by what they are."""
    package = Path(str(skimage.data.__file__)).parent
    folders = {
        "skin lesions": ("skin_lesions/images", "*.jp*g"),
        "fundus, adults": ("fundus_retinopathy/images", "*.jp*g"),
        "fundus, children": ("fundus_vessels/images", "*.*"),
        "drawn vessels": ("fundus_vessels", "masks*/*.*"),
        "hippocampus MR, three planes each": ("hippocampus_nifti/images", "*.nii.gz"),
        "brain MR slices": ("brain_mr_sequences", "*.dcm"),
    }
    paths = {name: sorted((data / folder).rglob(pattern)) for name, (folder, pattern) in folders.items()}
    ct = data / "ct_with_segmentation"
    paths["CT slices"] = sorted([*ct.glob("dcmqi/0*.dcm"), *ct.glob("totalseg/example_ct_dicom/*")])
    paths["pydicom's test files"] = [Path(path) for path in sorted(get_testdata_files()) if path.endswith(".dcm")]
    paths["scikit-image's pictures"] = [path for path in sorted(package.rglob("*")) if path.suffix in (".png", ".jpg")]
    found = {name: pictures(spread_out(files)) for name, files in paths.items() if files}
    small = data / "pneumoniamnist_train_val.npz"
    if small.exists():
        images = [Image(array.astype(np.float32), About("numpy", 8)) for array in np.load(small)["val_images"]]
        found["same source at 28 x 28 (PneumoniaMNIST)"] = stacked(rendered(images, (SIDE, SIDE)))
    generator = np.random.default_rng(5)
    levels = np.linspace(0, 1, 256, dtype=np.float32)[:, None, None, None]
    found["blank, each grey level"] = np.broadcast_to(levels, (256, 1, SIDE, SIDE)).copy()
    found["uniform noise"] = generator.random((100, 1, SIDE, SIDE), dtype=np.float32)
    return found


def changed(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return held-out images with something done to them."""
    generator = np.random.default_rng(0)
    half = SIDE // 2
    shrunk = images.reshape(-1, 1, half, 2, half, 2).mean(axis=(3, 5))
    blocks = images.reshape(-1, 1, 4, 16, 4, 16).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 16, 1, 16, 16)
    shuffled = blocks[:, generator.permutation(16)].reshape(-1, 4, 4, 1, 16, 16).transpose(0, 3, 1, 4, 2, 5)
    black = images.copy()
    black[:, :, half:] = 0
    middle = images[:, :, half // 2 : -half // 2, half // 2 : -half // 2]
    found: dict[str, np.ndarray] = {
        "inverted": 1 - images,
        "turned by 90": np.rot90(images, 1, (2, 3)),
        "turned by 270": np.rot90(images, 3, (2, 3)),
        "turned by 180": np.rot90(images, 2, (2, 3)),
        "mirrored": images[..., ::-1],
        "moved by an eighth": np.roll(images, SIDE // 8, axis=3),
        "lower half black": black,
        "middle quarter, enlarged": middle.repeat(2, axis=2).repeat(2, axis=3),
        "half the size, on black": np.pad(shrunk, ((0, 0), (0, 0), (half // 2,) * 2, (half // 2,) * 2)),
        "blocks shuffled": shuffled.reshape(-1, 1, SIDE, SIDE),
        **{f"blurred, {width} pixels": gaussian_filter(images, (0, 0, width, width)) for width in (1, 2)},
        **{f"gamma {exponent}": images**exponent for exponent in (0.5, 0.7, 1.5, 2.0)},
    }
    for noise in (0.05, 0.1, 0.2):
        found[f"noise {noise}"] = images + generator.normal(0, noise, images.shape)
    return {name: (np.round(255 * np.clip(one, 0, 1)) / 255).astype(np.float32) for name, one in found.items()}


# ---------------------------------------------------------------- network and vectors


def trained(images: np.ndarray, labels: np.ndarray, epochs: int) -> Classifier:
    """Train a small network on images and labels (N,); 0 epochs leave it as it is drawn."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    spec = EncoderSpec((SIDE, SIDE), (8, 8), 1, 96, 4, 3, (float(images.mean()),), (float(images.std()),))
    model = Classifier(spec, "norm_linear").train()
    pixels, wanted = torch.from_numpy(images), torch.from_numpy(labels.astype(np.float32))
    steps = epochs * (len(images) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps + 1, pct_start=0.15)
    for _ in range(epochs):
        for batch in np.split(generator.permutation(len(images))[: 64 * (len(images) // 64)], len(images) // 64):
            shift = [int(pixel) for pixel in generator.integers(-3, 4, 2)]
            logits = model(torch.roll(pixels[batch], shift, (2, 3)))[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def described(model: Classifier | None, images: np.ndarray) -> Vectors:
    """Return the vectors of all images."""
    parts = [describe(model, torch.from_numpy(images[start : start + 256])) for start in range(0, len(images), 256)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def at(vectors: Vectors, rows: np.ndarray) -> Vectors:
    """Return the vectors of some images."""
    return {name: vector[rows] for name, vector in vectors.items()}


# ---------------------------------------------------------------- splits


def flags(reference: Reference, vectors: Vectors, patients: np.ndarray) -> np.ndarray:
    """Return whether each patient is flagged."""
    values = pd.Series(reference.standardised(vectors).max(axis=1)).groupby(patients).max()
    return np.array([reference.p_value(value) <= reference.rate for value in values])


@dataclass(frozen=True)
class Base:
    """Images that a reference is made of: those of `training` patients, and of `rest`, which are split."""

    vectors: Vectors
    patients: np.ndarray
    training: np.ndarray
    rest: np.ndarray

    def of(self, patients: np.ndarray) -> Cohort:
        """Return some patients."""
        rows = np.isin(self.patients, patients)
        return Cohort(at(self.vectors, rows), self.patients[rows])


def over_splits(
    base: Base, others: Mapping[str, Vectors], tuning: int, calibration: int, rate: float
) -> dict[str, object]:
    """Split the rest again and again into patients for tuning, calibration and test; say who is flagged."""
    train, held, shares = base.of(base.training), [], {name: [] for name in others}
    tested = len(base.rest) - tuning - calibration
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(base.rest)
        parts = [base.of(part) for part in np.split(order, [tuning, tuning + calibration])]
        reference = fit(train, *parts[:2], rate)
        held.append(int(flags(reference, parts[2].vectors, parts[2].patients).sum()))
        for name, vectors in others.items():
            rows = np.arange(len(next(iter(vectors.values()))))
            shares[name].append(flags(reference, vectors, rows).mean())
    # The values of calibration patients that flag: when no two are equal, this share of patients is flagged.
    ranks = sum(rank / (calibration + 1) <= reference.rate for rank in range(1, calibration + 1))
    kept_rate = ranks / (calibration + 1)
    limits = {
        "binomial, stated rate": binom.interval(0.99, tested, rate),
        "binomial, kept rate": binom.interval(0.99, tested, kept_rate),
        # The share depends on the calibration patients drawn: Beta(k, n + 1 - k), so counts are beta-binomial.
        "beta-binomial": betabinom.interval(0.99, tested, ranks, calibration + 1 - ranks),
    }
    return {
        "patients": {"training": len(base.training), "tuning": tuning, "calibration": calibration, "test": tested},
        "stated rate": rate,
        "kept rate": round(kept_rate, 5),
        "held-out patients flagged": f"{sum(held)} of {tested * SPLITS}: {sum(held) / tested / SPLITS:.4f}",
        "in each split": held,
        "splits inside exact 99 % limits": {
            f"{name}, {low:.0f} to {high:.0f}": f"{within(held, low, high)} of {SPLITS}"
            for name, (low, high) in limits.items()
        },
        "splits not above the limit of the stated rate": within(held, 0, limits["binomial, stated rate"][1]),
        "others flagged": {
            name: f"{100 * np.mean(each):.1f} % ({100 * min(each):.1f})" for name, each in shares.items()
        },
    }


def within(counts: Sequence[int], low: float, high: float) -> int:
    """Return how many counts lie inside."""
    return sum(bool(low <= count <= high) for count in counts)


# ---------------------------------------------------------------- what is measured


def chest(data: Path, epochs: int, number: int | None, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Measure with chest radiographs as the base, and return the images of other kinds."""
    table = pd.read_csv(data / "chest_xray_pneumonia/labels.csv")
    names = np.random.default_rng(0).permutation(np.unique(table["patient_id"]))[:number]
    table = table[table["patient_id"].isin(names)]
    images = pictures([data / "chest_xray_pneumonia" / path for path in table["path"]])
    patients, labels = table["patient_id"].to_numpy(), table["label"].to_numpy()
    training, rest = names[: len(names) // 2], names[len(names) // 2 :]
    inside = np.isin(patients, training)
    others = other_kinds(data)
    altered = changed(images[~inside][:: math.ceil((~inside).sum() / CHANGED)])
    say(f"{len(images)} radiographs of {len(names)} patients; {', '.join(f'{len(v)} {k}' for k, v in others.items())}")
    models: dict[str, Classifier | None] = {
        f"network trained for {epochs} epochs": trained(images[inside], labels[inside], epochs),
        "network as drawn": trained(images[inside], labels[inside], 0),
        "no network": None,
    }
    for name, model in models.items():
        if model is not None:
            with torch.no_grad():
                parts = [model(torch.from_numpy(part))[:, 0] for part in np.array_split(images[~inside], 20)]
            say(f"{name}: AUC of held-out images {roc_auc_score(labels[~inside], torch.cat(parts).numpy()):.3f}")
        vectors = described(model, images)
        strange = {kind: described(model, theirs) for kind, theirs in (others | altered).items()}
        base = Base(vectors, patients, training, rest)
        full = over_splits(base, strange, len(rest) // 5, 2 * len(rest) // 5, 0.01)
        say(json.dumps({f"chest radiographs, {name}": full}, indent=1, ensure_ascii=False))
        demo = over_splits(replace(base, training=training[:412]), strange, 82, 165, 0.01)
        say(json.dumps({f"the same, as few as in the demo, {name}": demo}, indent=1, ensure_ascii=False))
    return {"chest radiographs": images[~inside][::5], **others}


def skin(data: Path, others: Mapping[str, np.ndarray], say: Callable[[str], None]) -> None:
    """Measure with skin lesions as the base, without a network; a lesion stands for a patient."""
    table = pd.read_csv(data / "skin_lesions/labels.csv")
    images = pictures([data / "skin_lesions" / path for path in table["path"]])
    lesions = table["lesion_id"].to_numpy()
    names = np.random.default_rng(0).permutation(np.unique(lesions))
    strange = {kind: described(None, theirs) for kind, theirs in others.items() if kind != "skin lesions"}
    strange |= {
        kind: described(None, theirs)
        for kind, theirs in changed(images[-CHANGED:]).items()
        if "inv" in kind or "turned" in kind
    }
    base = Base(described(None, images), lesions, names[:750], names[750:])
    found = over_splits(base, strange, 150, 300, 0.01)
    say(json.dumps({"skin lesions (luminance), no network": found}, indent=1, ensure_ascii=False))


def volumes(data: Path, say: Callable[[str], None]) -> None:
    """Measure with volumes as the base, a network as drawn."""
    size = (24, 48, 48)
    images = stacked(rendered(opened(sorted((data / "hippocampus_nifti/images").rglob("*.nii.gz"))), size))
    torch.manual_seed(0)
    spec = EncoderSpec(size, (8, 8, 8), 1, 96, 4, 3, (float(images.mean()),), (float(images.std()),))
    model = Classifier(spec, "norm_linear").eval()
    patients, half = np.arange(len(images)), images[1::2]
    strange = {
        "inverted": 1 - half,
        "turned by 90": np.rot90(half, 1, (3, 4)).copy(),
        "upside down": half[:, :, ::-1].copy(),
        "mirrored": half[..., ::-1].copy(),
        "blank": np.zeros_like(half[:1]),
        "noise 0.2": (half + np.random.default_rng(0).normal(0, 0.2, half.shape)).clip(0, 1).astype(np.float32),
    }
    vectors = {kind: described(model, theirs) for kind, theirs in strange.items()}
    base = Base(described(model, images), patients, patients[::2], patients[1::2])
    found = over_splits(base, vectors, 30, 60, 0.05)
    say(json.dumps({"hippocampus volumes, network as drawn": found}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patients", type=int, help="of the chest radiographs; all without")
    given = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)

    others = chest(given.data, given.epochs, given.patients, say)
    if (given.data / "skin_lesions").exists():
        skin(given.data, others, say)
    if (given.data / "hippocampus_nifti").exists():
        volumes(given.data, say)
