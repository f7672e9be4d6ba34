"""A vision transformer that segments: the encoder of the other arms, a light decoder, and an image score.

Shapes: B images, C channels, L patch tokens, D width, K classes with background, S label outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.checkpoints import POSITIONS, load_strict
from pipeline.models.classifier import Classifier
from pipeline.models.finished import Finished, Look, Maps, further_labels
from pipeline.models.segmentation_decoder import Decoder, depths_of
from pipeline.models.vit import EncoderSpec, block_outputs, embed, normalise, patchify
from pipeline.models.windows import Read, foreground_log_odds, lesion_logit, slabs, smoothed

ImageScore = Literal["lesion", "head", "mean"]


@dataclass(frozen=True)
class SegmentationSpec:
    """What is needed to segment besides a network, as kept in model.json; `structures` are names by number from 1.

    `image_score`: what an image is scored by. `lesion`, its most suspicious place, see `windows.lesion_logit`; `head`,
    a classification head on the mean patch token; `mean`, the mean of these two logits. For the rest see
    `finished.Maps`.
    """

    structures: Mapping[int, str]
    image_score: ImageScore
    decoder_width: int
    overlap: float
    mark_threshold: float
    marks_per_image: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return {**asdict(self), "structures": {str(number): name for number, name in self.structures.items()}}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SegmentationSpec:
        """Return the specification kept in model.json."""
        values: dict[str, Any] = {**content, "structures": {int(n): name for n, name in content["structures"].items()}}
        return cls(**values)

    @property
    def classes(self) -> int:
        """Background and structures."""
        return 1 + len(self.structures)

    def maps(self, log_probabilities: Callable[[Tensor], Tensor], window: tuple[int, ...] | None) -> Maps:
        """Return what a model says of pixels by this function."""
        return Maps(log_probabilities, self.structures, window, self.overlap, self.mark_threshold, self.marks_per_image)


class Segmenter(Classifier):
    """Encoder, decoder, and a linear head with an output per label that is not scored by its lesions alone.

    Called like any network it returns the logits of labels; with `maps=True` what both parts say.
    """

    def __init__(self, spec: EncoderSpec, how: SegmentationSpec, further: int = 0) -> None:
        heads = further + (how.image_score != "lesion")
        super().__init__(spec, "norm_linear", max(1, heads))
        self.how = how
        if not heads:  # an untrained head would be no part of the model
            self.head, self.head_norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.heads = heads
        self.decoder = Decoder(spec, how.classes, how.decoder_width)
        self.noise: Callable[[Tensor], Tensor] | None = None  # in the place of the encoder's tokens, for its test

    def encoded(self, image: Tensor, branch_scale: Tensor | None = None) -> list[Tensor]:
        """Return tokens (B, 1 + R + L, D) before the first block and after each, the last normalised."""
        tokens = embed(self.encoder, patchify(image, self.spec.patch_size))
        outputs = block_outputs(self.encoder, tokens, branch_scale)
        return [*outputs[:-1], self.encoder.norm(outputs[-1])]

    def decoded(self, outputs: Sequence[Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (B, K, ...) and those of the head, of what `encoded` returned of an image."""
        depths = [outputs[depth][:, self.spec.prefix :] for depth in depths_of(self.spec.depth)]
        features = depths[0].mean(dim=1)
        if self.noise is not None:
            depths = [self.noise(tokens) for tokens in depths]
        head = self.head(self.head_norm(features)) if self.heads else features.new_zeros(len(features), 0)
        return self.decoder(depths, image), head

    def forward(self, pixels: Tensor, branch_scale: Tensor | None = None, *, maps: bool = False) -> Any:
        """Return logits (B, S) of pixels (B, C, ...) in [0, 1]; with `maps`, class logits (B, K, ...) and the head's.

        `branch_scale` is that of `vit.encode`.
        """
        image = normalise(pixels, self.spec)
        classes, head = self.decoded(self.encoded(image, branch_scale), image)
        if maps:
            return classes, head
        lesion = smoothed(foreground_log_odds(classes)).flatten(1).amax(dim=1)
        return image_logits(self.how.image_score, lesion, head)


def image_logits(image_score: ImageScore, lesion: Tensor, head: Tensor) -> Tensor:
    """Return logits (B, S) of labels, the main one's first, from the lesion's (B,) and the head's.

    The head has further labels alone where the main label is scored by the lesion.
    """
    if image_score == "lesion":
        return torch.cat((lesion[:, None], head), dim=1)
    if image_score == "head":
        return head
    return torch.cat(((lesion[:, None] + head[:, :1]) / 2, head[:, 1:]), dim=1)


def cut_positions(tensors: dict[str, Tensor], grid: Sequence[int], window: Sequence[int]) -> dict[str, Tensor]:
    """Return encoder tensors for windows of this many patches out of a grid: with the positions of its first corner.

    Fixed waves are the same as those of a grid of the window's size.
    """
    positions = tensors[POSITIONS]
    laid = positions.reshape(1, *grid, -1)[(slice(None), *(slice(side) for side in window))]
    return {**tensors, POSITIONS: laid.flatten(1, len(grid)).contiguous()}


def read_segmenter(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return a finished segmenter from its model.json and its tensors. Raises WeightsError when they do not fit."""
    how = SegmentationSpec.from_json(content["segmentation"])
    model = Segmenter(EncoderSpec.from_json(content["spec"]), how, len(further_labels(content)))
    load_strict(model, tensors)
    done = finished(model.to(device).eval())
    # Where a network of windows looked in a whole image, and what it found there, is not known.
    return replace(done, networks=(), look=None) if content["windows"] else done


def finished(model: Segmenter) -> Finished:
    """Return a network in evaluation mode as a finished model.

    One image at a time, for the bits of its logits not to depend on the others.
    """
    device, spec = model.encoder.cls_token.device, model.spec

    @torch.no_grad()
    def log_probabilities(window: Tensor) -> Tensor:
        # Not the compiled call, which would be compiled once more for this use.
        return model.forward(window.to(device), maps=True)[0][0].log_softmax(dim=0)

    maps = model.how.maps(log_probabilities, spec.image_size)

    @torch.no_grad()
    def look(pixels: Tensor) -> Look:
        logits, depths = [], []
        for one in pixels.to(device).split(1):
            image = normalise(one, spec)
            outputs = model.encoded(image)
            classes, head = model.decoded(outputs, image)
            lesion = torch.tensor([lesion_logit([classes[0].log_softmax(dim=0).cpu()])])
            logits.append(image_logits(model.how.image_score, lesion, head.cpu()))
            depths.append([model.mean_patch(tokens) for tokens in outputs[1:]])
        return torch.cat(logits).double().numpy(), [torch.cat(depth) for depth in zip(*depths, strict=True)]

    def logits(pixels: Tensor) -> np.ndarray:
        if pixels.shape[2:] == spec.image_size:
            return look(pixels)[0]
        reads: list[Read] = [lambda box, own=image: own[(slice(None), *box)] for image in pixels]
        each = [lesion_logit(slabs(maps, pixels.shape[2:], read)) for read in reads]
        return torch.tensor(each)[:, None].double().numpy()

    return Finished(logits, (model,), maps, look)
