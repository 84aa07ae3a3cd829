"""From an ONNX file to its couplings: name what has no name, fold constants, then walk the graph with the rules."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from prunefuse.onnx.layers import record
from prunefuse.onnx.norms import normalizing
from prunefuse.onnx.shapes import Shapes, captured, evaluate
from prunefuse.pruning._graph.couplings import Ids, Place, Value, fixed
from prunefuse.pruning._graph.trace import Call, Note, Trace, Tracing
from prunefuse.pruning._rules.registry import find_rule, unknown, values_in

_FOLDED = 1 << 16
"""Bytes that a folded constant may always have; a larger one may not be larger than what it is made from."""


def read(path: str | os.PathLike[str]) -> ir.Model:
    """Return the network of a file, ready to be planned and cut; the same file always gives the same names.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch.onnx.export(net, (torch.zeros(1, 4),), "net.onnx", dynamo=False)
    >>> [node.op_type for node in prunefuse.onnx.read("net.onnx").graph]
    ['Gemm', 'Relu', 'Gemm']

    Functions are inlined, and every node has a name of its own. Constants are initializers, also those that were computed
    from others, as the transpose of a weight. Nodes whose results nobody reads are left out. Tensors stored outside of the file
    stay there until they are used.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not an ONNX file.
    """
    try:
        model = ir.load(path)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"path must be an ONNX file, got {os.fspath(path)} ({type(error).__name__})"
        ) from error
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.graph.sort()
    taken: set[str] = set()
    for node in model.graph:
        name = node.name or node.op_type
        names = (name if i == 0 else f"{name}_{i}" for i in count(0 if node.name else 1))
        node.name = next(name for name in names if name not in taken)
        taken.add(node.name)
    model.ir_version = max(model.ir_version, 4)  # before, every constant had to be an input
    _fold(model)
    _without_sequences(model)
    _without_dead_nodes(model)
    return model


def _without_dead_nodes(model: ir.Model) -> None:
    """Drop nodes whose results nobody reads, and the constants that they alone have read."""
    graph = model.graph
    for node in reversed(list(graph)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        read = {value for value in node.inputs if value is not None and value.is_initializer()}
        graph.remove(node, safe=True)
        for value in read:
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[str(value.name)]


def _fold(model: ir.Model) -> None:
    """Replace nodes that depend on nothing but initializers by their results."""
    graph = model.graph
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
    for node in list(graph):
        if node.op_type == "CastLike" and (like := node.inputs[1]) is not None and like.dtype is not None:
            cast = ir.node("Cast", node.inputs[:1], {"to": int(like.dtype)}, name=node.name)
            cast.outputs[0].dtype = like.dtype
            cast.outputs[0].name, node.outputs[0].name = node.outputs[0].name, None
            graph.insert_before(node, cast)
            node.outputs[0].replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
            graph.remove(node, safe=True)
            node = cast
        inputs = [value for value in node.inputs if value is not None]
        # Old files list initializers among the inputs; planning takes these as constants, too.
        constants = [value.const_value for value in inputs if value.is_initializer()]
        quantized = node.op_type in ("DequantizeLinear", "QuantizeLinear")
        ends = any(value.is_graph_output() for value in node.outputs)
        if not inputs or len(constants) < len(inputs) or None in constants or quantized or ends:
            continue
        results = evaluate(node, [tensor.numpy() for tensor in constants if tensor is not None], opsets)
        limit = max(_FOLDED, sum(tensor.nbytes for tensor in constants if tensor is not None))
        if results is None or sum(result.nbytes for result in results) > limit:
            continue
        for value, result in zip(node.outputs, results, strict=True):
            folded = ir.Value(
                name=value.name, const_value=ir.tensor(np.ascontiguousarray(result).reshape(result.shape))
            )
            folded.shape, folded.dtype = ir.Shape(result.shape), ir.DataType.from_numpy(result.dtype)
            value.name = None
            value.replace_all_uses_with(folded)
            graph.register_initializer(folded)
        graph.remove(node, safe=True)
        for value in dict.fromkeys(inputs):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[str(value.name)]


def _without_sequences(model: ir.Model) -> None:
    """Let nodes that split into a sequence of tensors, of which others pick one each, give these tensors."""
    graph = model.graph
    for node in list(graph):
        readers = [use.node for value in node.outputs for use in value.uses()]
        picks = [reader.inputs[1] for reader in readers if reader.op_type == "SequenceAt"]
        x, by = (*node.inputs, None)[:2]
        if node.op_type != "SplitToSequence" or len(picks) < len(readers) or x is None or by is None:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        width = x.shape[axis] if x.shape is not None else None
        constants = [value.const_value for value in (by, *picks) if value is not None]
        if not isinstance(width, int) or None in constants:
            continue
        numbers = [constant.numpy() for constant in constants if constant is not None]
        size = int(numbers[0].ravel()[0])
        sizes = (
            numbers[0] if numbers[0].ndim else [min(size, width - start) for start in range(0, width, size)]
        )
        widths = ir.Value(name=f"{node.name}.split", const_value=ir.tensor(np.array(sizes, dtype=np.int64)))
        graph.register_initializer(widths)
        split = ir.node("Split", [x, widths], {"axis": axis}, num_outputs=len(sizes), name=node.name)
        for i, value in enumerate(split.outputs):
            value.name = f"{node.name}.{i}"
        graph.insert_before(node, split)
        for reader, at in zip(readers, numbers[1:], strict=True):
            reader.outputs[0].replace_all_uses_with(split.outputs[int(at)])
            graph.remove(reader, safe=True)
        graph.remove(node, safe=True)


def example_shapes(
    model: ir.Model, wanted: Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every input: as wanted, by name or in their order, else as in the file.

    A first axis of unknown size is one sample.

    Raises:
        ValueError: an axis has no size, or there is no such input.
    """
    inputs = {str(value.name): value for value in model.graph.inputs if not value.is_initializer()}
    if not isinstance(wanted, Mapping):
        if len(wanted or ()) > len(inputs):
            raise ValueError(f"shapes must be of the inputs {', '.join(inputs)}, got {len(wanted or ())}")
        wanted = dict(zip(inputs, wanted or (), strict=False))
    if strangers := sorted(set(wanted) - set(inputs)):
        raise ValueError(f"shapes must be of the inputs {', '.join(inputs)}, got {', '.join(strangers)}")
    result = {}
    for name, value in inputs.items():
        held = [dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape or ()]  # -1 is open
        dims: list[Any] = list(wanted.get(name, held))
        if dims and not isinstance(dims[0], int):
            dims[0] = 1
        fixed_dims = zip(held or dims, dims, strict=False)
        if len(held or dims) != len(dims) or any(isinstance(a, int) and a != b for a, b in fixed_dims):
            raise ValueError(f"shapes must fit the input {name} of shape {value.shape}, got {tuple(dims)}")
        if (value.shape is None and name not in wanted) or not all(isinstance(dim, int) for dim in dims):
            shape = "of unknown rank" if value.shape is None else f"of shape {value.shape}"
            raise ValueError(
                f"shapes must have all sizes of the input {name} {shape}, such as shapes={{{name!r}: (1, 3, 224, 224)}}"
            )
        result[name] = tuple(dims)
    return result


