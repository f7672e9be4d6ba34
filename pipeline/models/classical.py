"""The strongest classical model: four kinds of features, each with logistic regression, chosen on the tuning images.

A comparator that nobody tuned makes a strong claim of little; four that are cheap make a weaker and truer one. Volumes
are described by what they are in three axes, or by their mean pictures along each axis.

Shapes: B images, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import local_binary_pattern
from torch import Tensor

from pipeline.models.arms import ArmData
from pipeline.models.baseline import HogSpec, Logistic, all_logits, fit_each, logistics
from pipeline.models.finished import Finished, further_labels, whole_blocks
from pipeline.models.images import Images
from pipeline.models.logistic_arms import finish_logistic

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

PICTURE_SIDES = {2: 32, 3: 16}  # of the small picture, by axes
COMPONENTS = 64
PATTERN_SIDES = {2: 64, 3: 32}
RADII, NEIGHBOURS, PATTERN_CELLS = (1, 2, 4), 8, {2: 4, 3: 2}
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
GREY_LEVELS, OFFSETS, SCALES, MEAN_CELLS = 16, (1, 3), 4, {2: 4, 3: 3}
LEAST = 1e-3  # share of the range; finer than 8 bits can show
CPU = torch.device("cpu")


def gradient_histograms(pixels: Tensor, sides: tuple[int, int]) -> np.ndarray:
    """Return HOG features (B, F) of images resized to `sides`, of volumes those of their means along each axis."""
    spec = HogSpec(sides)
    if pixels.ndim == 4:
        return spec.features(pixels)
    return np.concatenate([spec.features(pixels.mean(dim=axis)) for axis in (2, 3, 4)], axis=1)


def small_picture(pixels: Tensor, _sides: tuple[int, int]) -> np.ndarray:
    """Return every value of a small picture, all channels: 32 x 32 pixels, or 16 x 16 x 16."""
    return _resized(pixels, PICTURE_SIDES).flatten(1).double().numpy()


def binary_patterns(pixels: Tensor, _sides: tuple[int, int]) -> np.ndarray:
    """Return shares of uniform local binary patterns (Ojala et al. 2002) in each cell of a grid, by radius.

    Of a volume the patterns of the slices along each axis, all slices together (LBP-TOP, Zhao and Pietikäinen 2007).
    """
    axes = pixels.ndim - 2
    grey = (_resized(pixels.mean(dim=1, keepdim=True), PATTERN_SIDES)[:, 0] * 255).round().to(torch.uint8).numpy()
    stacks = [grey[:, None]] if axes == 2 else [np.moveaxis(grey, axis, 1) for axis in (1, 2, 3)]
    radii = RADII if axes == 2 else RADII[:2]
    return np.array([
        [share for stack in stacks for radius in radii for share in _patterns(stack[at], radius, PATTERN_CELLS[axes])]
        for at in range(len(grey))
    ])  # fmt: skip


def _patterns(slices: np.ndarray, radius: int, cells: int) -> list[float]:
    """Return the share of each pattern in each cell, over all slices (N, H, W)."""
    codes = np.stack([local_binary_pattern(one, NEIGHBOURS, radius, "uniform") for one in slices]).astype(int)
    parts = [part for rows in np.array_split(codes, cells, 1) for part in np.array_split(rows, cells, 2)]
    return [share for part in parts
            for share in np.bincount(part.ravel(), minlength=NEIGHBOURS + 2) / part.size]  # fmt: skip


def statistics(pixels: Tensor, _sides: tuple[int, int]) -> np.ndarray:
    """Return moments, percentiles, means of a coarse grid, fineness of detail, and Haralick's texture measures."""
    exact = pixels.cpu().double()
    axes = exact.ndim - 2
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if axes == 2 else F.adaptive_avg_pool3d
    coarse = pool(exact, (MEAN_CELLS[axes],) * axes).flatten(1).numpy()
    values = exact.flatten(2).numpy()
    mean, spread = values.mean(axis=2), values.std(axis=2)
    centred = (values - mean[:, :, None]) / np.maximum(spread, LEAST)[:, :, None]
    moments = [mean, spread, (centred**3).mean(axis=2), (centred**4).mean(axis=2)]
    ranks = np.percentile(values, PERCENTILES, axis=2)
    grey = exact.mean(dim=1).numpy()
    texture = np.array([[value for offset in OFFSETS for value in _texture(one, offset)] for one in grey])
    return np.concatenate([*moments, *ranks, coarse, _detail(exact), texture], axis=1)


def _detail(pixels: Tensor) -> np.ndarray:
    """Return the logarithm of the mean step from pixel to pixel, per channel, axis and scale."""
    pool: Callable[..., Tensor] = F.avg_pool2d if pixels.ndim == 4 else F.avg_pool3d
    steps = []
    for scale in range(SCALES):
        if scale and min(pixels.shape[2:]) >= 4:
            pixels = pool(pixels, 2)
        steps += [pixels.diff(dim=axis).abs().flatten(2).mean(dim=2) for axis in range(2, pixels.ndim)]
    return torch.cat(steps, dim=1).add(LEAST).log().numpy()


