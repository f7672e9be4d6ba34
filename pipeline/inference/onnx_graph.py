"""A packaged model as an ONNX graph: display pixels of one image in, the array that the networks see and logits out.

Where the image shrinks, areas are averaged: a product with a matrix of ones per axis, which the graph makes from the
image's own size, divided by counts. Where it grows, it is interpolated with torch's weights. Each place where torch
rounds to float32 is repeated, so that of whole-numbered pixels nearly all arrays are the same in every byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.imaging.transforms import Rendering
from pipeline.models.classifier import Classifier
from pipeline.models.finished import Network
from pipeline.models.resnet import ResNetClassifier, ResNetSpec
from pipeline.models.vit import EncoderSpec

OPSET, IR_VERSION = 20, 9
LARGEST_BYTES = 2**31 - 1  # of one file, by the format
FULL_SCALE = 255.0
F32, F64, I64, U8, BOOL = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.BOOL,
)


class GraphError(ValueError):
    """The model cannot be an ONNX graph; the message says why."""


@dataclass
class _Graph:
    """Nodes and constants as they are added; equal constants, as of encoders that seeds share, are kept once."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[tuple[str, tuple[int, ...], bytes], Any] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def name(self, value: str, name: str) -> None:
        """Give a value the name of an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def constant(self, values: Any, kind: Any = None) -> str:
        """Add a constant; return its name."""
        array = np.ascontiguousarray(values, kind)
        if np.ndim(values) == 0:
            array = array.reshape(())
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[key].name

    def floats(self, *values: float) -> str:
        """Add float32 numbers, one as a scalar."""
        return self.constant(values[0] if len(values) == 1 else values, np.float32)

    def whole(self, *values: int) -> str:
        """Add whole numbers as a list."""
        return self.constant(list(values), np.int64)

    def cast(self, value: str, kind: int) -> str:
        """Add a change of type."""
        return self.add("Cast", value, to=kind)


def build(networks: Sequence[Network], rendering: Rendering, flips: bool, notes: dict[str, str]) -> onnx.ModelProto:
    """Return the graph of all networks of a model; `notes` are kept in it as text.

    Inputs: `pixels` float32 (H, W), in colour (3, H, W), (D, H, W), or (C, D, H, W) where the card lists channels, of
    any size, `low` and `high` float64, the window's ends or the image's own percentiles, (C,) where the card lists
    channels, `spacing_mm` float64, one per axis. Outputs: `array` uint8 (C, ...) as
    the networks see it, `logits` float64 (L,), the mean over the networks, the main label's first.

    Raises GraphError when there is no network, it takes other channels than the rendering makes, the field of view has
    to be found, or the file would be too large.
    """
    if not networks:
        raise GraphError(
            "this model has no network: what its arm looks at is not made of ONNX operators; export without"
        )
    if unknown := {type(one).__name__ for one in networks if type(one) not in LOGITS}:
        raise GraphError(f"no ONNX graph can be made here of {', '.join(sorted(unknown))}; export without")
    if networks[0].channels != rendering.channel_count:
        raise GraphError(
            f"the network takes {networks[0].channels} channels, the rendering makes {rendering.channel_count}"
        )
    if rendering.crop != "none":
        raise GraphError(
            "this model looks for the field of view (preprocess.crop), which ONNX operators do not; export without"
        )
    graph = _Graph()
    pixels = _planes(graph, rendering.channel_count)
    windows = _windows(graph, rendering)
    planes = [_rendered(graph, rendering, *one) for one in zip(pixels, windows, strict=True)]
    array = planes[0] if len(planes) == 1 else graph.add("Concat", *planes, axis=0)
    graph.name(array, "array")
    pixels = graph.add("Div", graph.cast(graph.add("Unsqueeze", array, graph.whole(0)), F32), graph.floats(FULL_SCALE))
    each = [_over_flips(graph, network, pixels, len(rendering.image_size), flips) for network in networks]
    stacked = graph.add("Concat", *each, axis=0)
    graph.name(graph.add("ReduceMean", stacked, graph.whole(0), keepdims=0), "logits")
    return _finished(graph, rendering, networks[0].head.out_features, notes)


def _finished(graph: _Graph, rendering: Rendering, labels: int, notes: dict[str, str]) -> onnx.ModelProto:
    axes = len(rendering.image_size)
    sides = ["depth", "height", "width"][-axes:]
    channels = rendering.channel_count
    windows = [channels] if rendering.channel_names else []
    inputs = [
        helper.make_tensor_value_info("pixels", F32, [channels, *sides] if channels > 1 else sides),
        helper.make_tensor_value_info("low", F64, windows),
        helper.make_tensor_value_info("high", F64, windows),
        helper.make_tensor_value_info("spacing_mm", F64, [axes]),
    ]
    outputs = [
        helper.make_tensor_value_info("array", U8, [channels, *rendering.image_size]),
        helper.make_tensor_value_info("logits", F64, [labels]),
    ]
    constants = list(graph.constants.values())
    if sum(len(one.raw_data) for one in constants) > LARGEST_BYTES * 0.99:
        raise GraphError("the networks together hold more than 2 GB, which one ONNX file cannot")
    made = helper.make_graph(graph.nodes, "maescreen", inputs, outputs, constants)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="maescreen"
    )
    helper.set_model_props(model, notes)
    return model


# ---------------------------------------------------------------- from display pixels to the array


def _planes(graph: _Graph, channels: int) -> list[str]:
    """Return each channel of `pixels`, (H, W) or (D, H, W)."""
    if channels == 1:
        return ["pixels"]
    return [graph.add("Gather", "pixels", graph.constant(n, np.int64), axis=0) for n in range(channels)]


def _windows(graph: _Graph, how: Rendering) -> list[tuple[str, str]]:
    """Return the lowest and highest value shown of each channel: a pair of each, or the same for all."""
    if not how.channel_names:
        return [("low", "high")] * how.channel_count
    places = [graph.constant(n, np.int64) for n in range(how.channel_count)]
    return [(graph.add("Gather", "low", at, axis=0), graph.add("Gather", "high", at, axis=0)) for at in places]


def _rendered(graph: _Graph, how: Rendering, pixels: str, window: tuple[str, str]) -> str:
    """Return what `imaging.transforms.render` makes of one channel between the ends of its window: uint8 (1, ...)."""
    axes = len(how.image_size)
    low, high = (graph.cast(end, F32) for end in window)
    value = graph.cast(graph.add("Clip", pixels, low, high), F64)
    shape = graph.add("Shape", pixels)
    sizes = _sizes(graph, shape, how)
    kept = graph.add("Min", shape, sizes)
    counts = []
    # The last axis is multiplied and becomes the first: after as many turns all are where they were.
    turn = [axes - 1, *range(axes - 1)]
    for axis in reversed(range(axes)):
        weights, count = _area(graph, _side(graph, shape, axis), _side(graph, kept, axis))
        value = graph.add("Transpose", graph.add("MatMul", value, weights), perm=turn)
        counts.insert(0, count)
    value = graph.cast(value, F32)
    for axis in range(axes):  # torch divides a sum by one side after the other
        value = graph.add("Div", value, _along(graph, counts[axis], axis, axes))
    places = [_places(graph, _side(graph, sizes, axis), how.image_size[axis]) for axis in range(axes)]
    for axis in reversed(range(axes)):  # and interpolates along the last axis first
        value = _linear(graph, value, places[axis][0], _side(graph, kept, axis), _side(graph, sizes, axis), axis, axes)
    span = graph.cast(graph.add("Sub", *reversed(window)), F32)
    shares = graph.add("Div", graph.add("Sub", value, low), span)
    scaled = graph.add("Mul", shares, graph.floats(FULL_SCALE))
    grey = graph.add("Round", graph.add("Clip", scaled, graph.floats(0.0), graph.floats(FULL_SCALE)))
    shown = graph.add("Greater", *reversed(window))  # a constant image is black, and so is padding
    for axis in range(axes):
        shown = graph.add("And", shown, _along(graph, places[axis][1], axis, axes))
    black = graph.add("Where", shown, grey, graph.floats(0.0))
    return graph.add("Unsqueeze", graph.cast(black, U8), graph.whole(0))


def _along(graph: _Graph, values: str, axis: int, axes: int) -> str:
    """Return values of one axis in a shape that meets arrays of all axes."""
    others = [n for n in range(axes) if n != axis]
    return graph.add("Unsqueeze", values, graph.whole(*others)) if others else values


def _sizes(graph: _Graph, shape: str, how: Rendering) -> str:
    """Return the size that the image is resized to, as transforms.py computes it: int64, one per axis."""
    extent = graph.add("Mul", graph.cast(shape, F64), "spacing_mm")
    if how.spacing_mm is not None:
        size = graph.add("Div", extent, graph.constant(how.spacing_mm, np.float64))
    else:
        wanted = graph.constant(how.image_size, np.float64)
        least = graph.add("ReduceMin", graph.add("Div", wanted, extent), graph.whole(0), keepdims=1)
        size = graph.add("Mul", extent, least)
    rounded = graph.add("Max", graph.add("Round", size), graph.constant(1.0, np.float64))
    return graph.cast(rounded, I64)


def _side(graph: _Graph, sizes: str, axis: int) -> str:
    """Return the size along one axis, a scalar."""
    return graph.add("Gather", sizes, graph.constant(axis, np.int64))


def _area(graph: _Graph, before: str, after: str) -> tuple[str, str]:
    """Return which pixels are averaged along one axis, as ones (before, after) float64, and how many (after,) float32.

    As in torch's adaptive_avg_pool: from floor(n * before / after) on, below ceil((n + 1) * before / after).
    """
    zero, one = (graph.constant(n, np.int64) for n in (0, 1))
    row = graph.add("Range", zero, after, one)
    column = graph.add("Unsqueeze", graph.add("Range", zero, before, one), graph.whole(1))
    start = graph.add("Div", graph.add("Mul", row, before), after)
    beyond = graph.add("Mul", graph.add("Add", row, one), before)
    end = graph.add("Div", graph.add("Sub", graph.add("Add", beyond, after), one), after)
    taken = graph.add("And", graph.add("GreaterOrEqual", column, start), graph.add("Less", column, end))
    return graph.cast(taken, F64), graph.cast(graph.add("Sub", end, start), F32)


def _places(graph: _Graph, after: str, wanted: int) -> tuple[str, str]:
    """Return for each place of the array along one axis which pixel of the resized image lies there, the nearest one
    where none does, and whether one does; both (wanted,). What ResizeWithPadOrCrop does."""
    two, zero = (graph.constant(n, np.int64) for n in (2, 0))
    last = graph.add("Sub", after, graph.constant(1, np.int64))
    added = graph.add("Div", graph.add("Sub", graph.constant(wanted, np.int64), after), two)
    cut = graph.add("Sub", graph.constant(wanted // 2, np.int64), graph.add("Div", after, two))
    fits = graph.add("LessOrEqual", after, graph.constant(wanted, np.int64))
    place = graph.add("Sub", graph.constant(np.arange(wanted), np.int64), graph.add("Where", fits, added, cut))
    inside = graph.add("And", graph.add("GreaterOrEqual", place, zero), graph.add("LessOrEqual", place, last))
    return graph.add("Min", graph.add("Max", place, zero), last), inside


def _linear(graph: _Graph, value: str, place: str, before: str, after: str, axis: int, axes: int) -> str:
    """Return an array interpolated along one axis between pixel centres, at some places of the size `after`; float32
    like torch's."""
    half, one = graph.floats(0.5), graph.constant(1, np.int64)
    scale = graph.add("Div", graph.cast(before, F32), graph.cast(after, F32))
    centre = graph.add("Mul", scale, graph.add("Add", graph.cast(place, F32), half))
    exact = graph.add("Max", graph.add("Sub", centre, half), graph.floats(0.0))
    last = graph.add("Sub", before, one)
    first = graph.add("Min", graph.cast(exact, I64), last)
    second = graph.add("Min", graph.add("Add", first, one), last)
    share = graph.add("Sub", exact, graph.cast(first, F32))
    rest = graph.add("Sub", graph.floats(1.0), share)
    parts = [
        graph.add("Mul", graph.add("Gather", value, at, axis=axis), _along(graph, weight, axis, axes))
        for at, weight in ((first, rest), (second, share))
    ]
    return graph.add("Add", *parts)


