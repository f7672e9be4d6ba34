"""Classical models: histograms of oriented gradients, and logistic regression on standardised features.

The regression is also the head of the linear probe. No pickle: a fitted model is four arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import hog
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.models.checkpoints import WeightsError, tensor_problems

# Inverse strengths of regularisation to choose from on the tune split.
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
PARTS = ("mean", "scale", "weight", "bias")  # of a fitted regression, as tensors


@dataclass(frozen=True)
class HogSpec:
    """Histogram of oriented gradients (Dalal and Triggs 2005) of an image resized to `image_size`, height first."""

    image_size: tuple[int, int]
    orientations: int = 9
    pixels_per_cell: int = 8
    cells_per_block: int = 2

    def to_json(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> HogSpec:
        """Return the specification kept in model.json."""
        values: dict[str, Any] = {**content, "image_size": tuple(content["image_size"])}
        return cls(**values)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Return features (B, F) float64 of 2-D images (B, C, H, W) in [0, 1].

        Of several channels, each pixel's gradient is that of the channel where it is largest.

        Raises ValueError for volumes.
        """
        if pixels.ndim != 4:
            raise ValueError("arm hog needs 2-D images; remove it from finetune.arms")
        resized = F.interpolate(pixels.cpu(), self.image_size, mode="bilinear", antialias=True, align_corners=False)
        cell, block = (self.pixels_per_cell,) * 2, (self.cells_per_block,) * 2
        described = [
            hog(image, self.orientations, pixels_per_cell=cell, cells_per_block=block, channel_axis=0)
            for image in resized.numpy().astype(np.float64)
        ]
        return np.stack(described)


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic regression on standardised features: logit = weight . (x - mean) / scale + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits (N,) of features (N, F)."""
        return (features - self.mean) / self.scale @ self.weight + self.bias

    def linear(self) -> tuple[np.ndarray, float]:
        """Return weight (F,) and bias of the same function on features that are not standardised."""
        weight = self.weight / self.scale
        return weight, self.bias - float(self.mean @ weight)

    def tensors(self) -> dict[str, Tensor]:
        """Return the model as float64 tensors for safetensors."""
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": np.array([self.bias])}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Logistic:
        """Return the model kept by `tensors`."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return cls(arrays["mean"], arrays["scale"], arrays["weight"], float(arrays["bias"][0]))


def logistics(tensors: Mapping[str, Tensor], further: Sequence[str]) -> list[Logistic]:
    """Return the models kept by `tensors`, that of the main label first; see `logistic_tensors`.

    Raises WeightsError, naming every tensor that is missing, unexpected or of another shape.
    """
    parts = [f"{prefix}{part}" for prefix in ("", *(f"{label}." for label in further)) for part in PARTS]
    features = tuple(tensors["weight"].shape[:1]) if "weight" in tensors else None
    wanted = {name: (1,) if name.rpartition(".")[2] == "bias" else features for name in parts}
    if problems := tensor_problems(tensors, wanted):
        raise WeightsError(f"weights do not fit the logistic regression: {'; '.join(problems)}")
    own = [{name.removeprefix(f"{label}."): t for name, t in tensors.items() if name.startswith(f"{label}.")}
           for label in further]  # fmt: skip
    return [Logistic.from_tensors(dict(one)) for one in (tensors, *own)]


def logistic_tensors(models: Sequence[Logistic], further: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of the main label's model, and those of further ones under their label's id and a dot."""
    main, *others = (model.tensors() for model in models)
    own = {f"{label}.{name}": t for label, one in zip(further, others, strict=True) for name, t in one.items()}
    return main | own


def fit_logistic(
    train: tuple[np.ndarray, np.ndarray], tune: tuple[np.ndarray, np.ndarray]
) -> tuple[Logistic, dict[str, float]]:
    """Fit on the features (N, F) and labels (N,) of `train`; choose the regularisation by the AUC on `tune`.

    Returns the model and {C: tune AUC}; on equal AUC the stronger regularisation wins.
    """
    scaler: Any = StandardScaler()
    scaler.fit(train[0])
    standardised = scaler.transform(train[0])
    models: dict[float, Logistic] = {}
    aucs: dict[float, float] = {}
    for strength in REGULARISATIONS:
        fitted: Any = LogisticRegression(C=strength, max_iter=5000)
        fitted.fit(standardised, train[1])
        models[strength] = Logistic(scaler.mean_, scaler.scale_, fitted.coef_[0], float(fitted.intercept_[0]))
        aucs[strength] = auc(tune[1], models[strength].logits(tune[0]))
    chosen = max(aucs, key=lambda strength: (aucs[strength], -strength))
    return models[chosen], {f"{strength:g}": value for strength, value in aucs.items()}


def fit_each(
    train: tuple[np.ndarray, np.ndarray], tune: tuple[np.ndarray, np.ndarray]
) -> tuple[list[Logistic], dict[str, float]]:
    """Fit a regression to each label of the targets (N, L) from features (N, F), on the images that have it.

    Returns them, and {C: tune AUC} of the first label; see `fit_logistic`.
    """
    models, aucs = [], []
    for label in range(train[1].shape[1]):
        parts = ((features, targets[:, label]) for features, targets in (train, tune))
        known = [(features[~np.isnan(target)], target[~np.isnan(target)]) for features, target in parts]
        model, tried = fit_logistic(*known)
        models.append(model)
        aucs.append(tried)
    return models, aucs[0]


def all_logits(models: Sequence[Logistic], features: np.ndarray) -> np.ndarray:
    """Return logits (N, L) of features (N, F)."""
    return np.column_stack([model.logits(features) for model in models])


def auc(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the area under the ROC curve per image; NaN when only one class is present."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    score: Any = roc_auc_score
    return float(score(labels, logits))
