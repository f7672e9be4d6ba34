"""A packaged model as an ONNX graph: display pixels of one image in, the array that the networks see and logits out.

Where the image shrinks, areas are averaged: a product with a matrix of ones per axis, which the graph makes from the
image's own size, divided by counts. Where it grows, it is interpolated with torch's weights. Each place where torch
rounds to float32 is repeated, so that of whole-numbered pixels nearly all arrays are the same in every byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torch import nn

from pipeline.imaging.transforms import Rendering
from pipeline.inference.onnx_nodes import F32, F64, I64, U8, Nodes
from pipeline.models.classifier import Classifier
from pipeline.models.finished import Network, Weighted
from pipeline.models.resnet import ResNetClassifier, ResNetSpec
from pipeline.models.vit import EncoderSpec

OPSET, IR_VERSION = 20, 9
LARGEST_BYTES = 2**31 - 1  # of one file, by the format
FULL_SCALE = 255.0


class GraphError(ValueError):
    """The model cannot be an ONNX graph; the message says why."""


def build(weighted: Weighted, rendering: Rendering, flips: bool, notes: dict[str, str]) -> onnx.ModelProto:
    """Return the graph of all networks of a model; `notes` are kept in it as text.

    Inputs: `pixels` float32 (H, W), in colour (3, H, W), (D, H, W), or (C, D, H, W) where the card lists channels, of
    any size, `low` and `high` float64, the window's ends or the image's own percentiles, (C,) where the card lists
    channels, `spacing_mm` float64, one per axis. Outputs: `array` uint8 (C, ...) as
    the networks see it, `logits` float64 (L,), the weighted sum over the networks, the main label's first.

    Raises GraphError when the networks take other channels than the rendering makes, one is of an unknown kind, the
    field of view has to be found, or the file would be too large.
    """
    networks = weighted.networks
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
    graph = Nodes(axes=len(rendering.image_size))
    pixels = _planes(graph, rendering.channel_count)
    windows = _windows(graph, rendering)
    planes = [_rendered(graph, rendering, *one) for one in zip(pixels, windows, strict=True)]
    array = planes[0] if len(planes) == 1 else graph.add("Concat", *planes, axis=0)
    graph.name(array, "array")
    pixels = graph.add("Div", graph.cast(graph.add("Unsqueeze", array, graph.whole(0)), F32), graph.floats(FULL_SCALE))
    each = [_over_flips(graph, network, pixels, flips) for network in networks]
    parts = graph.add("Mul", graph.add("Concat", *each, axis=0), graph.constant(weighted.weights, np.float64))
    whole = graph.add("ReduceSum", parts, graph.whole(0), keepdims=0)
    graph.name(graph.add("Add", whole, graph.constant(weighted.offset, np.float64)), "logits")
    return _finished(graph, rendering, networks[0].head.out_features, notes)


def _finished(graph: Nodes, rendering: Rendering, labels: int, notes: dict[str, str]) -> onnx.ModelProto:
    sides = ["depth", "height", "width"][-graph.axes :]
    channels = rendering.channel_count
    windows = [channels] if rendering.channel_names else []
    inputs = [
        helper.make_tensor_value_info("pixels", F32, [channels, *sides] if channels > 1 else sides),
        helper.make_tensor_value_info("low", F64, windows),
        helper.make_tensor_value_info("high", F64, windows),
        helper.make_tensor_value_info("spacing_mm", F64, [graph.axes]),
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


def _planes(graph: Nodes, channels: int) -> list[str]:
    """Return each channel of `pixels`, (H, W) or (D, H, W)."""
    if channels == 1:
        return ["pixels"]
    return [graph.add("Gather", "pixels", graph.index(n), axis=0) for n in range(channels)]


def _windows(graph: Nodes, how: Rendering) -> list[tuple[str, str]]:
    """Return the lowest and highest value shown of each channel: a pair of each, or the same for all."""
    if not how.channel_names:
        return [("low", "high")] * how.channel_count
    places = [graph.index(n) for n in range(how.channel_count)]
    return [(graph.add("Gather", "low", at, axis=0), graph.add("Gather", "high", at, axis=0)) for at in places]


def _rendered(graph: Nodes, how: Rendering, pixels: str, window: tuple[str, str]) -> str:
    """Return what `imaging.transforms.render` makes of one channel between the ends of its window: uint8 (1, ...)."""
    axes = graph.axes
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
        value = graph.add("Div", value, _along(graph, counts[axis], axis))
    places = [_places(graph, _side(graph, sizes, axis), how.image_size[axis]) for axis in range(axes)]
    for axis in reversed(range(axes)):  # and interpolates along the last axis first
        value = _linear(graph, value, places[axis][0], _side(graph, kept, axis), _side(graph, sizes, axis), axis)
    span = graph.cast(graph.add("Sub", *reversed(window)), F32)
    shares = graph.add("Div", graph.add("Sub", value, low), span)
    scaled = graph.add("Mul", shares, graph.floats(FULL_SCALE))
    grey = graph.add("Round", graph.add("Clip", scaled, graph.floats(0.0), graph.floats(FULL_SCALE)))
    shown = graph.add("Greater", *reversed(window))  # a constant image is black, and so is padding
    for axis in range(axes):
        shown = graph.add("And", shown, _along(graph, places[axis][1], axis))
    black = graph.add("Where", shown, grey, graph.floats(0.0))
    return graph.add("Unsqueeze", graph.cast(black, U8), graph.whole(0))


def _along(graph: Nodes, values: str, axis: int) -> str:
    """Return values of one axis in a shape that meets arrays of all axes."""
    others = [n for n in range(graph.axes) if n != axis]
    return graph.add("Unsqueeze", values, graph.whole(*others)) if others else values


def _sizes(graph: Nodes, shape: str, how: Rendering) -> str:
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


def _side(graph: Nodes, sizes: str, axis: int) -> str:
    """Return the size along one axis, a scalar."""
    return graph.add("Gather", sizes, graph.index(axis))


def _area(graph: Nodes, before: str, after: str) -> tuple[str, str]:
    """Return which pixels are averaged along one axis, as ones (before, after) float64, and how many (after,) float32.

    As in torch's adaptive_avg_pool: from floor(n * before / after) on, below ceil((n + 1) * before / after).
    """
    zero, one = (graph.index(n) for n in (0, 1))
    row = graph.add("Range", zero, after, one)
    column = graph.add("Unsqueeze", graph.add("Range", zero, before, one), graph.whole(1))
    start = graph.add("Div", graph.add("Mul", row, before), after)
    beyond = graph.add("Mul", graph.add("Add", row, one), before)
    end = graph.add("Div", graph.add("Sub", graph.add("Add", beyond, after), one), after)
    taken = graph.add("And", graph.add("GreaterOrEqual", column, start), graph.add("Less", column, end))
    return graph.cast(taken, F64), graph.cast(graph.add("Sub", end, start), F32)


def _places(graph: Nodes, after: str, wanted: int) -> tuple[str, str]:
    """Return for each place of the array along one axis which pixel of the resized image lies there, the nearest one
    where none does, and whether one does; both (wanted,). What ResizeWithPadOrCrop does."""
    two, zero = (graph.index(n) for n in (2, 0))
    last = graph.add("Sub", after, graph.index(1))
    added = graph.add("Div", graph.add("Sub", graph.index(wanted), after), two)
    cut = graph.add("Sub", graph.index(wanted // 2), graph.add("Div", after, two))
    fits = graph.add("LessOrEqual", after, graph.index(wanted))
    place = graph.add("Sub", graph.constant(np.arange(wanted), np.int64), graph.add("Where", fits, added, cut))
    inside = graph.add("And", graph.add("GreaterOrEqual", place, zero), graph.add("LessOrEqual", place, last))
    return graph.add("Min", graph.add("Max", place, zero), last), inside


def _linear(graph: Nodes, value: str, place: str, before: str, after: str, axis: int) -> str:
    """Return an array interpolated along one axis between pixel centres, at some places of the size `after`; float32
    like torch's."""
    half, one = graph.floats(0.5), graph.index(1)
    scale = graph.add("Div", graph.cast(before, F32), graph.cast(after, F32))
    centre = graph.add("Mul", scale, graph.add("Add", graph.cast(place, F32), half))
    exact = graph.add("Max", graph.add("Sub", centre, half), graph.floats(0.0))
    last = graph.add("Sub", before, one)
    first = graph.add("Min", graph.cast(exact, I64), last)
    second = graph.add("Min", graph.add("Add", first, one), last)
    share = graph.add("Sub", exact, graph.cast(first, F32))
    rest = graph.add("Sub", graph.floats(1.0), share)
    parts = [
        graph.add("Mul", graph.add("Gather", value, at, axis=axis), _along(graph, weight, axis))
        for at, weight in ((first, rest), (second, share))
    ]
    return graph.add("Add", *parts)