@dataclass(frozen=True)
class NodeCall(Call):
    """One node, as a rule sees it.

    Attributes:
        node: The node.
        sizes: What the graph computes from shapes, and its short constants.
        opset: The version of the node's operators.
    """

    node: ir.Node
    sizes: Shapes
    opset: int

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the node."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def numbers(self, index: int, name: str = "") -> list[int] | None:
        """The integers of an input; in files of old versions, of an attribute. None if they are not known."""
        if name in self.node.attributes:
            return [int(n) for n in self.node.attributes[name].as_ints()]
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        numbers = None if value is None else self.sizes.numbers.get(value)
        return None if numbers is None else [int(n) for n in numbers.ravel()]

    def size(self, name: str, position: int | None, ids: Ids) -> None:
        """Say that an input or attribute of the node is, at this position, the number of these channels."""
        self.trace.sized[self.module, name, position] = ids

    def holds(self, ids: Ids, attribute: str = "", position: int | None = None) -> None:
        """Rules for PyTorch name the attributes of its modules; those of them that nodes have change along."""
        name = "group" if attribute == "groups" else attribute
        if name and name in self.node.attributes:
            self.size(name, position, ids)

    def padded_axes(self, rank: int) -> list[int]:
        """The axes that a Pad is about."""
        return [axis % rank for axis in self.numbers(3) or range(rank)]

    def pad(self, ids: Ids, axis: int, before: int, after: int) -> Ids:
        """The ids of an axis after adding constant channels, whose number is in the file."""
        axes = self.padded_axes(len(self.shape))
        parts = []
        for position, size in ((axes.index(axis), before), (axes.index(axis) + len(axes), after)):
            added = self.trace.couplings.fresh(size) if size else fixed(0)
            self.size("pads", position, added)
            parts.append(added)
        return np.concatenate([parts[0], ids, parts[1]])


