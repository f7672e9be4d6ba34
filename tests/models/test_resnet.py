"""The residual network: MONAI's, a map that is an exact account, and where a planted sign is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from pipeline.models.resnet import ResNetClassifier, ResNetSpec
from pipeline.models.resnet_layers import convolutions

SHAPES = [((40, 33), 3), ((17, 16, 24), 1), ((128, 130), 1)]


def network(size: tuple[int, ...], channels: int, depth: int = 10) -> ResNetClassifier:
    torch.manual_seed(0)
    spec = ResNetSpec(size, channels, depth, 8, (0.4,) * channels, (0.2,) * channels)
    assert ResNetSpec.from_json(spec.to_json()) == spec
    return ResNetClassifier(spec, labels=2).eval()


@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_the_body_is_a_monai_resnet_with_group_norm(size, channels):
    model, pixels = network(size, channels), torch.rand(2, channels, *size)
    features = model.body((pixels - 0.4) / 0.2)
    assert torch.allclose(model.head(features), model(pixels), atol=1e-5)
    monai = ResNet("basic", [1] * 4, [8, 16, 32, 64], spatial_dims=len(size), n_input_channels=channels,
                   conv1_t_stride=2, feed_forward=False)  # fmt: skip
    own = {name: tensor.shape for name, tensor in model.body.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in monai.state_dict().items()}
    assert own == {name: shape for name, shape in theirs.items() if not name.endswith(("_mean", "_var", "_tracked"))}
    assert not [part for part in model.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d)]


@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("depth", [10, 18, 34])
def test_its_layers_are_those_that_the_plan_counts(size, channels, depth):
    model, seen = network(size, channels, depth), []
    for part in model.body.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            part.register_forward_hook(lambda part, _, out: seen.append((part.weight.numel(), out[0].numel())))
    model(torch.rand(1, channels, *size))
    assert sorted(seen) == sorted((one.weights, one.values) for one in convolutions(size, channels, depth, 8))


def test_the_map_has_at_most_sixteen_cells_per_axis():
    assert network((224, 224), 1).shares(torch.rand(1, 1, 224, 224)).shape == (1, 16, 16)
    assert network((64, 64), 1).shares(torch.rand(1, 1, 64, 64)).shape == (1, 16, 16)
    assert network((16, 16, 24), 1).shares(torch.rand(1, 1, 16, 16, 24)).shape == (1, 8, 8, 12)


def test_a_network_that_nothing_speaks_to_looks_everywhere_alike():
    model = network((32, 32), 1)
    nn.init.zeros_(model.head.weight)
    shares = model.shares(torch.rand(2, 1, 32, 32))
    assert np.allclose(shares, 1 / 256)


def test_a_trained_network_is_said_to_have_looked_where_the_sign_is():
    model = network((32, 32), 1).train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        pixels, labels, _ = spotted(24, step)
        loss = nn.functional.binary_cross_entropy_with_logits(model(pixels)[:, 0], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pixels, labels, places = spotted(32, 999)
    model.eval()
    assert ((model(pixels)[:, 0] > 0) == (labels == 1)).float().mean() > 0.95, "the network has not learnt its task"
    shares = model.shares(pixels[labels == 1])
    peaks = [np.unravel_index(share.argmax(), share.shape) for share in shares]
    places = 4 * places[labels == 1].numpy()  # of the patch's first cell
    off = [np.abs(np.array(peak) - (place + 1.5)).max() for peak, place in zip(peaks, places, strict=True)]
    assert np.mean(np.array(off) <= 2.5) > 0.85  # on the patch, or on its border


def spotted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise (n, 1, 32, 32), half of it with a striped patch of 8 by 8, labels, and the patch's row and column."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.rand(count, 1, 32, 32, generator=generator)
    places, labels = torch.randint(0, 4, (count, 2), generator=generator), torch.arange(count) % 2
    for image, (row, column), positive in zip(pixels, places.tolist(), labels.tolist(), strict=True):
        if positive:
            image[0, 8 * row : 8 * row + 8 : 2, 8 * column : 8 * column + 8] = 1.0
    return pixels, labels.float(), places


def test_blank_images_are_refused():
    with pytest.raises(ValueError, match="all images are blank"):
        ResNetSpec((32, 32), 1, 18, 64, (0.0,), (0.0,))