# ---------------------------------------------------------------- from the array to logits


def _over_flips(graph: Nodes, network: Network, pixels: str, flips: bool) -> str:
    """Return the logits (1, L) float64 of one network, with `flips` the mean with those of the mirrored image."""
    logits = LOGITS[type(network)](graph, network, pixels)
    if not flips:
        return logits
    ends = graph.whole(-1), graph.whole(np.iinfo(np.int64).min), graph.whole(graph.axes + 1), graph.whole(-1)
    mirrored = LOGITS[type(network)](graph, network, graph.add("Slice", pixels, *ends))
    return graph.add("Div", graph.add("Add", logits, mirrored), graph.constant(2.0, np.float64))


def _normalised(graph: Nodes, pixels: str, spec: EncoderSpec | ResNetSpec) -> str:
    mean, std = (_per_channel(graph, values, spec) for values in (spec.pixel_mean, spec.pixel_std))
    return graph.add("Div", graph.add("Sub", pixels, mean), std)


def _of_transformer(graph: Nodes, network: Classifier, pixels: str) -> str:
    """Return what Classifier.forward does, float64 (1, L)."""
    spec, encoder = network.spec, network.encoder
    patches = _patches(graph, _normalised(graph, pixels, spec), spec)
    embedding = encoder.patch_embedding
    projection: Any = embedding.patch_embeddings
    tokens = graph.affine(patches, projection.weight.flatten(1), projection.bias)
    tokens = graph.add("Add", tokens, graph.tensor(embedding.position_embeddings))
    before: list[Any] = [encoder.cls_token, *([encoder.register_tokens] if spec.registers else [])]
    tokens = graph.add("Concat", *(graph.tensor(one) for one in before), tokens, axis=1)
    for block in encoder.blocks:
        tokens = _block(graph, block, tokens, spec)
    tokens = graph.norm(tokens, encoder.norm)
    features = _pooled(graph, network, tokens)
    if isinstance(network.head_norm, nn.LayerNorm):
        features = graph.norm(features, network.head_norm)
    return graph.cast(graph.affine(features, network.head.weight, network.head.bias), F64)