def trace(model: ir.Model, inputs: Mapping[str, Sequence[int]], ignored: Collection[str] = ()) -> Trace:
    """Apply the rules to every node of a model that :func:`read` has prepared.

    Args:
        model: The model.
        inputs: The shape of every input.
        ignored: Names of the nodes whose output channels are kept whole.

    Raises:
        ValueError: shapes do not fit together.
        RuntimeError: a rule failed.
    """
    tracing = Tracing()
    sizes = Shapes(model, inputs)
    norms = normalizing(model)
    values: dict[ir.Value, Value] = {}

    def tensor(value: ir.Value | None) -> Value | None:
        if value is None or value in values:
            return None if value is None else values[value]
        sizes.learn(value)
        shape = sizes.shapes.get(value)
        if shape is None:
            return None
        is_size = value in sizes.numbers and sizes.numbers[value].dtype.kind == "i"
        if value.is_initializer() and not is_size:
            name = str(value.name)
            tracing.tensors[name] = values[value] = Value(tuple(map(tracing.couplings.fresh, shape)), name)
        else:
            values[value] = Value(tuple(map(fixed, shape)))
        return values[value]

    for node in model.graph:
        sizes.visit(node)
        if all(value in sizes.numbers for value in node.outputs):
            continue  # it computes sizes, which are read where they are used
        shapes = tuple(sizes.shapes.get(value, ()) for value in node.outputs)
        domain = "onnx" if node.domain in ("", "ai.onnx") else node.domain
        opset = model.graph.opset_imports.get(node.domain, 1)
        name = str(node.name)
        call = NodeCall(
            f"{domain}::{node.op_type}", name, shapes, tracing, node, sizes, opset, normalizes=name in norms
        )
        operands = list(map(tensor, node.inputs))
        outputs = _outputs(call, operands, tensor)
        tracing.calls.append(record(node, call.op, operands, outputs, tensor))
        for value, result in zip(node.outputs, outputs, strict=True):
            if value in sizes.shapes:
                values[value] = result
            if node.name in ignored:
                for ids in result.axes:
                    call.keep(ids)
    for value in model.graph.outputs:
        for ids in getattr(tensor(value), "axes", ()):
            tracing.couplings.link(ids, fixed(len(ids)), Place("output", ""))
    for split in tracing.couplings.resolve():
        tracing.notes.append(Note(str(split.where), "splits a channel axis, or merges two"))
    returned = tuple(sizes.shapes.get(value, ()) for value in model.graph.outputs)
    return tracing.traced(tracing.walked(returned))


def _outputs(call: NodeCall, inputs: list[Value | None], tensor: Any) -> list[Value]:
    node = call.node
    taken = [tensor(value) for value in captured(node)]
    read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    seen = all(value is None or value in call.sizes.shapes for value in (*node.inputs, *read))
    try:
        if seen and not taken:
            result = find_rule(call.op)(call, *inputs)
        else:
            for ids in (ids for value in values_in((*inputs, *taken)) for ids in value.axes):
                call.keep(ids, "has a body of its own" if taken else "meets tensors of unknown shape")
            result = [call.fixed_output(i) for i in range(len(call.shapes))]
        outputs = [result] if isinstance(result, Value) else list(result)
        if any(value.uses() for value in node.outputs[len(outputs) :]):
            outputs = unknown(call, *inputs)
        outputs += [call.fixed_output(i) for i in range(len(outputs), len(node.outputs))]
        outputs = outputs[: len(node.outputs)]
        if tuple(value.shape for value in outputs) != call.shapes:
            raise ValueError(f"gives {[value.shape for value in outputs]}, the operator {list(call.shapes)}")
    except Exception as error:
        raise RuntimeError(f"the rule for {call.op} failed at node {call.module!r}: {error}") from error
    return outputs
