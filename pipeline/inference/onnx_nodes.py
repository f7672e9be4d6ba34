"""An ONNX graph as it grows: nodes and constants, each known by the name of its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

F32, F64, I64, U8 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT8


@dataclass
class Nodes:
    """Nodes and constants as they are added; equal constants, as of encoders that seeds share, are kept once.

    `axes` is how many an image has, channels left out.
    """

    axes: int
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
        array = np.array(values, kind, order="C")
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

    def index(self, value: int) -> str:
        """Add a whole number as a scalar."""
        return self.constant(value, np.int64)

    def tensor(self, tensor: torch.Tensor) -> str:
        """Add a tensor as float32."""
        return self.constant(tensor.detach().cpu().float().numpy(), np.float32)

    def affine(self, values: str, weight: torch.Tensor, bias: torch.Tensor | None) -> str:
        """Add a product with a weight (out, in), and a bias where there is one."""
        product = self.add("MatMul", values, self.tensor(weight.T))
        return product if bias is None else self.add("Add", product, self.tensor(bias))

    def norm(self, values: str, norm: Any) -> str:
        """Add a layer norm over the last axis."""
        weight, bias = self.tensor(norm.weight), self.tensor(norm.bias)
        return self.add("LayerNormalization", values, weight, bias, axis=-1, epsilon=norm.eps)
