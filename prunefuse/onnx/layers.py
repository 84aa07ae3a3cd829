"""What the nodes of a file are in terms of PyTorch's operators: for what reads the calls of a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from prunefuse.pruning._graph.couplings import Value
from prunefuse.pruning._graph.trace import Record
from prunefuse.pruning._rules.registry import values_in

_NAMES = {
    "onnx::MatMul": "aten::matmul",
    "onnx::Einsum": "aten::einsum",
    "onnx::BatchNormalization": "aten::batch_norm",
    "onnx::InstanceNormalization": "aten::instance_norm",
    "onnx::LayerNormalization": "aten::layer_norm",
    "onnx::RMSNormalization": "aten::rms_norm",
    "onnx::GroupNormalization": "aten::group_norm",
}


@dataclass(frozen=True)
class Product:
    """A convolution or a product with a constant matrix.

    Attributes:
        op: Which of PyTorch's operators it is.
        x: Its input.
        weight: Its weight.
        bias: Its bias, a constant with a number for each output channel.
        added: What constant is added, be it such a bias or another.
        out: Its result: of a matrix product whose bias is added by the next node, that one's.
    """

    op: str
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    added: ir.Value | None
    out: ir.Value


def product(node: ir.Node) -> Product | None:
    """The node as one, if it is one with constant weights."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    x, weight, added = (*node.inputs, None)[:3]
    if x is None or weight is None or not (sizes := constant_sizes(weight)):
        return None
    out = node.outputs[0]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    transposed = bool(attributes.get("transB", 0))
    if node.op_type == "Gemm" and (
        attributes.get("transA", 0) or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1
    ):
        return None
    if node.op_type == "MatMul" and len(sizes) != 2:
        return None
    width = sizes[0 if node.op_type == "Conv" or transposed else 1]
    if node.op_type == "MatMul" and (sum_ := _next_sum(node, width)) is not None:
        added, out = sum_
    if added is not None and constant_sizes(added) is None:
        return None
    bias = added if added is not None and constant_sizes(added) == [width] else None
    if node.op_type == "Conv":
        op = f"aten::conv{len(sizes) - 2}d"
    elif transposed:
        op = "aten::linear"
    else:
        op = "aten::mm" if bias is None else "aten::addmm"
    return Product(op, x, weight, bias, added, out)


def constant_sizes(value: ir.Value) -> list[int] | None:
    """The shape of a constant; None for other tensors."""
    tensor = value.const_value
    return list(map(int, tensor.shape)) if value.is_initializer() and tensor is not None else None


def _next_sum(node: ir.Node, width: int) -> tuple[ir.Value, ir.Value] | None:
    """The bias and the result, where all that reads a product is a node that adds a constant to each channel."""
    value = node.outputs[0]
    uses = [use.node for use in value.uses()]
    if len(uses) != 1 or uses[0].op_type != "Add" or value.is_graph_output():
        return None
    others = [x for x in uses[0].inputs if x is not None and x is not value]
    if len(others) != 1 or constant_sizes(others[0]) != [width]:
        return None
    return others[0], uses[0].outputs[0]


def record(
    node: ir.Node,
    op: str,
    inputs: list[Value | None],
    outputs: list[Value],
    tensor: Callable[..., Value | None],
) -> Record:
    """The call of a node, under the name and with the inputs that it has in PyTorch."""
    name, tensors = str(node.name), values_in(inputs)
    if len(tensors) < sum(value is not None for value in node.inputs):  # of unknown shape
        return Record(op, name, tuple(tensors), tuple(outputs))
    if (applied := product(node)) is not None:
        x, weight, bias = map(tensor, (applied.x, applied.weight, applied.bias))
        tensors = values_in([bias, x, weight] if applied.op == "aten::addmm" else [x, weight, bias])
        return Record(applied.op, name, tuple(tensors), tuple(outputs))
    if node.op_type == "Add":  # a bias is the product's
        products = [product(made) for value in node.inputs if value and (made := value.producer())]
        if any(made is not None and made.out is node.outputs[0] for made in products):
            tensors = [value for value in tensors if value.name is None]
    if op == "onnx::ConvTranspose":
        op = f"aten::conv_transpose{len(outputs[0].axes) - 2}d"
    return Record(_NAMES.get(op, op), name, tuple(tensors), tuple(outputs))