# ---------------------------------------------------------------- from the array to logits


def _over_flips(graph: _Graph, network: Network, pixels: str, axes: int, flips: bool) -> str:
    """Return the logits (1, L) float64 of one network, with `flips` the mean with those of the mirrored image."""
    logits = LOGITS[type(network)](graph, network, pixels)
    if not flips:
        return logits
    ends = graph.whole(-1), graph.whole(np.iinfo(np.int64).min), graph.whole(axes + 1), graph.whole(-1)
    mirrored = LOGITS[type(network)](graph, network, graph.add("Slice", pixels, *ends))
    return graph.add("Div", graph.add("Add", logits, mirrored), graph.constant(2.0, np.float64))


def _normalised(graph: _Graph, pixels: str, spec: EncoderSpec | ResNetSpec) -> str:
    mean, std = (_per_channel(graph, values, spec) for values in (spec.pixel_mean, spec.pixel_std))
    return graph.add("Div", graph.add("Sub", pixels, mean), std)


def _of_transformer(graph: _Graph, network: Classifier, pixels: str) -> str:
    """Return what Classifier.forward does, float64 (1, L)."""
    spec, encoder = network.spec, network.encoder
    patches = _patches(graph, _normalised(graph, pixels, spec), spec)
    embedding = encoder.patch_embedding
    projection: Any = embedding.patch_embeddings
    tokens = _affine(graph, patches, projection.weight.flatten(1), projection.bias)
    tokens = graph.add("Add", tokens, _tensor(graph, embedding.position_embeddings))
    before: list[Any] = [encoder.cls_token, *([encoder.register_tokens] if spec.registers else [])]
    tokens = graph.add("Concat", *(_tensor(graph, one) for one in before), tokens, axis=1)
    for block in encoder.blocks:
        tokens = _block(graph, block, tokens, spec)
    tokens = _norm(graph, tokens, encoder.norm)
    features = _pooled(graph, network, tokens)
    if isinstance(network.head_norm, nn.LayerNorm):
        features = _norm(graph, features, network.head_norm)
    return graph.cast(_affine(graph, features, network.head.weight, network.head.bias), F64)