def _pooled(graph: Nodes, network: Classifier, tokens: str) -> str:
    """Return what Classifier.pooled does, (1, D)."""
    spec = network.spec
    if network.pooling == "class_token":
        return graph.add("Gather", tokens, graph.index(0), axis=1)
    ends = graph.whole(spec.prefix), graph.whole(spec.prefix + spec.tokens), graph.whole(1)
    patches = graph.add("Slice", tokens, *ends)
    if network.pool is None:
        return graph.add("ReduceMean", patches, graph.whole(1), keepdims=0)
    queries, width = network.pool.queries.shape
    asked = graph.tensor(network.pool.queries * width**-0.5)
    products = graph.add("MatMul", asked, graph.add("Transpose", patches, perm=[0, 2, 1]))
    read = graph.add("MatMul", graph.add("Softmax", products, axis=-1), patches)
    columns = graph.add("Reshape", read, graph.whole(queries, width, 1))
    blocks = graph.tensor(network.pool.values.weight.unflatten(0, (queries, -1)))
    return graph.add("Reshape", graph.add("MatMul", blocks, columns), graph.whole(1, width))


def _per_channel(graph: Nodes, values: Sequence[float], spec: EncoderSpec | ResNetSpec) -> str:
    if len(values) == 1:
        return graph.floats(values[0])
    return graph.constant(np.reshape(values, (1, -1, *(1 for _ in spec.image_size))), np.float32)


