"""The classical baseline that segments: a logistic regression of each pixel's class on what can be seen round it.

Features per channel: the value; after Gaussian blur at three scales the value and the length of the gradient. And the
place in the image, with squares and products, which stands for where a structure usually lies. No pickle: a fitted
model is a handful of arrays. An image is looked at as a whole.

Shapes: C channels, F features, K classes with background, S label outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.models.arms import ArmData, finish
from pipeline.models.baseline import PARTS, Logistic, auc, fit_each
from pipeline.models.checkpoints import WeightsError, tensor_problems
from pipeline.models.dice import dice, mean_dice
from pipeline.models.finished import Finished, further_labels
from pipeline.models.images import Images
from pipeline.models.masks import Masks
from pipeline.models.randomness import derived_seed
from pipeline.models.segmenter import SegmentationSpec, image_logits
from pipeline.models.windows import lesion_logit

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

SIGMAS = (1.0, 2.0, 4.0)  # pixels
PIXELS_PER_CLASS = 100  # drawn per image: more tell little that their neighbours do not
REGULARISATIONS = (1e-3, 1e-1, 10.0)
TITLE = "classical baseline (pixels, logistic regression)"
DESCRIPTION = (
    "a logistic regression of each pixel's class on its value, blurred values and gradients at three scales, and its "
    "place; no network"
)
COMPARED_AS = "the classical baseline (logistic regression of pixels)"


@dataclass(frozen=True)
class PixelModel:
    """A fitted regression: scores = (features - mean) / scale @ weight.T + bias, with `weight` (K, F)."""

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (K, ...) float32 of features (F, ...)."""
        weight = self.weight / self.scale
        scores = np.tensordot(weight.astype(np.float32), features, axes=1)
        scores += (self.bias - weight @ self.mean).astype(np.float32).reshape(-1, *[1] * (features.ndim - 1))
        return log_softmax(scores, axis=0)


def pixel_features(pixels: np.ndarray) -> np.ndarray:
    """Return features (F, ...) float32 of the pixels (C, ...) of one image in [0, 1]."""
    parts: list[np.ndarray] = []
    for channel in pixels.astype(np.float32):
        parts.append(channel)
        for sigma in SIGMAS:
            parts.append(ndimage.gaussian_filter(channel, sigma))
            parts.append(ndimage.gaussian_gradient_magnitude(channel, sigma))
    size = pixels.shape[1:]
    lines = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in size), indexing="ij", sparse=True)
    places = [*lines, *(one * other for one, other in combinations_with_replacement(lines, 2))]
    return np.stack(parts + [np.broadcast_to(place, size) for place in places])


def train_pixels(
    seed: int, settings: FinetuneSettings, how: SegmentationSpec, data: ArmData, masks: Masks, folder: Path, log: RunLog
) -> None:
    """Fit the regression, with the regularisation of the highest Dice on the tuning images, and leave its files."""
    features, classes = _drawn(data.train, masks, seed)
    scaler: Any = StandardScaler()
    standard = scaler.fit_transform(features)
    # As many of each class were drawn as could be; their shares belong into the bias.
    shift = np.log(masks.shares(data.train).clip(1e-6)) - np.log(
        np.bincount(classes, minlength=how.classes) / len(classes)
    )
    models = []
    for strength in REGULARISATIONS:
        fitted: Any = LogisticRegression(C=strength, max_iter=2000)
        fitted.fit(standard, classes)
        models.append(PixelModel(scaler.mean_, scaler.scale_, *_all_classes(fitted, how.classes, shift)))
    tried = zip(REGULARISATIONS, _tune_dice(models, data.tune, masks), strict=True)
    history = [{"regularisation": strength, "tune_dice": value} for strength, value in tried]
    best = max(range(len(models)), key=lambda at: (history[at]["tune_dice"], -at))
    model = models[best]
    heads = _heads(model, how, data)
    content = {
        "segmentation": how.to_json(), "further_labels": data.further,
        "title": TITLE, "description": DESCRIPTION, "compared_as": COMPARED_AS,
    }  # fmt: skip
    tune_auc = auc(data.tune.labels, _logits(model, heads, how, _each(data.tune))[:, 0])
    parameters = model.weight.size + model.bias.size + sum(len(head.weight) + 1 for head in heads)
    log.info(f"classical: tune mean Dice {history[best]['tune_dice']:.4f}")
    finish(folder, "classical", _tensors(model, heads), history, {"task": "segmentation", **content}, {
        "tune_dice": history[best]["tune_dice"],
        "tune_auc": tune_auc,
        "best_epoch": None,
        "encoder_tensors_loaded": 0,
        "encoder_tensors": 0,
        "parameters": parameters,
        "trainable_parameters": parameters,
    })  # fmt: skip