def _pooled(graph: _Graph, network: Classifier, tokens: str) -> str:
    """Return what Classifier.pooled does, (1, D)."""
    spec = network.spec
    if network.pooling == "class_token":
        return graph.add("Gather", tokens, graph.constant(0, np.int64), axis=1)
    ends = graph.whole(spec.prefix), graph.whole(spec.prefix + spec.tokens), graph.whole(1)
    patches = graph.add("Slice", tokens, *ends)
    if network.pool is None:
        return graph.add("ReduceMean", patches, graph.whole(1), keepdims=0)
    queries, width = network.pool.queries.shape
    asked = _tensor(graph, network.pool.queries * width**-0.5)
    products = graph.add("MatMul", asked, graph.add("Transpose", patches, perm=[0, 2, 1]))
    read = graph.add("MatMul", graph.add("Softmax", products, axis=-1), patches)
    columns = graph.add("Reshape", read, graph.whole(queries, width, 1))
    blocks = _tensor(graph, network.pool.values.weight.unflatten(0, (queries, -1)))
    return graph.add("Reshape", graph.add("MatMul", blocks, columns), graph.whole(1, width))


def _per_channel(graph: _Graph, values: Sequence[float], spec: EncoderSpec | ResNetSpec) -> str:
    if len(values) == 1:
        return graph.floats(values[0])
    return graph.constant(np.reshape(values, (1, -1, *(1 for _ in spec.image_size))), np.float32)


