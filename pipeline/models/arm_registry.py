"""The arms of the comparison, as data: what each is, what it needs, how it is trained and read back.

Nothing here needs torch: settings, plan and `--help` take names, axes and needs from here. Training and reading are
named by `module:function` and imported when they are called; the code of both counts in the keys of the stages that
use this registry, like that of any import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

# Where the weights of an arm's encoder come from.
Encoder = Literal["pretrained", "imported", "random"]
# What an arm is to the pretrained one in the sentence about pretraining.
Role = Literal["scratch", "public", "classical", "rival"]


@dataclass(frozen=True)
class ArmKind:
    """An arm: its name in settings and tables, what a reader calls it, and what it is.

    `trained_by` is called with (arm, seed, settings, data, folder, log) and leaves the model's files in `folder`, see
    `arms.finish`; `read_by` is called with (content of model.json, tensors, device) and returns a `finished.Finished`.

    A `network` is trained by gradient steps, by all processes together, so that seeds differ; other arms have one
    optimum, and are trained by one process. An arm with an `encoder` rests on stage pretrain: on its weights, or on the
    network and the pixel statistics that it recorded. One `of_others` is made of other arms, after them. `axes` are
    those of the images it can take. `role` says as what it is compared with the pretrained arm, in the words of
    `compared_as`. `segments_by` reads a model back that was trained to segment, in the place of
    `read_by`; empty for an arm that cannot.
    """

    name: str
    title: str
    description: str
    trained_by: str
    read_by: str
    network: bool = False
    encoder: Encoder | None = None
    of_others: bool = False
    axes: tuple[int, ...] = (2, 3)
    role: Role | None = None
    compared_as: str = ""
    segments_by: str = ""

    @property
    def needs_encoder(self) -> bool:
        """Whether it rests on stage pretrain."""
        return self.encoder is not None

    def train(self, *arguments: Any) -> None:
        """Train it; see `trained_by`."""
        _function(self.trained_by)(*arguments)

    def read(self, *arguments: Any) -> Any:
        """Read it back; see `read_by`."""
        content = arguments[0]
        return _function(self.segments_by if content.get("task") == "segmentation" else self.read_by)(*arguments)


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


TRANSFORMER: dict[str, Any] = {
    "trained_by": "pipeline.models.finetuning:train_transformer",
    "read_by": "pipeline.models.classifier:read_classifier",
    "network": True,
    "segments_by": "pipeline.models.segmenter:read_segmenter",
}
ARMS = {
    arm.name: arm
    for arm in (
        ArmKind(
            "mae",
            "pretrained (masked autoencoder)",
            "encoder pretrained as a masked autoencoder",
            **TRANSFORMER,
            encoder="pretrained",
        ),
        ArmKind(
            "scratch",
            "same network, from scratch",
            "the same network, all layers trained from random weights",
            **TRANSFORMER,
            encoder="random",
            role="scratch",
            compared_as="the same network trained from scratch",
        ),
        ArmKind(
            "imported",
            "same network, from public weights",
            "the same network, started from public weights that were trained elsewhere",
            **TRANSFORMER,
            encoder="imported",
            role="public",
            compared_as="the same network started from public weights",
        ),
        ArmKind(
            "cnn",
            "residual network, from scratch",
            "a residual network (ResNet), all layers trained from random weights",
            trained_by="pipeline.models.resnet:train_resnet",
            read_by="pipeline.models.resnet:read_resnet",
            network=True,
            role="rival",
            compared_as="a residual network trained from scratch",
        ),
        ArmKind(
            "linear_probe",
            "pretrained, frozen (linear probe)",
            "logistic regression on the frozen pretrained encoder's features",
            trained_by="pipeline.models.logistic_arms:train_probe",
            read_by="pipeline.models.classifier:read_classifier",
            encoder="pretrained",
        ),
        ArmKind(
            "attentive_probe",
            "pretrained, frozen (attentive probe)",
            "learned queries that read the frozen pretrained encoder's patches, and a linear head",
            trained_by="pipeline.models.attentive_probe:train_attentive_probe",
            read_by="pipeline.models.classifier:read_classifier",
            encoder="pretrained",
        ),
        ArmKind(
            "hog",
            "classical baseline (HOG, logistic regression)",
            "logistic regression on histograms of oriented gradients, no network",
            trained_by="pipeline.models.logistic_arms:train_hog",
            read_by="pipeline.models.logistic_arms:read_hog",
            axes=(2,),
            role="classical",
            compared_as="the classical baseline (HOG and logistic regression)",
        ),
        ArmKind(
            "classical",
            "strongest classical baseline (logistic regression)",
            "logistic regression on the strongest of four kinds of features on the tuning images, no network",
            trained_by="pipeline.models.classical:train_classical",
            read_by="pipeline.models.classical:read_classical",
            role="classical",
            compared_as="the classical baseline (the strongest of four kinds of features, logistic regression)",
            segments_by="pipeline.models.pixel_regression:read_pixels",
        ),
        ArmKind(
            "ensemble",
            "ensemble of arms",
            "the mean of the logits of several arms, each standardised on the tuning images",
            trained_by="pipeline.models.combination:train_ensemble",
            read_by="pipeline.models.combination:read_ensemble",
            of_others=True,
            role="rival",
            compared_as="the ensemble of several arms",
        ),
    )
}
NAMES = tuple(ARMS)
SEGMENTING = tuple(name for name, arm in ARMS.items() if arm.segments_by)


def pretrained(arms: Iterable[str]) -> bool:
    """Return whether any of the arms rests on stage pretrain."""
    return any(ARMS[arm].needs_encoder for arm in arms)