def _patches(graph: Nodes, pixels: str, spec: EncoderSpec) -> str:
    """Return what `patchify` does, (1, L, P)."""
    axes = len(spec.patch_size)
    split = [n for grid, patch in zip(spec.grid, spec.patch_size, strict=True) for n in (grid, patch)]
    order = [0, *(2 + 2 * n for n in range(axes)), 1, *(3 + 2 * n for n in range(axes))]
    woven = graph.add("Reshape", pixels, graph.whole(1, spec.channels, *split))
    return graph.add(
        "Reshape", graph.add("Transpose", woven, perm=order), graph.whole(1, spec.tokens, spec.patch_values)
    )


def _block(graph: Nodes, block: Any, tokens: str, spec: EncoderSpec) -> str:
    """Return what a transformer block does: attention and a perceptron, each on a normalised copy that is added."""
    heads, size, count = spec.heads, spec.width // spec.heads, spec.prefix + spec.tokens
    attention = block.attn
    mixed = graph.affine(graph.norm(tokens, block.norm1), attention.qkv.weight, attention.qkv.bias)
    parts = graph.add("Reshape", mixed, graph.whole(count, 3, heads, size))
    query, key, value = (
        graph.add("Transpose", graph.add("Gather", parts, graph.index(n), axis=1), perm=order)
        for n, order in ((0, [1, 0, 2]), (1, [1, 2, 0]), (2, [1, 0, 2]))
    )
    products = graph.add("Mul", graph.add("MatMul", query, key), graph.floats(1 / math.sqrt(size)))
    read = graph.add("MatMul", graph.add("Softmax", products, axis=-1), value)
    joined = graph.add("Reshape", graph.add("Transpose", read, perm=[1, 0, 2]), graph.whole(1, count, spec.width))
    tokens = graph.add("Add", tokens, graph.affine(joined, attention.out_proj.weight, attention.out_proj.bias))
    inner = graph.affine(graph.norm(tokens, block.norm2), block.mlp.linear1.weight, block.mlp.linear1.bias)
    outer = graph.affine(graph.add("Gelu", inner), block.mlp.linear2.weight, block.mlp.linear2.bias)
    return graph.add("Add", tokens, outer)


def _of_resnet(graph: Nodes, network: ResNetClassifier, pixels: str) -> str:
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
    return graph.cast(graph.affine(features, network.head.weight, network.head.bias), F64)


def _residual(graph: Nodes, block: Any, given: str) -> str:
    """Return what a residual block does: two convolutions, added to what came in or to its linear image."""
    found = graph.add("Relu", _group_norm(graph, _convolved(graph, given, block.conv1), block.bn1))
    found = _group_norm(graph, _convolved(graph, found, block.conv2), block.bn2)
    if block.downsample is not None:
        convolution, norm = block.downsample
        given = _group_norm(graph, _convolved(graph, given, convolution), norm)
    return graph.add("Relu", graph.add("Add", found, given))


def _convolved(graph: Nodes, values: str, convolution: Any) -> str:
    bias = [] if convolution.bias is None else [graph.tensor(convolution.bias)]
    steps = {"kernel_shape": list(convolution.kernel_size), "strides": list(convolution.stride)}
    pads = [*convolution.padding, *convolution.padding]
    return graph.add("Conv", values, graph.tensor(convolution.weight), *bias, **steps, pads=pads)


def _group_norm(graph: Nodes, values: str, norm: Any) -> str:
    """Return what nn.GroupNorm does: each group normalised, then each channel scaled and shifted."""
    groups, channels = norm.num_groups, norm.num_channels
    grouped = graph.add("Reshape", values, graph.whole(1, groups, -1))
    ones, zeros = (graph.constant(np.full(groups, value), np.float32) for value in (1, 0))
    even = graph.add("InstanceNormalization", grouped, ones, zeros, epsilon=norm.eps)
    of_channels = graph.add("Reshape", even, graph.whole(1, channels, -1))
    weight, bias = (graph.tensor(one[None, :, None]) for one in (norm.weight, norm.bias))
    scaled = graph.add("Add", graph.add("Mul", of_channels, weight), bias)
    return graph.add("Reshape", scaled, graph.add("Shape", values))


# How the logits of each kind of network are written.
LOGITS: dict[type[Network], Callable[..., str]] = {Classifier: _of_transformer, ResNetClassifier: _of_resnet}