def _patches(graph: _Graph, pixels: str, spec: EncoderSpec) -> str:
    """Return what `patchify` does, (1, L, P)."""
    axes = len(spec.patch_size)
    split = [n for grid, patch in zip(spec.grid, spec.patch_size, strict=True) for n in (grid, patch)]
    order = [0, *(2 + 2 * n for n in range(axes)), 1, *(3 + 2 * n for n in range(axes))]
    woven = graph.add("Reshape", pixels, graph.whole(1, spec.channels, *split))
    return graph.add(
        "Reshape", graph.add("Transpose", woven, perm=order), graph.whole(1, spec.tokens, spec.patch_values)
    )


def _block(graph: _Graph, block: Any, tokens: str, spec: EncoderSpec) -> str:
    """Return what a transformer block does: attention and a perceptron, each on a normalised copy that is added."""
    heads, size, count = spec.heads, spec.width // spec.heads, spec.prefix + spec.tokens
    attention = block.attn
    mixed = _affine(graph, _norm(graph, tokens, block.norm1), attention.qkv.weight, attention.qkv.bias)
    parts = graph.add("Reshape", mixed, graph.whole(count, 3, heads, size))
    query, key, value = (
        graph.add("Transpose", graph.add("Gather", parts, graph.constant(n, np.int64), axis=1), perm=order)
        for n, order in ((0, [1, 0, 2]), (1, [1, 2, 0]), (2, [1, 0, 2]))
    )
    products = graph.add("Mul", graph.add("MatMul", query, key), graph.floats(1 / math.sqrt(size)))
    read = graph.add("MatMul", graph.add("Softmax", products, axis=-1), value)
    joined = graph.add("Reshape", graph.add("Transpose", read, perm=[1, 0, 2]), graph.whole(1, count, spec.width))
    tokens = graph.add("Add", tokens, _affine(graph, joined, attention.out_proj.weight, attention.out_proj.bias))
    inner = _affine(graph, _norm(graph, tokens, block.norm2), block.mlp.linear1.weight, block.mlp.linear1.bias)
    outer = _affine(graph, graph.add("Gelu", inner), block.mlp.linear2.weight, block.mlp.linear2.bias)
    return graph.add("Add", tokens, outer)