def read_pixels(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return the finished regression from its model.json and its tensors. Raises WeightsError when they do not fit."""
    how = SegmentationSpec.from_json(content["segmentation"])
    model, heads = _read(tensors, how, len(further_labels(content)) + (how.image_score != "lesion"))

    def log_probabilities(window: Tensor) -> Tensor:
        return torch.from_numpy(model.log_probabilities(pixel_features(window[0].cpu().numpy())))

    def logits(pixels: Tensor) -> np.ndarray:
        return _logits(model, heads, how, (image.cpu().numpy() for image in pixels))

    return Finished(logits, (), how.maps(log_probabilities, None))


# ---------------------------------------------------------------- fitting


def _each(images: Images) -> Iterator[np.ndarray]:
    for row in range(len(images)):
        yield images.pixels([row], torch.device("cpu"))[0].numpy()


def _drawn(images: Images, masks: Masks, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, F) and classes (n,) of pixels drawn from each image, as many of each class as it has."""
    rows, classes = [], []
    for row, pixels in enumerate(_each(images)):
        generator = np.random.Generator(np.random.PCG64(derived_seed(seed, "pixels", row)))
        mask, features = masks.of(images, [row])[0], pixel_features(pixels)
        for number in range(masks.classes):
            places = np.flatnonzero(mask == number)
            if len(places) > PIXELS_PER_CLASS:
                places = generator.choice(places, PIXELS_PER_CLASS, replace=False)
            rows.append(features.reshape(len(features), -1)[:, places].T)
            classes.append(np.full(len(places), number))
    return np.concatenate(rows).astype(np.float64), np.concatenate(classes)


def _all_classes(fitted: Any, classes: int, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (K, F) and bias (K,); of two classes scikit-learn keeps the difference alone."""
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([[0.0], bias])
    whole, floor = np.zeros((classes, weight.shape[1])), np.full(classes, -30.0)  # a class that no image had
    whole[fitted.classes_], floor[fitted.classes_] = weight, bias + shift[fitted.classes_]
    return whole, floor


def _tune_dice(models: Sequence[PixelModel], images: Images, masks: Masks) -> list[float]:
    each: list[list[np.ndarray]] = [[] for _ in models]
    for row, pixels in enumerate(_each(images)):
        features, reference = pixel_features(pixels), masks.of(images, [row])[0]
        for found, model in zip(each, models, strict=True):
            found.append(dice(model.log_probabilities(features).argmax(axis=0), reference, sorted(masks.structures)))
    patients = images.index["patient_id"].to_numpy()
    return [mean_dice(np.stack(found), patients) for found in each]


# ---------------------------------------------------------------- the image's logits


def _summary(log_probabilities: np.ndarray) -> np.ndarray:
    """Return how much of each structure there is in an image, and how sure the surest pixel of it is, (2 (K - 1),)."""
    flat = log_probabilities[1:].reshape(len(log_probabilities) - 1, -1).astype(np.float64)
    return np.concatenate([np.exp(flat).mean(axis=1), flat.max(axis=1)])


def _heads(model: PixelModel, how: SegmentationSpec, data: ArmData) -> list[Logistic]:
    """Return a regression of each label on the summary of the map; not of one that is scored by its lesions."""
    first = 1 if how.image_score == "lesion" else 0
    if data.train.targets.shape[1] == first:
        return []

    def summaries(images: Images) -> np.ndarray:
        return np.stack([_summary(model.log_probabilities(pixel_features(pixels))) for pixels in _each(images)])

    train, tune = ((summaries(part), part.targets[:, first:]) for part in (data.train, data.tune))
    return fit_each(train, tune)[0]


def _logits(
    model: PixelModel, heads: Sequence[Logistic], how: SegmentationSpec, images: Iterator[np.ndarray]
) -> np.ndarray:
    """Return logits (B, S) float64 of the pixels of each image."""
    each = []
    for pixels in images:
        found = model.log_probabilities(pixel_features(pixels))
        lesion = torch.tensor([lesion_logit([torch.from_numpy(found)])], dtype=torch.float64)
        summary = _summary(found)[None]
        head = torch.from_numpy(np.array([[float(one.logits(summary)[0]) for one in heads]]).reshape(1, -1))
        each.append(image_logits(how.image_score, lesion, head))
    return torch.cat(each).numpy()


# ---------------------------------------------------------------- as tensors


def _tensors(model: PixelModel, heads: Sequence[Logistic]) -> dict[str, Tensor]:
    tensors = {f"pixel.{name}": torch.from_numpy(np.ascontiguousarray(getattr(model, name))) for name in PARTS}
    return tensors | {f"head{n}.{name}": t for n, head in enumerate(heads) for name, t in head.tensors().items()}


def _read(tensors: Mapping[str, Tensor], how: SegmentationSpec, heads: int) -> tuple[PixelModel, list[Logistic]]:
    """Return the model and its heads. Raises WeightsError, naming every tensor at fault."""
    features = tuple(tensors["pixel.mean"].shape) if "pixel.mean" in tensors else (0,)
    summary = (2 * len(how.structures),)
    wanted = {"pixel.mean": features, "pixel.scale": features, "pixel.weight": (how.classes, *features),
              "pixel.bias": (how.classes,)}  # fmt: skip
    for n in range(heads):
        wanted |= {f"head{n}.{name}": (1,) if name == "bias" else summary for name in PARTS}
    if problems := tensor_problems(tensors, wanted):
        raise WeightsError(f"weights do not fit the pixel regression: {'; '.join(problems)}")
    own = [{name: tensors[f"head{n}.{name}"] for name in PARTS} for n in range(heads)]
    return PixelModel(*(tensors[f"pixel.{name}"].numpy() for name in PARTS)), [
        Logistic.from_tensors(one) for one in own
    ]