def _texture(grey: np.ndarray, offset: int) -> list[float]:
    """Return contrast, homogeneity, energy, entropy and correlation of how grey levels stand beside each other.

    Co-occurrence at `offset` pixels along each axis, both ways and all axes together (Haralick et al. 1973).
    """
    levels = np.clip((grey * GREY_LEVELS).astype(int), 0, GREY_LEVELS - 1)
    counts = np.zeros(GREY_LEVELS**2)
    for axis, side in enumerate(levels.shape):
        if side > offset:
            near, far = np.split(levels, [side - offset], axis)[0], np.split(levels, [offset], axis)[1]
            counts += np.bincount((near * GREY_LEVELS + far).ravel(), minlength=GREY_LEVELS**2)
    shares = counts.reshape(GREY_LEVELS, GREY_LEVELS)
    shares = (shares + shares.T) / max(2 * shares.sum(), 1)
    rows, columns = np.indices(shares.shape)
    gap, mean = (rows - columns) ** 2, (rows * shares).sum()
    variance = ((rows - mean) ** 2 * shares).sum()
    along = ((rows - mean) * (columns - mean) * shares).sum() / variance if variance > 0 else 0.0
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    return [(gap * shares).sum(), (shares / (1 + gap)).sum(), (shares**2).sum(), entropy, along]


def _resized(pixels: Tensor, sides: Mapping[int, int]) -> Tensor:
    side = sides[pixels.ndim - 2]
    if pixels.ndim == 4:
        return F.interpolate(pixels.cpu(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.adaptive_avg_pool3d(pixels.cpu(), side)


# ---------------------------------------------------------------- the family


@dataclass(frozen=True)
class Kind:
    """A kind of features, in words; of `components` not the features themselves but so many of their principal
    components are looked at."""

    words: str
    features: Callable[[Tensor, tuple[int, int]], np.ndarray]
    components: int = 0


KINDS = {
    "hog": Kind("HOG", gradient_histograms),
    "principal_components": Kind("principal components", small_picture, COMPONENTS),
    "local_binary_patterns": Kind("local binary patterns", binary_patterns),
    "statistics": Kind("intensity and texture statistics", statistics),
}
Split = tuple[np.ndarray, np.ndarray]


def train_classical(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Fit each kind of features, keep the one with the highest AUC on the tuning images, the earlier of equals."""
    height, width = settings.hog_image_size
    models: dict[str, list[Logistic]] = {}
    tried: dict[str, dict[str, float]] = {}
    for name, kind in KINDS.items():
        train, tune = ((_all(kind, part, (height, width)), part.targets) for part in (data.train, data.tune))
        models[name], tried[name] = fit_kind(kind, train, tune)
    best = {name: max(aucs.values()) for name, aucs in tried.items()}
    chosen = max(best, key=lambda name: best[name])
    fitted, words = models[chosen], KINDS[chosen].words
    each = ", ".join(f"{KINDS[name].words} (AUC {auc:.3f})" for name, auc in best.items())
    log.info(f"{arm}: {words}, tune AUC {best[chosen]:.4f}; {each}")
    history = [{"regularisation": float(c), **{f"{name}_tune_auc": aucs[c] for name, aucs in tried.items()}}
               for c in tried[chosen]]  # fmt: skip
    finish_logistic(folder, arm, fitted, data, history, {
        "classical": {"kind": chosen, "hog_image_size": [height, width]},
        "further_labels": data.further,
        "tune_auc": best[chosen],
        "kinds": best,
        "title": f"strongest classical baseline ({words}, logistic regression)",
        "compared_as": f"the classical baseline ({words} and logistic regression, the strongest of four kinds of "
                       "features on the tuning images)",
        "description": f"logistic regression on {words}, no network; of four kinds on the tuning images: {each}",
        "selection": "kind and regularisation with the highest AUC on the tuning images; one convex fit, so no seeds",
    })  # fmt: skip


def read_classical(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return a finished classical model from its model.json and its tensors."""
    features, fitted = KINDS[content["classical"]["kind"]].features, logistics(tensors, further_labels(content))
    height, width = content["classical"]["hog_image_size"]
    return Finished(
        lambda pixels: all_logits(fitted, whole_blocks(features(pixels.cpu(), (height, width))))[: len(pixels)]
    )


def _all(kind: Kind, images: Images, sides: tuple[int, int]) -> np.ndarray:
    return np.concatenate([kind.features(images.pixels(rows, CPU), sides) for rows in images.chunks(256)])


def fit_kind(kind: Kind, train: Split, tune: Split) -> tuple[list[Logistic], dict[str, float]]:
    """Return a regression per label on the features as they are, and the AUC on tuning images by regularisation."""
    if not kind.components:
        return fit_each(train, tune)
    mean = train[0].mean(axis=0)
    directions = np.linalg.svd(train[0] - mean, full_matrices=False)[2][: min(kind.components, len(train[0]) - 1)]
    projected = [((features - mean) @ directions.T, targets) for features, targets in (train, tune)]
    fitted, aucs = fit_each(*projected)
    return [_unprojected(one, mean, directions) for one in fitted], aucs


def _unprojected(fitted: Logistic, mean: np.ndarray, directions: np.ndarray) -> Logistic:
    """Return the same function of features as they were before they were projected on `directions`, less `mean`."""
    weight, bias = fitted.linear()
    return Logistic(mean, np.ones_like(mean), weight @ directions, bias)