def _norm(graph: _Graph, values: str, norm: Any) -> str:
    return graph.add(
        "LayerNormalization", values, _tensor(graph, norm.weight), _tensor(graph, norm.bias), axis=-1, epsilon=norm.eps
    )


def _affine(graph: _Graph, values: str, weight: torch.Tensor, bias: torch.Tensor | None) -> str:
    product = graph.add("MatMul", values, _tensor(graph, weight.T))
    return product if bias is None else graph.add("Add", product, _tensor(graph, bias))


def _tensor(graph: _Graph, tensor: torch.Tensor) -> str:
    return graph.constant(tensor.detach().cpu().float().numpy(), np.float32)


def _of_resnet(graph: _Graph, network: ResNetClassifier, pixels: str) -> str:
    """Return what ResNetClassifier.forward does, float64 (1, L)."""
    body: Any = network.body
    found = _convolved(graph, _normalised(graph, pixels, network.spec), body.conv1)
    found = graph.add("Relu", _group_norm(graph, found, body.bn1))
    if network.spec.pooled:
        axes = len(network.spec.image_size)
        found = graph.add("MaxPool", found, kernel_shape=[3] * axes, strides=[2] * axes, pads=[1] * 2 * axes)
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        for block in stage:
            found = _residual(graph, block, found)
    places = graph.add("Reshape", found, graph.whole(1, network.head.in_features, -1))
    features = graph.add("ReduceMean", places, graph.whole(2), keepdims=0)
    return graph.cast(_affine(graph, features, network.head.weight, network.head.bias), F64)


def _residual(graph: _Graph, block: Any, given: str) -> str:
    """Return what a residual block does: two convolutions, added to what came in or to its linear image."""
    found = graph.add("Relu", _group_norm(graph, _convolved(graph, given, block.conv1), block.bn1))
    found = _group_norm(graph, _convolved(graph, found, block.conv2), block.bn2)
    if block.downsample is not None:
        convolution, norm = block.downsample
        given = _group_norm(graph, _convolved(graph, given, convolution), norm)
    return graph.add("Relu", graph.add("Add", found, given))


def _convolved(graph: _Graph, values: str, convolution: Any) -> str:
    bias = [] if convolution.bias is None else [_tensor(graph, convolution.bias)]
    return graph.add(
        "Conv",
        values,
        _tensor(graph, convolution.weight),
        *bias,
        kernel_shape=list(convolution.kernel_size),
        strides=list(convolution.stride),
        pads=[*convolution.padding, *convolution.padding],
    )


def _group_norm(graph: _Graph, values: str, norm: Any) -> str:
    """Return what nn.GroupNorm does: each group normalised, then each channel scaled and shifted."""
    groups, channels = norm.num_groups, norm.num_channels
    grouped = graph.add("Reshape", values, graph.whole(1, groups, -1))
    ones, zeros = (graph.constant(np.full(groups, value), np.float32) for value in (1, 0))
    even = graph.add("InstanceNormalization", grouped, ones, zeros, epsilon=norm.eps)
    of_channels = graph.add("Reshape", even, graph.whole(1, channels, -1))
    weight, bias = (_tensor(graph, one[None, :, None]) for one in (norm.weight, norm.bias))
    scaled = graph.add("Add", graph.add("Mul", of_channels, weight), bias)
    return graph.add("Reshape", scaled, graph.add("Shape", values))


# How the logits of each kind of network are written.
LOGITS: dict[type[Network], Callable[..., str]] = {Classifier: _of_transformer, ResNetClassifier: _of_resnet}
