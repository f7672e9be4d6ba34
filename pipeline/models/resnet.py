"""A residual network as an arm: what a user would take instead of a transformer, trained from random weights.

MONAI's ResNet (He et al. 2016; in three axes as Hara et al. 2018), with group norm (Wu and He 2018) in the place of
batch norm: a step's loss is a mean over images that do not know each other, so that a batch may be divided among passes
and processes, and weights may be averaged, without changing what is computed.

Shapes: B images, C channels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from pipeline.models.arms import ArmData
from pipeline.models.checkpoints import load_strict
from pipeline.models.finetuning import Untrained, train_network
from pipeline.models.finished import Finished, Look, Network, further_labels
from pipeline.models.randomness import derived_seed
from pipeline.models.resnet_layers import BLOCKS, FIRST_KERNEL, is_pooled
from pipeline.models.vit import per_channel

if TYPE_CHECKING:
    from pipeline.settings.training import FinetuneSettings
    from pipeline.store.runlog import RunLog

MOST_GROUPS = 32  # of a group norm
MOST_CELLS = 16  # per axis of the map that says where the network looked


@dataclass(frozen=True)
class ResNetSpec:
    """All that is needed to build the network and to feed it, as kept in model.json.

    `image_size` is in pixels, slowest axis first, with two or three axes; `width` is the number of channels of the
    first stage, doubled by each other one; `pixel_mean` and `pixel_std` are per channel, on pixels in [0, 1].
    Raises ValueError when all images are blank.
    """

    image_size: tuple[int, ...]
    channels: int
    depth: int
    width: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def __post_init__(self) -> None:
        if any(not std > 0 for std in self.pixel_std):
            raise ValueError("the network cannot be built: all images are blank, the spread of their pixels is 0")

    @property
    def pooled(self) -> bool:
        """Whether the first stage works on a quarter of the image's sides."""
        return is_pooled(self.image_size)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ResNetSpec:
        """Return the specification kept in model.json."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        return cls(**values)


class ResNetClassifier(Network):
    """A MONAI ResNet, the mean over places of its last stage, and a linear head with one output per label.

    `body` has the names of a MONAI ResNet's tensors.
    """

    outline = "activation"

    def __init__(self, spec: ResNetSpec, labels: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.channels = spec.channels
        self.body = ResNet(
            "basic",
            list(BLOCKS[spec.depth]),
            [spec.width * 2**stage for stage in range(4)],
            spatial_dims=len(spec.image_size),
            n_input_channels=spec.channels,
            conv1_t_size=FIRST_KERNEL,
            conv1_t_stride=2,
            no_max_pool=not spec.pooled,
            feed_forward=False,
        )
        # MONAI hands its choice of norm to the first layer alone.
        _with_group_norm(self.body, math.gcd(spec.width, MOST_GROUPS))
        self.head = nn.Linear(8 * spec.width, labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Return the output of each of the four stages, (B, D, ...), of pixels (B, C, ...) in [0, 1]."""
        body, spec = self.body, self.spec
        found = (pixels - per_channel(spec.pixel_mean, pixels)) / per_channel(spec.pixel_std, pixels)
        found = body.act(body.bn1(body.conv1(found)))
        if spec.pooled:
            found = body.maxpool(found)
        outputs = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            found = stage(found)
            outputs.append(found)
        return outputs

    def forward(self, pixels: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        """Return logits (B, L), the main label's first, for pixels (B, C, ...) in [0, 1]; no branch is ever dropped."""
        return self.of_stages(self.stages(pixels))

    def of_stages(self, outputs: list[Tensor]) -> Tensor:
        """Return logits (B, L) of the output of each stage."""
        return self.head(outputs[-1].flatten(2).mean(dim=2))

    def shares(self, pixels: Tensor) -> np.ndarray:
        """Return the share of each place in what speaks for the main label, (B, *grid), of at most 16 cells per axis.

        Features of the first stage times the gradient of the logit, summed over channels, averaged over the pixels of
        a cell, where the result is positive (HiResCAM, Draelos and Carin 2020). On small networks that find a planted
        sign in every image, this map had its peak on the sign in 94 and 97 % of them, that of the second stage in 69
        and 81 %, and Grad-CAM of either stage in at most 69 %; the test beside this module repeats the former. Where
        nothing speaks for the label, shares are all equal.
        """
        with torch.enable_grad():
            outputs = self.stages(pixels.to(self.head.weight.device))
            logits = self.of_stages(outputs)
            (gradient,) = torch.autograd.grad(logits[:, 0].sum(), outputs[0])
        product = (outputs[0] * gradient).sum(dim=1, keepdim=True).detach().double()
        pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if product.ndim == 4 else F.adaptive_avg_pool3d
        cells = pool(product, tuple(min(side, MOST_CELLS) for side in product.shape[2:]))
        speaks = cells[:, 0].clamp(min=0).cpu().numpy()
        axes = tuple(range(1, speaks.ndim))
        speaks[speaks.sum(axis=axes) == 0] = 1
        return speaks / speaks.sum(axis=axes, keepdims=True)

    @torch.no_grad()
    def depths(self, pixels: Tensor) -> list[Tensor]:
        """Return the mean over places after each stage, (B, D) float64 each."""
        return means(self.stages(pixels.to(self.head.weight.device)))


def means(outputs: list[Tensor]) -> list[Tensor]:
    """Return the mean over places of each stage's output, (B, D) float64 each."""
    return [one.double().flatten(2).mean(dim=2) for one in outputs]


def _with_group_norm(module: nn.Module, groups: int) -> None:
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(groups, part.num_features))
        else:
            _with_group_norm(part, groups)


def train_resnet(arm: str, seed: int, settings: FinetuneSettings, data: ArmData, folder: Path, log: RunLog) -> None:
    """Train a residual network from random weights, a pure function of `seed`, and leave its files in `folder`.

    Raises TrainingError when the loss stops being finite, Stopped when asked to stop.
    """
    if data.hardware.gradient_checkpointing:
        log.warn(f"machine.gradient_checkpointing has no effect on arm {arm}; machine.images_per_pass has")
    channels, *size = data.train.shape
    mean, std = data.train.statistics()
    spec = ResNetSpec(tuple(size), channels, settings.cnn.depth, settings.cnn.width, mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        model = ResNetClassifier(spec, 1 + len(data.further)).to(data.device)
    said = (
        f"a residual network (MONAI ResNet of {spec.depth} layers, {spec.width} channels in its first stage, group "
        "norm), all layers trained from random weights"
    )
    content = {"resnet": spec.to_json(), "description": said}
    untrained = Untrained(model, content, {"encoder_tensors_loaded": 0, "encoder_tensors": 0})
    train_network(arm, seed, untrained, settings, data, folder, log)


def read_resnet(content: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Finished:
    """Return a finished residual network from its model.json and its tensors.

    Raises WeightsError when they do not fit.
    """
    model = ResNetClassifier(ResNetSpec.from_json(content["resnet"]), 1 + len(further_labels(content)))
    load_strict(model, tensors)
    model = model.to(device).eval()

    @torch.no_grad()
    def look(pixels: Tensor) -> Look:
        logits, depths = [], []
        # A convolution chooses its way by the size of the batch, and ways differ in the last bits.
        for one in pixels.to(device).split(1):
            outputs = model.stages(one)
            logits.append(model.of_stages(outputs))
            depths.append(means(outputs))
        return torch.cat(logits).double().cpu().numpy(), [torch.cat(depth) for depth in zip(*depths, strict=True)]

    return Finished(lambda pixels: look(pixels)[0], (model,), look=look)
